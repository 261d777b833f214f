"""What goes into ``RunFacts``: counted in the weights, timed, or taken from the Trainer's logs."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from torch import nn

from prunus.quantization.spec import Quantization
from prunus.recipe import DistillSpec, Recipe
from prunus.report.facts import History, ModelResults, Row, TaskFacts
from prunus.sparsity.continuing import plain
from prunus.sparsity.masker import Masker
from prunus.sparsity.measure import TensorFacts, all_sparsity, sparsity_of
from prunus.sparsity.pruning import Pruning
from prunus.tasks.base import Task

__all__ = [
    "counted",
    "history",
    "recipe_facts",
    "size_on_disk",
    "task_facts",
    "tensor_rows",
]


def recipe_facts(recipe: Recipe) -> dict[str, Any]:
    """The recipe as it ran, without empty keys that are empty where they are left out too."""

    def present(value: Any, usual: Any) -> Any:
        if isinstance(value, dict):
            usual = usual if isinstance(usual, dict) else {}
            kept = {key: item for key, item in value.items() if not (_empty(item) and item == usual.get(key))}
            return {key: present(item, usual.get(key)) for key, item in kept.items()}
        if isinstance(value, list):
            return [present(item, usual[0] if isinstance(usual, list) and usual else None) for item in value]
        return value

    blocks = Recipe(dense=recipe.train, prune=(Pruning(),), distill=DistillSpec(), quantize=Quantization())
    usual = plain(blocks)  # the dense training shares what it does not say
    return {key: present(item, usual[key]) for key, item in plain(recipe).items() if not _empty(item)}


def _empty(value: Any) -> bool:
    return value is None or value in ({}, [])


def task_facts(task: Task) -> TaskFacts:
    """The task, its sizes, its trivial baselines."""
    return TaskFacts(
        task.name,
        task.head,
        task.metric,
        task.size("train"),
        task.size("validation"),
        tuple(task.notes),
        plain(task.baselines()),
    )


def counted(results: ModelResults, model: nn.Module, tensors: Sequence[TensorFacts]) -> ModelResults:
    """``results`` with the sparsity of the targets and of all weights, as counted in ``model``."""
    return replace(results, sparsity=sparsity_of(tensors), sparsity_all=all_sparsity(model))


def tensor_rows(tensors: Sequence[TensorFacts], masker: Masker) -> tuple[Row, ...]:
    """One row for each pruned tensor."""
    planned = masker.planned
    return tuple(
        asdict(fact)
        | {"shape": list(fact.shape), "sparsity": fact.sparsity, "planned": planned.get(fact.name, 0) / fact.weights}
        for fact in tensors
    )


def size_on_disk(directory: Path) -> int:
    """Bytes of the weights' files."""
    files = list(directory.glob("model*.safetensors")) or directory.glob("pytorch_model*.bin")
    return sum(path.stat().st_size for path in files)


_LOSSES: Final = re.compile(r"step|loss|learning_rate|(?!eval_|train_)\w+_loss(_\d+)?")  # the number is which teacher


def history(logs: Sequence[Mapping[str, Any]]) -> History:
    """The Trainer's logs, sorted into losses, sparsity and metrics."""
    losses = [{key: log[key] for key in log if _LOSSES.fullmatch(key)} for log in logs if "loss" in log]
    sparsity = [
        {"step": log["step"], "due": log["sparsity_due"], "measured": log["sparsity"]}
        for log in logs
        if "sparsity" in log
    ]
    measured = {point["step"]: point["measured"] for point in sparsity}
    metrics = []
    for log in logs:
        named = {key.removeprefix("eval_"): value for key, value in log.items() if key.startswith("eval_")}
        if named:
            known = [step for step in measured if step <= log["step"]]
            metrics.append({"step": log["step"], "metrics": named, "sparsity": measured[max(known)] if known else None})
    return History(tuple(losses), tuple(sparsity), tuple(metrics))
