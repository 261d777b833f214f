"""Contrastive losses against a loop in float64, closed forms, and the division of the released code."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from prunus.distillation.contrastive import Contrast, Contrastive, Snapshots, contrastive_loss, sets_of


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_loop(z: Tensor, c: Tensor, positive: Tensor, counts: Tensor, t: float, code: bool = False) -> float:
    """One anchor and one candidate at a time, in Python floats."""
    z, c = z.double(), c.double()
    total, anchors, pairs = 0.0, 0, 0
    for b in range(len(z)):

        def score(k: int, b: int = b) -> float:
            return float(z[b] @ c[k] / (z[b].norm() * c[k].norm())) / t

        log_sum = math.log(sum(math.exp(score(k)) for k in range(len(c)) if counts[b, k]))
        own = [score(k) - log_sum for k in range(len(c)) if positive[b, k]]
        if own:
            total -= sum(own) / len(own)
            anchors, pairs = anchors + 1, pairs + len(own)
    return total / pairs if code else total / anchors


def a_batch(
    anchors: int = 6, snapshots: int = 2, others: int = 9, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Anchors, candidates in their order, and the ids of both."""
    z = drawn(seed, anchors, 8)
    ids = torch.randperm(100, generator=torch.Generator().manual_seed(seed))[: anchors + others]
    own, more = ids[:anchors], ids[anchors:]
    candidates = torch.cat([z.clone(), drawn(seed + 1, anchors * snapshots, 8), drawn(seed + 2, others * snapshots, 8)])
    named = torch.cat([own, own.repeat_interleave(snapshots), more.repeat_interleave(snapshots)])
    return z, candidates, own, named


@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
@pytest.mark.parametrize("snapshots", [1, 2, 8])
@pytest.mark.parametrize("by", ["id", "label"])
@pytest.mark.parametrize("normalisation", ["mean", "cap_code"])
def test_the_loss_is_that_of_a_loop(temperature: float, snapshots: int, by: str, normalisation: Any) -> None:
    z, candidates, own, named = a_batch(snapshots=snapshots)
    if by == "label":
        own, named = own % 3, named % 3
    positive, counts = sets_of(own, named)
    got = float(contrastive_loss(z, candidates, positive, counts, temperature, normalisation))
    expected = by_loop(z, candidates, positive, counts, temperature, normalisation == "cap_code")
    assert got == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize(("snapshots", "ratio"), [(1, 1.0), (3, 3.0)])
def test_the_released_code_divides_by_the_positives_once_more(snapshots: int, ratio: float) -> None:
    z, candidates, own, named = a_batch(snapshots=snapshots)
    positive, counts = sets_of(own, named)
    mean, code = (float(contrastive_loss(z, candidates, positive, counts, 0.1, n)) for n in ("mean", "cap_code"))
    assert mean / code == pytest.approx(ratio, rel=1e-6)


def test_uneven_positives_are_divided_by_their_mean_number() -> None:
    z, candidates, own, named = a_batch()
    positive, counts = sets_of(torch.tensor([0, 0, 0, 0, 0, 1]), named % 2)
    mean, code = (float(contrastive_loss(z, candidates, positive, counts, 0.1, n)) for n in ("mean", "cap_code"))
    assert mean / code == pytest.approx(float(positive.sum(1).float().mean()), rel=1e-6)
    assert len(own) == 6


def test_one_hot_distractors_have_a_closed_form() -> None:
    width, t = 10, 0.5
    axes = torch.eye(width)
    z, candidates = axes[:1], torch.cat([axes[:1], axes[:1], axes[1:]])  # itself, its positive, nine at right angles
    positive, counts = sets_of(torch.tensor([7]), torch.tensor([7, 7, *range(20, 29)]))
    expected = -1 / t + math.log(math.exp(1 / t) + 9)
    assert float(contrastive_loss(z, candidates, positive, counts, t)) == pytest.approx(expected, rel=1e-6)


def test_vectors_without_a_direction_lose_the_log_of_the_candidates() -> None:
    _, candidates, own, named = a_batch()
    positive, counts = sets_of(own, named)
    loss = contrastive_loss(torch.zeros(6, 8), candidates, positive, counts)
    assert float(loss) == pytest.approx(math.log(len(named) - 1), rel=1e-6)


def test_the_order_of_candidates_does_not_matter() -> None:
    z, candidates, own, named = a_batch()
    positive, counts = sets_of(own, named)
    order = torch.randperm(len(named), generator=torch.Generator().manual_seed(5))
    first = contrastive_loss(z, candidates, positive, counts)
    second = contrastive_loss(z, candidates[order], positive[:, order], counts[:, order])
    torch.testing.assert_close(first, second)


def test_the_gradient_is_the_papers_and_reaches_no_candidate() -> None:
    t = 0.2
    z, candidates, own, named = a_batch()
    z = torch.nn.functional.normalize(z.double(), dim=1).float().requires_grad_()
    candidates.requires_grad_()
    positive, counts = sets_of(own, named)
    contrastive_loss(z, candidates, positive, counts, t).backward()  # type: ignore[no-untyped-call]
    assert candidates.grad is None
    with torch.no_grad():
        c = torch.nn.functional.normalize(candidates.double(), dim=1)
        wide = z.double()
        p = (wide @ c.T / t).masked_fill(~counts, -torch.inf).softmax(1)
        free = (p @ c - (positive.double() / positive.sum(1, keepdim=True)) @ c) / (t * len(z))
        tangent = free - (free * wide).sum(1, keepdim=True) * wide  # the length of an anchor does not count
    torch.testing.assert_close(z.grad.double(), tangent, rtol=1e-4, atol=1e-7)


def test_ids_are_told_apart_beyond_what_floats_can() -> None:
    own, named = torch.tensor([2**53]), torch.tensor([2**53, 2**53 + 1, 2**53])
    positive, counts = sets_of(own, named)
    assert positive.tolist() == [[False, False, True]]
    assert counts.tolist() == [[False, True, True]]


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_autocast_changes_nothing(kind: torch.dtype) -> None:
    z, candidates, own, named = a_batch()
    positive, counts = sets_of(own, named)
    plain = contrastive_loss(z, candidates, positive, counts, 0.01)
    with torch.autocast("cpu", kind):
        assert torch.equal(contrastive_loss(z, candidates, positive, counts, 0.01), plain)
    half = z.to(kind).requires_grad_()
    loss = contrastive_loss(half, candidates.to(kind), positive, counts, 0.01)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.dtype == torch.float32
    assert half.grad is not None
    assert bool(torch.isfinite(half.grad).all())


def test_anchors_without_positives_say_nothing() -> None:
    z, candidates, own, named = a_batch()
    positive, counts = sets_of(own, named)
    positive[2] = False
    rest = [0, 1, 3, 4, 5]
    some = contrastive_loss(z, candidates, positive, counts)
    assert float(some) == pytest.approx(float(contrastive_loss(z[rest], candidates, positive[rest], counts[rest])))
    nothing = contrastive_loss(z.requires_grad_(), candidates, torch.zeros_like(positive), counts)
    nothing.backward()  # type: ignore[no-untyped-call]
    assert float(nothing.detach()) == 0.0


@pytest.mark.parametrize(
    ("choice", "key"),
    [
        (Contrastive(prc=Contrast(-1.0)), "c.prc.weight"),
        (Contrastive(fic=Contrast(1.0, float("nan"))), "c.fic.supervised"),
        (Contrastive(fic=Contrast(1.0, temperature=0.0)), "c.fic.temperature"),
        (Contrastive(snc=Snapshots(1.0, every=0.0)), "c.snc.every"),
        (Contrastive(snc=Snapshots(1.0, last=0)), "c.snc.last"),
        (Contrastive(negatives=-1), "c.negatives"),
        (Contrastive(representation="pool"), "c.representation"),  # type: ignore[arg-type]
        (Contrastive(normalisation="code"), "c.normalisation"),  # type: ignore[arg-type]
        (Contrastive(bank="disk"), "c.bank"),  # type: ignore[arg-type]
    ],
)
def test_what_is_wrong_is_named(choice: Contrastive, key: str) -> None:
    assert [problem.key for problem in choice.problems("c")] == [key]
    assert Contrastive().problems("c") == []
