"""A run goes on with the recipe that it began with: ``prunus.json`` holds it, and every key that differs is named.

Keys that change what is said of a training, and not its weights, may differ (``FREE``). A path may be written in another way;
what it leads to must be the same, also in content (``inputs``).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from prunus.errors import CheckpointError, Problem, PrunusError
from prunus.recipe import Recipe, read_recipe
from prunus.report.facts import FACTS_FILE, RunFacts
from prunus.sparsity.continuing import plain
from prunus.training.budgeted import with_sparsity

__all__ = ["check_inputs", "check_recipe"]

FREE: Final = frozenset(
    {
        "output",
        "evaluate_dense",
        *(
            f"{block}.{key}"
            for block in ("train", "dense")
            for key in (
                "checkpoint_every",
                "eval_batch_size",
                "log_every",
                "report_to",
                "steps_per_epoch",
                "threads",
                "trainer.dataloader_num_workers",
                "trainer.dataloader_persistent_workers",
                "trainer.dataloader_prefetch_factor",
                "trainer.logging_dir",
                "trainer.logging_first_step",
                "trainer.run_name",
            )
        ),
    }
)
"""Keys that may differ."""
_PATHS: Final = ("model.name", "model.dense", "task.train", "task.validation", "task.data", "distill.teacher")
_FIX: Final = "the recipe that the run began with, another --output, or --overwrite, which begins again"


def check_recipe(recipe: Recipe, earlier: RunFacts, output: Path, resolved: bool) -> None:
    """``CheckpointError`` with every key of ``recipe`` that is not as in the facts of the run that is to go on.

    ``resolved`` says whether data and models have given the recipe its length of rows and the sparsity of a budget.
    """
    if not earlier.recipe:
        rule = "hold the recipe of the run that is to go on"
        raise CheckpointError(Problem(str(output / FACTS_FILE), "none", rule, "--overwrite, which begins again"))
    try:
        before = read_recipe(earlier.recipe)
    except PrunusError as error:
        rule = f"hold a recipe that this prunus reads ({error.problems[0].key})"
        raise CheckpointError(Problem(str(output / FACTS_FILE), "another one", rule, _FIX)) from None
    problems = [] if resolved else _other_budget(recipe, earlier)
    if not resolved and not problems:
        recipe = with_sparsity(recipe, earlier.budget)
    live, old, written = _flat(plain(recipe)), _flat(plain(before)), _flat(earlier.recipe)
    for key in dict.fromkeys([*live, *old]):
        value, was = live.get(key), old.get(key)
        if value == was or key in FREE or (key in _PATHS and _same_path(value, was)):
            continue
        if key == "task.max_length" and value is None and not resolved:  # data and models say it
            continue
        if value in (None, [], {}) and key not in written:  # earlier versions did not write down what is empty
            continue
        problems.append(Problem(key, value, f"be {was!r}, as in {output / FACTS_FILE} of the run that goes on", _FIX))
    if problems:
        raise CheckpointError(*problems)


def check_inputs(inputs: Mapping[str, Any], earlier: RunFacts, output: Path) -> None:
    """``CheckpointError`` where data or weights have changed since the run began; an older prunus recorded nothing."""
    problems = [
        Problem(key, f"other {'rows' if key.startswith('task') else 'weights'}", f"be what {output} began with", _FIX)
        for key, digest in inputs.items()
        if earlier.inputs.get(key, digest) != digest
    ]
    if problems:
        raise CheckpointError(*problems)


def _other_budget(recipe: Recipe, earlier: RunFacts) -> list[Problem]:
    """Problems of a budget that is not the one whose sparsity the run has."""
    budget, spent = recipe.budget, earlier.budget
    limit = None if budget is None or budget.limit is None else [*budget.limit, budget.tokens]
    was = [spent.get("measure"), spent.get("share"), spent.get("tokens")] if spent else None
    if limit == was:
        return []
    shown = "none" if was is None else f"{was[0]}: {was[1]} for {was[2]} tokens"
    value = "none" if limit is None else f"{limit[0]}: {limit[1]} for {limit[2]} tokens"
    return [Problem("budget", value, f"be {shown}, as of the run that goes on", _FIX)]


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """Dotted keys of the leaves."""
    inner: Mapping[str, Any] = {}
    if isinstance(value, Mapping):
        inner = {f"{key}.{name}" if key else str(name): item for name, item in value.items()}
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        inner = {f"{key}[{index}]": item for index, item in enumerate(value)}
    if not inner:
        return {key: value}
    return {name: leaf for each, item in inner.items() for name, leaf in _flat(item, each).items()}


def _same_path(one: Any, other: Any) -> bool:
    """Whether two texts lead to the same existing place."""
    try:
        paths = [Path(each).expanduser().resolve(strict=True) for each in (one, other)]
    except (OSError, RuntimeError, TypeError):
        return False
    return paths[0] == paths[1]
