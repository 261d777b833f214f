"""One teacher's insides beside a student's: which layers, through which projectors, at what loss.

The projectors are parameters of this module: they belong into the optimizer, and not into the student that is saved.
"""

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from prunus.distillation.hidden import Inside, attention_loss, hidden_loss, pairs_of, projectors
from prunus.distillation.reuse import Reuse

__all__ = ["Inner"]


def _width(model: Any) -> int:
    """Features of the residual stream: of a narrowed model, those that are left."""
    left = getattr(getattr(model.config, "quantization_config", None), "hidden", None)
    return len(left) if left is not None else int(model.config.get_text_config().hidden_size)


@final
class Inner(nn.Module):
    """Compares hidden states, attention maps and the features of the heads of two Hugging Face models.

    Raises ``TargetError`` for layers that are not there, and for a head that cannot be reused.
    """

    def __init__(self, hidden: Inside, attention: Inside, student: Any, teacher: Any, reuse: bool = False) -> None:
        super().__init__()
        self._loss = hidden.loss
        s, t = student.config.get_text_config(), teacher.config.get_text_config()
        layers = s.num_hidden_layers, t.num_hidden_layers
        self.hidden = pairs_of(hidden, *layers) if hidden.weight else []
        self.attention = pairs_of(attention, *layers, first=1, key="distill.attention") if attention.weight else []
        self.projectors = projectors(self.hidden, _width(student), _width(teacher))
        self.reuse = Reuse(student, teacher) if reuse else None

    @property
    def asks(self) -> dict[str, bool]:
        """What both models have to be called with."""
        return {
            name: True
            for name, wanted in (
                ("output_hidden_states", self.hidden or self.reuse is not None),
                ("output_attentions", self.attention),
            )
            if wanted
        }

    def forward(
        self, student: Mapping[str, Any], teacher: Mapping[str, Any], inputs: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """``hidden_loss``, ``attention_loss`` (each a mean over its pairs) and ``feature_loss``, without their weights."""
        attended = inputs["attention_mask"].bool()
        found = {}
        if self.hidden:
            losses = []
            for s, t in self.hidden:
                state = student["hidden_states"][s]
                if f"{s}-{t}" in self.projectors:
                    state = self.projectors[f"{s}-{t}"](state)
                losses.append(hidden_loss(state, teacher["hidden_states"][t], attended, self._loss))
            found["hidden_loss"] = torch.stack(losses).mean()
        if self.attention:
            maps = [(student["attentions"][s - 1], teacher["attentions"][t - 1]) for s, t in self.attention]
            found["attention_loss"] = torch.stack([attention_loss(s, t, attended) for s, t in maps]).mean()
        if self.reuse is not None:
            found["feature_loss"] = self.reuse(student["hidden_states"][-1], teacher["hidden_states"][-1], attended)
        return found
