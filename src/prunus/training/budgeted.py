"""A recipe with a budget becomes one with sparsities, once a model says what its heads and neurons cost."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from prunus.recipe import Recipe
from prunus.sparsity.budget import cost_of, sparsity_for
from prunus.sparsity.structures import structures
from prunus.tasks.base import HeadKind
from prunus.training.latency import layer_times

__all__ = ["within_budget"]


def within_budget(
    recipe: Recipe,
    skeleton: nn.Module,
    config: PreTrainedConfig,
    head: HeadKind,
    found: Mapping[str, Any] | None = None,
) -> tuple[Recipe, dict[str, Any]]:
    """The recipe with the sparsity that its budget takes, the same for heads and neurons, and how that was found.

    ``found`` is what an earlier call returned, for a run that goes on: times are not the same again. Raises ``RecipeError``
    for a budget that cannot be met.
    """
    budget = recipe.budget
    if budget is None or budget.asked is None:
        return recipe, {}
    if found is not None:
        return _with(recipe, float(found["sparsity"])), dict(found)
    measure, share = budget.asked
    own = [pruning for pruning in recipe.prune if recipe.budgets(pruning)]
    kinds = {pruning.pattern for pruning in own}
    multiples = {pruning.pattern: pruning.allocation.multiple for pruning in own}
    times = layer_times(config, head, budget.tokens, recipe.train.threads) if measure == "latency" else None

    def cost(sparsity: float) -> float:
        return cost_of(skeleton, measure, dict.fromkeys(kinds, sparsity), budget.tokens, times, multiples)

    counts = [each.units for each in structures(skeleton) if each.kind in kinds]
    most = min(pruning.allocation.max_per_tensor for pruning in own)
    least = sparsity_for(cost, share, counts, f"budget.{measure}", most)
    left = cost(least) / cost(0.0)
    return _with(recipe, least), {
        "measure": measure,
        "share": share,
        "sparsity": least,
        "predicted": left,
        "times": times,
    }


def _with(recipe: Recipe, sparsity: float) -> Recipe:
    rules = tuple(replace(p, sparsity=sparsity) if recipe.budgets(p) else p for p in recipe.prune)
    return replace(recipe, prune=rules, budget=None)
