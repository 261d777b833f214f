"""snip_momentum follows Intel Neural Compressor 2.6 step by step on recorded gradients.

The reference below restates that package's published behaviour in float64 numpy, with its thresholds, its locks and its
rounding. Where ``PRUNUS_INC_PYTHON`` names a Python that has neural-compressor 2.6, the package itself runs on the same
arrays too (``benchmarks/peers/inc_masks.py``).

Two deviations are on purpose and have their tests here: units that tie, and the unit that its ``exp`` loses to rounding.
"""

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from tiny import Layers
from torch import nn

from prunus.sparsity import Allocation, Masker, Pruning, Schedule, Span
from prunus.sparsity.patterns import Reduce
from prunus.sparsity.schedules import Kind

Decay = Literal["exp", "cos", "linear", "cube"]
KIND: dict[Decay, Kind] = {"exp": "exponential", "cos": "cosine", "linear": "linear", "cube": "inc_cube"}
POOL: dict[Reduce, Callable[..., np.ndarray]] = {"mean": np.mean, "sum": np.sum, "max": np.max}
STEPS = 22
SHAPES = ((24, 32), (32, 24), (16, 40))
SPREAD = (1.0, 0.25, 3.0)  # of the gradients, so that a global threshold treats the layers differently


@dataclass(frozen=True)
class Case:
    pattern: str = "4x1"
    """As the package writes it: N:M counts the weights that go."""
    scope: Literal["global", "local"] = "global"
    decay: Decay = "exp"
    reduce: Reduce = "mean"
    cap: float = 0.98
    every: int = 3
    sparsity: float = 0.79
    """Of no whole number of units, so that the rounding of floats decides nothing."""
    lr: float = 0.05
    start: int = 2
    end: int = 20
    criterion: str = "snip_momentum"
    layers: int = len(SHAPES)

    @property
    def groups(self) -> tuple[int, int] | None:
        """(lost, of) for N:M."""
        left, _, right = self.pattern.partition(":")
        return (int(left), int(right)) if right else None


def recorded(case: Case, seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Weights ``[out, in]`` and gradients ``[steps, out, in]`` of each layer, float32."""
    rng = np.random.default_rng(seed)
    shapes = SHAPES[: case.layers]
    weights = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    # A part of each gradient lasts, so that some weights grow important and others fade.
    grads = []
    for shape, spread in zip(shapes, SPREAD, strict=False):
        lasting = rng.normal(size=shape) * rng.random(shape)
        grads.append((spread * (lasting + rng.normal(size=(STEPS, *shape)))).astype(np.float32))
    return weights, grads


# The package's behaviour, restated


def ratio(case: Case, event: int) -> float:
    """Sparsity of the event numbered from 0."""
    last = max(1, (case.end - case.start) // case.every)
    if case.end - case.start < case.every:
        event = 1
    goal, x = min(case.sparsity, case.cap), event / last
    by_decay = {
        "exp": 1 - ((1 - goal) ** (1 / last)) ** event,
        "cos": goal * (1 - np.cos(np.pi * x / 2)),
        "linear": goal * x,
        "cube": goal * x**3,
    }
    return float(min(case.sparsity, by_decay[case.decay]))


def units(case: Case, score: np.ndarray) -> np.ndarray:
    """Blocks ``[out / N, in / M]`` of the scores of weights."""
    rows, columns = (int(part) for part in case.pattern.split("x"))
    blocks = score.reshape(score.shape[0] // rows, rows, score.shape[1] // columns, columns)
    for axis in (3, 1):
        blocks = POOL[case.reduce](blocks, axis=axis, keepdims=True)
    return blocks[:, 0, :, 0]


def least(case: Case, score: np.ndarray) -> np.ndarray:
    """True at the weights ``[out, in / M, M]`` that a group would lose: at or below its N-th smallest."""
    lost, of = case.groups or (1, 1)
    groups = score.reshape(score.shape[0], -1, of)
    return groups <= np.sort(groups, axis=2)[..., lost - 1 : lost]


def group_units(case: Case, score: np.ndarray) -> np.ndarray:
    low = least(case, score)
    values = np.where(low, score.reshape(low.shape), 0)
    return POOL[case.reduce](values, axis=2)


def solve(scores: list[np.ndarray], share: float, cap: float) -> list[np.ndarray]:
    """Kept units: rounds of one threshold, in which a layer above its cap is locked at the cap."""
    kept = [np.ones(score.shape, dtype=bool) for score in scores]
    k = int(sum(score.size for score in scores) * share)
    locked: set[int] = set()
    before = -1
    while k >= 1 and len(locked) not in (len(scores), before):
        before = len(locked)
        active = [index for index in range(len(scores)) if index not in locked]
        theta = np.sort(np.concatenate([scores[index].ravel() for index in active]))[k - 1]
        for index in active:
            score = scores[index]
            kept[index] = score > theta
            if (~kept[index]).sum() / score.size > cap:
                own = int(cap * score.size)
                kept[index] = score > np.sort(score, axis=None)[own - 1]
                locked.add(index)
                k -= int((~kept[index]).sum())
    return kept


def reference(case: Case, first: list[np.ndarray], grads: list[np.ndarray]) -> list[list[np.ndarray]]:
    """Masks ``[out, in]`` of each layer after 0, 1, ... steps."""
    weights = [weight.astype(np.float64) for weight in first]
    scores: list[np.ndarray | float] = [0.0] * len(weights)
    masks = [np.ones(weight.shape, dtype=bool) for weight in weights]
    lost, of = case.groups or (1, 1)
    seen, event = [], 0
    for step in range(STEPS + 1):
        if case.start <= step <= case.end and (step - case.start) % case.every == 0:
            share = ratio(case, event) * of / lost
            event += 1
            arrays = [np.asarray(score) for score in scores]
            pools = [group_units(case, score) for score in arrays] if case.groups else arrays
            cap = case.cap * of / lost if case.groups else case.cap
            together = solve(pools, share, cap) if case.scope == "global" else []
            for index, pool in enumerate(pools):
                kept = together[index] if together else solve([pool], share, cap)[0]
                shape = weights[index].shape
                if case.groups:
                    masks[index] = (kept[..., None] | ~least(case, arrays[index])).reshape(shape)
                else:
                    masks[index] = np.kron(kept, np.ones([a // b for a, b in zip(shape, kept.shape, strict=True)])) > 0
        seen.append(list(masks))
        if step < STEPS:
            for index, grad in enumerate(grads):
                weights[index] = weights[index] * masks[index]
                product = np.abs(weights[index] * grad[step])
                scores[index] = 0.9 * scores[index] + (product if case.groups else units(case, product))
                weights[index] = (weights[index] - case.lr * grad[step]) * masks[index]
    return seen


# Ours


def ours(case: Case, first: list[np.ndarray], grads: list[np.ndarray]) -> list[list[np.ndarray]]:
    layers = [nn.Linear(weight.shape[1], weight.shape[0], bias=False) for weight in first]
    model = Layers(*layers)
    with torch.no_grad():
        for layer, weight in zip(layers, first, strict=True):
            layer.weight.copy_(torch.tensor(weight))
    pattern = f"{case.groups[1] - case.groups[0]}:{case.groups[1]}" if case.groups else case.pattern
    schedule = Schedule(KIND[case.decay], Span(case.start), Span(case.end), Span(case.every))
    allocation = Allocation("global" if case.scope == "global" else "tensor", "plain", case.cap)
    pruning = Pruning(case.sparsity, pattern, case.criterion, schedule, allocation, reduce=case.reduce)
    masker = Masker(model, pruning, STEPS)
    names = [f"{index}.weight" for index in range(len(layers))]
    dense = {name: torch.ones_like(model.get_parameter(name), dtype=torch.bool) for name in names}
    seen = [[dense[name].numpy() for name in names]]
    for step in range(STEPS):
        for layer, grad in zip(layers, grads, strict=True):
            layer.weight.grad = torch.tensor(grad[step])
        masker.observe(model)
        with torch.no_grad():
            for layer, grad in zip(layers, grads, strict=True):
                layer.weight.sub_(torch.tensor(grad[step]), alpha=case.lr)
        masker.step(model)
        seen.append([masker.masks.get(name, dense[name]).numpy() for name in names])
    masker.finish(model)
    return seen


CASES = [
    *(Case("4x1", decay=decay, every=every) for decay in KIND for every in (1, 3, 5)),
    *(Case("4x1", reduce=reduce, scope=scope) for reduce in ("mean", "sum", "max") for scope in ("global", "local")),
    *(
        Case(pattern, scope, decay)
        for pattern in ("1x1", "1x4", "8x1")
        for scope in ("global", "local")
        for decay in KIND
    ),
    *(Case("2:4", scope, "cube", reduce, sparsity=0.5) for scope in ("global", "local") for reduce in ("mean", "max")),
    *(Case("2:4", "global", decay, every=every, sparsity=0.47) for decay in KIND for every in (1, 3, 5)),
    *(Case("3:4", "local", decay, sparsity=0.71) for decay in KIND),
    Case("3:4", "global", "linear", sparsity=0.75),
    *(Case("4:8", "global", decay, sparsity=0.41) for decay in KIND),
    *(Case(pattern, "global", "linear", cap=cap) for pattern in ("1x1", "4x1", "1x4") for cap in (0.85, 0.9)),
    Case("1x1", "global", "cube", cap=0.85, every=1),
    Case("4x1", "global", "cos", lr=0.0),
    Case("4x1", "global", "linear", every=19),  # one event
    Case("1x1", "global", "linear", sparsity=0.95, every=2),
]


def index_of(case: Case) -> str:
    return "-".join(str(part) for part in (case.pattern, case.scope, case.decay, case.reduce, case.cap, case.every))


def test_the_cases_are_not_vacuous() -> None:
    # Caps bind in the cases that lower them, and the last event loses nothing to rounding except where told below.
    bound = 0
    for number, case in enumerate(CASES):
        if case.cap < 0.98:
            last = reference(case, *recorded(case, number))[-1]
            bound += any((~mask).mean() > case.cap - 0.02 for mask in last)
    assert bound == sum(case.cap < 0.98 for case in CASES)


@pytest.mark.parametrize("number", range(len(CASES)), ids=[index_of(case) for case in CASES])
def test_masks_are_those_of_the_reference_at_every_step(number: int) -> None:
    case = CASES[number]
    first, grads = recorded(case, number)
    expected, found = reference(case, first, grads), ours(case, first, grads)
    for step in range(STEPS + 1):
        for layer in range(case.layers):
            assert (expected[step][layer] == found[step][layer]).all(), (step, layer)


def test_the_unit_that_the_rounding_of_exp_loses_is_pruned_here() -> None:
    # 1 - (0.5 ** (1 / 2)) ** 2 is just below 0.5: 127 of 256 units in the reference, 128 here.
    case = Case("4x1", decay="exp", every=9, sparsity=0.5, layers=1)
    rng = np.random.default_rng(0)
    first, grads = [rng.normal(size=(32, 32)).astype(np.float32)], [rng.normal(size=(STEPS, 32, 32)).astype(np.float32)]
    expected, found = reference(case, first, grads)[-1][0], ours(case, first, grads)[-1][0]
    assert int((~expected).sum()) == 4 * 127
    assert int((~found).sum()) == 4 * 128
    assert not (found & ~expected).any()


def test_units_that_tie_go_one_by_one_here() -> None:
    case = Case("1x1", "global", "linear", every=18, sparsity=0.25, layers=1)
    first, grads = [np.ones((8, 8), dtype=np.float32)], [np.ones((STEPS, 8, 8), dtype=np.float32)]
    assert int((~ours(case, first, grads)[-1][0]).sum()) == 16
    pooled = [np.ones((8, 8))]
    assert int((~solve(pooled, 0.25, 1.0)[0]).sum()) == 64  # a threshold takes all


@pytest.mark.slow
def test_masks_are_those_of_the_package_itself(tmp_path: Path) -> None:
    python = os.environ.get("PRUNUS_INC_PYTHON", "")
    if not python:
        pytest.skip("PRUNUS_INC_PYTHON names no Python with neural-compressor 2.6")
    arrays: dict[str, np.ndarray] = {"cases": np.array(json.dumps([asdict(case) for case in CASES]))}
    for number, case in enumerate(CASES):
        for kind, parts in zip("wg", recorded(case, number), strict=True):
            arrays |= {f"{kind}.{number}.{layer}": part for layer, part in enumerate(parts)}
    source, target = tmp_path / "recorded.npz", tmp_path / "masks.npz"
    np.savez(source, allow_pickle=False, **arrays)
    driver = Path(__file__).parents[2] / "benchmarks" / "peers" / "inc_masks.py"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [python, str(driver), str(source), str(target)]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = np.load(target)
    for number, case in enumerate(CASES):
        found = ours(case, *recorded(case, number))
        for layer in range(case.layers):
            masks = np.stack([step[layer] for step in found])
            differ = (masks != theirs[f"m.{number}.{layer}"]).any(axis=(1, 2)).nonzero()[0]
            assert not differ.size, f"{index_of(case)}: layer {layer} differs after steps {differ.tolist()}"
