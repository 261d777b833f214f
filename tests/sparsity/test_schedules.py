"""Schedules against printed values and closed forms, and every way to ask for an impossible one."""

from math import cos, pi

import pytest

from prunus.errors import RecipeError
from prunus.sparsity import Schedule, Span, parse_span
from prunus.sparsity.schedules import KINDS, Kind, Timetable

RAMPS = [kind for kind in KINDS if kind != "multistep"]


def values(kind: Kind, final: float, intervals: int, power: float = 3.0, initial: float = 0.0) -> list[float]:
    table = Timetable(kind, tuple(range(10, 10 + 5 * (intervals + 1), 5)), power)
    return [table.sparsity(step, final, initial) for step in table.update_steps]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # As Intel Neural Compressor 2.6 computes them for target 0.8 and T = 4
        ("exponential", [0, 0.3313, 0.5528, 0.7009, 0.8]),
        ("cosine", [0, 0.0609, 0.2343, 0.4939, 0.8]),
        ("linear", [0, 0.2, 0.4, 0.6, 0.8]),
        ("inc_cube", [0, 0.0125, 0.1, 0.3375, 0.8]),
        # Zhu and Gupta: 0.8 - 0.8 (1 - x)^3
        ("polynomial", [0, 0.4625, 0.7, 0.7875, 0.8]),
        ("constant", [0.8] * 5),
        ("one_shot", [0.8] * 5),
    ],
)
def test_check_values(kind: Kind, expected: list[float]) -> None:
    assert values(kind, 0.8, 4) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("initial", [0.0, 0.2])
@pytest.mark.parametrize("power", [1.0, 2.0, 3.0, 5.0])
def test_closed_forms(initial: float, power: float) -> None:
    final, intervals = 0.9, 7
    for j in range(intervals + 1):
        x = j / intervals
        density = (1 - initial) ** (1 - x) * (1 - final) ** x  # geometric between the two densities
        expected: dict[Kind, float] = {
            "linear": (1 - x) * initial + x * final,
            "polynomial": final - (final - initial) * (1 - x) ** power,
            "exponential": 1 - density,
            "cosine": initial + (final - initial) * (1 - cos(pi * x / 2)),
            "inc_cube": initial + (final - initial) * x * x * x,
        }
        for kind, value in expected.items():
            assert values(kind, final, intervals, power, initial)[j] == pytest.approx(value, abs=1e-12), kind


def test_polynomial_of_power_one_is_linear() -> None:
    assert values("polynomial", 0.7, 9, power=1) == pytest.approx(values("linear", 0.7, 9), abs=1e-12)


@pytest.mark.parametrize("kind", RAMPS)
def test_monotone_and_the_last_event_is_the_target_exactly(kind: Kind) -> None:
    for intervals in range(60):
        for final in (0.1, 0.5, 0.8, 0.95, 0.999):
            course = values(kind, final, intervals)
            assert course == sorted(course), (intervals, final)
            assert course[-1] == final, (intervals, final)  # not approximately


def test_the_rounding_of_the_formula_would_lose_units() -> None:
    # Why the last event is set and not computed: 1 - r^T with r = (1 - a)^(1 / T), floored, as INC computes it.
    short = [t for t in range(1, 61) if int(128 * (1 - (0.5 ** (1 / t)) ** t)) < 64]
    assert len(short) > 10
    assert all(int(128 * values("exponential", 0.5, t)[-1]) == 64 for t in short)


def test_between_events_the_sparsity_stands_still() -> None:
    table = Timetable("linear", (10, 20, 30))
    steps = (0, 9, 10, 19, 20, 29, 30, 31, 1000)
    assert [table.sparsity(step, 0.6) for step in steps] == pytest.approx([0, 0, 0, 0, 0.3, 0.3, 0.6, 0.6, 0.6])
    assert [step for step in range(40) if table.due(step)] == [10, 20, 30]
    assert [table.prunes(step) for step in (0, 10, 20)] == [False, False, True]


@pytest.mark.parametrize(
    ("schedule", "total", "per_epoch", "events"),
    [
        (Schedule("linear", Span(10), Span(30), Span(10)), 100, 50, (10, 20, 30)),
        (Schedule("linear", Span(10), Span(39), Span(10)), 100, 50, (10, 20, 30)),  # the target comes before end
        (Schedule("linear", Span(10, "%"), Span(50, "%"), Span(20, "%")), 200, 50, (20, 60, 100)),
        (Schedule("linear", Span(1, "epochs"), Span(2.5, "epochs"), Span(0.5, "epochs")), 200, 50, (50, 75, 100, 125)),
        (Schedule("linear", Span(0), Span(8), Span(3)), 8, 8, (0, 3, 6)),
        (Schedule("linear", Span(0), None, Span(25)), 100, 50, (0, 25, 50, 75)),  # a quarter is left to train
        (Schedule("linear", Span(0), None, Span(25), Span(1, "epochs")), 100, 50, (0, 25, 50)),
        (Schedule("linear", Span(0), None, Span(50), Span(0)), 100, 50, (0, 50, 100)),
        (Schedule("linear", Span(10), Span(30), Span(21)), 100, 50, (10,)),  # one event, all the way
        (Schedule("one_shot", Span(70)), 100, 50, (70,)),
        (Schedule("one_shot", Span(70), every=Span(1), cooldown=Span(90)), 100, 50, (70,)),
        (Schedule("constant", Span(0), Span(4), Span(2)), 4, 4, (0, 2, 4)),
        (Schedule("exponential", Span(100), Span(500)), 1000, 100, tuple(range(100, 501, 10))),  # 401 // 40
        (Schedule("exponential", Span(0), Span(9)), 20, 20, tuple(range(10))),
        (Schedule("linear", Span(100 / 3, "%"), Span(200 / 3, "%"), Span(1)), 3, 3, (1, 2)),  # 0.99999 is 1
    ],
)
def test_spans_become_steps(schedule: Schedule, total: int, per_epoch: float, events: tuple[int, ...]) -> None:
    assert schedule.timetable(total, per_epoch).update_steps == events


def test_one_event_goes_all_the_way() -> None:
    table = Schedule("exponential", Span(10), Span(30), Span(21)).timetable(100, 50)
    assert [table.sparsity(step, 0.8) for step in (9, 10, 30)] == [0, 0.8, 0.8]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (1000, Span(1000)),
        (0, Span(0)),
        ("1000", Span(1000)),
        ("1 step", Span(1)),
        ("1000 steps", Span(1000)),
        ("2 epochs", Span(2, "epochs")),
        ("1 epoch", Span(1, "epochs")),
        ("0.5epochs", Span(0.5, "epochs")),
        ("10%", Span(10, "%")),
        (" 12.5 % ", Span(12.5, "%")),
        (Span(3, "%"), Span(3, "%")),
    ],
)
def test_parse_span(text: object, expected: Span) -> None:
    assert parse_span(text) == expected
    assert parse_span(str(expected)) == expected


@pytest.mark.parametrize("text", [0.1, -5, True, None, "ten", "10 %%", "-3", "3 days", "1e3", ""])
def test_bad_spans_name_key_value_and_fix(text: object) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_span(text, "prune.schedule.start")
    (problem,) = caught.value.problems
    assert (problem.key, problem.value) == ("prune.schedule.start", text)
    assert "number of steps" in problem.rule
    assert "10%" in problem.fix


BAD: list[tuple[Schedule, dict[str, tuple[object, str, str]]]] = [
    # schedule -> key: (value, part of the rule, part of the fix), in a training of 100 steps
    (Schedule("linear", Span(10), Span(101)), {"schedule.end": (101, "last optimizer step 100", "75")}),
    (Schedule("linear", Span(0), Span(150, "%")), {"schedule.end": (150, "last optimizer step 100", "75")}),
    (Schedule("linear", Span(60), Span(50)), {"schedule.start": (60, "end of pruning, step 50", "5")}),
    (Schedule("one_shot", Span(101)), {"schedule.start": (101, "end of pruning, step 100", "10")}),
    (Schedule("linear", Span(90), cooldown=Span(20)), {"schedule.start": (90, "end of pruning, step 80", "8")}),
    (Schedule("linear", Span(0), cooldown=Span(3, "epochs")), {"schedule.cooldown": ("3 epochs", "leave", "25%")}),
    (Schedule("linear", Span(0), every=Span(0)), {"schedule.every": ("0 steps", "at least one step", "100")}),
    (Schedule("linear", Span(0), every=Span(0.5)), {"schedule.every": ("0.5 steps", "at least one step", "100")}),
    (Schedule("liner"), {"schedule.kind": ("liner", "be one of one_shot", "linear")}),  # type: ignore[arg-type]
    (Schedule("cubic"), {"schedule.kind": ("cubic", "be one of one_shot", "inc_cube")}),  # type: ignore[arg-type]
    (Schedule(power=0), {"schedule.power": (0, "be above 0", "3")}),
    (Schedule(power=float("nan")), {"schedule.power": (None, "be above 0", "3")}),
    (
        Schedule(end=Span(50), cooldown=Span(10)),
        {"schedule.end": ("50 steps", "together with cooldown", "one of the two")},
    ),
    (
        Schedule("polynomial", Span(120), Span(110), Span(0), power=-1),  # four mistakes, told in one go
        {
            "schedule.power": (-1, "be above 0", "3"),
            "schedule.end": (110, "last optimizer step 100", "75"),
            "schedule.start": (120, "end of pruning, step 100", "10"),
            "schedule.every": ("0 steps", "at least one step", "100"),
        },
    ),
]


@pytest.mark.parametrize(
    ("schedule", "expected"), BAD, ids=lambda value: value.kind if isinstance(value, Schedule) else ""
)
def test_errors_name_key_value_rule_and_fix(schedule: Schedule, expected: dict[str, tuple[object, str, str]]) -> None:
    with pytest.raises(RecipeError) as caught:
        schedule.timetable(100, 50)
    assert [problem.key for problem in caught.value.problems] == list(expected)
    for problem in caught.value.problems:
        value, rule, fix = expected[problem.key]
        if value is not None:
            assert problem.value == value
        assert rule in problem.rule
        assert fix in problem.fix
        for part in (problem.key, problem.rule, problem.fix):
            assert part in str(caught.value)


@pytest.mark.parametrize("kind", RAMPS)
@pytest.mark.parametrize("every", [1, 3, 7])
def test_hold_selects_again_at_the_final_sparsity_and_changes_nothing_before(kind: Kind, every: int) -> None:
    plain = Schedule(kind, Span(10), Span(40), Span(every)).timetable(100, 25)
    held = Schedule(kind, Span(10), Span(40), Span(every), hold=Span(1, "epochs")).timetable(100, 25)
    assert held.update_steps[: len(plain.update_steps)] == plain.update_steps
    more = held.update_steps[len(plain.update_steps) :]
    assert (
        len(more)
        == held.hold_updates
        == len(range(plain.update_steps[-1] + every, (10 if kind == "one_shot" else 40) + 26, every))
    )
    for step in range(101):
        assert held.sparsity(step, 0.8) == plain.sparsity(step, 0.8)
        assert held.due(step) == (plain.due(step) or step in more)


def test_the_cards_ramp() -> None:
    """0.8 over nine epochs, power 3, every step: the levels at which its epochs begin; masks freeze when the tenth begins."""
    table = Schedule("polynomial", Span(0), Span(9, "epochs"), Span(1), hold=Span(1, "epochs")).timetable(
        17 * 2105, 2105
    )
    levels = [table.sparsity(epoch * 2105, 0.8) for epoch in range(11)]
    assert levels == pytest.approx([0, 0.238, 0.424, 0.563, 0.663, 0.730, 0.770, 0.791, 0.799, 0.8, 0.8], abs=6e-4)
    assert table.update_steps[-1] == 10 * 2105


def test_a_hold_that_does_not_fit_is_named() -> None:
    with pytest.raises(RecipeError, match=r"schedule\.hold"):
        Schedule("linear", Span(0), Span(90), hold=Span(11)).timetable(100, 25)


def multistep(*levels: float, boundaries: tuple[int, ...] = (30, 60)) -> Schedule:
    return Schedule("multistep", Span(5), boundaries=tuple(Span(at) for at in boundaries), levels=levels)


def test_multistep_is_nncfs() -> None:
    """Levels 0.1, 0.4 and 0.8 from the steps 5, 30 and 60 on: the level's index is the number of boundaries passed."""
    table = multistep(0.125, 0.5, 1.0).timetable(100, 25)
    assert table.update_steps == (5, 30, 60)
    for step in range(101):
        expected = 0.0 if step < 5 else (0.1, 0.4, 0.8)[sum(step >= edge for edge in (30, 60))]
        assert table.sparsity(step, 0.8) == pytest.approx(expected)
        assert table.due(step) == (step in (5, 30, 60))


@pytest.mark.parametrize(
    ("schedule", "key"),
    [
        (Schedule("multistep"), "levels"),
        (multistep(0.5, 1.0), "levels"),
        (multistep(0.5, 0.4, 1.0), "levels"),
        (multistep(0.1, 0.5, 0.9), "levels"),
        (multistep(0.1, 0.5, 1.0, boundaries=(60, 30)), "boundaries"),
        (multistep(0.1, 0.5, 1.0, boundaries=(30, 101)), "boundaries"),
        (Schedule("multistep", Span(2), end=Span(9), boundaries=(Span(4),), levels=(0.5, 1.0)), "kind"),
    ],
)
def test_mistakes_of_multistep_are_named(schedule: Schedule, key: str) -> None:
    with pytest.raises(RecipeError) as caught:
        schedule.timetable(100, 25)
    assert {problem.key for problem in caught.value.problems} == {f"schedule.{key}"}
