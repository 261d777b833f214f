"""How long a model takes with fewer heads or neurons in every layer, on this machine: what a budget of latency goes by.

The model is made with random weights (time does not depend on them) and shrunk to each point of a grid; all points take turns,
round by round, so that a drift of the machine's speed falls on all of them alike. Each point is the fastest of its rounds: what
else runs on a machine only adds to a time.
"""

from collections.abc import Sequence
from time import perf_counter
from typing import Any, Final

import torch
from torch import nn
from transformers import PreTrainedConfig

from prunus.sparsity.budget import Kinds
from prunus.sparsity.compact import shrink
from prunus.sparsity.structures import structures
from prunus.tasks.base import HeadKind
from prunus.training.models import from_config

__all__ = ["layer_times"]

_SHARES: Final = (0.1, 0.25, 0.5, 0.75, 1.0)
_ROUNDS: Final = 15
_WARM: Final = 2


@torch.no_grad()
def layer_times(config: PreTrainedConfig, head: HeadKind, tokens: int, threads: int | None = None) -> Kinds:
    """Seconds of one sequence of ``tokens`` through the model, by how many heads or neurons are in every layer."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        models: dict[tuple[str, int], nn.Module] = {}
        for kind in ("heads", "ffn"):
            for share in _SHARES:
                model = from_config(config, head).eval()
                own = [each for each in structures(model) if each.kind == kind]
                left = max(1, round(share * max(each.units for each in own)))
                if (kind, left) not in models:
                    shrink(model, {each.reader: range(min(left, each.units)) for each in own if left < each.units})
                    models[kind, left] = model
        inputs = _inputs(next(iter(models.values())), tokens)
        times: dict[tuple[str, int], list[float]] = {key: [] for key in models}
        for _ in range(_WARM + _ROUNDS):
            for key, model in models.items():
                began = perf_counter()
                model(**inputs)
                times[key].append(perf_counter() - began)
    finally:
        torch.set_num_threads(before)
    found: dict[str, dict[int, float]] = {"heads": {}, "ffn": {}}
    for (kind, left), seconds in times.items():
        found[kind][left] = min(seconds[_WARM:])
    return {kind: _rising(table) for kind, table in found.items()}


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
