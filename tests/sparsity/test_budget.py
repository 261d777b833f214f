"""Budgets against what is counted in a compacted model."""

import pytest
import torch
from test_compact import ARCHITECTURES, inputs_of, model_of
from torch.utils.flop_counter import FlopCounterMode

from prunus import Allocation, Masker, Pruning, RecipeError, Schedule, Span
from prunus.sparsity.budget import Budget, cost_of, interpolated, sparsity_for
from prunus.sparsity.compact import compact
from prunus.sparsity.structures import structures


def inside(model: torch.nn.Module) -> int:
    """Parameters of the layers that write and read structures."""
    names = {name for each in structures(model) for name in (each.reader, *(writer.name for writer in each.writers))}
    return sum(p.numel() for name in names for p in model.get_submodule(name).parameters())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_params_are_those_counted_after_compaction(architecture: str, share: float) -> None:
    model = model_of(architecture)
    whole = inside(model)
    assert cost_of(model, "params", {}) == whole
    gone = {"heads": share, "ffn": share}
    expected = cost_of(model, "params", gone)
    schedule = Schedule("one_shot", Span(0))
    Masker(model, [Pruning(share, k, "magnitude", schedule, Allocation("tensor")) for k in gone], 1)
    compact(model)
    assert inside(model) == expected


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "llama", "modernbert"])
def test_flops_are_those_torch_counts(architecture: str) -> None:
    model = model_of(architecture)
    model.set_attn_implementation("eager")
    inputs = {name: value[:1] for name, value in inputs_of(architecture).items()}
    tokens = inputs["input_ids"].shape[1]

    def counted() -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(**inputs)
        return int(counter.get_total_flops())

    before = counted()
    gone = {"heads": 0.5, "ffn": 0.5}
    expected = cost_of(model, "flops", {}, tokens) - cost_of(model, "flops", gone, tokens)
    schedule = Schedule("one_shot", Span(0))
    Masker(model, [Pruning(0.5, k, "magnitude", schedule, Allocation("tensor")) for k in gone], 1)
    compact(model)
    assert before - counted() == expected


@pytest.mark.parametrize("share", [0.2, 0.5, 0.7, 0.99])
@pytest.mark.parametrize("measure", ["params", "flops"])
def test_the_least_sparsity_within_the_budget(measure: str, share: float) -> None:
    model = model_of("bert")
    counts = [each.units for each in structures(model)]

    def cost(s: float) -> float:
        return cost_of(model, measure, {"heads": s, "ffn": s})  # type: ignore[arg-type]

    found = sparsity_for(cost, share, counts)
    assert cost(found) <= share * cost(0.0)
    every = sorted({k / n for n in set(counts) for k in range(n + 1)})
    assert all(cost(s) > share * cost(0.0) for s in every if s < found)


def test_multiples_are_counted_as_if_every_layer_were_rounded_up() -> None:
    model = model_of("bert")  # 32 neurons in each of two layers
    cost = cost_of(model, "params", {"ffn": 0.4}, multiples={"ffn": 8})
    assert cost == cost_of(model, "params", {"ffn": 0.25})  # 20 are left, rounded up to 24


def test_a_budget_that_gains_nothing_names_no_share_above_one() -> None:
    with pytest.raises(RecipeError, match=r"gone 1\.000 is left.*\s+try a model with larger layers"):
        sparsity_for(lambda _: 1.0, 0.5, [4])


def test_a_budget_out_of_reach_names_the_nearest() -> None:
    model = model_of("bert")
    counts = [each.units for each in structures(model)]
    with pytest.raises(
        RecipeError, match=r"budget must leave room for what cannot go; with 0\.75 .* gone 0\.2\d\d is left"
    ):
        sparsity_for(lambda s: cost_of(model, "params", {"heads": s, "ffn": s}), 0.1, counts, most=0.75)


def test_latency_goes_by_the_table() -> None:
    model = model_of("bert")  # 2 layers, 4 heads, 32 neurons
    times = {"heads": {1: 7.0, 2: 8.0, 4: 10.0}, "ffn": {8: 6.0, 32: 10.0}}
    assert cost_of(model, "latency", {}, times=times) == pytest.approx(10.0)
    # Half of the heads: 2 less; half of the neurons, 16: 10 - (6 + 4 / 3) = 8 / 3 less.
    assert cost_of(model, "latency", {"heads": 0.5, "ffn": 0.5}, times=times) == pytest.approx(10 - 2 - 8 / 3)
    assert interpolated(times["heads"], 3) == pytest.approx(9.0)
    assert interpolated(times["heads"], 0) == 7.0
    assert interpolated(times["heads"], 9) == 10.0


@pytest.mark.parametrize(
    ("budget", "key"),
    [
        (Budget(), "budget"),
        (Budget(params=0.5, flops=0.5), "budget"),
        (Budget(params=0.0), "budget.params"),
        (Budget(latency=50.0), "budget.latency"),
        (Budget(params=0.5, tokens=0), "budget.tokens"),
    ],
)
def test_what_is_wrong_is_named(budget: Budget, key: str) -> None:
    assert [problem.key for problem in budget.problems()] == [key]
    assert Budget(flops=0.5).problems() == []
