"""The best model of a training, among those that count: at full sparsity, and after a given step.

A higher metric earlier in the training belongs to a denser model, and says nothing about the one that was asked for. The first
of equals is kept. The weights stand in ``best.safetensors`` beside the checkpoints, so a resumed training goes on with them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prunus.checkpoint.tensor_io import read_tensors, write_tensors
from prunus.distributed.processes import barrier, is_main_process
from prunus.errors import CheckpointError, Problem, first_line
from prunus.sparsity.measure import whole
from prunus.training.session import Session

__all__ = ["KeepBest"]

_FILE: Final = "best.safetensors"
_FIX: Final = "the run's directory as it was written, or --overwrite"


class KeepBest(TrainerCallback):  # type: ignore[misc]
    """Keeps the weights with the highest ``metric`` among the evaluations that count.

    Args:
        directory: where ``best.safetensors`` is kept.
        metric: name of the metric, without the Trainer's ``eval_``.
        after: the first optimizer step that counts.
        session: of the training; no weights count before its last mask update.

    """

    def __init__(self, directory: Path, metric: str, after: int, session: Session | None = None) -> None:
        self.path, self.metric, self.after, self.session = directory / _FILE, metric, after, session
        self.value: float | None = None
        if session is not None:
            session.best = self
        self.step = self.looked = -1

    def begin(self, saved: Mapping[str, Tensor] | None, step: int) -> None:
        """What a stopped training had found counts, if it was found before the ``step`` that training goes on from.

        Raises ``CheckpointError`` where the weights that ``saved`` tells of are not there.
        """
        self.value, self.step = None, -1
        value, found = self._found()
        wanted = -1 if saved is None else int(saved["step"])
        if wanted > found:
            rule = f"hold the best weights so far, of step {wanted}"
            raise CheckpointError(Problem(str(self.path), "none" if found < 0 else f"step {found}", rule, _FIX))
        if step and 0 <= found <= step:
            self.value, self.step = value, found

    def state_dict(self) -> dict[str, Tensor]:
        """The step of the best weights so far, -1 where there are none."""
        return {"step": torch.tensor(self.step)}

    def _found(self) -> tuple[float, int]:
        """Value and step of what is in the file; step -1 where there is none."""
        try:
            with safe_open(self.path, "pt") as file:
                metadata = file.metadata() or {}
            return float(metadata["value"]), int(metadata["step"])
        except (OSError, SafetensorError, KeyError, ValueError):
            return 0.0, -1

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float],
        model: nn.Module,
        **kwargs: Any,
    ) -> None:
        """A look at one evaluation."""
        self.see(model, state.global_step, metrics[f"eval_{self.metric}"])

    def see(self, model: nn.Module, step: int, value: float) -> None:
        """Keeps the weights if they are the best that count."""
        self.looked = step
        masker = self.session.masker if self.session is not None else None
        if step < self.after or (masker is not None and not masker.finished):
            return
        if self.value is None or value > self.value:
            self.value, self.step = value, step
            # All processes collect it.
            tensors = {name: whole(tensor.detach()) for name, tensor in model.state_dict().items()}
            if not is_main_process():
                return
            self.path.parent.mkdir(parents=True, exist_ok=True)
            tensors = {name: tensor.clone() for name, tensor in tensors.items()}  # tied ones apart
            write_tensors(self.path, tensors, {"value": repr(value), "step": str(step)})

    def restore(self, model: nn.Module) -> bool:
        """Puts the best weights back; False where none counted."""
        if self.value is None:
            return False
        barrier()
        try:
            model.load_state_dict(read_tensors(self.path))
        except RuntimeError as error:
            rule = f"hold the weights of this model ({first_line(error)})"
            raise CheckpointError(Problem(str(self.path), "others", rule, _FIX)) from None
        return True
