"""Distillation of logits (Hinton et al. 2015, arXiv:1503.02531).

With student logits s, teacher logits t, temperature T and the task's own ("hard") loss L:

    total = hard_weight * L + weight * D                   and, of each further teacher, its weight * its D
    D     = T^2 * mean over rows of KL(softmax(t / T) || softmax(s / T))        classes, or positions of an answer
    D     = mean over rows of (s - t)^2                                         regression (one output)

T^2 keeps the size of the gradient independent of T. The mean is over rows (``batchmean``), not over rows x classes as in
Intel Neural Compressor's ``KL`` loss, which is smaller by the number of classes. For extractive answers D is the mean of
that of the start and that of the end, each over the tokens that are attended to. ``hard_weight = 0`` replaces the hard loss
(as INC's SQuAD example does), ``hard_weight = 1`` adds to it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from prunus.distillation.contrastive import Contrastive
from prunus.distillation.hidden import Inside
from prunus.errors import Problem

__all__ = ["Distillation", "Lesson", "distill", "logit_loss"]

_HEADS: Final = (("start_logits", "end_logits"), ("logits",))


@dataclass(frozen=True)
class Lesson:
    """How much one more teacher counts, and in what; see the module's equations."""

    weight: float = 1.0
    temperature: float = 2.0
    hidden: Inside = field(default_factory=Inside)
    attention: Inside = field(default_factory=Inside)

    @property
    def counts(self) -> bool:
        """Whether anything of it has a weight."""
        return bool(self.weight or self.hidden.weight or self.attention.weight)

    def problems(self, key: str) -> list[Problem]:
        """What is wrong with these numbers."""
        found = []
        if not self.weight >= 0:
            found.append(Problem(f"{key}.weight", self.weight, "be 0 or above", "1.0"))
        if not self.temperature > 0:
            found.append(Problem(f"{key}.temperature", self.temperature, "be above 0", "2"))
        found += self.hidden.problems(f"{key}.hidden") + self.attention.problems(f"{key}.attention")
        if not self.counts:
            found.append(Problem(f"{key}.weight", 0, "not be 0 where nothing else of this teacher counts", "1.0"))
        return found


@dataclass(frozen=True)
class Distillation:
    """Weights of the two losses and the temperature; see the module's equations."""

    weight: float = 1.0
    hard_weight: float = 1.0
    temperature: float = 2.0
    hidden: Inside = field(default_factory=Inside)
    """Hidden states of layers (``distillation.hidden``)."""
    attention: Inside = field(default_factory=Inside)
    """Attention maps of layers."""
    reuse: float = 0.0
    """Weight of the features that the teacher's head reads; the student takes that head over (``distillation.reuse``)."""
    others: tuple[Lesson, ...] = ()
    """Further teachers."""
    contrast: Contrastive = field(default_factory=Contrastive)
    """Contrastive terms (``distillation.contrastive``)."""

    def problems(self, key: str = "distill") -> list[Problem]:
        """What is wrong with these numbers."""
        found = [
            Problem(f"{key}.{name}", value, "be 0 or above", "1.0")
            for name, value in (("weight", self.weight), ("hard_weight", self.hard_weight), ("reuse", self.reuse))
            if not value >= 0
        ]
        if not self.temperature > 0:
            found.append(Problem(f"{key}.temperature", self.temperature, "be above 0", "2"))
        found += self.hidden.problems(f"{key}.hidden") + self.attention.problems(f"{key}.attention")
        found += self.contrast.problems(f"{key}.contrast")
        inside = self.hidden.weight + self.attention.weight + self.reuse + len(self.contrast.terms)
        for index, other in enumerate(self.others):
            found += other.problems(f"{key}.others[{index}]")
        if self.weight == self.hard_weight == inside == 0 and not any(other.counts for other in self.others):
            found.append(Problem(f"{key}.weight", 0, "not be 0 together with hard_weight", "1.0"))
        return found


def logit_loss(student: Tensor, teacher: Tensor, temperature: float = 2.0, attended: Tensor | None = None) -> Tensor:
    """D of the module's docstring for logits ``[rows, classes]``, in float32; a scalar.

    ``attended`` (bool ``[rows, classes]``) leaves places out of both distributions. One class means regression.
    """
    student, teacher = student.float(), teacher.float()
    if student.shape[-1] == 1 and attended is None:
        return functional.mse_loss(student, teacher)
    if attended is not None:
        lowest = torch.finfo(torch.float32).min / max(1.0, 1 / temperature)
        student, teacher = student.masked_fill(~attended, lowest), teacher.masked_fill(~attended, lowest)
    log_student = functional.log_softmax(student / temperature, dim=-1)
    log_teacher = functional.log_softmax(teacher / temperature, dim=-1)
    return functional.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2


def distill(
    student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], inputs: Mapping[str, Tensor], temperature: float
) -> Tensor:
    """D over the outputs of two Hugging Face models for the same ``inputs``; the mean where there are several logits."""
    names = next(names for names in _HEADS if names[0] in student)
    attended = inputs["attention_mask"].bool() if names[0] == "start_logits" and "attention_mask" in inputs else None
    losses = [logit_loss(student[name], teacher[name], temperature, attended) for name in names]
    return torch.stack(losses).mean()
