"""What holds under DeepSpeed, and what does not.

    ZeRO-1, ZeRO-2    its backward pass steps the optimizer, on a copy of the weights, and writes them into the model; masks are
                      applied after that, to weights that all processes hold whole: right for masks that look at weights alone
    gradients         are gone, or parts of them elsewhere, when scores would see them: gradient criteria are refused
    ZeRO-3            no process holds a weight: refused

A weight that is pruned goes on in DeepSpeed's copy and never comes back into the model: rules that let weights regrow would
overwrite what DeepSpeed wrote, and are refused as well.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from prunus.errors import Problem
from prunus.sparsity.pruning import Pruning

__all__ = ["asked_stage", "deepspeed_problems", "stage_of"]

_WEIGHTS_ALONE = ("magnitude", "random")
_FIX = "DDP or FSDP2 (accelerate launch without DeepSpeed)"


def asked_stage() -> int | None:
    """The ZeRO stage that ``accelerate launch`` asks for in the environment; None without DeepSpeed."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() != "true":
        return None
    path = Path(os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", ""))
    if path.is_file():
        try:
            config: Any = json.loads(path.read_text(encoding="utf-8"))
            return int(config["zero_optimization"]["stage"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0  # DeepSpeed's own default
    stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    return int(stage) if stage.isdecimal() else 2


def stage_of(args: TrainingArguments) -> int | None:
    """The ZeRO stage of a training; None without DeepSpeed."""
    # The plugin is also there without the argument, when accelerate's own configuration asks for it.
    plugin = args.deepspeed_plugin
    if not args.deepspeed and plugin is None:
        return None
    return int(getattr(plugin, "zero_stage", 0) or 0)


def deepspeed_problems(prunings: Sequence[Pruning], stage: int | None) -> list[Problem]:
    """Why a training with these rules cannot be right under that stage."""
    if stage is None or not prunings:
        return []
    if stage > 2:
        rule = "be at most ZeRO-2: under ZeRO-3 no process holds a weight whole"
        return [Problem("deepspeed", f"ZeRO-{stage}", rule, "zero_stage: 2, or FSDP2")]
    problems = []
    for index, pruning in enumerate(prunings):
        if not pruning.lock and pruning.criterion not in _WEIGHTS_ALONE:
            rule = (
                f"be one of {', '.join(_WEIGHTS_ALONE)} under DeepSpeed, which has stepped before scores see a gradient"
            )
            problems.append(Problem(f"prune[{index}].criterion", pruning.criterion, rule, f"magnitude, or {_FIX}"))
        if pruning.revive:
            rule = "be false under DeepSpeed, which writes its own copy of the weights over those that were kept"
            problems.append(Problem(f"prune[{index}].revive", True, rule, f"false, or {_FIX}"))
    return problems
