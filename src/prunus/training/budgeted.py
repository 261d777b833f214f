"""A recipe with a budget becomes one with sparsities, once a model says what its heads and neurons cost.

A budget of latency is searched in a table of measured times; then the model of the size that was found is measured beside the
dense one. Where its share m(s) of the dense time is not in [a - 0.02, a], with a the share that was asked for, the next s is
where the line through the nearest measured points above and below a (or (0, 1) and the one above) meets a - 0.01.

Which heads and neurons go is the business of the criterion, so the layers of the result are not all of one size:
``timed_again`` measures it as it came out.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, Final

from torch import nn
from transformers import PreTrainedConfig

from prunus.distributed.processes import from_main_process
from prunus.errors import Problem, RecipeError
from prunus.models.latency import layer_times, of_size, seconds_of
from prunus.recipe import Recipe
from prunus.sparsity.budget import Budget, Measure, cost_of, left_of, sparsity_for
from prunus.sparsity.compact import compact
from prunus.sparsity.pruning import Pruning
from prunus.sparsity.structures import structures
from prunus.tasks.base import HeadKind
from prunus.training.planned_models import Models

__all__ = ["resolve_budget", "timed_again", "with_sparsity"]

_BAND: Final = 0.02
_TRIES: Final = 6
_ROUNDS: Final = 40


def resolve_budget(
    budget: Budget | None,
    prunings: Sequence[Pruning],
    threads: int | None,
    models: Models,
    head: HeadKind,
    spent: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """The sparsity that a budget takes, the same for all ``prunings`` (those of heads and neurons), and how it was found.

    ``spent`` is what an earlier call returned, for a run that goes on: times are not the same again. ``progress`` is told the
    rounds of a measurement; of several processes the main one measures. Returns nothing where there is no budget. Raises
    ``RecipeError`` for a budget that cannot be met.
    """
    share = budget.limit if budget is not None else None
    if budget is None or share is None:
        return {}
    if spent is not None:
        return dict(spent)
    return from_main_process(lambda: _search(share, budget.tokens, prunings, threads, models, head, progress))


def with_sparsity(recipe: Recipe, budget: Mapping[str, Any]) -> Recipe:
    """The recipe with the sparsity that its budget came to, in place of the budget."""
    if not budget:
        return recipe
    sparsity = float(budget["sparsity"])
    rules = tuple(replace(p, sparsity=sparsity) if recipe.budgets(p) else p for p in recipe.prune)
    return replace(recipe, prune=rules, budget=None)


def _search(
    limit: tuple[Measure, float],
    tokens: int,
    prunings: Sequence[Pruning],
    threads: int | None,
    models: Models,
    head: HeadKind,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:
    measure, share = limit
    skeleton, config = models.skeleton, models.config
    kinds = {pruning.pattern for pruning in prunings}
    multiples = {pruning.pattern: pruning.allocation.multiple for pruning in prunings}
    times = layer_times(config, head, tokens, threads, progress) if measure == "latency" else None

    def cost(sparsity: float) -> float:
        return cost_of(skeleton, measure, dict.fromkeys(kinds, sparsity), tokens, times, multiples)

    counts = [each.units for each in structures(skeleton) if each.kind in kinds]
    most = min(pruning.allocation.max_per_tensor for pruning in prunings)
    least = sparsity_for(cost, share, counts, f"budget.{measure}", most)
    facts: dict[str, Any] = {"measure": measure, "share": share, "tokens": tokens, "times": times}
    if measure == "latency":
        dense = of_size(config, head, {})

        def measured(sparsity: float) -> float:
            left = left_of(skeleton, dict.fromkeys(kinds, sparsity), multiples)
            whole, less = seconds_of([dense, of_size(config, head, left)], tokens, threads, _ROUNDS, progress)
            return less / whole

        tried = _tried(measured, least, share, most)
        least = min(tried, key=lambda s: (tried[s] > share, abs(tried[s] - share)))
        facts |= {"threads": threads, "measured": tried[least], "tried": [list(each) for each in tried.items()]}
    return facts | {"sparsity": least, "predicted": cost(least) / cost(0.0)}


def _tried(measured: Callable[[float], float], first: float, share: float, most: float) -> dict[float, float]:
    """Sparsities in the order in which they were measured, from ``first`` on, and what was measured.

    Raises ``RecipeError`` where ``most`` is not enough.
    """
    tried: dict[float, float] = {}
    above, below, now = (0.0, 1.0), None, first
    while now not in tried and len(tried) < _TRIES:
        tried[now] = value = measured(now)
        if share - _BAND <= value <= share:
            break
        if value > share and now >= most:
            rule = (
                f"leave room for what cannot go; with {most:.3g} of the heads and neurons gone {value:.3f} was measured"
            )
            fix = f"{value + _BAND / 2:.2f}" if value < 1 - _BAND else "a model with larger layers"
            raise RecipeError(Problem("budget.latency", share, rule, fix))
        if value > share:
            above = (now, value)
        else:
            below = (now, value)
        left, right = (above, below) if below is not None else ((0.0, 1.0), above)
        fall = left[1] - right[1]
        to = left[0] + (left[1] - share + _BAND / 2) * (right[0] - left[0]) / fall if fall > 0 else most
        now = min(most, max(0.0, to))
    return tried


def timed_again(
    model: nn.Module, config: PreTrainedConfig, head: HeadKind, budget: Mapping[str, Any]
) -> dict[str, Any]:
    """``found``, as ``resolve_budget`` returned it for a budget of latency, and what it came to.

    ``result`` has the seconds of one sequence through the dense model and through ``model`` without what does nothing, in
    float32 on the processor.
    """
    small = deepcopy(model).to("cpu").float()
    compact(small)
    whole, less = seconds_of([of_size(config, head, {}), small], budget["tokens"], budget["threads"], _ROUNDS)
    return {**budget, "result": {"dense_seconds": whole, "seconds": less}}
