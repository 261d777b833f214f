"""Makes the plan of a run: each part of the recipe is resolved once and passed downward, then the whole is checked.

    sources      what is loaded for each model                    planned_models.py
    task         the data, in memory                              tasks/
    models       configurations, tokenizer, shapes                planned_models.py
    rows         tokens, as long as every model reads             planned_rows.py
    budget       the sparsity that it takes                       budgeted.py
    rules        tensors, zeros and steps of each rule            sparsity/pruning.py
    checks       problems of the whole plan                       plan_checks.py

``prepare`` is the first half of ``prunus run`` and the whole of ``prunus plan``.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from prunus.checkpoint.tensor_io import MASKS_FILE, read_masks
from prunus.errors import Problem, RecipeError, collecting
from prunus.models.loading import load_model
from prunus.quantization.prepare import attach
from prunus.recipe import Recipe
from prunus.recipe_blocks import ModelSpec
from prunus.sparsity.pruning import Rule, resolve
from prunus.sparsity.zeros import masks_by_name, masks_of_zeros
from prunus.tasks import check_task, load_task
from prunus.tasks.base import HeadKind
from prunus.training.budgeted import resolve_budget, with_sparsity
from prunus.training.plan_checks import plan_problems, teaching_problems, training_problems
from prunus.training.planned_models import Models, resolve_models, resolve_sources
from prunus.training.planned_rows import resolve_rows
from prunus.training.run_plan import RunPlan, length_of

__all__ = ["prepare", "saved_masks"]

Progress = Callable[[str, int, int], None]
"""(what, done, total)"""


def prepare(recipe: Recipe, progress: Progress | None = None, spent: Mapping[str, Any] | None = None) -> RunPlan:
    """Resolves ``recipe`` against its data and models, and checks it.

    ``spent`` is the ``budget`` of the run that goes on. Raises one ``PrunusError`` with every problem that can be known before
    training.
    """

    def step(what: str) -> Callable[[int, int], None] | None:
        return None if progress is None else lambda done, total: progress(what, done, total)

    problems = recipe.problems()
    spec, distill, train = recipe.model, recipe.distill, recipe.train
    problems += check_task(recipe.task)
    trainings = {"train": train} if recipe.dense is None else {"train": train, "dense": recipe.dense}
    problems += training_problems(trainings, distill)
    sources = resolve_sources(spec, {} if distill is None else distill.teachers, problems)
    if problems or sources is None:
        raise RecipeError(*problems)
    task = load_task(recipe.task, step("reading data"))
    models = resolve_models(spec, sources, task, problems)
    problems += teaching_problems(distill, task.head)
    if problems or models is None:
        raise RecipeError(*problems)
    rows = resolve_rows(recipe.task, task, models, sources, problems, step("tokenising"))
    if problems:
        raise RecipeError(*problems)
    length = length_of(len(rows.features), train)
    skeleton, timing = models.skeleton, step("timing smaller models")
    limited = [pruning for pruning in recipe.prune if recipe.budgets(pruning)]
    budget = resolve_budget(recipe.budget, limited, train.threads, models, task.head, spent, timing)
    recipe = with_sparsity(replace(recipe, task=rows.spec), budget)
    rules: list[Rule] = []
    quantized: list[str] = []
    with collecting(problems):
        rules = resolve(skeleton, recipe.prune, length.total, length.steps_per_epoch)
    if recipe.quantize is not None:
        with collecting(problems):
            quantized = attach(deepcopy(skeleton), recipe.quantize, ())
    plan = RunPlan(
        recipe,
        rows.task,
        models.tokenizer,
        models.config,
        sources.model,
        sources.dense,
        models.dense_config,
        sources.teachers,
        rows.features,
        length,
        length_of(len(rows.features), recipe.dense_training),
        tuple(rules),
        skeleton,
        tuple(quantized),
        budget,
    )
    problems += plan_problems(plan) + _other_zeros(spec, plan.rules, sources.model, models, task.head)
    if problems:
        raise RecipeError(*problems)
    return plan


def _other_zeros(spec: ModelSpec, rules: Sequence[Rule], source: str, models: Models, head: HeadKind) -> list[Problem]:
    """Why the zeros that a rule locks are not what was declared; the weights are read for it."""
    problems: list[Problem] = []
    if not any(rule.pruning.lock for rule in rules):
        return problems
    with collecting(problems):
        model = load_model(source, models.config, head)
        masks = saved_masks(spec, rules, source)
        masks = None if masks is None else masks_by_name(model, masks, skip_unknown=True)
        for index, rule in enumerate(rules):
            if rule.pruning.lock:
                with collecting(problems):
                    names, key = list(rule.selection.taken), f"prune[{index}]"
                    masks_of_zeros(model, names, rule.pattern, rule.pruning.sparsity, masks, key)
    return problems


def saved_masks(spec: ModelSpec, rules: Sequence[Rule], source: str) -> dict[str, Tensor] | None:
    """The masks beside the model whose zeros a rule locks (bool ``[out, in]``, True = kept); None where there are none.

    They are those of the whole model: one that loses layers or features is checked by its weights alone. Raises
    ``CheckpointError`` for a damaged file.
    """
    path = Path(source) / MASKS_FILE
    locks = any(rule.pruning.lock for rule in rules)
    return read_masks(path) if locks and not spec.cuts and path.is_file() else None
