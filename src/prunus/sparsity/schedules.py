"""Schedules: how sparsity grows over optimizer steps.

A schedule updates masks T + 1 times, at the steps start + j * every, j = 0..T, T = (end - start) // every. With x = j / T the
sparsity due at update j lies between the initial s0 and the final a:

===============  =======================================  =====================================================
kind             s(x)                                     source
===============  =======================================  =====================================================
one_shot         a, at start
constant         a, at every update                       re-selects the mask at constant sparsity
linear           s0 + (a - s0) x
polynomial       a + (s0 - a) (1 - x)^power               Zhu & Gupta 2017, arXiv:1710.01878, equation 1 (power 3)
exponential      1 - (1 - s0) ((1 - a) / (1 - s0))^x      constant factor on the density; INC's ``exp``
cosine           s0 + (a - s0) (1 - cos(pi x / 2))        INC's ``cos``: slow start
inc_cube         s0 + (a - s0) x^3                        INC's ``cube``: slow start, not Zhu & Gupta's
multistep        a * levels[i], after i of ``boundaries`` NNCF's ``multistep``; an update at start and at each of them
===============  =======================================  =====================================================

The update j = 0 of a growing schedule prunes nothing; the last one is set to ``a`` exactly, whatever the rounding of the
formula. Steps count optimizer steps: the update at step t happens after t of them. ``start``, ``end``, ``every`` and
``cooldown`` are spans: steps (``1000``), epochs (``"2 epochs"``) or a share of the training (``"10%"``).
"""

import re
from dataclasses import dataclass
from itertools import pairwise
from math import cos, floor, pi, pow
from typing import Final, Literal

from prunus.errors import Problem, RecipeError, nearest

__all__ = ["KINDS", "Kind", "Schedule", "Span", "Timetable", "parse_span"]

Kind = Literal["one_shot", "constant", "linear", "polynomial", "exponential", "cosine", "inc_cube", "multistep"]
KINDS: Final[tuple[Kind, ...]] = (
    "one_shot",
    "constant",
    "linear",
    "polynomial",
    "exponential",
    "cosine",
    "inc_cube",
    "multistep",
)

_SPAN: Final = re.compile(r"\s*(?P<value>\d+(\.\d+)?)\s*(?P<unit>steps?|epochs?|%|)\s*")
_SMALL: Final = 2.0**-20  # so small that ``exponential``, too, is proportional to it
_AUTO_UPDATES: Final = 40  # INC's default: a fortieth of the pruning phase between updates


@dataclass(frozen=True)
class Span:
    """A length of training: ``value`` optimizer steps, epochs, or per cent of all steps."""

    value: float
    unit: Literal["steps", "epochs", "%"] = "steps"

    def __str__(self) -> str:
        return f"{self.value:g}%" if self.unit == "%" else f"{self.value:g} {self.unit}"

    def steps(self, total_steps: int, steps_per_epoch: float) -> int:
        """In optimizer steps, rounded down."""
        scale = {"steps": 1.0, "epochs": steps_per_epoch, "%": total_steps / 100}[self.unit]
        return floor(self.value * scale + 1e-6)


def parse_span(value: object, key: str = "span") -> Span:
    """``1000``, ``"1000 steps"``, ``"2 epochs"`` or ``"10%"``; raises ``RecipeError`` naming ``key`` otherwise."""
    if isinstance(value, Span):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return Span(value)
    match = _SPAN.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        rule = "be a number of steps, or text such as '2 epochs' or '10%'"
        raise RecipeError(Problem(key, value, rule, "'10%' or 1000 (a bare 0.1 would be a tenth of a step)"))
    unit = match["unit"]
    if unit == "%":
        return Span(float(match["value"]), "%")
    return Span(float(match["value"]), "epochs" if unit.startswith("epoch") else "steps")


@dataclass(frozen=True)
class Timetable:
    """A schedule in steps: ``update_steps`` are the optimizer steps after which masks are updated, in order."""

    kind: Kind
    update_steps: tuple[int, ...]
    power: float = 3.0
    levels: tuple[float, ...] = ()
    """Of ``multistep``: the share of the final sparsity that is due from each update on."""
    hold_updates: int = 0
    """How many of the updates, the last ones, select again at the final sparsity."""
    before: "Timetable | None" = None
    """Followed up to the step ``since``, where a training went on with another length (``continuing``)."""
    since: int = 0

    def due(self, step: int) -> bool:
        """Whether masks are updated after ``step`` optimizer steps."""
        return step in self.update_steps

    def progress(self, step: int) -> float:
        """x at ``step``: 0 before the first update, 1 from the last one on."""
        done, growing = self._done(step), self._done(self.update_steps[-1]) - self.hold_updates
        if done == 0:
            return 0.0
        if done >= growing:
            return 1.0
        return (done - 1) / (growing - 1) if self.before is None else done / growing

    def _done(self, step: int) -> int:
        """How many updates there were up to ``step``; of a training that went on, since then."""
        return sum(update <= step and (self.before is None or update > self.since) for update in self.update_steps)

    def prunes(self, step: int) -> bool:
        """Whether anything may be pruned after ``step`` optimizer steps; the first update of a growing schedule does not."""
        return self.sparsity(step, 0.5) > 0

    def share(self, step: int) -> float:
        """What part of the way from 0 to any small final value has been gone after ``step`` optimizer steps."""
        return self.sparsity(step, _SMALL) / _SMALL

    def sparsity(self, step: int, final: float, initial: float = 0.0) -> float:
        """Sparsity due after ``step`` optimizer steps, as a fraction."""
        if self.before is not None:
            initial = self.before.sparsity(min(step, self.since), final, initial)
        if not self.update_steps or not self._done(step):
            return initial
        x = self.progress(step)
        if self.kind == "multistep":
            level = final * self.levels[sum(update <= step for update in self.update_steps) - 1]
            return level if self.before is None else max(initial, level)
        if x == 1.0 or self.kind in ("one_shot", "constant"):
            return final
        if self.kind == "linear":
            return initial + (final - initial) * x
        if self.kind == "polynomial":
            return final + (initial - final) * pow(1 - x, self.power)
        if self.kind == "exponential":
            return 1 - (1 - initial) * pow((1 - final) / (1 - initial), x)
        if self.kind == "cosine":
            return initial + (final - initial) * (1 - cos(pi * x / 2))
        return initial + (final - initial) * x**3


@dataclass(frozen=True)
class Schedule:
    """When masks are updated; see the module's table. ``every=None`` is a fortieth of the pruning phase.

    ``end`` and ``cooldown`` say the same from two sides: give one (``cooldown`` is what is left to train after the last
    update of a growing sparsity; the default is a quarter of the training). ``power`` is used by ``polynomial`` alone.
    ``boundaries`` and ``levels`` (shares of the final sparsity, one more than boundaries, the last 1) are ``multistep``'s.
    ``hold`` is how long after ``end`` masks are still selected, at the final sparsity, before they freeze.
    """

    kind: Kind = "exponential"
    """How sparsity grows from `start` to `end`."""
    start: Span = Span(10, "%")
    """When the first mask update happens. In a schedule that grows, this first update prunes nothing."""
    end: Span | None = None
    """The last mask update at which sparsity grows. Give `end` or `cooldown`."""
    every: Span | None = None
    """The interval of mask updates. `auto`, or leaving it out, is a fortieth of the pruning phase."""
    cooldown: Span | None = None
    """What is left to train after the last mask update. The default is 25 % if `end` is not given."""
    power: float = 3.0
    """The exponent of `polynomial`."""
    hold: Span | None = None
    """How long masks are still selected after `end`, at the final sparsity. After that they are frozen."""
    boundaries: tuple[Span, ...] = ()
    """`multistep`: when sparsity changes."""
    levels: tuple[float, ...] = ()
    """`multistep`: fractions of the final sparsity before, between and after `boundaries`; the last is 1."""

    def problems(self, key: str = "schedule") -> list[Problem]:
        """What is wrong whatever the length of the training."""
        problems = []
        if self.kind not in KINDS:
            problems.append(
                Problem(f"{key}.kind", self.kind, "be one of " + ", ".join(KINDS), nearest(self.kind, KINDS))
            )
        if self.end is not None and self.cooldown is not None:
            problems.append(
                Problem(f"{key}.end", str(self.end), "not be given together with cooldown", "one of the two")
            )
        if self.kind == "multistep":
            problems += self._steps_problems(key)
        if not self.power > 0:
            problems.append(Problem(f"{key}.power", self.power, "be above 0", "3"))
        return problems

    def _steps_problems(self, key: str) -> list[Problem]:
        problems, levels = [], self.levels
        if not self.boundaries or len(levels) != len(self.boundaries) + 1:
            rule = "be one more than boundaries, of which there is at least one"
            problems.append(Problem(f"{key}.levels", list(levels), rule, "boundaries: [2 epochs], levels: [0.5, 1]"))
        elif levels[-1] != 1 or any(not 0 <= a <= b for a, b in pairwise(levels)):
            rule = "be shares of the final sparsity that never fall, the last of them 1"
            problems.append(Problem(f"{key}.levels", list(levels), rule, "[0.25, 0.5, 1]"))
        if self.end is not None or self.cooldown is not None or self.every is not None or self.hold is not None:
            rule = "come without end, cooldown, every and hold: the boundaries say when"
            problems.append(Problem(f"{key}.kind", self.kind, rule, "boundaries alone"))
        return problems

    def timetable(self, total_steps: int, steps_per_epoch: float, key: str = "schedule") -> Timetable:
        """The update steps in a training of ``total_steps`` optimizer steps.

        Raises ``RecipeError`` where the schedule does not fit into the training.
        """

        def steps(span: Span) -> int:
            return span.steps(total_steps, steps_per_epoch)

        problems = self.problems(key)
        start = steps(self.start)
        if self.kind == "multistep" and not problems:
            edges = (start, *map(steps, self.boundaries))
            if any(a >= b for a, b in pairwise(edges)) or edges[-1] > total_steps:
                rule = f"be increasing optimizer steps after start, at most {total_steps}"
                raise RecipeError(Problem(f"{key}.boundaries", list(edges[1:]), rule, "2 epochs"))
            return Timetable(self.kind, edges, self.power, self.levels)
        if self.kind == "one_shot":
            end = start
        elif self.end is not None:
            end = steps(self.end)
        else:
            end = total_steps - steps(self.cooldown if self.cooldown is not None else Span(25, "%"))
        length = f"{total_steps} ({total_steps / steps_per_epoch:g} epochs x {steps_per_epoch:g})"
        if end > total_steps and self.kind != "one_shot":
            fix = f"{floor(0.75 * total_steps)} (75 %)"
            problems.append(Problem(f"{key}.end", end, f"be at or before the last optimizer step {length}", fix))
        if end < 0:
            rule = f"leave at least one of the optimizer steps {length} to prune in"
            given = "cooldown" if self.end is None else "end"
            problems.append(Problem(f"{key}.{given}", str(self.cooldown or self.end), rule, "25%"))
        elif start > min(end, total_steps):
            rule = f"be at or before the end of pruning, step {min(end, total_steps)} of {length}"
            problems.append(Problem(f"{key}.start", start, rule, f"{min(end, total_steps) // 10}"))
        hold = 0 if self.hold is None else steps(self.hold)
        if hold and end + hold > total_steps:
            rule = f"end at or before the last optimizer step {length}"
            problems.append(Problem(f"{key}.hold", str(self.hold), rule, f"{max(0, total_steps - end)}"))
        every = max(1, (end - start + 1) // _AUTO_UPDATES) if self.every is None else steps(self.every)
        if every < 1:
            problems.append(Problem(f"{key}.every", str(self.every), "be at least one step", "100"))
        if problems:
            raise RecipeError(*problems)
        # An interval longer than the phase leaves one update, at the start, that goes all the way (as in INC).
        updates = range(start, end + 1, every)
        again = range(updates[-1] + every, end + hold + 1, every)
        return Timetable(self.kind, (*updates, *again), self.power, hold_updates=len(again))
