"""A saved model measured again, from its files alone; one that was trained in 8 bits, in 8 bits."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from prunus.checkpoint.tensor_io import MASKS_FILE, read_masks
from prunus.errors import CheckpointError, Problem, PrunusError
from prunus.models.loading import load_saved, load_tokenizer, saved_labels
from prunus.models.predict import score_task
from prunus.progress import Bars
from prunus.quantization import to_float
from prunus.recipe import Recipe, read_recipe
from prunus.report.facts import read_facts
from prunus.sparsity.measure import all_sparsity, measure, sparsity_of
from prunus.sparsity.patterns import parse_pattern
from prunus.tasks import Split, check_task, load_task, with_data

__all__ = ["rescore"]


def rescore(directory: Path, data: Mapping[str, Any], console: Console | None = None) -> dict[str, Any]:
    """Metrics and sparsity of the model in ``directory``, on the data of its recipe or on that which ``data`` names.

    Raises ``CheckpointError`` for a directory that is no finished run or whose zeros are not where its masks say.
    """
    facts = read_facts(directory)
    if not facts.recipe:  # compacted, say, from a directory that no run made
        rule = "hold the recipe of the run that made the model, which says what is measured"
        raise CheckpointError(Problem("prunus.json", "no recipe", rule, "the output of a run"))
    try:
        recipe: Recipe = read_recipe(facts.recipe)
    except PrunusError as error:
        raise CheckpointError(*error.problems) from None
    spec, labels = with_data(recipe.task, data), saved_labels(directory)
    # Classes of own files that the model does not name are those of the training file.
    needed: tuple[Split, ...] = ("validation",) if labels or spec.name != "classification" else ("train", "validation")
    found = check_task(spec, needed)
    if found:
        raise CheckpointError(*found)
    with Bars(console) as bars:
        task = load_task(spec, lambda done, total: bars("reading data", done, total), needed, labels)
        tokenizer = load_tokenizer(str(directory), key="directory")
        model = load_saved(directory, task)
        metrics = score_task(model, task, tokenizer, recipe.train.eval_batch_size, bars, "evaluating")
        to_float(model)
    names = {name for name, _ in model.named_parameters()}
    patterns = {
        str(tensor["name"]): parse_pattern(str(tensor["pattern"]), "prunus.json")
        for tensor in facts.tensors
        if tensor.get("name") in names
    }
    tensors = measure(model, patterns)
    if (directory / MASKS_FILE).is_file():
        for name, mask in read_masks(directory / MASKS_FILE).items():
            weight = model.get_parameter(name)
            if weight.shape != mask.shape or bool((weight.detach()[~mask] != 0).any()):
                rule = "be zero wherever its mask says so"
                raise CheckpointError(Problem(name, "a nonzero weight", rule, "the directory as the run left it"))
    return {
        "directory": str(directory),
        "task": task.name,
        "validation_examples": task.size("validation"),
        "notes": list(task.notes),
        "metrics": metrics,
        "sparsity": sparsity_of(tensors),
        "sparsity_all": all_sparsity(model),
        "tensors": len(tensors),
    }
