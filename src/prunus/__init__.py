"""prunus: a dense transformer goes in, a sparse one comes out, with the evidence.

    method = pruning x teaching x precision, written as a recipe

Start with ``Pruning`` (what becomes zero, and when) and ``PruneCallback`` (in any ``transformers.Trainer``) or ``Masker``
(in a loop of your own); or with ``prunus run quickstart`` on the command line.
"""

import sys
from typing import TYPE_CHECKING, Any

from prunus._version import __version__
from prunus.errors import (
    CheckpointError,
    DataError,
    EngineError,
    MissingExtra,
    Problem,
    PrunusError,
    RecipeError,
    TargetError,
    TrainingError,
)
from prunus.import_hook import when_imported

if TYPE_CHECKING:
    from prunus.checkpoint.huggingface import compact
    from prunus.distillation.logits import Distillation, TeacherSettings
    from prunus.sparsity import Allocation, Lock, Masker, Pruning, Schedule, Span, Targets, lock
    from prunus.training.callback import PruneCallback
    from prunus.training.trainer import PrunusTrainer

__all__ = [
    "Allocation",
    "CheckpointError",
    "DataError",
    "Distillation",
    "EngineError",
    "Lock",
    "Masker",
    "MissingExtra",
    "Problem",
    "PruneCallback",
    "Pruning",
    "PrunusError",
    "PrunusTrainer",
    "RecipeError",
    "Schedule",
    "Span",
    "TargetError",
    "Targets",
    "TeacherSettings",
    "TrainingError",
    "__version__",
    "compact",
    "lock",
]


def _register() -> None:
    if "prunus.checkpoint.huggingface" in sys.modules:  # it is just being imported, and does this itself
        return
    from prunus.checkpoint.huggingface import register

    register()


when_imported("transformers.quantizers.auto", _register)  # so that from_pretrained knows compacted models


def __getattr__(name: str) -> Any:
    # torch and transformers take seconds to import; the command line's help and listings need neither.
    if name == "compact":
        from prunus.checkpoint.huggingface import compact

        return compact
    if name in {"Allocation", "Lock", "Masker", "Pruning", "Schedule", "Span", "Targets", "lock"}:
        from prunus import sparsity

        return getattr(sparsity, name)
    if name == "PruneCallback":
        from prunus.training.callback import PruneCallback

        return PruneCallback
    if name == "PrunusTrainer":
        from prunus.training.trainer import PrunusTrainer

        return PrunusTrainer
    if name in {"Distillation", "TeacherSettings"}:
        from prunus.distillation import logits

        return getattr(logits, name)
    raise AttributeError(f"module 'prunus' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
