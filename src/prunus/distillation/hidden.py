"""Distillation of what is inside: hidden states and attention maps, layer by layer.

With h_s ``[rows, tokens, w_s]`` and h_t ``[rows, tokens, w_t]`` the states of a pair of layers, A the attention maps
``[rows, heads, tokens, tokens]``, m the tokens that are attended to, and P a learned projector (none where w_s = w_t)

    mse         mean over attended tokens and features of (P h_s - h_t)^2     TinyBERT, Jiao et al. 2020, arXiv:1909.10351, 8
    cosine      mean over attended tokens of 1 - cos(P h_s, h_t)              DistilBERT, Sanh et al. 2019, arXiv:1910.01108, 3
    attention   mean over attended pairs of tokens of (A_s - A_t)^2           TinyBERT, 7, on probabilities

Layers count from 0, the embeddings; attention maps from 1. A student with L_s layers and a teacher with L_t are paired

    last        (L_s, L_t)
    uniform     (i, round(i L_t / L_s))       i = 0 .. L_s; for attention maps i = 1 .. L_s, and the teacher's is at least 1
    pairs       as they are given, in the place of these

Models with different numbers of heads are compared by the mean of their maps over heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunus.errors import Problem, TargetError

__all__ = ["Inside", "attention_loss", "hidden_loss", "pairs_of", "projectors"]

Layers = Literal["last", "uniform"]
_LOSSES: Final = ("mse", "cosine")


@dataclass(frozen=True)
class Inside:
    """How much one kind of inside counts, and which layers are compared; see the module's equations."""

    weight: float = 0.0
    """Weight of this term; 0 turns it off."""
    layers: Layers = "last"
    """`last` compares the last layers; `uniform` compares student layer i with teacher layer round(i x teacher layers
    / student layers)."""
    pairs: tuple[tuple[int, ...], ...] = ()
    """`[[student, teacher], ...]`: the layers to compare, in place of `layers`."""
    loss: Literal["mse", "cosine"] = "mse"
    """Hidden states only; attention maps are compared by mean squared error."""

    def problems(self, key: str) -> list[Problem]:
        """What is wrong with it, whatever the models."""
        problems = []
        if not self.weight >= 0:
            problems.append(Problem(f"{key}.weight", self.weight, "be 0 or above", "1.0"))
        if self.loss not in _LOSSES:
            problems.append(Problem(f"{key}.loss", self.loss, "be mse or cosine", "mse"))
        if self.layers not in ("last", "uniform"):
            problems.append(Problem(f"{key}.layers", self.layers, "be last or uniform", "pairs: [[6, 12]]"))
        if any(len(pair) != 2 or min(pair) < 0 for pair in self.pairs):
            problems.append(Problem(f"{key}.pairs", list(self.pairs), "be pairs of layers from 0", "[[6, 12]]"))
        return problems


def pairs_of(
    inside: Inside, student: int, teacher: int, first: int = 0, key: str = "distill.hidden"
) -> list[tuple[int, int]]:
    """Pairs of layers of models with so many; ``first`` is 1 for attention maps.

    Raises ``TargetError`` for layers that are not there.
    """
    if not inside.pairs and inside.layers == "last":
        return [(student, teacher)]
    if not inside.pairs:
        return [(i, max(first, round(i * teacher / student))) for i in range(first, student + 1)]
    given = [(pair[0], pair[1]) for pair in inside.pairs]
    wrong = [(s, t) for s, t in given if not (first <= s <= student and first <= t <= teacher)]
    if wrong:
        rule = f"be in {first}..{student} of the student and {first}..{teacher} of the teacher"
        raise TargetError(Problem(f"{key}.pairs", wrong[0], rule, f"[[{student}, {teacher}]]"))
    return given


def projectors(pairs: Sequence[tuple[int, int]], student: int, teacher: int) -> nn.ModuleDict:
    """A linear map from the student's width to the teacher's for each pair, by name; none where the widths agree.

    They begin as an identity, padded or cut, so that what agrees already is kept.
    """
    linears = nn.ModuleDict()
    if student == teacher:
        return linears
    for s, t in pairs:
        linear = nn.Linear(student, teacher, bias=False)
        nn.init.eye_(linear.weight)
        linears[f"{s}-{t}"] = linear
    return linears


def hidden_loss(student: Tensor, teacher: Tensor, attended: Tensor, loss: Literal["mse", "cosine"] = "mse") -> Tensor:
    """A scalar in float32 for states ``[rows, tokens, width]`` of one width; ``attended`` is bool ``[rows, tokens]``."""
    s, t = student[attended].float(), teacher[attended].float()
    if loss == "mse":
        return functional.mse_loss(s, t)
    return (1 - functional.cosine_similarity(s, t, dim=-1)).mean()


def attention_loss(student: Tensor, teacher: Tensor, attended: Tensor) -> Tensor:
    """A scalar in float32 for maps ``[rows, heads, tokens, tokens]``; ``attended`` is bool ``[rows, tokens]``."""
    s, t = student.float(), teacher.float()
    if s.shape[1] != t.shape[1]:
        s, t = s.mean(1, keepdim=True), t.mean(1, keepdim=True)
    both = (attended[:, None, :, None] & attended[:, None, None, :]).expand_as(s)
    return torch.where(both, (s - t).square(), 0.0).sum() / both.sum()
