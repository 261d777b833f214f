"""One small run of a kind, to be killed: ``kill_worker.py KIND MODEL DATA OUTPUT [resume]``."""

import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from prunus.progress import quiet
from prunus.recipe import read_recipe
from prunus.training.run import run
from small import small_recipe

RISING = {"kind": "linear", "start": 2, "end": 18, "every": 1}
KINDS: dict[str, dict[str, Any]] = {
    "4x1 with a teacher": {},
    "regrowth": {
        "prune": {
            "pattern": "1x1",
            "sparsity": 0.6,
            "criterion": "magnitude",
            "revive": True,
            "schedule": RISING,
        }
    },
    "movement": {
        "prune": {
            "pattern": "1x1",
            "sparsity": 0.6,
            "criterion": "movement",
            "revive": True,
            "scores": {"learning_rate": 0.01},
            "schedule": {**RISING, "kind": "polynomial", "hold": 4},
            "allocation": {"scope": "tensor"},
        }
    },
    "int8": {"quantize": {"samples": 8}},
    "contrast": {
        "distill": {
            "teacher": "dense",
            "contrast": {"prc": {"weight": 0.3}, "snc": {"weight": 0.3, "every": 0.15}, "negatives": 16},
        }
    },
    "heads": {
        "prune": [
            {"pattern": k, "sparsity": 0.5, "criterion": "first_order", "schedule": RISING} for k in ("heads", "ffn")
        ]
    },
}


def recipe_of(kind: str, model: Path, data: Path) -> Any:
    """24 steps with a checkpoint each third, the best kept, evaluated each sixth."""
    raw = small_recipe(model, data, **KINDS[kind])
    more = {"checkpoint_every": 3, "evaluate_every": 6, "keep": "best", "learning_rate": 1e-3}
    return read_recipe(raw | {"train": raw["train"] | more})


def main() -> None:
    """Runs, or goes on."""
    quiet()
    kind, model, data, output = sys.argv[1], *map(Path, sys.argv[2:5])
    run(recipe_of(kind, model, data), output, resume="resume" in sys.argv[5:], console=Console(file=sys.stderr))
    print("done", flush=True)


if __name__ == "__main__":
    main()
