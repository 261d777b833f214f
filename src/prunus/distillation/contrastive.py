"""Contrastive objectives (CAP, Xu et al. 2022, arXiv:2112.07198, equations 1 to 5).

The representation z_b of example b under the model that is trained (the anchor) is drawn to what other models made of the
same example (unsupervised), or of examples with its label (supervised), and away from those of other examples. The other
models are constants:

    PrC    the model as it was before the task: what is task-agnostic
    SnC    the earlier, denser states of this training
    FiC    the fine-tuned dense teacher: what is task-specific

With all vectors of length 1, t the temperature, P(b) the positives of b and V(b) all candidates but b's own present state

    lp(b, c)    = z_b.c / t - log sum over v in V(b) of exp(z_b.v / t)
    mean        - mean over b with P(b) of mean over c in P(b) of lp(b, c)            (supervised: Khosla et al. 2020, 2)
    cap_code    mean / (mean over b of |P(b)|), which is how the authors' code divides: its weights are those of this form

Candidates are the present states of the batch, those of its examples in the bank, and those of ``negatives`` drawn examples.
A bank of T snapshots gives T positives to an example; the mean keeps the weight of SnC, where ``cap_code`` divides it by T.
"""

from dataclasses import dataclass, field
from typing import Final, Literal

import torch
from torch import Tensor
from torch.nn import functional

from prunus.errors import Problem

__all__ = ["Contrast", "Contrastive", "Normalisation", "Representation", "Snapshots", "contrastive_loss", "sets_of"]

Normalisation = Literal["mean", "cap_code"]
Representation = Literal["auto", "pooler", "cls", "mean"]
_NORMALISATIONS: Final = ("mean", "cap_code")
_REPRESENTATIONS: Final = ("auto", "pooler", "cls", "mean")
_BANKS: Final = ("cpu", "device", "mmap")


@dataclass(frozen=True)
class Contrast:
    """One term: how much its two forms count, and at what temperature."""

    weight: float = 0.0
    """Weight of the unsupervised form, whose positives are the same example."""
    supervised: float = 0.0
    """Weight of the supervised form, whose positives have the same label."""
    temperature: float = 0.1
    """Temperature of the similarities."""

    @property
    def counts(self) -> bool:
        """Whether either form has a weight."""
        return bool(self.weight or self.supervised)

    def problems(self, key: str) -> list[Problem]:
        """What is wrong with these numbers."""
        problems = [
            Problem(f"{key}.{name}", value, "be 0 or above", "0.1")
            for name, value in (("weight", self.weight), ("supervised", self.supervised))
            if not value >= 0
        ]
        if not self.temperature > 0:
            problems.append(Problem(f"{key}.temperature", self.temperature, "be above 0", "0.1"))
        return problems


@dataclass(frozen=True)
class Snapshots(Contrast):
    """SnC: the term, and which states are kept."""

    every: float = 0.1
    """The interval of snapshots, as a fraction of the targets' weights: a snapshot is taken each time this many more
    have become zero, just before the next mask update, because the model has recovered by then."""
    last: int | None = None
    """How many of the latest snapshots count. None means all."""

    def problems(self, key: str) -> list[Problem]:
        """As those of a term."""
        problems = super().problems(key)
        if not 0 < self.every < 1:
            problems.append(Problem(f"{key}.every", self.every, "be a share of the weights in (0, 1)", "0.1"))
        if self.last is not None and self.last < 1:
            problems.append(Problem(f"{key}.last", self.last, "be at least 1", "leaving it out, for all"))
        return problems


@dataclass(frozen=True)
class Contrastive:
    """The three terms and what they share; see the module's equations."""

    prc: Contrast = field(default_factory=Contrast)
    snc: Snapshots = field(default_factory=Snapshots)
    fic: Contrast = field(default_factory=Contrast)
    negatives: int = 4096
    """Examples drawn per step, without replacement, from the whole data set; a smaller data set is taken whole."""
    representation: Representation = "auto"
    """What represents an example: `pooler` output, `cls` (last hidden state of the first token) or `mean` (of
    attended tokens). `auto` is `pooler` if the model has one, otherwise `cls`."""
    normalisation: Normalisation = "mean"
    """`mean` takes the mean over positives. `cap_code` then divides once more, by the mean number of positives, as
    the authors' code does."""
    bank: Literal["cpu", "device", "mmap"] = "cpu"
    """Where representations are stored: memory, the accelerator's memory, or a memory-mapped file."""

    @property
    def terms(self) -> dict[str, Contrast]:
        """Those that count, by name."""
        terms = {"prc": self.prc, "snc": self.snc, "fic": self.fic}
        return {name: term for name, term in terms.items() if term.counts}

    def problems(self, key: str) -> list[Problem]:
        """What is wrong with these choices, whatever the model and the data."""
        problems = self.prc.problems(f"{key}.prc") + self.snc.problems(f"{key}.snc") + self.fic.problems(f"{key}.fic")
        if self.negatives < 0:
            problems.append(Problem(f"{key}.negatives", self.negatives, "be 0 or above", "4096"))
        for name, value, known in (
            ("representation", self.representation, _REPRESENTATIONS),
            ("normalisation", self.normalisation, _NORMALISATIONS),
            ("bank", self.bank, _BANKS),
        ):
            if value not in known:
                problems.append(Problem(f"{key}.{name}", value, "be one of " + ", ".join(known), known[0]))
        return problems


def sets_of(anchors: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Which candidates are positives, and which count at all: bool ``[anchors, candidates]`` each.

    ``own`` (int64 ``[anchors]``) are ids or labels of the anchors, ``others`` (int64 ``[candidates]``) those of the candidates,
    of which the first are the anchors' own present states, in their order: an anchor does not count as its own candidate.
    """
    same = anchors[:, None] == others[None, :]
    counts = torch.ones_like(same)
    counts[:, : len(anchors)].fill_diagonal_(False)
    return same & counts, counts


def contrastive_loss(
    anchors: Tensor,
    candidates: Tensor,
    positive: Tensor,
    counts: Tensor,
    temperature: float = 0.1,
    normalisation: Normalisation = "mean",
) -> Tensor:
    """A scalar in float32; 0 where no anchor has a positive. The gradient reaches the anchors alone.

    Args:
        anchors: ``[anchors, width]``, of any length and floating type.
        candidates: ``[candidates, width]``.
        positive: bool ``[anchors, candidates]``; only where ``counts``.
        counts: bool ``[anchors, candidates]``, the candidates of each anchor.
        temperature: t of the module's equations.
        normalisation: ``mean`` or ``cap_code``.

    """
    with torch.autocast(anchors.device.type, enabled=False):
        z = functional.normalize(anchors.float(), dim=1)
        c = functional.normalize(candidates.detach().float(), dim=1)
        scores = (z @ c.T / temperature).masked_fill(~counts, -torch.inf)
        many = positive.sum(1)
        # log sum exp of what counts, less the mean score of the positives; without any, an anchor says nothing.
        has_positives = many > 0
        if not bool(has_positives.any()):
            return z.sum() * 0.0
        scores, wanted, many = scores[has_positives], positive[has_positives], many[has_positives]
        drawn = scores.masked_fill(~wanted, 0.0).sum(1) / many
        loss = (torch.logsumexp(scores, 1) - drawn).mean()
        return loss / many.float().mean() if normalisation == "cap_code" else loss
