"""Distillation: teaching = a weighted sum of objectives."""

from prunus.distillation.logits import Distillation, distill, logit_loss

__all__ = ["Distillation", "distill", "logit_loss"]
