"""Banks: each row once, the same draws again."""

import pytest
import torch

from prunus import TrainingError
from prunus.distillation.banks import Bank, draw, filled


def states(seed: int, examples: int = 12, width: int = 6) -> torch.Tensor:
    return torch.randn(examples, width, generator=torch.Generator().manual_seed(seed))


def test_rows_lie_where_their_ids_say_and_have_length_one() -> None:
    given = states(0)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    held = filled(12, ((ids, given[ids]) for ids in order.split(5)))
    expected = given.double() / given.double().norm(dim=1, keepdim=True)
    assert held.dtype == torch.float16
    torch.testing.assert_close(held.double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([0, 1, 2], r"example 3 of the bank must be encoded exactly once, got 0 times"),
        ([0, 1, 2, 3, 1], r"example 1 of the bank must be encoded exactly once, got 2 times"),
        ([], r"example 0 of the bank must be encoded exactly once, got 0 times"),
    ],
)
def test_rows_that_are_missing_or_double_are_told(ids: list[int], said: str) -> None:
    with pytest.raises(TrainingError, match=said):
        filled(4, ((torch.tensor([i]), states(0, 1)) for i in ids))


def test_states_that_are_not_finite_are_told() -> None:
    with pytest.raises(TrainingError, match="states of the bank must be finite"):
        filled(1, [(torch.tensor([0]), torch.full((1, 4), float("nan")))])


def test_draws_are_different_examples_and_the_same_again() -> None:
    first = draw("prc", 3, 7, 1000, 64)
    assert len(set(first.tolist())) == 64
    assert 0 <= int(first.min()) <= int(first.max()) < 1000
    assert torch.equal(first, draw("prc", 3, 7, 1000, 64))
    for other in (("fic", 3, 7), ("prc", 4, 7), ("prc", 3, 8)):
        assert not torch.equal(first, draw(*other, 1000, 64))
    # Over many steps every example comes as often as any other: 200 x 64 of 1,000, mean 12.8, deviation 3.5.
    counts = torch.bincount(torch.cat([draw("prc", 0, step, 1000, 64) for step in range(200)]), minlength=1000)
    assert float(counts.float().mean()) == pytest.approx(12.8)
    assert float(counts.float().std()) == pytest.approx(3.5, abs=0.4)


@pytest.mark.parametrize("count", [10, 11, 4096])
def test_fewer_examples_than_negatives_are_all_taken(count: int) -> None:
    assert draw("prc", 0, 0, 10, count).tolist() == list(range(10))


def test_the_states_of_several_models() -> None:
    bank = Bank(12)
    assert bank.width == 0
    for seed, name in enumerate(("first", "second", "third")):
        bank.add(name, states(seed).half())
    bank.latest(None)
    assert len(bank) == 3
    bank.latest(2)
    ids = torch.tensor([4, 4, 0])
    assert torch.equal(bank.take(ids, "cpu"), torch.stack([states(1), states(2)], 1).half()[ids].float())
    assert bank.names == ["second", "third"]
    assert bank.bytes() == 2 * 12 * 6 * 2
    assert bank.width == 6
