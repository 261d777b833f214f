"""Criteria against sums over all steps, in float64 and with no recurrence."""

import numpy as np
import pytest
import torch
from tiny import Layers
from torch import nn

from prunus.errors import RecipeError, TargetError, TrainingError
from prunus.sparsity import Allocation, Masker, Pruning, Schedule, Span
from prunus.sparsity.criteria import CRITERIA, criterion

STEPS, SHAPE = 9, (8, 12)


def closed_form(name: str, weights: np.ndarray, grads: np.ndarray) -> np.ndarray:
    """Score after all steps; arrays ``[steps, out, in]``."""
    decay = {"snip_momentum": 0.9, "movement": 1.0}.get(name, 0.0)
    total = np.zeros(SHAPE)
    for step in range(STEPS):
        total += decay ** (STEPS - 1 - step) * contribution(name, weights[step], grads[step])
    return total


def contribution(name: str, weight: np.ndarray, grad: np.ndarray) -> np.ndarray:
    parts: dict[str, np.ndarray] = {
        "magnitude": np.abs(weight),
        "gradient": np.abs(grad),
        "snip": np.abs(weight * grad),
        "snip_momentum": np.abs(weight * grad),
        "movement": -weight * grad,
        "first_order": weight * grad,
        "platon": np.abs(weight * grad),
    }
    return parts[name]


def platon(sensitivity: np.ndarray) -> np.ndarray:
    """Mean importance x mean uncertainty after all steps of ``[steps, ...]``, as weighted sums over the steps."""

    def mean(values: np.ndarray, beta: float) -> np.ndarray:
        return np.tensordot((1 - beta) * beta ** np.arange(len(values) - 1, -1, -1), values, 1)

    importance = np.stack([mean(sensitivity[: t + 1], 0.85) for t in range(len(sensitivity))])
    return importance[-1] * mean(np.abs(sensitivity - importance), 0.95)


@pytest.mark.parametrize("reduce", ["mean", "sum", "max"])
@pytest.mark.parametrize("pattern", ["1x1", "4x1", "1x4"])
@pytest.mark.parametrize("name", [name for name in CRITERIA if name not in ("random", "wanda")])
def test_the_lowest_closed_form_goes(name: str, pattern: str, reduce: str) -> None:
    rng = np.random.default_rng(7)
    weights, grads = rng.normal(size=(2, STEPS, *SHAPE))
    model = Layers(nn.Linear(SHAPE[1], SHAPE[0], bias=False))
    weight = model.get_parameter("0.weight")
    schedule = Schedule("one_shot", Span(STEPS))
    pruning = Pruning(0.5, pattern, name, schedule, Allocation("tensor"), reduce=reduce)  # type: ignore[arg-type]
    masker = Masker(model, pruning, STEPS)
    for step in range(STEPS):
        with torch.no_grad():
            weight.copy_(torch.tensor(weights[step]))
        weight.grad = torch.tensor(grads[step], dtype=torch.float32)
        masker.observe(model)
        masker.step(model)

    rows, columns = (int(part) for part in pattern.split("x"))
    score = closed_form(name, weights, grads)
    if name == "first_order":  # the sum of a unit, whatever reduce says
        units = sum(np.abs(pooled(weights[t] * grads[t], rows, columns, "sum")) for t in range(STEPS))
    elif name == "platon":
        units = platon(np.stack([pooled(np.abs(weights[t] * grads[t]), rows, columns, reduce) for t in range(STEPS)]))
    elif name in ("snip_momentum", "movement"):  # the history is of units: it matters for max alone
        units = np.zeros((SHAPE[0] // rows, SHAPE[1] // columns))
        for step in range(STEPS):
            decay = (0.9 if name == "snip_momentum" else 1.0) ** (STEPS - 1 - step)
            units += decay * pooled(contribution(name, weights[step], grads[step]), rows, columns, reduce)
    else:
        units = pooled(score, rows, columns, reduce)
    keep = units > np.median(units)
    expected = np.kron(keep, np.ones((rows, columns))).astype(bool)
    assert (masker.masks["0.weight"].numpy() == expected).all()
    if reduce != "max" and name not in ("first_order", "platon"):
        assert (keep == (pooled(score, rows, columns, reduce) > np.median(units))).all()


def pooled(score: np.ndarray, rows: int, columns: int, reduce: str) -> np.ndarray:
    units = np.zeros((SHAPE[0] // rows, SHAPE[1] // columns))
    for i in range(units.shape[0]):
        for j in range(units.shape[1]):
            unit = score[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
            units[i, j] = {"mean": unit.mean(), "sum": unit.sum(), "max": unit.max()}[reduce]
    return units


def random_mask(seed: int, sparsity: float = 0.5) -> np.ndarray:
    model = Layers(nn.Linear(40, 50))
    pruning = Pruning(sparsity, "1x1", "random", Schedule("one_shot", Span(0)))
    return Masker(model, pruning, 1, seed=seed).masks["0.weight"].numpy()


def test_random_follows_its_seed_and_grows() -> None:
    assert (random_mask(1) == random_mask(1)).all()
    # Independent masks of density 0.5 agree on half of 2000 places: 1000 +- 22, here within 5 standard deviations.
    assert abs(int((random_mask(1) == random_mask(2)).sum()) - 1000) < 112
    assert not (random_mask(1, 0.8) & ~random_mask(1, 0.5)).any()


def test_random_differs_between_tensors_of_one_shape() -> None:
    model = Layers(nn.Linear(40, 40), nn.Linear(40, 40))
    masks = Masker(model, Pruning(0.5, "1x1", "random", Schedule("one_shot", Span(0))), 1).masks
    assert abs(int((masks["0.weight"] == masks["1.weight"]).sum()) - 800) < 100


def test_unknown_criterion_names_the_nearest() -> None:
    with pytest.raises(TargetError, match=r"criterion must be one of magnitude, .*got 'magnitud'\n    try magnitude"):
        criterion("magnitud")


@pytest.mark.parametrize("regrowth", [False, True])
@pytest.mark.parametrize("pattern", ["1x1", "4x1", "2:4"])
def test_platon_follows_the_equations_of_its_paper(pattern: str, regrowth: bool) -> None:
    """Zhang et al. 2022, step by step in float64, in a training whose pruned weights (with regrowth) may come back."""
    torch.manual_seed(0)
    model = Layers(nn.Linear(12, 8))
    weight, steps = model.get_parameter("0.weight"), 12
    schedule = Schedule("linear", Span(2), Span(10), Span(2))
    allocation = Allocation("tensor")
    masker = Masker(model, Pruning(0.5, pattern, "platon", schedule, allocation, revive=regrowth), steps)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    beta1, beta2 = 0.85, 0.95
    dense, mask = weight.detach().double().numpy().copy(), np.ones((8, 12), dtype=bool)
    importance = uncertainty = np.zeros((2, 12) if pattern == "4x1" else (8, 12))
    returned = 0
    for step in range(steps):
        x = torch.randn(16, 12, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (model(x) - x[:, :8].roll(step, 1)).square().mean().backward()
        assert weight.grad is not None
        grad = weight.grad.double().numpy().copy()
        masker.observe(model)
        optimizer.step()
        masker.step(model)
        state = masker.state_dict()

        if step < 10:  # none is looked at after the last update
            sensitivity = np.abs(dense * grad)
            if pattern == "4x1":
                sensitivity = sensitivity.reshape(2, 4, 12).mean(1)
            importance = beta1 * importance + (1 - beta1) * sensitivity
            uncertainty = beta2 * uncertainty + (1 - beta2) * np.abs(sensitivity - importance)
        if step < 9:
            np.testing.assert_allclose(state["importance.0.weight"].numpy(), importance, rtol=1e-4, atol=1e-9)
            np.testing.assert_allclose(state["uncertainty.0.weight"].numpy(), uncertainty, rtol=1e-4, atol=1e-9)
        dense = dense - 0.2 * grad
        if not regrowth:
            dense = dense * mask
        if step + 1 in (4, 6, 8, 10):
            score = importance * uncertainty
            k = (step - 1) // 2 * score.size // 8 if pattern != "2:4" else 0
            fresh = highest(score, mask, k, pattern, regrowth, final=step + 1 == 10)
            if fresh is not None:
                returned += int((fresh & ~mask).sum())
                assert (masker.masks["0.weight"].numpy() == fresh).all()
            mask = masker.masks["0.weight"].numpy()
            dense = dense if regrowth else dense * mask
    assert int((~mask).sum()) == 48
    assert not any(key.startswith(("importance.", "uncertainty.")) for key in masker.state_dict())
    assert regrowth or returned == 0


def highest(
    score: np.ndarray, mask: np.ndarray, k: int, pattern: str, regrowth: bool, final: bool
) -> np.ndarray | None:
    """The mask without the k lowest units; of 2:4 the last one alone, in which each group keeps its two highest."""
    units = mask[::4] if pattern == "4x1" else mask
    score = score if regrowth else np.where(units, score, -1.0)
    if pattern == "2:4":
        order = score.reshape(8, 3, 4).argsort(2).argsort(2)
        return (order >= 2).reshape(8, 12) if final else None
    keep = score.flatten().argsort(kind="stable").argsort(kind="stable").reshape(score.shape) >= k
    return np.repeat(keep, 4, 0) if pattern == "4x1" else keep


@pytest.mark.parametrize("pattern", ["1x1", "4x1", "1x4", "columns"])
@pytest.mark.parametrize("update", [3, 6])
def test_wanda_is_the_weight_times_the_norm_of_its_inputs_since_the_last_update(pattern: str, update: int) -> None:
    torch.manual_seed(0)
    model = Layers(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 8))
    schedule = Schedule("linear", Span(0), end=Span(6), every=Span(3))
    masker = Masker(model, Pruning(0.5, pattern, "wanda", schedule, Allocation("tensor")), 8)
    draw = torch.Generator().manual_seed(1)
    seen: dict[str, list[torch.Tensor]] = {"0.weight": [], "2.weight": []}
    for step in range(1, update + 1):
        for _ in range(2):
            x = torch.randn(3, 5, 12, generator=draw)
            if step > update - 3:
                seen["0.weight"].append(x.flatten(0, 1))
                seen["2.weight"].append(torch.relu(model[0].weight @ x.flatten(0, 1).T + model[0].bias[:, None]).T)
            model(x).sum().backward()
            model.eval()(torch.full((1, 12), 100.0))  # evaluation does not count
            model.train()
        masker.observe(model)
        before = {name: model.get_parameter(name).detach().clone() for name in seen}
        masker.step(model)
    for name, inputs in seen.items():
        norms = torch.cat(inputs).detach().double().square().sum(0).sqrt()
        score = (before[name].double().abs() * norms).numpy()
        rows, columns = (len(score), 1) if pattern == "columns" else map(int, pattern.split("x"))
        units = score.reshape(len(score) // rows, rows, -1, columns).mean((1, 3))
        order = np.argsort(units.flatten(), kind="stable")  # what went before has the score 0
        expected = np.ones(units.size, dtype=bool)
        expected[order[: int(units.size * 0.25 * update / 3)]] = False
        expected = np.kron(expected.reshape(units.shape), np.ones((rows, columns))).astype(bool)
        assert (masker.masks[name].numpy() == expected).all()
    while not masker.finished:
        model(torch.randn(2, 12))
        masker.step(model)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_wanda_without_inputs_is_told() -> None:
    model = Layers(nn.Linear(8, 8))
    masker = Masker(model, Pruning(0.5, "1x1", "wanda", Schedule("one_shot", Span(1))), 2)
    with pytest.raises(TrainingError, match=r"0\.weight must have seen inputs for criterion wanda"):
        masker.step(model)
    with pytest.raises(RecipeError, match="be at least 1 with criterion wanda, which has seen no input at step 0"):
        Masker(model, Pruning(0.5, "1x1", "wanda", Schedule("one_shot", Span(0))), 2)
