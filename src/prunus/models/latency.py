"""How long a model takes with fewer heads or neurons in every layer, on this machine: what a budget of latency goes by.

A model is made with random weights (time does not depend on them) and shrunk; models that are compared take turns, round by
round, so that a drift of the machine's speed falls on all of them alike. Each is the fastest of its rounds: what else runs on a
machine only adds to a time.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any, Final

import torch
from torch import nn
from transformers import PreTrainedConfig

from prunus.distributed.processes import training_threads
from prunus.models.loading import from_config
from prunus.sparsity.budget import Kinds
from prunus.sparsity.compact import shrink
from prunus.sparsity.structures import structures
from prunus.tasks.base import HeadKind

__all__ = ["layer_times", "of_size", "seconds_of"]

_SHARES: Final = (0.1, 0.25, 0.5, 0.75, 1.0)
_ROUNDS: Final = 15
_WARM: Final = 2


def layer_times(
    config: PreTrainedConfig,
    head: HeadKind,
    tokens: int,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Kinds:
    """Seconds of one sequence of ``tokens`` through the model, by how many heads or neurons are in every layer."""
    models: dict[tuple[str, int], nn.Module] = {}
    layers = structures(from_config(config, head))
    for kind in ("heads", "ffn"):
        units = {each.reader: each.units for each in layers if each.kind == kind}
        for share in _SHARES:
            left = max(1, round(share * max(units.values())))
            if (kind, left) not in models:
                models[kind, left] = of_size(config, head, {name: min(left, n) for name, n in units.items()})
    times = seconds_of(list(models.values()), tokens, threads, _ROUNDS, progress)
    found: dict[str, dict[int, float]] = {"heads": {}, "ffn": {}}
    for (kind, left), seconds in zip(models, times, strict=True):
        found[kind][left] = seconds
    return {kind: _rising(table) for kind, table in found.items()}


def of_size(config: PreTrainedConfig, head: HeadKind, left: Mapping[str, int]) -> nn.Module:
    """The model with random weights and so many heads or neurons in the layers that read them, by their names."""
    model: nn.Module = from_config(config, head)
    shrink(model, {name: range(count) for name, count in left.items()})
    return model


@torch.no_grad()
def seconds_of(
    models: Sequence[nn.Module],
    tokens: int,
    threads: int | None,
    rounds: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[float]:
    """Seconds of one sequence of ``tokens`` through each of the models, on the processor; ``progress`` is told the rounds."""
    inputs = _inputs(models[0], tokens)
    times: list[list[float]] = [[] for _ in models]
    for model in models:
        model.eval()
    with _with_threads(threads):
        for done in range(_WARM + rounds):
            for model, row in zip(models, times, strict=True):
                began = perf_counter()
                model(**inputs)
                row.append(perf_counter() - began)
            if progress is not None:
                progress(done + 1, _WARM + rounds)
    return [min(row[_WARM:]) for row in times]


@contextmanager
def _with_threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(training_threads(threads))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _rising(table: dict[int, float]) -> dict[int, float]:
    """More takes no less: what noise says otherwise is levelled from above."""
    levelled, most = dict[int, float](), float("inf")
    for left in sorted(table, reverse=True):
        most = min(most, table[left])
        levelled[left] = most
    return levelled


def _inputs(model: Any, tokens: int) -> dict[str, torch.Tensor]:
    longest = int(getattr(model.config.get_text_config(), "max_position_embeddings", tokens))
    kept: Sequence[int] = [5] * min(tokens, longest - 4)
    ids = torch.tensor([kept])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
