"""Going on from a saved state: the rules must be those that made it, and a training of another length gets a new timetable.

A state holds its rules as JSON (``rules``, uint8): every key of each ``Pruning``, the tensors it prunes, and its timetable.

    another key, other tensors    refused: the masks would not be what the rules say
    another length of training    the new timetable's later updates lead from the sparsity of now to the target
    no later update               refused, unless the target is reached already

With the step r where a training goes on, the sparsity s_r of then, and n updates of the new timetable still to come, the j-th
of them has x = j / n and the schedule's own formula from s_r to the target: sparsity neither falls nor jumps.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor

from prunus.errors import CheckpointError, Problem
from prunus.sparsity.patterns import NofM
from prunus.sparsity.pruning import Rule
from prunus.sparsity.schedules import Span, Timetable
from prunus.sparsity.selection import count_of

__all__ = [
    "SavedRule",
    "check_shape",
    "continued",
    "finish_problems",
    "plain",
    "read_rules",
    "rules_as_tensor",
    "state_problems",
]

_FIX: Final = "the rules that the training began with, or a training from the beginning"


def plain(value: Any) -> Any:
    """Dataclasses, spans and tuples as what JSON and YAML can say."""
    if isinstance(value, Span):
        return str(value) if value.unit != "steps" else int(value.value)
    if is_dataclass(value) and not isinstance(value, type):
        return {entry.name: plain(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


@dataclass(frozen=True)
class SavedRule:
    """One rule of a state."""

    pruning: dict[str, Any]
    tensors: list[str]
    planned: Timetable
    """Of the length that the training had when it was saved."""
    timetable: Timetable
    """The one that it followed: the same, unless it went on from a training of another length."""


def rules_as_tensor(rules: Sequence[Rule], planned: Sequence[Timetable]) -> Tensor:
    """Uint8: the rules as JSON."""
    said = [
        SavedRule(plain(rule.pruning), list(rule.selection.taken), table, rule.timetable)
        for rule, table in zip(rules, planned, strict=True)
    ]
    return torch.frombuffer(bytearray(json.dumps(plain(said)).encode()), dtype=torch.uint8)


def read_rules(value: Tensor) -> list[SavedRule]:
    """What ``rules_as_tensor`` wrote. Raises ``CheckpointError`` for anything else."""
    try:
        said = json.loads(bytes(value.cpu().to(torch.uint8).tolist()))
        return [
            SavedRule(
                dict(rule["pruning"]),
                [str(name) for name in rule["tensors"]],
                _timetable(rule["planned"]),
                _timetable(rule["timetable"]),
            )
            for rule in said
        ]
    except (ValueError, KeyError, TypeError, RecursionError):
        rule = "be the rules as prunus wrote them"
        raise CheckpointError(Problem("masker state: rules", "other values", rule, "an earlier checkpoint")) from None


def _timetable(said: Mapping[str, Any]) -> Timetable:
    return Timetable(
        said["kind"],
        tuple(int(step) for step in said["update_steps"]),
        float(said["power"]),
        tuple(float(level) for level in said["levels"]),
        int(said["hold_updates"]),
        None if said["before"] is None else _timetable(said["before"]),
        int(said["since"]),
    )


def continued(rules: Sequence[Rule], saved: Sequence[SavedRule], step: int) -> list[Rule]:
    """The live ``rules`` with the timetables that they follow from ``step`` on, the step that the saved ones had reached.

    Raises ``CheckpointError`` with every key that differs, and where no mask update is left that could reach the target.
    """
    if len(rules) != len(saved):
        rule = f"be the {len(saved)} rules that the training began with"
        raise CheckpointError(Problem("prune", f"{len(rules)} rules", rule, _FIX))
    problems: list[Problem] = []
    result = []
    for index, (live, old) in enumerate(zip(rules, saved, strict=True)):
        key = f"prune[{index}]"
        other = _differences(key, plain(live.pruning), old.pruning) or _other_tensors(key, live, old)
        problems += other
        if other or live.timetable == old.planned:
            result.append(replace(live, timetable=old.timetable))
            continue
        table = _joined(old.timetable, live.timetable, step)
        if table is None:
            last, now = live.timetable.update_steps[-1], old.timetable.sparsity(step, live.sparsity)
            rule = (
                f"update masks after step {step}, where the training goes on at sparsity {now:.4f} of {live.sparsity:g}"
            )
            fix = "a longer training (max_steps, epochs), or one from the beginning"
            problems.append(Problem(f"{key}.schedule", f"a last mask update at step {last}", rule, fix))
        else:
            result.append(replace(live, timetable=table))
    if problems:
        raise CheckpointError(*problems)
    return result


def _differences(key: str, live: Any, old: Any) -> list[Problem]:
    """A problem for each key whose value is another than it was."""
    if isinstance(live, dict) and isinstance(old, dict):
        names = list(dict.fromkeys([*live, *old]))
        return [each for name in names for each in _differences(f"{key}.{name}", live.get(name), old.get(name))]
    if live == old:
        return []
    return [Problem(key, live, f"be {old!r}, as when the training began", _FIX)]


def _other_tensors(key: str, live: Rule, old: SavedRule) -> list[Problem]:
    more = sorted(set(live.selection.taken) - set(old.tensors))
    less = sorted(set(old.tensors) - set(live.selection.taken))
    if not more and not less:
        return []
    words = [f"{len(names)} {what} ({names[0]})" for what, names in (("more", more), ("missing", less)) if names]
    rule = f"be the {len(old.tensors)} tensors that the training began with"
    return [Problem(f"{key}.targets", ", ".join(words), rule, "the model and the targets that it began with")]


def _joined(old: Timetable, new: Timetable, step: int) -> Timetable | None:
    """``old`` until ``step``, then what is left of ``new``; None where nothing is left and the target is not reached."""
    if step >= old.update_steps[-1]:
        return old
    reached = old.sparsity(step, 0.5) == 0.5
    if old.sparsity(step, 0.5) == 0.0 and new.update_steps[0] > step:
        return new
    done = tuple(update for update in old.update_steps if update <= step)
    rest = tuple(update for update in new.update_steps if update > step)
    hold = min(new.hold_updates, len(rest))
    if reached and not rest:
        return replace(old, update_steps=done, hold_updates=old.hold_updates + len(done) - len(old.update_steps))
    if not reached and len(rest) == hold:
        return None
    levels = (0.0,) * len(done) + new.levels[len(new.update_steps) - len(rest) :] if new.levels else ()
    return Timetable(new.kind, done + rest, new.power, levels, hold, old, step)


# How many zeros a rule asks for


def _zeros_asked(rule: Rule, step: int) -> tuple[int, int]:
    """The fewest and the most zeros that the masks of a rule may have after ``step`` optimizer steps.

    They are the same number but where units of unequal size, or ``multiple``, leave the sum a little below what was asked.
    """
    allocation, sizes = rule.pruning.allocation, []
    for name, shape in rule.selection.taken.items():
        grid = rule.pattern.units(shape)
        sizes.append((name, grid[0] * grid[1], rule.pattern.zeros_per_unit(shape)))
    largest = max(each for _, _, each in sizes)
    if allocation.scope == "tensor":
        cuts = [
            count_of(rule.fraction_of_units(step, allocation.final(name, rule.sparsity)), n) * each
            for name, n, each in sizes
        ]
        most = least = sum(cuts)
    else:
        fraction, cap = (
            rule.fraction_of_units(step, rule.sparsity),
            allocation.max_per_tensor / rule.pattern.max_sparsity,
        )
        room = sum(count_of(min(1.0, cap), n) * each for _, n, each in sizes)
        if len({each for _, _, each in sizes}) == 1:
            most = least = min(count_of(fraction, sum(n for _, n, _ in sizes)) * largest, room)
        else:
            most = min(count_of(fraction, sum(n * each for _, n, each in sizes)), room)
            least = most - largest + 1
    if allocation.multiple > 1:
        over = sum(n % allocation.multiple for _, n, _ in sizes)
        least -= (over + allocation.multiple - 1) * largest
    return max(0, least), most


def _missed_targets(rules: Sequence[Rule], zeros: Mapping[str, int], step: int) -> list[Problem]:
    """Rules whose weights have fewer ``zeros`` (by name) than the rules ask for, whatever the masks say."""
    problems = []
    for index, rule in enumerate(rules):
        if rule.pruning.lock or rule.pruning.learns_sparsity:
            continue
        there, (least, _) = sum(zeros[name] for name in rule.selection.taken), _zeros_asked(rule, step)
        if there < least:
            weights = rule.selection.weights
            text = f"be reached: {least:,} of the {weights:,} weights were to be zero, and {there:,} are"
            fix = "the rules and the masks of one training from its beginning"
            problems.append(Problem(f"prune[{index}].sparsity", f"{there / weights:.4f}", text, fix))
    return problems


def finish_problems(
    rules: Sequence[Rule], planned: Mapping[str, int], zeros: Mapping[str, int], step: int
) -> list[Problem]:
    """What is missing at the end of a training: mask updates, zeros that an update made (``planned``), or zeros asked for.

    ``planned`` and ``zeros`` are counts by name; ``zeros`` are those in the weights.
    """
    problems = [
        Problem("steps", step, f"reach the last mask update, step {last}", "a longer training")
        for rule in rules
        if step < (last := rule.timetable.update_steps[-1])
    ]
    problems += [
        Problem(name, count, f"hold the {planned[name]} zeros asked for", "a bug report")
        for name, count in zeros.items()
        if count < planned.get(name, 0)
    ]
    return problems or _missed_targets(rules, zeros, step)


# What a state must hold


def check_shape(value: Tensor, shape: tuple[int, int], what: str, fix: str) -> None:
    """Raises ``CheckpointError`` unless a tensor of a state has the shape ``[out, in]`` of ``what``."""
    if tuple(value.shape) != shape:
        rule = f"have the shape {list(shape)} of {what}"
        raise CheckpointError(Problem("masker state", list(value.shape), rule, fix))


def state_problems(rules: Sequence[Rule], state: Mapping[str, Tensor], step: int) -> list[Problem]:
    """Masks and dense weights that a state lacks after ``step`` steps; of one without recorded rules, what its masks tell."""
    if "rules" not in state:
        masks = {key.removeprefix("mask."): value.bool() for key, value in state.items() if key.startswith("mask.")}
        return _unrecorded(rules, masks, step) if state else []
    problems = []
    for index, rule in enumerate(rules):
        for kind in ("mask", "dense") if rule.pruning.revive else ("mask",):
            absent = [name for name in rule.selection.taken if f"{kind}.{name}" not in state]
            if absent and (rule.pruning.lock or rule.timetable.prunes(step)):
                text = f"hold {kind}.{absent[0]} of prune[{index}] after {step} steps"
                problems.append(Problem("masker state", f"{len(absent)} missing", text, "an earlier checkpoint"))
    return problems


def _unrecorded(rules: Sequence[Rule], masks: Mapping[str, Tensor], step: int) -> list[Problem]:
    """What tells that ``masks`` (bool ``[out, in]``) of a version that recorded no rules are not those of ``rules``."""
    problems: list[Problem] = []
    for index, rule in enumerate(rules):
        if rule.pruning.lock or rule.pruning.learns_sparsity:
            continue
        key, taken = f"prune[{index}]", [name for name in rule.selection.taken if name in masks]
        if rule.timetable.prunes(step) and len(taken) < len(rule.selection.taken):
            absent = next(name for name in rule.selection.taken if name not in masks)
            problems.append(Problem(f"{key}.targets", absent, f"have a mask after {step} steps", _FIX))
            continue
        broken = next((name for name in taken if not _fits(rule, masks[name])), None)
        if broken is not None:
            text = f"be the pattern of the saved masks (that of {broken} is another)"
            problems.append(Problem(f"{key}.pattern", rule.pruning.pattern, text, _FIX))
            continue
        zeros = sum(masks[name].numel() - int(torch.count_nonzero(masks[name])) for name in taken)
        least, most = _zeros_asked(rule, step)
        if taken and not least <= zeros <= most:
            text = f"be those of the saved masks, which have {zeros:,} zeros after {step} steps; these ask for {most:,}"
            problems.append(Problem(key, "another sparsity or schedule", text, _FIX))
    return problems


def _fits(rule: Rule, mask: Tensor) -> bool:
    """Whether a mask consists of whole units."""
    if isinstance(rule.pattern, NofM):
        zeros = rule.pattern.m - mask.reshape(mask.shape[0], -1, rule.pattern.m).sum(2)
        return bool(((zeros == 0) | (zeros == rule.pattern.m - rule.pattern.n)).all())
    pooled = rule.pattern.pool(mask.float())
    return bool(((pooled == 0) | (pooled == 1)).all())
