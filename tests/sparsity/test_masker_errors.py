"""What cannot run is refused with key, value, rule and fix; what breaks while training names the tensor."""

import pytest
import torch
from tiny import FIRST, SECOND, Layers, backward, prune, two_layers, zeros
from torch import nn

from prunus.errors import RecipeError, TrainingError
from prunus.sparsity import Allocation, Masker, Pruning, Schedule, Span, Targets

GRADUAL = Schedule("exponential", Span(2), Span(10), Span(2))
AT_START = Schedule("one_shot", Span(0))


@pytest.mark.parametrize("criterion", ["gradient", "snip", "snip_momentum", "movement"])
def test_a_frozen_tensor_is_named(criterion: str) -> None:
    model = two_layers()
    model.get_parameter(SECOND).requires_grad_(False)
    with pytest.raises(TrainingError, match=rf"2\.weight must have a gradient for criterion {criterion}"):
        prune(model, Pruning(0.5, "1x1", criterion, GRADUAL), 12)


def test_magnitude_prunes_a_frozen_tensor() -> None:
    model = two_layers()
    model.get_parameter(SECOND).requires_grad_(False)
    prune(model, Pruning(0.5, "1x1", "magnitude", GRADUAL, Allocation("tensor")), 12).finish(model)
    assert zeros(model) == {FIRST: 1024, SECOND: 1024}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["weight", "gradient"])
@pytest.mark.parametrize("pattern", ["1x1", "4x1", "2:4"])
def test_what_is_not_finite_is_named(pattern: str, where: str, value: float) -> None:
    model = two_layers()
    masker = Masker(model, Pruning(0.5, pattern, "magnitude" if where == "weight" else "gradient", GRADUAL), 12)
    backward(model, 0)
    bad = model.get_parameter(SECOND).data if where == "weight" else model.get_parameter(SECOND).grad
    if bad is not None:
        bad[3, 5] = value
    masker.observe(model)
    masker.step(model)
    masker.observe(model)
    with pytest.raises(TrainingError, match=r"2\.weight must have finite weights and gradients"):
        masker.step(model)  # the first update


def problems(*prunings: Pruning) -> dict[str, tuple[object, str, str]]:
    with pytest.raises(RecipeError) as caught:
        Masker(two_layers(), prunings, 12)
    return {problem.key: (problem.value, problem.rule, problem.fix) for problem in caught.value.problems}


def test_two_rules_for_one_tensor_are_an_error() -> None:
    found = problems(
        Pruning(0.5, "1x1", "magnitude", GRADUAL), Pruning(0.5, "4x1", "magnitude", GRADUAL, targets=Targets(("2",)))
    )
    assert found == {
        "prune[1].targets": (
            SECOND,
            "not match a tensor that prune[0] prunes already",
            "an exclude pattern in one of the two",
        )
    }


def test_a_gradient_criterion_in_one_shot_at_step_0_is_refused() -> None:
    # INC 2.6 prunes such a model to 100 %: all scores are zero and tie.
    found = problems(Pruning(0.5, "1x1", "snip_momentum", AT_START))
    ((key, (value, rule, fix)),) = found.items()
    assert (key, value) == ("prune[0].schedule.start", 0)
    assert "be at least 1 with criterion snip_momentum" in rule
    assert "criterion: magnitude" in fix


def test_more_than_the_pattern_can_give_is_refused_with_what_it_can() -> None:
    found = problems(Pruning(0.8, "2:4", "magnitude", GRADUAL))
    value, rule, fix = found["prune[0].sparsity"]
    assert (value, rule) == (0.8, "be at most 0.5, which is all that pattern 2:4 can give")
    assert fix.startswith("0.5")


@pytest.mark.parametrize(
    ("pruning", "key", "fix"),
    [
        (Pruning(None, "4x1"), "sparsity", "0.8"),
        (Pruning(80, "4x1"), "sparsity", "0.8 (fractions, not per cent)"),
        (Pruning(1.0, "4x1"), "sparsity", "0.8"),
        (Pruning(-0.1, "4x1"), "sparsity", "0.8"),
        (Pruning(0.5, "4y1"), "pattern", "4x1 or 2:4"),
        (Pruning(0.5, "4x1", "magnitud"), "criterion", "magnitude"),
        (Pruning(0.5, "4x1", reduce="avg"), "reduce", "one of max, mean, sum"),  # type: ignore[arg-type]
    ],
)
def test_bad_rules_name_the_fix(pruning: Pruning, key: str, fix: str) -> None:
    assert problems(pruning)[f"prune[0].{key}"][2] == fix


def test_all_problems_of_all_rules_come_at_once() -> None:
    found = problems(
        Pruning(80, "4y1", "magnitud", Schedule("liner"), Allocation("layer")),  # type: ignore[arg-type]
        Pruning(0.5, "1x1", schedule=Schedule("linear", Span(8), Span(7)), targets=Targets(("no such",))),
    )
    assert set(found) == {
        *(f"prune[0].{key}" for key in ("sparsity", "pattern", "criterion", "schedule.kind", "allocation.scope")),
        *(f"prune[1].{key}" for key in ("schedule.start", "targets.include")),
    }


@pytest.mark.parametrize("criterion", ["snip", "snip_momentum", "movement"])
@pytest.mark.parametrize("pattern", ["4x1", "2:4"])
def test_gradients_that_are_all_zero_make_no_masks(criterion: str, pattern: str) -> None:
    """They were set to zero before the masker saw them."""
    model = two_layers()
    masker = Masker(model, Pruning(0.5, pattern, criterion, Schedule("one_shot", Span(1))), 2)
    backward(model, seed=1)
    torch.optim.SGD(model.parameters()).zero_grad(set_to_none=False)
    masker.observe(model)
    with pytest.raises(
        TrainingError, match=r"scores must differ between weights .* all gradients that it saw were zero"
    ):
        masker.step(model)


def test_inputs_that_are_all_zero_make_no_masks() -> None:
    model = Layers(nn.Linear(8, 8))
    masker = Masker(model, Pruning(0.5, "4x1", "wanda", Schedule("one_shot", Span(1))), 2)
    model(torch.zeros(4, 8))
    with pytest.raises(TrainingError, match="all inputs that it saw were zero"):
        masker.step(model)


def test_one_tensor_without_scores_is_warned_of() -> None:
    model = two_layers()
    masker = Masker(model, Pruning(0.5, "4x1", "snip_momentum", Schedule("one_shot", Span(1))), 2)
    backward(model, seed=1)
    model[0].weight.grad.zero_()
    masker.observe(model)
    with pytest.warns(UserWarning, match=r"scores of 1 tensors are all zero \(0.weight, ...\)"):
        masker.step(model)
    masker.finish(model)
