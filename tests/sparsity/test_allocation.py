"""Allocation: the one threshold against a search through all of them, caps, importances, sizes of rows."""

from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import FIRST, SECOND, Layers, adamw, prune, scaled_floor, train, two_layers, zeros
from torch import Tensor, nn

from prunus.errors import RecipeError
from prunus.sparsity import Allocation, Masker, Pruning, Schedule, Span, Targets
from prunus.sparsity.allocation import global_cuts, importance
from prunus.sparsity.selection import kept

AT_START = Schedule("one_shot", Span(0))


def taken(scores: dict[str, Tensor], fraction: float, cap: float = 1.0) -> dict[str, int]:
    """How many units go from each tensor, counted in the masks."""
    cuts = global_cuts(scores, fraction, cap)
    return {name: int((~kept(score, cuts[name])).sum()) for name, score in scores.items()}


def water_filling(scores: dict[str, Tensor], fraction: float, cap: float) -> dict[str, int]:
    """The lowest threshold at which min(cap, units at or below it) add up to the total: tries every score there is."""
    total = sum(score.numel() for score in scores.values())
    limits = {name: scaled_floor(cap, score.numel()) for name, score in scores.items()}
    asked = min(scaled_floor(fraction, total), sum(limits.values()))
    for theta in sorted([-np.inf, *(float(value) for score in scores.values() for value in score)]):
        counts = {name: min(limits[name], int((score.numpy() <= theta).sum())) for name, score in scores.items()}
        if sum(counts.values()) >= asked:
            return counts
    raise AssertionError("no threshold")


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.floats(0.01, 100)), min_size=1, max_size=5),
    st.sampled_from([0.0, 0.1, 0.33, 0.5, 0.8, 0.95, 1.0]),
    st.sampled_from([0.3, 0.5, 0.85, 0.98, 1.0]),
    st.integers(0, 10_000),
)
def test_one_threshold_with_caps(layers: list[tuple[int, float]], fraction: float, cap: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # float64, so that no two scores tie
    draws = [torch.rand(n, generator=generator, dtype=torch.float64) * scale for n, scale in layers]
    scores = {str(index): draw for index, draw in enumerate(draws)}
    assert taken(scores, fraction, cap) == water_filling(scores, fraction, cap)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from([-np.inf, 0.0, 0.0, 1.0, 2.0]), min_size=1, max_size=30), min_size=1, max_size=5),
    st.sampled_from([0.0, 0.1, 0.33, 0.5, 0.8, 0.95, 1.0]),
    st.sampled_from([0.3, 0.5, 0.85, 0.98, 1.0]),
)
def test_ties_neither_add_nor_lose_a_unit_nor_break_a_cap(
    layers: list[list[float]], fraction: float, cap: float
) -> None:
    scores = {str(index): torch.tensor(layer, dtype=torch.float32) for index, layer in enumerate(layers)}
    counts = taken(scores, fraction, cap)
    limits = {name: scaled_floor(cap, score.numel()) for name, score in scores.items()}
    total = sum(score.numel() for score in scores.values())
    assert sum(counts.values()) == min(scaled_floor(fraction, total), sum(limits.values()))
    highest = water_filling(scores, fraction, cap)
    assert all(counts[name] <= min(limits[name], highest[name]) for name in scores)


def test_equal_scores_under_a_cap_are_not_filled_up_to_the_cap() -> None:
    equal = {"a": torch.ones(100), "b": torch.ones(100)}
    assert taken(equal, 0.1, 0.98) == {"a": 20, "b": 0}
    assert taken(equal, 0.8, 0.98) == {"a": 98, "b": 62}


@pytest.mark.parametrize(
    ("cap", "expected"),
    # 100 small scores, 100 large ones, 120 to go
    [(1.0, (100, 20)), (0.98, (98, 22)), (0.85, (85, 35)), (0.6, (60, 60))],
)
def test_what_a_capped_tensor_cannot_give_the_others_give(cap: float, expected: tuple[int, int]) -> None:
    scores = {"small": torch.linspace(0.01, 0.02, 100), "large": torch.linspace(1, 2, 100)}
    assert tuple(taken(scores, 0.6, cap).values()) == expected


@pytest.mark.parametrize("kind", ["plain", "normed", "rms"])
def test_importance(kind: Literal["plain", "normed", "rms"]) -> None:
    score = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    values = score.double().numpy()
    norm = {"plain": 1.0, "normed": np.sqrt((values**2).sum()), "rms": np.sqrt((values**2).mean())}[kind]
    assert importance(score, kind).numpy() == pytest.approx(values / norm, rel=1e-5)
    assert (importance(torch.zeros(3), kind) == 0).all()


def scaled(large: float) -> nn.Sequential:
    """A small and a large layer of the same distribution, the large one times ``large``."""
    torch.manual_seed(0)
    model = Layers(nn.Linear(20, 20, bias=False), nn.Identity(), nn.Linear(60, 60, bias=False))
    with torch.no_grad():
        model.get_parameter(FIRST).normal_()
        model.get_parameter(SECOND).normal_().mul_(large)
    return model


@pytest.mark.parametrize(
    ("kind", "large", "small_share", "large_share"),
    [
        ("plain", 1, (0.4, 0.6), (0.4, 0.6)),
        ("plain", 100, (0.98, 0.98), (0.42, 0.46)),  # the layer of small weights goes up to its cap
        ("rms", 100, (0.4, 0.6), (0.4, 0.6)),  # scale does not matter
        ("normed", 100, (0.0, 0.25), (0.52, 0.56)),  # but size does: |w| / norm is small where there are many
    ],
)
def test_importance_decides_the_shares(
    kind: Literal["plain", "normed", "rms"],
    large: float,
    small_share: tuple[float, float],
    large_share: tuple[float, float],
) -> None:
    model = scaled(large)
    masker = Masker(model, Pruning(0.5, "1x1", "magnitude", AT_START, Allocation("global", kind)), 1)
    first, second = masker.finish(model)
    assert small_share[0] <= first.sparsity <= small_share[1]
    assert large_share[0] <= second.sparsity <= large_share[1]
    assert first.zeros + second.zeros == 2000


def test_normed_and_plain_agree_with_their_thresholds() -> None:
    # NNCF's rule, written out: one threshold for |w| / norm of all tensors.
    model = scaled(3)
    before = {name: model.get_parameter(name).detach().double().numpy().copy() for name in (FIRST, SECOND)}
    Masker(model, Pruning(0.5, "1x1", "magnitude", AT_START, Allocation("global", "normed", 1.0)), 1)
    normed = {name: np.abs(value) / np.linalg.norm(value) for name, value in before.items()}
    theta = np.sort(np.concatenate([value.ravel() for value in normed.values()]))[1999]
    for name, value in normed.items():
        assert ((model.get_parameter(name).detach().numpy() == 0) == (value <= theta)).all()


def test_per_tensor() -> None:
    model = two_layers()
    allocation = Allocation("tensor", per_tensor={r"^0\.": 0.25, r"weight": 0.75})  # the first that matches counts
    prune(model, Pruning(0.9, "4x1", "magnitude", Schedule("linear", Span(0), Span(4), Span(2)), allocation), 4)
    assert zeros(model) == {FIRST: 512, SECOND: 1536}


def test_per_tensor_falls_back_to_the_rule_and_counts_in_what_is_due() -> None:
    model = two_layers()
    allocation = Allocation("tensor", per_tensor={r"^0\.": 0.0})
    masker = prune(model, Pruning(0.5, "1x1", "magnitude", AT_START, allocation), 1)
    assert zeros(model) == {FIRST: 0, SECOND: 1024}
    assert masker.due() == 0.25


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        # rows of FIRST have 8 weights, of SECOND 32; columns 32 and 8. 512 weights, 30 % is 153.6.
        ("rows", {FIRST: 19 * 8, SECOND: 0}),
        ("columns", {FIRST: 4 * 32, SECOND: 0}),
    ],
)
def test_rows_and_columns_count_by_their_weights(pattern: str, expected: dict[str, int]) -> None:
    model = two_layers(width=8, hidden=32)
    with torch.no_grad():
        model.get_parameter(SECOND).mul_(100)  # all of FIRST goes first
    masker = Masker(model, Pruning(0.3, pattern, "magnitude", AT_START), 1)
    masker.finish(model)
    assert zeros(model) == expected


def test_a_cap_on_rows_hands_over_to_the_other_tensor() -> None:
    model = two_layers(width=8, hidden=32)
    with torch.no_grad():
        model.get_parameter(SECOND).mul_(100)
    allocation = Allocation(max_per_tensor=0.4)
    Masker(model, Pruning(0.3, "rows", "magnitude", AT_START, allocation), 1)
    assert zeros(model) == {FIRST: 12 * 8, SECOND: 32}  # 12 of 32 rows; of 153 - 96 = 57 weights one row of 32


def starved(seed: int = 0) -> nn.Sequential:
    """A model whose first layer gets gradients a million times below the second's."""
    torch.manual_seed(seed)
    model = Layers(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 32))
    model.get_parameter(FIRST).register_hook(lambda grad: grad * 1e-6)  # type: ignore[no-untyped-call]
    return model


@pytest.mark.parametrize("criterion", ["gradient", "snip", "snip_momentum"])
def test_a_gradient_criterion_empties_a_layer_only_without_a_cap(criterion: str) -> None:
    schedule = Schedule("exponential", Span(1), Span(6), Span(1))
    for cap, first in ((0.98, 2007), (1.0, 2048)):
        model = starved()
        masker = Masker(model, Pruning(0.8, "1x1", criterion, schedule, Allocation(max_per_tensor=cap)), 6)
        train(model, masker, adamw(model, 1e-3), 6)
        masker.finish(model)
        assert zeros(model) == {FIRST: first, SECOND: scaled_floor(0.8, 4096) - first}, cap


@pytest.mark.parametrize(
    ("pattern", "sparsity", "cap", "problem"),
    [
        ("1x1", 0.8, 0.7, "be at least the sparsity 0.8"),
        ("2:4", None, 0.3, "be at least the sparsity 0.5"),
        ("32x32", 0.6, 0.65, "leave room for the sparsity 0.6"),  # 0.65 of 3 units is 1 in each; 0.6 of all 6 is 3
    ],
)
def test_a_cap_that_rules_the_sparsity_out_is_an_error(
    pattern: str, sparsity: float | None, cap: float, problem: str
) -> None:
    model = Layers(nn.Linear(32, 96), nn.Tanh(), nn.Linear(96, 32))
    with pytest.raises(RecipeError) as caught:
        Masker(model, Pruning(sparsity, pattern, "magnitude", AT_START, Allocation(max_per_tensor=cap)), 1)
    (found,) = caught.value.problems
    assert (found.key, found.value) == ("prune[0].allocation.max_per_tensor", cap)
    assert problem in found.rule
    assert found.fix


@pytest.mark.parametrize(
    ("allocation", "keys"),
    [
        (Allocation("layer"), ["scope"]),  # type: ignore[arg-type]
        (Allocation("global", "l2"), ["importance"]),  # type: ignore[arg-type]
        (Allocation(max_per_tensor=0), ["max_per_tensor"]),
        (Allocation(max_per_tensor=1.5), ["max_per_tensor"]),
        (Allocation("global", per_tensor={"a": 0.5}), ["per_tensor"]),
        (Allocation("tensor", per_tensor={"(": 0.5}), ["per_tensor"]),
        (Allocation("tensor", per_tensor={"a": 1.0, "b": -0.1}), ["per_tensor[a]", "per_tensor[b]"]),
        (Allocation("x", "y", 2.0), ["scope", "importance", "max_per_tensor"]),  # type: ignore[arg-type]
        (Allocation("tensor", per_tensor={"a": 0.999}), []),
    ],
)
def test_bad_allocations(allocation: Allocation, keys: list[str]) -> None:
    found = allocation.problems(0.5)
    assert [problem.key for problem in found] == [f"allocation.{key}" for key in keys]
    assert all(problem.rule and problem.fix for problem in found)


def test_a_per_tensor_value_beyond_the_pattern_is_an_error() -> None:
    allocation = Allocation("tensor", per_tensor={"2": 0.6})
    with pytest.raises(RecipeError, match=r"per_tensor must be at most 0\.5 for pattern 2:4 \(2\.weight\), got 0\.6"):
        Masker(two_layers(), Pruning(0.5, "2:4", "magnitude", AT_START, allocation, Targets()), 1)


def test_a_per_tensor_pattern_that_matches_nothing_is_refused() -> None:
    model = Layers(torch.nn.Linear(8, 8))
    pruning = Pruning(0.5, "1x1", "magnitude", allocation=Allocation("tensor", per_tensor={"attention": 0.9}))
    with pytest.raises(RecipeError, match=r"allocation.per_tensor must match at least one tensor.*'attention'"):
        Masker(model, pruning, total_steps=10)
