"""One pruning rule: pattern x criterion x schedule x allocation, on some targets.

``Pruning`` is what a recipe's ``prune:`` block is read into, and what a user of the library writes. It is checked whole:
``problems`` gathers everything that is wrong before a model is there, ``resolve`` what only a model and a length of
training can show.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from torch import nn

from prunus.errors import Problem, PrunusError, RecipeError, TargetError, nearest
from prunus.sparsity.allocation import Allocation
from prunus.sparsity.criteria import CRITERIA, Criterion, Scores, criterion
from prunus.sparsity.patterns import NofM, Pattern, Reduce, parse_pattern
from prunus.sparsity.schedules import Schedule, Timetable
from prunus.sparsity.selection import count_of
from prunus.sparsity.structures import STRUCTURES, pattern_for
from prunus.sparsity.targets import Selection, Targets, select

__all__ = ["Pruning", "Rule", "resolve"]

_REDUCTIONS: Final = ("mean", "sum", "max")


@dataclass(frozen=True)
class Pruning:
    """What becomes zero, by what measure, when, and where.

    ``sparsity`` is the fraction of zeros in the targets at the end; None is all that an N:M pattern can give.
    ``revive`` keeps the dense weights behind the mask, so that a weight pruned early may return (4 bytes a weight);
    without it a pruned weight stays zero.
    """

    sparsity: float | None = None
    """Fraction of zeros at the end in the targets, which are the tensors that this rule prunes. You may leave it out
    for N:M, because the pattern states it."""
    pattern: str = "4x1"
    """Outputs x inputs of a block: `4x1`, `1x4`, any `RxC`, `*xC` (all outputs); `unstructured`; `N:M` (N of M inputs
    are kept); or what is removed whole: `rows`, `columns`, `heads`, `ffn` (neurons)."""
    criterion: str = "snip_momentum"
    """What scores the weights: `magnitude`, `gradient`, `snip`, `snip_momentum`, `movement`, `first_order` (whole
    units), `platon`, `wanda` (by the inputs), `random`."""
    schedule: Schedule = field(default_factory=Schedule)
    allocation: Allocation = field(default_factory=Allocation)
    targets: Targets = field(default_factory=Targets)
    reduce: Reduce = "mean"
    """How the scores of a block's weights become one score."""
    revive: bool = False
    """Pruned weights may grow back: their dense values are kept behind the mask (4 bytes per weight)."""
    scores: Scores | None = None
    """How scores are trained (``criteria.LearnedMovement``), for criterion movement with ``revive``."""
    lock: bool = False
    """Freezes the existing zeros and prunes no new weights. `pattern` and `sparsity` are checked against the zeros
    before training."""

    def final_sparsity(self) -> float:
        """``sparsity``, or the pattern's own where it is None; of a lock or a threshold only the model can say it."""
        if self.lock or self.learns_sparsity:
            return self.sparsity or 0.0
        return parse_pattern(self.pattern).max_sparsity if self.sparsity is None else self.sparsity

    def chosen_criterion(self) -> Criterion:
        """The criterion that scores the weights; a lock, which scores none, has that of magnitude."""
        return criterion("magnitude") if self.lock else criterion(self.criterion, self.scores)

    def problems(self, key: str = "prune") -> list[Problem]:
        """Everything that is wrong with the rule, whatever the model."""
        if self.lock:
            return self._lock_problems(key)
        problems: list[Problem] = []
        pattern: Pattern | None = None
        try:
            pattern = parse_pattern(self.pattern, f"{key}.pattern")
        except PrunusError as error:
            problems += error.problems
        if self.criterion not in CRITERIA:
            rule = "be one of " + ", ".join(CRITERIA)
            problems.append(Problem(f"{key}.criterion", self.criterion, rule, nearest(self.criterion, CRITERIA)))
        elif CRITERIA[self.criterion].of_units and isinstance(pattern, NofM):
            rule = f"be another for pattern {pattern}, whose units choose among their own weights"
            problems.append(Problem(f"{key}.criterion", self.criterion, rule, "snip_momentum"))
        if self.reduce not in _REDUCTIONS:
            fix = nearest(self.reduce, _REDUCTIONS)
            problems.append(Problem(f"{key}.reduce", self.reduce, "be mean, sum or max", fix))
        problems += self._scores_problems(key, pattern)
        sparsity = self.sparsity
        if self.learns_sparsity:
            if sparsity is not None:
                rule = "be left out with scores.threshold: what comes of it is counted"
                problems.append(
                    Problem(f"{key}.sparsity", sparsity, rule, "scores.regularization, higher for more zeros")
                )
        elif sparsity is None:
            if pattern is not None and not isinstance(pattern, NofM):
                problems.append(Problem(f"{key}.sparsity", None, f"be given for pattern {self.pattern}", "0.8"))
        elif not 0 <= sparsity < 1:
            percent = 1 < sparsity < 100
            fix = f"{sparsity / 100:g} (fractions, not per cent)" if percent else "0.8"
            problems.append(Problem(f"{key}.sparsity", sparsity, "be a fraction in [0, 1)", fix))
        elif pattern is not None and sparsity > pattern.max_sparsity:
            most = pattern.max_sparsity
            rule = f"be at most {most:g}, which is all that pattern {self.pattern} can give"
            problems.append(Problem(f"{key}.sparsity", sparsity, rule, f"{most:g}, or pattern: 4x1"))
        problems += self.schedule.problems(f"{key}.schedule")
        most = pattern.max_sparsity if isinstance(pattern, NofM) else 0.0
        final = most if sparsity is None else sparsity
        problems += self.allocation.problems(final if 0 <= final < 1 else 0.0, f"{key}.allocation")
        return problems

    @property
    def learns_sparsity(self) -> bool:
        """Whether the sparsity is what comes of a threshold, and not given."""
        return self.scores is not None and self.scores.threshold is not None and not self.lock

    def _scores_problems(self, key: str, pattern: Pattern | None) -> list[Problem]:
        if self.scores is None:
            return []
        problems = self.scores.problems(f"{key}.scores")
        if self.criterion != "movement":
            rule = "come with criterion movement: others are computed, and do not learn"
            problems.append(Problem(f"{key}.scores", self.criterion, rule, "criterion: movement"))
        if not self.revive:
            rule = "be true with scores that learn: a weight comes back with its score"
            problems.append(Problem(f"{key}.revive", False, rule, "true"))
        if self.learns_sparsity and isinstance(pattern, NofM):
            rule = f"be left out for pattern {pattern}, whose sparsity is given"
            problems.append(Problem(f"{key}.scores.threshold", self.scores.threshold, rule, "hard movement"))
        if self.learns_sparsity and self.allocation.per_tensor:
            rule = "be left out with scores.threshold"
            problems.append(
                Problem(f"{key}.allocation.per_tensor", dict(self.allocation.per_tensor), rule, "scope: tensor")
            )
        return problems

    def _lock_problems(self, key: str) -> list[Problem]:
        problems: list[Problem] = []
        try:
            parse_pattern(self.pattern, f"{key}.pattern")
        except PrunusError as error:
            problems += error.problems
        if self.sparsity is not None and not 0 < self.sparsity < 1:
            problems.append(Problem(f"{key}.sparsity", self.sparsity, "be a fraction in (0, 1), or left out", "0.8"))
        plain = Pruning()
        for name in ("criterion", "schedule", "allocation", "reduce", "revive", "scores"):
            if getattr(self, name) != getattr(plain, name):
                rule = "not come with lock: existing zeros are frozen, no new weights are pruned"
                problems.append(Problem(f"{key}.{name}", getattr(self, name), rule, f"leaving {name} out"))
        return problems


@dataclass(frozen=True)
class Rule:
    """A pruning rule that has met a model and a length of training."""

    pruning: Pruning
    pattern: Pattern
    criterion: Criterion
    timetable: Timetable
    selection: Selection
    sparsity: float

    def fraction_of_units(self, step: int, final: float) -> float:
        """The share of pruned units after ``step`` optimizer steps in a tensor that ends at ``final`` sparsity."""
        return min(1.0, self.timetable.sparsity(step, final) / self.pattern.max_sparsity)

    def observes_next(self, step: int) -> bool:
        """Whether the criterion needs the gradient of the step after ``step``; none does after the last update."""
        if self.criterion.needs_every_step:
            return step < self.timetable.update_steps[-1]
        return self.timetable.due(step + 1)

    def score_shape(self, name: str) -> tuple[int, int]:
        """Of the scores of one tensor: one a weight for N:M, one a unit for other patterns."""
        shape = self.selection.taken[name]
        each = self.pattern.needs_element_scores and not self.criterion.of_units
        return shape if each else self.pattern.units(shape)


def _shortfall(allocation: Allocation, pattern: Pattern, selection: Selection, sparsity: float) -> int:
    """Requested zeros that the caps of a global scope rule out, as each cap is rounded down; 0 where that is under a unit."""
    if allocation.scope != "global":
        return 0
    total = room = 0
    smallest = min(pattern.zeros_per_unit(shape) for shape in selection.taken.values())
    for shape in selection.taken.values():
        rows, columns = pattern.units(shape)
        zeros = pattern.zeros_per_unit(shape)
        total += rows * columns * zeros
        room += count_of(min(1.0, allocation.max_per_tensor / pattern.max_sparsity), rows * columns) * zeros
    short = count_of(sparsity / pattern.max_sparsity, total) - room
    return short if short >= smallest else 0


def _targets(pruning: Pruning) -> Targets:
    """Of a structure without ``include``: the projections that read it."""
    if pruning.pattern not in STRUCTURES or pruning.targets.include is not None:
        return pruning.targets
    return Targets((STRUCTURES[pruning.pattern],), pruning.targets.exclude)


def resolve(
    model: nn.Module, prunings: Sequence[Pruning], total_steps: int, steps_per_epoch: float, key: str = "prune"
) -> list[Rule]:
    """Rules for ``model`` in a training of ``total_steps`` optimizer steps; every problem of every rule at once."""
    problems: list[Problem] = []
    rules: list[Rule] = []
    owner: dict[str, str] = {}
    for index, pruning in enumerate(prunings):
        where = f"{key}[{index}]"
        of_rule = pruning.problems(where)
        if of_rule:
            problems += of_rule
            continue
        pattern, timetable, selection = parse_pattern(pruning.pattern), None, None
        try:
            pattern = pattern_for(model, pruning.pattern, f"{where}.pattern")
        except TargetError as error:
            problems += error.problems
            continue
        try:
            timetable = (
                Timetable("one_shot", (0,))
                if pruning.lock
                else pruning.schedule.timetable(total_steps, steps_per_epoch, f"{where}.schedule")
            )
        except RecipeError as error:
            problems += error.problems
        try:
            selection = select(model, _targets(pruning), pattern, f"{where}.targets")
        except TargetError as error:
            problems += error.problems
        if timetable is None or selection is None:
            continue
        final, chosen = pruning.final_sparsity(), pruning.chosen_criterion()
        if (chosen.needs_gradient or chosen.needs_input) and timetable.prunes(0):
            unseen = "input" if chosen.needs_input else "gradient"
            rule = f"be at least 1 with criterion {chosen.name}, which has seen no {unseen} at step 0"
            problems.append(Problem(f"{where}.schedule.start", 0, rule, "100, or criterion: magnitude"))
        for name, value in ((n, pruning.allocation.final(n, final)) for n in selection.taken):
            if value > pattern.max_sparsity:
                rule = f"be at most {pattern.max_sparsity:g} for pattern {pattern} ({name})"
                problems.append(Problem(f"{where}.allocation.per_tensor", value, rule, f"{pattern.max_sparsity:g}"))
                break
        for regex in pruning.allocation.per_tensor:
            if not any(re.search(regex, name) for name in selection.taken):
                rule = "match at least one tensor that this rule prunes"
                problems.append(Problem(f"{where}.allocation.per_tensor", regex, rule, "a pattern such as 'attention'"))
        for name in selection.taken:
            if name in owner:
                rule = f"not match a tensor that {owner[name]} prunes already"
                problems.append(Problem(f"{where}.targets", name, rule, "an exclude pattern in one of the two"))
                break
        short = 0 if pruning.lock else _shortfall(pruning.allocation, pattern, selection, final)
        if short:
            rule = f"leave room for the sparsity {final:g}: whole units under this cap are {short} weights short of it"
            key_ = f"{where}.allocation.max_per_tensor"
            problems.append(Problem(key_, pruning.allocation.max_per_tensor, rule, "1, or a lower sparsity"))
        owner |= dict.fromkeys(selection.taken, where)
        rules.append(Rule(pruning, pattern, chosen, timetable, selection, final))
    if problems:
        raise RecipeError(*problems)
    return rules
