"""One of several processes that find different times, and must agree on what a budget of latency takes."""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from prunus import RecipeError
from prunus.distributed.processes import leave_process_group
from prunus.recipe import read_recipe
from prunus.training import budgeted
from prunus.training.prepare import prepare
from small import small_recipe


def main() -> None:
    """``budget_worker.py DIRECTORY MODEL DATA SHARE``; writes the sparsity, or -1 where the budget cannot be met."""
    place, model, data, share = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4])
    rank = int(os.environ["RANK"])

    def layer_times(*_: Any) -> Any:
        return {"heads": {1: 5.0 + rank, 2: 10.0}, "ffn": {3: 3.0 + 2 * rank, 32: 10.0}}

    def seconds_of(models: list[torch.nn.Module], *_: Any) -> list[float]:
        return [float(sum(t.numel() for t in each.parameters())) + 1e4 * rank for each in models]

    budgeted.layer_times, budgeted.seconds_of = layer_times, seconds_of  # type: ignore[assignment]
    rules = [{"pattern": kind, "criterion": "magnitude"} for kind in ("heads", "ffn")]
    recipe = read_recipe(small_recipe(model, data, prune=rules, budget={"latency": share}, distill=None))
    try:
        found = float(prepare(recipe).budget["sparsity"])
    except RecipeError as error:
        found = -1.0 if "budget.latency must leave room" in str(error) else -2.0
    save_file({"sparsity": torch.tensor(found, dtype=torch.float64)}, place / str(rank))


if __name__ == "__main__":
    main()
    leave_process_group()
