"""One teacher's insides beside a student's: which layers, through which projectors, at what loss.

The projectors are parameters of this module: they belong into the optimizer, and not into the student that is saved. Of an
encoder-decoder, encoder is compared with encoder and decoder with decoder (``stacks``).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from prunus.distillation.hidden import Inside, attention_loss, hidden_loss, pairs_of, projectors
from prunus.distillation.reuse import Reuse
from prunus.distillation.stacks import Stack, attended_of, every, layers_of, stacks_of
from prunus.errors import Problem, TargetError

__all__ = ["FeatureDistiller"]


@dataclass(frozen=True)
class _Compared:
    """Two stacks, and which of their layers are compared."""

    student: Stack
    teacher: Stack
    hidden: list[tuple[int, int]]
    attention: list[tuple[int, int]]

    def projector(self, pair: tuple[int, int]) -> str:
        """The name of the pair's projector."""
        return f"{self.student.prefix}{pair[0]}-{pair[1]}"


@dataclass(frozen=True)
class _Batch:
    """Outputs of both models by name, and what the student was given."""

    student: Mapping[str, Any]
    teacher: Mapping[str, Any]
    inputs: Mapping[str, Tensor]


@final
class FeatureDistiller(nn.Module):
    """Compares hidden states, attention maps and the features of the heads of two Hugging Face models.

    ``key`` is what messages call the choices. Raises ``TargetError`` for layers that are not there, for models of different
    kinds, and for a head that cannot be reused; ``forward`` raises it for outputs that cannot be compared.
    """

    def __init__(
        self,
        hidden: Inside,
        attention: Inside,
        student: Any,
        teacher: Any,
        reuse: bool = False,
        key: str = "distill",
    ) -> None:
        super().__init__()
        self._loss, self._key = hidden.loss, key
        self._compared = (
            _compared(hidden, attention, student, teacher, key) if hidden.weight or attention.weight else []
        )
        self.projectors = nn.ModuleDict()
        for each in self._compared:
            made = projectors(each.hidden, each.student.width, each.teacher.width)
            self.projectors.update({each.student.prefix + name: linear for name, linear in made.items()})
        self.reuse = Reuse(student, teacher) if reuse else None

    @property
    def asks(self) -> dict[str, bool]:
        """What both models have to be called with."""
        hidden, attention = (any(getattr(each, kind) for each in self._compared) for kind in ("hidden", "attention"))
        return {
            name: True
            for name, wanted in (
                ("output_hidden_states", hidden or self.reuse is not None),
                ("output_attentions", attention),
            )
            if wanted
        }

    def forward(
        self, student: Mapping[str, Any], teacher: Mapping[str, Any], inputs: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """``hidden_loss``, ``attention_loss`` (each a mean over its pairs) and ``feature_loss``, without their weights."""
        losses, batch = {}, _Batch(student, teacher, inputs)
        hidden = [self._hidden(each, pair, batch) for each in self._compared for pair in each.hidden]
        if hidden:
            losses["hidden_loss"] = torch.stack(hidden).mean()
        maps = [self._maps(each, pair, batch) for each in self._compared for pair in each.attention]
        if maps:
            losses["attention_loss"] = torch.stack(maps).mean()
        if self.reuse is not None:
            s, t = student["hidden_states"][-1], teacher["hidden_states"][-1]
            losses["feature_loss"] = self.reuse(s, t, self._attended("", inputs, s, "reuse"))
        return losses

    def _hidden(self, each: _Compared, pair: tuple[int, int], batch: _Batch) -> Tensor:
        key, name = f"{self._key}.hidden", f"{each.student.prefix}hidden_states"
        s = layers_of(batch.student, name, each.student.layers + 1, key, "student")[pair[0]]
        t = layers_of(batch.teacher, name, each.teacher.layers + 1, key, "teacher")[pair[1]]
        for states, width, owner in ((s, each.student.width, "student"), (t, each.teacher.width, "teacher")):
            if states.dim() != 3 or states.shape[-1] != width:
                rule = f"compare layers of the shape [rows, tokens, {width}] that the {owner}'s configuration gives"
                raise TargetError(Problem(key, list(states.shape), rule, "other layers, or the logits alone"))
        if s.shape[:2] != t.shape[:2]:
            _told_apart(key, s, t)
        attended = self._attended(each.student.prefix, batch.inputs, s, "hidden")
        if each.projector(pair) in self.projectors:
            linear: Any = self.projectors[each.projector(pair)]
            s = linear(s.to(linear.weight.dtype))
        return hidden_loss(s, t, attended, self._loss)

    def _maps(self, each: _Compared, pair: tuple[int, int], batch: _Batch) -> Tensor:
        key, name = f"{self._key}.attention", f"{each.student.prefix}attentions"
        s = layers_of(batch.student, name, each.student.layers, key, "student")[pair[0] - 1]
        t = layers_of(batch.teacher, name, each.teacher.layers, key, "teacher")[pair[1] - 1]
        for maps in (s, t):
            if maps.dim() != 4 or maps.shape[-1] != maps.shape[-2]:
                rule = "compare maps of the shape [rows, heads, tokens, tokens]"
                raise TargetError(Problem(key, list(maps.shape), rule, f"{self._key}.hidden, or the logits alone"))
        if s.shape[0] != t.shape[0] or s.shape[2:] != t.shape[2:]:
            _told_apart(key, s, t)
        return attention_loss(s, t, self._attended(each.student.prefix, batch.inputs, s[:, 0], "attention"))

    def _attended(self, prefix: str, inputs: Mapping[str, Tensor], states: Tensor, kind: str) -> Tensor:
        """Bool ``[rows, tokens]`` for ``states`` ``[rows, tokens, ...]``."""
        rows, tokens = states.shape[:2]
        mask = attended_of(inputs, prefix, rows, tokens, f"{self._key}.{kind}")
        return every(rows, tokens, states.device) if mask is None else mask.to(states.device)


def _compared(hidden: Inside, attention: Inside, student: Any, teacher: Any, key: str) -> list[_Compared]:
    """The stacks of both models, in pairs."""
    kinds = stacks_of(student, f"the model with {key}.hidden"), stacks_of(teacher, f"the teacher with {key}.hidden")
    given = "hidden" if hidden.weight else "attention"
    if len(kinds[0]) != len(kinds[1]):
        rule = f"compare two encoders, or two encoder-decoders; the student is a {type(student).__name__}"
        raise TargetError(Problem(f"{key}.{given}", type(teacher).__name__, rule, "distilling the logits alone"))
    for name, inside in (("hidden", hidden), ("attention", attention)):
        if inside.weight and inside.pairs and len(kinds[0]) > 1:
            rule = "be left out for an encoder-decoder, whose layers are those of the encoder and those of the decoder"
            raise TargetError(Problem(f"{key}.{name}.pairs", list(inside.pairs), rule, "layers: uniform"))
    return [
        _Compared(
            s,
            t,
            pairs_of(hidden, s.layers, t.layers, key=f"{key}.hidden") if hidden.weight else [],
            pairs_of(attention, s.layers, t.layers, first=1, key=f"{key}.attention") if attention.weight else [],
        )
        for s, t in zip(*kinds, strict=True)
    ]


def _told_apart(key: str, student: Tensor, teacher: Tensor) -> None:
    """Raises ``TargetError`` for layers of models that see other tokens."""
    rule = (
        f"compare models that make the same rows and tokens of a batch: the student's layers are {list(student.shape)}"
    )
    fix = "a teacher with the same tokenizer, or the same image and patch sizes"
    raise TargetError(Problem(key, f"a teacher with {list(teacher.shape)}", rule, fix))
