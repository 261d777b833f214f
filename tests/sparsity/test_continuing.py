"""A saved state goes on with the rules that made it; in a training of another length, sparsity still ends at the target."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import FIRST, SECOND, Layers, adamw, train, two_layers, zeros
from torch import Tensor, nn

from prunus.errors import CheckpointError, TrainingError
from prunus.sparsity import Allocation, Masker, Pruning, Schedule, Span, Targets
from prunus.sparsity.continuing import _zeros_asked

SHARES = Schedule("polynomial", Span(10, "%"), Span(80, "%"), Span(1))
RULE = Pruning(0.6, "4x1", "magnitude", SHARES)


def stopped(step: int, pruning: Any = RULE, total: int = 20) -> tuple[nn.Sequential, torch.optim.Optimizer, Masker]:
    """A training of ``total`` steps that was stopped after ``step``."""
    model = two_layers()
    masker, optimizer = Masker(model, pruning, total), adamw(model)
    train(model, masker, optimizer, step)
    return model, optimizer, masker


def gone_on(
    model: nn.Sequential, optimizer: torch.optim.Optimizer, masker: Masker, total: int, pruning: Any = RULE
) -> tuple[Masker, list[int]]:
    """To the end of a training of ``total`` steps; with the zeros before each step and at the end."""
    rest, seen = Masker(model, pruning, total, state=masker.state_dict()), [sum(zeros(model).values())]
    for step in range(masker.steps, total):
        train(model, rest, optimizer, 1, first=step)
        seen.append(sum(zeros(model).values()))
    return rest, seen


TARGET = 4 * int(0.6 * 1024)


@pytest.mark.parametrize("kind", ["polynomial", "linear", "exponential", "cosine", "inc_cube"])
@pytest.mark.parametrize("revive", [False, True])
@pytest.mark.parametrize(("step", "total"), [(8, 12), (8, 16), (8, 40), (8, 200), (1, 40), (3, 30), (13, 18)])
def test_another_length_ends_at_the_target(step: int, total: int, revive: bool, kind: Any) -> None:
    pruning = replace(RULE, schedule=replace(SHARES, kind=kind), revive=revive)
    model, optimizer, masker = stopped(step, pruning)
    rest, seen = gone_on(model, optimizer, masker, total, pruning)
    assert seen == sorted(seen)  # sparsity never falls
    assert seen[-1] == TARGET == sum(fact.zeros for fact in rest.finish(model))
    # In between it follows the schedule's own formula over the updates that are left.
    left = [update for update in rest.rules[0].timetable.update_steps if update > step]
    assert left[-1] == int(0.8 * total)
    now, shares = masker.due(), [j / len(left) for j in range(len(left) + 1)]
    table = Schedule(kind, Span(0), Span(len(left)), Span(1)).timetable(len(left), len(left))
    if masker.due():
        expected = [table.sparsity(j, 0.6, now) for j in range(len(shares))]
        assert [rest.rules[0].timetable.sparsity(s, 0.6) for s in (step, *left)] == pytest.approx(expected)


def test_the_formula_is_zhu_and_gupta_from_the_sparsity_of_now() -> None:
    """Computed by hand: 8 of 20 steps done, then a training of 12 steps whose last update is step 9."""
    _, _, masker = stopped(8)
    s8 = 0.6 - 0.6 * (1 - 6 / 14) ** 3  # updates 2 to 16
    assert masker.due() == pytest.approx(s8)
    rest = Masker(two_layers(), RULE, 13, state=masker.state_dict())  # updates 1 to 10: 9 and 10 are left
    found = [rest.rules[0].timetable.sparsity(step, 0.6) for step in (7, 8, 9, 10, 13)]
    assert found == pytest.approx([0.6 - 0.6 * (1 - 5 / 14) ** 3, s8, 0.6 + (s8 - 0.6) * 0.5**3, 0.6, 0.6])


@pytest.mark.parametrize("kind", ["one_shot", "constant", "multistep"])
@pytest.mark.parametrize(("step", "total"), [(1, 12), (6, 40), (12, 30)])
def test_schedules_in_jumps_end_at_the_target(kind: Any, step: int, total: int) -> None:
    steps: dict[str, Any] = {"boundaries": (Span(40, "%"), Span(60, "%")), "levels": (0.25, 0.5, 1.0)}
    schedule = Schedule(kind, Span(20, "%"), **(steps if kind == "multistep" else {}))
    pruning = replace(RULE, schedule=schedule)
    model, optimizer, masker = stopped(step, pruning)
    rest, seen = gone_on(model, optimizer, masker, total, pruning)
    assert seen == sorted(seen)
    assert sum(fact.zeros for fact in rest.finish(model)) == TARGET


def test_two_changes_of_length_and_a_resume_in_between() -> None:
    """The timetable that a training follows is saved, so that a second resume of the same length changes nothing."""
    model, optimizer, masker = stopped(5)
    first = Masker(model, RULE, 40, state=masker.state_dict())
    train(model, first, optimizer, 10, first=5)
    again = Masker(model, RULE, 40, state=first.state_dict())
    assert again.rules == first.rules
    third, seen = gone_on(model, optimizer, again, 22)
    assert seen == sorted(seen)
    assert third.due() == 0.6
    assert sum(fact.zeros for fact in third.finish(model)) == TARGET


@pytest.mark.parametrize("total", [9, 10])
def test_a_schedule_that_is_over_before_the_step_of_now_is_refused(total: int) -> None:
    _, _, masker = stopped(8)
    with pytest.raises(
        CheckpointError, match=r"prune\[0\]\.schedule must update masks after step 8, .* at sparsity 0\.4"
    ):
        Masker(two_layers(), RULE, total, state=masker.state_dict())


@pytest.mark.parametrize("total", [17, 20, 100])
@pytest.mark.parametrize("revive", [False, True])
def test_a_finished_training_stays_as_it_is(total: int, revive: bool) -> None:
    """Whatever the new length: its masks are at the target."""
    pruning = replace(RULE, revive=revive, criterion="snip_momentum")
    model, optimizer, masker = stopped(17, pruning)
    before = masker.masks
    rest, seen = gone_on(model, optimizer, masker, total, pruning)
    assert rest.finished
    assert set(seen) == {TARGET}
    assert all(torch.equal(before[name], mask) for name, mask in rest.masks.items())
    rest.finish(model)


def test_updates_that_hold_the_sparsity_may_fall_away() -> None:
    pruning = replace(RULE, schedule=replace(SHARES, end=Span(40, "%"), hold=Span(40, "%")), revive=True)
    model, optimizer, masker = stopped(10, pruning)  # at the target since step 8
    rest, seen = gone_on(model, optimizer, masker, 12, pruning)
    assert rest.finished
    assert set(seen) == {TARGET}


# Other rules


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"sparsity": 0.7}, "sparsity must be 0.6"),
        ({"sparsity": 0.2}, "sparsity must be 0.6"),
        ({"pattern": "1x4"}, "pattern must be '4x1'"),
        ({"pattern": "unstructured"}, "pattern must be '4x1'"),
        ({"criterion": "random"}, "criterion must be 'magnitude'"),
        ({"revive": True}, "revive must be False"),
        ({"reduce": "sum"}, "reduce must be 'mean'"),
        ({"allocation": Allocation("tensor")}, r"allocation\.scope must be 'global'"),
        ({"schedule": replace(SHARES, end=Span(60, "%"))}, r"schedule\.end must be '80%'"),
        ({"schedule": replace(SHARES, kind="linear")}, r"schedule\.kind must be 'polynomial'"),
        ({"targets": Targets(include=(r"^0\.",))}, r"targets\.include must be None"),
    ],
)
@pytest.mark.parametrize("step", [1, 8, 20])
def test_other_rules_are_refused_by_key(change: dict[str, Any], key: str, step: int) -> None:
    _, _, masker = stopped(step)
    with pytest.raises(CheckpointError, match=rf"prune\[0\]\.{key}, as when the training began, got "):
        Masker(two_layers(), replace(RULE, **change), 20, state=masker.state_dict())


def test_every_key_that_differs_is_named_at_once() -> None:
    _, _, masker = stopped(8)
    with pytest.raises(CheckpointError) as caught:
        Masker(two_layers(), replace(RULE, sparsity=0.5, criterion="random"), 20, state=masker.state_dict())
    assert [problem.key for problem in caught.value.problems] == ["prune[0].sparsity", "prune[0].criterion"]


def test_rules_added_and_taken_away_are_refused() -> None:
    one, two = (replace(RULE, targets=Targets(include=(rf"^{index}\.",))) for index in (0, 2))
    _, _, masker = stopped(8, [one])
    with pytest.raises(CheckpointError, match="prune must be the 1 rules that the training began with, got 2 rules"):
        Masker(two_layers(), [one, two], 20, state=masker.state_dict())
    _, _, masker = stopped(8, [one, two])
    with pytest.raises(CheckpointError, match="prune must be the 2 rules that the training began with, got 1 rules"):
        Masker(two_layers(), [one], 20, state=masker.state_dict())


def test_a_model_with_other_tensors_is_refused() -> None:
    _, _, masker = stopped(1)  # no masks yet
    more = Layers(*two_layers(), nn.Linear(32, 32))
    with pytest.raises(CheckpointError, match=r"targets must be the 2 tensors .* got 1 more \(3\.weight\)"):
        Masker(more, RULE, 20, state=masker.state_dict())


@pytest.mark.parametrize("kind", ["mask", "dense"])
def test_a_state_without_one_of_its_tensors_is_refused(kind: str) -> None:
    pruning = replace(RULE, revive=True)
    model, _, masker = stopped(8, pruning)
    state = {key: value for key, value in masker.state_dict().items() if key != f"{kind}.{SECOND}"}
    with pytest.raises(
        CheckpointError, match=rf"must hold {kind}\.{SECOND} of prune\[0\] after 8 steps, got 1 missing"
    ):
        Masker(model, pruning, 20, state=state)


def test_rules_that_cannot_be_read_are_refused() -> None:
    model, _, masker = stopped(8)
    state = masker.state_dict() | {"rules": torch.tensor([1, 2, 3], dtype=torch.uint8)}
    with pytest.raises(CheckpointError, match="must be the rules as prunus wrote them"):
        Masker(model, RULE, 20, state=state)


# States that record no rules


def without_rules(masker: Masker) -> dict[str, Tensor]:
    return {key: value for key, value in masker.state_dict().items() if key != "rules"}


@pytest.mark.parametrize("pattern", ["4x1", "2:4", "unstructured", "rows"])
def test_an_older_state_of_the_same_rules_goes_on(pattern: str) -> None:
    pruning = replace(RULE, pattern=pattern, sparsity=0.5)
    model, optimizer, masker = stopped(8, pruning)
    rest = Masker(model, pruning, 20, state=without_rules(masker))
    train(model, rest, optimizer, 12, first=8)
    rest.finish(model)


@pytest.mark.parametrize(
    ("change", "total", "text"),
    [
        ({"pattern": "1x4"}, 20, r"pattern must be the pattern of the saved masks"),
        ({"sparsity": 0.7}, 20, r"prune\[0\] must be those of the saved masks, which have 1,\d+ zeros after 8 steps"),
        ({"sparsity": 0.3}, 20, r"prune\[0\] must be those of the saved masks"),
        ({}, 12, r"prune\[0\] must be those of the saved masks"),
        ({}, 40, r"prune\[0\] must be those of the saved masks"),
    ],
)
def test_an_older_state_of_other_rules_is_refused(change: dict[str, Any], total: int, text: str) -> None:
    model, _, masker = stopped(8)
    with pytest.raises(CheckpointError, match=text):
        Masker(model, replace(RULE, **change), total, state=without_rules(masker))


def test_an_older_state_with_a_rule_more_is_refused() -> None:
    one, two = (replace(RULE, targets=Targets(include=(rf"^{index}\.",))) for index in (0, 2))
    model, _, masker = stopped(8, [one])
    with pytest.raises(CheckpointError, match=rf"prune\[1\]\.targets must have a mask after 8 steps, got '{SECOND}'"):
        Masker(model, [one, two], 20, state=without_rules(masker))


# The end


@pytest.mark.parametrize("allocation", [Allocation(), Allocation("tensor"), Allocation("tensor", multiple=8)])
@pytest.mark.parametrize("pattern", ["4x1", "2:4", "rows", "columns"])
def test_the_end_counts_what_the_rules_ask_for(pattern: str, allocation: Allocation) -> None:
    """Every kind of unit, those of unequal size included; a mask that has lost zeros is told."""
    pruning = replace(RULE, sparsity=0.5, pattern=pattern, allocation=allocation)
    model, _, masker = stopped(20, pruning)
    total = sum(fact.zeros for fact in masker.finish(model))
    least, most = _zeros_asked(masker.rules[0], 20)
    assert least <= total <= most <= 2048
    # As a state of another run would: masks, and the counts that go with them, of a lower sparsity.
    masker._masks = {name: torch.ones_like(mask) for name, mask in masker._masks.items()}
    masker._planned = dict.fromkeys(masker._planned, 0)
    with torch.no_grad():
        for name in (FIRST, SECOND):
            model.get_parameter(name).fill_(1.0)
    with pytest.raises(
        TrainingError, match=r"prune\[0\]\.sparsity must be reached: [\d,]+ of the 4,096 weights .* got '0"
    ):
        masker.finish(model)
