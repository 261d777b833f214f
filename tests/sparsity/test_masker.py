"""The masker in training: zeros stay, weights regrow, zeros are locked, runs resume."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tiny import FIRST, SECOND, Layers, adamw, backward, prune, same, train, two_layers, weights, zeros
from torch import Tensor, nn

from prunus.errors import CheckpointError, TargetError, TrainingError
from prunus.sparsity import Allocation, Masker, Pruning, Schedule, Span, Targets
from prunus.sparsity.criteria import CRITERIA

GRADUAL = Schedule("exponential", Span(2), Span(10), Span(2))
AT_START = Schedule("one_shot", Span(0))


# Zeros under AdamW


@pytest.mark.parametrize(("mask_gradients_only", "left"), [(True, 0), (False, 3276)])
def test_masking_gradients_alone_loses_every_zero(mask_gradients_only: bool, left: int) -> None:
    # Ten steps dense fill AdamW's momentum; then 80 % is pruned at once and training goes on.
    model = two_layers()
    optimizer = adamw(model)
    for step in range(10):
        backward(model, step)
        optimizer.step()
    masker = Masker(model, Pruning(0.8, "1x1", "magnitude", AT_START), 10)
    assert sum(zeros(model).values()) == 3276
    for step in range(10):
        backward(model, 10 + step)
        for name, mask in masker.masks.items():
            grad = model.get_parameter(name).grad
            if mask_gradients_only and grad is not None:
                grad.mul_(mask)
        optimizer.step()
        if not mask_gradients_only:
            masker.step(model)
    assert sum(zeros(model).values()) == left


def by_pattern(pattern: str) -> nn.Sequential:
    model = two_layers()
    Masker(model, Pruning(0.5, pattern, "magnitude", AT_START), 1).finish(model)
    return model


def with_isolated_zeros() -> nn.Sequential:
    """Zeros of no pattern, and a block (1, -1, 2, -2) whose signed sum is zero and which has to stay."""
    model = two_layers()
    with torch.no_grad():
        weight = model.get_parameter(FIRST)
        weight[5, 7] = weight[60, 31] = 0
        weight[0, 0] = -0.0
        weight[8:12, 3] = torch.tensor([1.0, -1.0, 2.0, -2.0])
    return model


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (lambda: by_pattern("1x1"), 2048),
        (lambda: by_pattern("4x1"), 2048),
        (lambda: by_pattern("2:4"), 2048),
        (with_isolated_zeros, 3),
    ],
    ids=["1x1", "4x1", "2:4", "isolated"],
)
def test_lock_keeps_every_zero_that_fine_tuning_loses(make: Callable[[], nn.Sequential], count: int) -> None:
    plain = make()
    optimizer = adamw(plain)
    for step in range(2):
        backward(plain, step)
        optimizer.step()
    assert sum(zeros(plain).values()) == 0  # the control

    model = make()
    before = {name: weight == 0 for name, weight in weights(model).items()}
    masker = Masker.lock(model)
    train(model, masker, adamw(model), 20)
    masker.finish(model)
    after = {name: weight == 0 for name, weight in weights(model).items()}
    assert same(before, after)
    assert sum(zeros(model).values()) == count
    assert masker.finished


def test_lock_takes_the_targets_alone() -> None:
    model = by_pattern("1x1")
    second = zeros(model)[SECOND]
    masker = Masker.lock(model, Targets(include=(r"^2\.",)))
    train(model, masker, adamw(model), 2)
    assert zeros(model) == {FIRST: 0, SECOND: second}


def test_lock_of_a_dense_model_is_an_error() -> None:
    with pytest.raises(TargetError, match="lock must hold zero weights"):
        Masker.lock(two_layers())


# Regrowth


def reference_run(steps: int, events: dict[int, int], revive: bool) -> tuple[np.ndarray, np.ndarray, int]:
    """Magnitude pruning of one matrix by plain descent on recorded gradients, float64: weight, mask, number of regrown weights.

    With regrowth, the dense weights take every update; without, they are masked after each.
    """
    weight, grads = recorded(steps)
    dense, mask, regrown = weight.astype(np.float64), np.ones(weight.shape, dtype=bool), 0
    for step in range(steps):
        dense = dense - 0.4 * grads[step]
        if not revive:
            dense = dense * mask
        if step + 1 in events:
            theta = np.sort(np.abs(dense), axis=None)[events[step + 1] - 1]
            fresh = np.abs(dense) > theta
            if revive:
                regrown += int((fresh & ~mask).sum())
                mask = fresh
            else:
                score = np.where(mask, np.abs(dense), -1)
                mask = score > np.sort(score, axis=None)[events[step + 1] - 1]
    return dense * mask, mask, regrown


def recorded(steps: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(11)
    return rng.normal(size=(24, 24)).astype(np.float32), rng.normal(size=(steps, 24, 24)).astype(np.float32)


@pytest.mark.parametrize("revive", [True, False])
def test_dense_weights_follow_their_equation(revive: bool) -> None:
    steps, start, final = 12, 2, 0.6
    schedule = Schedule("linear", Span(start), Span(10), Span(2))
    first, grads = recorded(steps)
    model = Layers(nn.Linear(24, 24, bias=False))
    weight = model.get_parameter("0.weight")
    with torch.no_grad():
        weight.copy_(torch.tensor(first))
    masker = Masker(model, Pruning(final, "1x1", "magnitude", schedule, Allocation("tensor"), revive=revive), steps)
    for step in range(steps):
        with torch.no_grad():
            weight.sub_(torch.tensor(grads[step]), alpha=0.4)
        masker.step(model)
    masker.finish(model)

    events = {start + 2 * j: int(final * j / 4 * 576 + 1e-9) for j in range(1, 5)}
    expected, mask, regrown = reference_run(steps, events, revive)
    assert (masker.masks["0.weight"].numpy() == mask).all()
    assert weight.detach().numpy() == pytest.approx(expected, abs=1e-5)
    assert (regrown > 20) is revive  # the data of this test does regrow weights
    assert int((weight == 0).sum()) == 345  # floor(0.6 * 576)


@pytest.mark.parametrize(
    ("criterion", "pattern"),
    [(c, p) for c in CRITERIA for p in ("1x1", "4x1", "2:4") if p != "2:4" or not CRITERIA[c].of_units],
)
def test_in_place_masks_only_grow(criterion: str, pattern: str) -> None:
    model = two_layers()
    masker = Masker(model, Pruning(0.5, pattern, criterion, GRADUAL), 12)
    optimizer = adamw(model, 0.05)
    before: dict[str, Tensor] = {}
    for step in range(12):
        train(model, masker, optimizer, 1, first=step)
        assert not any((masker.masks[name] & ~mask).any() for name, mask in before.items())
        before = masker.masks
    assert sum(zeros(model).values()) == 2048


@pytest.mark.parametrize("criterion", ["magnitude", "gradient", "snip", "snip_momentum", "movement"])
def test_masks_with_regrowth_do_not_only_grow(criterion: str) -> None:
    model = two_layers()
    masker = Masker(model, Pruning(0.5, "1x1", criterion, GRADUAL, revive=True), 12)
    optimizer, regrown, before = adamw(model, 0.05), 0, dict[str, Tensor]()
    for step in range(12):
        train(model, masker, optimizer, 1, first=step)
        regrown += sum(int((masker.masks[name] & ~mask).sum()) for name, mask in before.items())
        before = masker.masks
    assert regrown > 0
    assert sum(zeros(model).values()) == 2048


def test_apply_twice_changes_nothing() -> None:
    model = two_layers()
    masker = prune(model, Pruning(0.5, "4x1", "magnitude", GRADUAL, revive=True), 12)
    before = weights(model)
    masker.apply(model)
    masker.apply(model)
    assert same(before, weights(model))


# Events


def test_every_event_has_its_zeros_and_finish_counts_them() -> None:
    model = two_layers()
    masker = Masker(model, Pruning(0.8, "1x1", "snip_momentum", Schedule("linear", Span(2), Span(10), Span(2))), 12)
    optimizer, seen, due = adamw(model), list[int](), list[float]()
    for step in range(12):
        train(model, masker, optimizer, 1, first=step)
        seen.append(sum(zeros(model).values()))
        due.append(masker.due())
        assert masker.finished is (step + 1 >= 10)
    # 0.2 of 4096 is 819.2, and so on
    assert seen == [0, 0, 0, 819, 819, 1638, 1638, 2457, 2457, 3276, 3276, 3276]
    assert due == pytest.approx([0, 0, 0, 0.2, 0.2, 0.4, 0.4, 0.6, 0.6, 0.8, 0.8, 0.8])
    assert sum(fact.zeros for fact in masker.finish(model)) == 3276 == sum(masker.planned.values())


def test_step_says_when_masks_were_updated() -> None:
    model = two_layers()
    masker = Masker(model, Pruning(0.5, "1x1", "magnitude", Schedule("linear", Span(1), Span(5), Span(2))), 6)
    assert [masker.step(model) for _ in range(6)] == [True, False, True, False, True, False]


def test_a_growing_schedule_may_start_at_step_0_with_a_gradient_criterion() -> None:
    # Its first event prunes nothing, so it needs no scores.
    model = two_layers()
    masker = prune(model, Pruning(0.5, "4x1", "snip_momentum", Schedule("linear", Span(0), Span(4), Span(2))), 5)
    masker.finish(model)
    assert sum(zeros(model).values()) == 2048


def test_finish_leaves_no_negative_zero() -> None:
    model = two_layers()
    prune(model, Pruning(0.5, "1x1", "magnitude", GRADUAL), 12).finish(model)
    for weight in weights(model).values():
        assert not torch.signbit(weight[weight == 0]).any()


def test_finish_before_the_last_update_is_an_error() -> None:
    model = two_layers()
    masker = Masker(model, Pruning(0.5, "1x1", "magnitude", GRADUAL), 12)
    train(model, masker, adamw(model), 9)
    with pytest.raises(TrainingError, match="steps must reach the last mask update, step 10, got 9"):
        masker.finish(model)


def test_two_rules_each_have_their_way() -> None:
    model = two_layers()
    rules = [
        Pruning(0.75, "4x1", "magnitude", AT_START, targets=Targets(include=(r"^0\.",))),
        Pruning(None, "2:4", "snip", GRADUAL, targets=Targets(include=(r"^2\.",))),
    ]
    facts = prune(model, rules, 12).finish(model)
    assert [(fact.pattern, fact.zeros, fact.zero_units) for fact in facts] == [("4x1", 1536, 384), ("2:4", 1024, 512)]


# Names, not parameters


@pytest.mark.parametrize("revive", [False, True])
@pytest.mark.parametrize("change", ["parameter", "dtype"])
def test_parameters_that_are_replaced_are_found_again(change: str, revive: bool) -> None:
    model = two_layers()
    masker = Masker(model, Pruning(0.75, "4x1", "snip_momentum", GRADUAL, revive=revive), 12)
    train(model, masker, adamw(model), 5)
    if change == "parameter":
        for name in (FIRST, SECOND):
            module = model.get_submodule(name.removesuffix(".weight"))
            setattr(module, "weight", nn.Parameter(model.get_parameter(name).detach().clone()))  # noqa: B010
    else:
        model.to(torch.float64)
    optimizer = adamw(model)
    for step in range(5, 12):
        inputs = torch.randn(
            8, 32, generator=torch.Generator().manual_seed(step), dtype=model.get_parameter(FIRST).dtype
        )
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        masker.observe(model)
        optimizer.step()
        masker.step(model)
    facts = masker.finish(model)
    assert sum(fact.zeros for fact in facts) == 3072 == sum(4 * fact.zero_units for fact in facts)


def test_the_masker_holds_no_parameter() -> None:
    model = two_layers()
    masker = prune(model, Pruning(0.5, "1x1", "magnitude", GRADUAL, revive=True), 12)
    held = {tensor.data_ptr() for tensor in masker.state_dict().values()}
    assert not held & {parameter.data_ptr() for parameter in model.parameters()}


# Resuming


@pytest.mark.parametrize("revive", [False, True])
@pytest.mark.parametrize("stop", [1, 4, 7, 10, 12])
@pytest.mark.parametrize(
    ("criterion", "pattern"),
    [
        ("snip_momentum", "4x1"),
        ("movement", "2:4"),
        ("magnitude", "1x1"),
        ("random", "1x4"),
        ("gradient", "rows"),
        ("platon", "4x1"),
    ],
)
def test_a_run_cut_in_two_ends_bit_for_bit_as_one(criterion: str, pattern: str, stop: int, revive: bool) -> None:
    pruning = Pruning(0.5, pattern, criterion, GRADUAL, revive=revive)
    whole = two_layers()
    masker = prune(whole, pruning, 14, seed=5)

    model = two_layers()
    half = Masker(model, pruning, 14, seed=5)
    optimizer = adamw(model)
    train(model, half, optimizer, stop)
    state = half.state_dict()
    saved = {name: value.clone() for name, value in state.items()}
    rest = Masker(model, pruning, 14, state=state)  # the seed comes with the state
    train(model, rest, optimizer, 14 - stop, first=stop)

    assert same(masker.masks, rest.masks)
    assert same(dict(whole.named_parameters()), dict(model.named_parameters()))
    assert same(masker.state_dict(), rest.state_dict())
    assert masker.finish(whole) == rest.finish(model)
    assert same(state, saved)  # going on has not written into what was loaded


@pytest.mark.parametrize(
    ("state", "rule"),
    [
        ({"mask.9.weight": torch.ones(64, 32)}, "name only tensors that this recipe prunes"),
        ({"mask.0.weight": torch.ones(32, 64)}, r"have the shape \[64, 32\] of 0.weight"),
        ({"dense.2.weight": torch.ones(2)}, r"have the shape \[32, 64\] of 2.weight"),
        ({"score.2.weight": torch.ones(32, 64)}, "hold only what criterion magnitude needs, got 'score'"),
    ],
)
def test_a_state_of_another_recipe_is_refused(state: dict[str, Tensor], rule: str) -> None:
    with pytest.raises(CheckpointError, match=rule):
        Masker(two_layers(), Pruning(0.5, "1x1", "magnitude", GRADUAL), 12, state=state)


# Memory


@pytest.mark.parametrize("revive", [False, True])
@pytest.mark.parametrize(("pattern", "score"), [("1x1", 4.0), ("4x1", 1.0), ("2:4", 4.0), ("32x32", 4 / 1024)])
def test_masks_take_one_byte_a_weight_and_scores_at_most_four(pattern: str, score: float, revive: bool) -> None:
    model = two_layers()
    masker = Masker(model, Pruning(0.5, pattern, "snip_momentum", GRADUAL, revive=revive), 12)
    train(model, masker, adamw(model), 6)
    assert masker.bytes() == {"masks": 4096, "scores": 4096 * score, "dense_weights": 4096 * 4 * revive}
    train(model, masker, adamw(model), 6, first=6)
    assert masker.bytes()["scores"] == 0  # no update will read them any more


# Two runs in one process


def test_two_runs_share_nothing() -> None:
    # INC 2.6 keeps the first configuration's values, and its excluded names, for the second.
    alone = two_layers(3)
    prune(alone, Pruning(0.5, "1x1", "snip", GRADUAL), 12)

    first, second = two_layers(), two_layers(3)
    one = Masker(first, Pruning(0.9, "4x1"), 12)
    two = Masker(second, Pruning(0.5, "1x1", "snip", GRADUAL), 12)
    optimizers = adamw(first), adamw(second)
    for step in range(12):
        train(first, one, optimizers[0], 1, first=step)
        train(second, two, optimizers[1], 1, first=step)
    assert same(weights(alone), weights(second))
    assert Pruning() == Pruning()
    assert Pruning().allocation.per_tensor == {}
    assert str(one.patterns[FIRST]) == "4x1"
    assert str(two.patterns[FIRST]) == "1x1"
