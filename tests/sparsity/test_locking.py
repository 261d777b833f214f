"""Zeros that a model has stay, element by element, whatever trains it; what is declared of them is checked."""

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import Layers
from torch import Tensor, nn

import prunus
from prunus import CheckpointError, Masker, Pruning, RecipeError, Schedule, TargetError, Targets, TrainingError
from prunus.sparsity import Span, locking
from prunus.sparsity.pruning import resolve

PATTERNS = ["unstructured", "4x1", "1x4", "2:4", "rows"]
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1, nesterov=True),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.05, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
}


def sparse(pattern: str, seed: int = 0) -> nn.Sequential:
    """Two layers whose zeros form a pattern."""
    torch.manual_seed(seed)
    model = Layers(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16), nn.LayerNorm(16))
    sparsity = None if pattern == "2:4" else 0.5
    Masker(model, Pruning(sparsity, pattern, "magnitude", Schedule("one_shot", Span(0))), 1)
    return model


def zeros(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() == 0 for name, value in model.named_parameters() if value.ndim == 2}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 6, micro: int = 1) -> None:
    draw = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for _ in range(micro):
            x, y = torch.randn(8, 16, generator=draw), torch.randn(8, 16, generator=draw)
            (nn.functional.mse_loss(model(x), y) / micro).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("micro", [1, 3])
def test_zeros_are_identical_after_training(pattern: str, kind: str, micro: int) -> None:
    model = sparse(pattern)
    before, weight = zeros(model), model[0].weight.detach().clone()
    optimizer = OPTIMIZERS[kind](model.parameters())
    train(model, optimizer, steps=2)  # its moments remember dense gradients
    for name, value in model.named_parameters():
        if value.ndim == 2:
            value.data.mul_(~before[name])
    scheduler = prunus.lock(model, pattern=pattern)
    train(model, optimizer, micro=micro)
    facts = scheduler.remove_pruning()
    after = zeros(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(model[0].weight, weight)
    assert sum(fact.zeros for fact in facts) == sum(int(zero.sum()) for zero in before.values())


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_without_the_lock_they_would_not_stay(kind: str) -> None:
    model = sparse("unstructured")
    before = zeros(model)
    train(model, OPTIMIZERS[kind](model.parameters()))
    assert int((zeros(model)["0.weight"] & before["0.weight"]).sum()) < int(before["0.weight"].sum()) // 10


@pytest.mark.parametrize("kind", ["adamw", "sgd", "adafactor"])
def test_zeros_and_weights_are_identical_after_a_resume(kind: str) -> None:
    whole, halves = sparse("4x1"), sparse("4x1")
    locked = prunus.lock(whole)
    optimizer = OPTIMIZERS[kind](whole.parameters())
    train(whole, optimizer, steps=3)
    train(whole, optimizer, steps=3)
    first = prunus.lock(halves)
    optimizer = OPTIMIZERS[kind](halves.parameters())
    train(halves, optimizer, steps=3)
    held, moments = halves.state_dict(), optimizer.state_dict()
    first.remove_pruning()
    resumed = sparse("4x1", seed=5)
    resumed.load_state_dict(held)
    second = prunus.lock(resumed, pattern="4x1")
    optimizer = OPTIMIZERS[kind](resumed.parameters())
    optimizer.load_state_dict(moments)
    train(resumed, optimizer, steps=3)
    for left, right in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(left, right)
    locked.remove_pruning()
    second.remove_pruning()


def test_letting_go_lets_go_and_another_model_is_not_touched() -> None:
    model, other = sparse("unstructured"), sparse("unstructured")
    scheduler = prunus.lock(model)
    before = zeros(other)
    train(other, OPTIMIZERS["adamw"](other.parameters()))
    assert not torch.equal(zeros(other)["0.weight"], before["0.weight"])
    scheduler.remove_pruning()
    before = zeros(model)
    train(model, OPTIMIZERS["adamw"](model.parameters()))
    assert not torch.equal(zeros(model)["0.weight"], before["0.weight"])


def test_a_model_that_is_dropped_while_it_is_locked_disturbs_no_other_training() -> None:
    from torch.optim import optimizer as module

    prunus.lock(sparse("unstructured"))  # nobody keeps the model, nor the lock
    gc.collect()
    hooks, locks = len(module._global_optimizer_post_hooks), len(locking._LOCKS)
    other = sparse("unstructured")
    optimizer = OPTIMIZERS["sgd"](other.parameters())
    for seed in range(3):  # a sweep: each model is locked, trained and forgotten
        model = sparse("4x1", seed)
        before = zeros(model)
        prunus.lock(model, pattern="4x1")
        train(model, OPTIMIZERS["adamw"](model.parameters()), steps=2)
        assert all(torch.equal(before[name], after) for name, after in zeros(model).items())
        train(other, optimizer, steps=2)
    assert len(module._global_optimizer_post_hooks) == hooks
    del model
    gc.collect()
    assert len(locking._LOCKS) == locks


@pytest.mark.parametrize("when", ["collected", "let go", "locked"])
def test_locks_come_and_go_within_a_step_of_another_optimizer(when: str) -> None:
    """torch walks through its hooks in that moment, and must find them as they were."""
    other, doomed = sparse("unstructured"), [sparse("4x1")]
    held = [prunus.lock(doomed[0])]
    if when == "collected":
        held.clear()

    def within(optimizer: Any, args: Any, kwargs: Any) -> None:
        if when == "collected":
            doomed.clear()
            gc.collect()
        elif when == "let go":
            held.pop().remove_pruning() if held else None
        else:
            held.append(prunus.lock(doomed[0]))

    optimizer = OPTIMIZERS["sgd"](other.parameters())
    optimizer.register_step_post_hook(within)
    train(other, optimizer, steps=2)


def test_a_lock_made_through_a_wrapper_outlives_the_wrapper() -> None:
    model = sparse("4x1")
    before = zeros(model)
    prunus.lock(nn.DataParallel(model), pattern="4x1")  # the wrapper is gone at once
    gc.collect()
    train(model, OPTIMIZERS["adamw"](model.parameters()), steps=2)
    assert all(torch.equal(before[name], after) for name, after in zeros(model).items())


def test_two_locks_of_one_model_hold_apart() -> None:
    model = sparse("4x1")
    before = zeros(model)
    first = prunus.lock(model, targets=Targets(include=(r"^0\.",)))
    second = prunus.lock(model, targets=Targets(include=(r"^2\.",)))
    first.remove_pruning()
    train(model, OPTIMIZERS["adamw"](model.parameters()), steps=2)
    after = zeros(model)
    assert torch.equal(before["2.weight"], after["2.weight"])
    assert not torch.equal(before["0.weight"], after["0.weight"])
    second.remove_pruning()


def test_a_weight_that_was_changed_behind_its_back_is_told_and_left_as_it_is() -> None:
    model = sparse("unstructured")
    before = zeros(model)["0.weight"]
    count = int(before.sum())
    scheduler = prunus.lock(model)
    model[0].weight.data.fill_(1.0)
    with pytest.raises(TrainingError, match=rf"0\.weight must keep .* got {count} of {count} that are not zero"):
        scheduler.remove_pruning()
    assert bool((model[0].weight == 1).all())
    scheduler.apply()
    assert torch.equal(zeros(model)["0.weight"], before)
    assert [fact.name for fact in scheduler.remove_pruning()] == ["0.weight", "2.weight"]


def test_a_masker_that_misses_zeros_says_so() -> None:
    model = sparse("unstructured")
    masker = Masker.lock(model)
    masker._planned["0.weight"] += 1
    with pytest.raises(TrainingError, match="zeros asked for"):
        masker.finish(model)


# What is declared


@pytest.mark.parametrize("pattern", ["4x1", "1x4", "2:4", "rows"])
def test_one_per_cent_of_damage_is_refused(pattern: str) -> None:
    model = sparse(pattern)
    weight = model[0].weight.detach()
    places = (weight == 0).flatten().nonzero().flatten()
    hit = places[torch.randperm(len(places), generator=torch.Generator().manual_seed(0))[: -(-len(places) // 100)]]
    weight.view(-1)[hit] = 0.5
    with pytest.raises(TargetError, match=r"lock.pattern must be the pattern of the zeros|prune\[0\].pattern"):
        prunus.lock(model, pattern=pattern)
    prunus.lock(model).remove_pruning()  # as single zeros they can be kept


def test_damage_of_single_weights_shows_in_the_sparsity_and_in_the_masks() -> None:
    model = sparse("unstructured")
    masks = {name: ~zero for name, zero in zeros(model).items()}
    prunus.lock(model, sparsity=0.5, masks=masks).remove_pruning()
    count = int((model[0].weight == 0).sum())
    places = (model[0].weight == 0).flatten().nonzero().flatten()[::100]
    model[0].weight.data.view(-1)[places] = 0.5
    with pytest.raises(TargetError, match=r"sparsity must be the share of zeros in the targets, 0\.49"):
        prunus.lock(model, sparsity=0.5)
    with pytest.raises(TargetError, match=rf"{len(places)} of {count} weights that its mask locks are not zero"):
        prunus.lock(model, masks=masks)
    with pytest.raises(TargetError, match="have the shape"):
        prunus.lock(model, masks={"0.weight": torch.ones(3, 3, dtype=torch.bool)})


@pytest.mark.parametrize(
    ("held", "declared"), [("unstructured", "4x1"), ("4x1", "1x4"), ("1x4", "2:4"), ("2:4", "4x1")]
)
def test_another_pattern_is_refused(held: str, declared: str) -> None:
    with pytest.raises(TargetError) as told:
        prunus.lock(sparse(held), pattern=declared)
    assert "zeros lie outside whole" in str(told.value) or "groups have too few zeros" in str(told.value)


def test_no_zeros_at_all_are_refused() -> None:
    model = Layers(nn.Linear(8, 8))
    with pytest.raises(TargetError, match="no zero in 64 weights"):
        prunus.lock(model)
    with pytest.raises(TargetError, match=r"must be a torch\.nn\.Module"):
        prunus.lock([model])  # type: ignore[arg-type]


def test_targets_choose_what_is_locked() -> None:
    model = sparse("unstructured")
    masker = prunus.lock(model, targets=Targets(include=(r"^2\.",))).masker
    assert list(masker.masks) == ["2.weight"]


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ({"criterion": "magnitude"}, "criterion"),
        ({"revive": True}, "revive"),
        ({"schedule": Schedule("linear")}, "schedule"),
        ({"sparsity": 1.5}, "sparsity"),
        ({"pattern": "5:4"}, "pattern"),
    ],
)
def test_a_lock_comes_alone(more: dict[str, Any], key: str) -> None:
    with pytest.raises(RecipeError, match=rf"prune\[0\]\.{key}"):
        resolve(sparse("4x1"), [Pruning(**({"pattern": "4x1"} | more), lock=True)], 10, 10)


def test_a_lock_is_finished_before_it_begins_and_goes_on_after_a_resume() -> None:
    model = sparse("4x1")
    masker = Masker(model, Pruning(pattern="4x1", lock=True), 10)
    assert masker.finished
    assert masker.due() == pytest.approx(0.5)
    assert [fact.pattern for fact in masker.measure(model)] == ["4x1", "4x1"]
    again = Masker(model, Pruning(pattern="4x1", lock=True), 10, state=masker.state_dict())
    assert all(torch.equal(again.masks[name], mask) for name, mask in masker.masks.items())
    assert again.planned == masker.planned


@pytest.mark.parametrize("pattern", ["4x1", "2:4", "rows"])
def test_zeros_that_rounding_made_are_weights_where_masks_say_which_are_locked(pattern: str) -> None:
    """Of a model in 8 bits: further weights are zero, outside the pattern, and are not held."""
    model = sparse(pattern)
    masks = {name: parameter.detach() != 0 for name, parameter in model.named_parameters() if parameter.dim() == 2}
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, mask in masks.items():
            rounded = mask & (torch.rand(mask.shape, generator=generator) < 0.1)
            model.get_parameter(name)[rounded] = 0
    if pattern != "2:4":  # whose groups may hold more zeros
        with pytest.raises(TargetError, match="zeros lie outside whole"):
            Masker.lock(model, pattern=pattern)
    masker = Masker.lock(model, pattern=pattern, masks=masks)
    assert all(torch.equal(masker.masks[name], masks[name]) for name in masker.masks)
    rule = Pruning(None, pattern, lock=True)
    started = Masker(model, rule, 4, saved=masks)
    assert all(torch.equal(started.masks[name], masks[name]) for name in started.masks)
    broken_masks = {name: mask.roll(1, 0) & mask.roll(1, 1) for name, mask in masks.items()}
    with pytest.raises(TargetError):
        Masker.lock(model, pattern=pattern, masks=broken_masks)


@pytest.mark.parametrize("other", ["2:4", "1x4", "1x1"])
def test_a_state_of_another_pattern_is_refused(other: str) -> None:
    """Its scores are those of other units."""

    def rule(pattern: str) -> Pruning:
        return Pruning(0.5, pattern, "snip_momentum", Schedule("linear", Span(1), end=Span(4), every=Span(1)))

    model = Layers(nn.Linear(16, 16))
    masker = Masker(model, rule("4x1"), 4)
    model(torch.ones(2, 16)).sum().backward()
    masker.observe(model)
    Masker(model, rule("4x1"), 4, state=masker.state_dict())
    with pytest.raises(CheckpointError, match="pattern must be '4x1', as when the training began"):
        Masker(model, rule(other), 4, state=masker.state_dict())
