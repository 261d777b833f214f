"""Raw outputs of a model for many rows, with little padding: rows are batched by length and put back in order."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from prunus.errors import TrainingError
from prunus.models.checkpoints import finite_problems
from prunus.models.masked_language import masked_outputs
from prunus.progress import Bars
from prunus.sparsity.wrappers import evaluating
from prunus.tasks.base import Feature, HeadKind, Metrics, Task
from prunus.tasks.collate import IGNORED, Collate
from prunus.tasks.masked_language import MaskedRows

__all__ = ["LABEL_KEYS", "predict", "score_task"]

LABEL_KEYS: Final = frozenset({"labels", "shift_labels", "start_positions", "end_positions"})
_NOWHERE: Final = float(np.finfo(np.float32).min)  # an answer cannot start in padding


@torch.inference_mode()
def predict(
    model: nn.Module,
    features: Sequence[Feature],
    collate: Collate,
    head: HeadKind,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> list[NDArray[np.float32]]:
    """What ``Task.score`` takes, in the order of ``features``: ``[logits]`` with ``[rows, classes]``, ``[start, end]``, each
    ``[rows, longest row]``, or, of predicted tokens, the sums ``[loss, hits, masked]``, each ``[rows]``.

    The model is left in the mode (training or evaluation) it was in.
    """
    device = next(model.parameters()).device
    names = ("start_logits", "end_logits") if head == "question-answering" else ("logits",)
    if isinstance(features, MaskedRows):
        order = np.arange(len(features))  # rows of one length, nearly all
    else:
        lengths = np.array([len(feature["input_ids"]) for feature in features])
        order = np.argsort(-lengths, kind="stable")  # the longest first: what does not fit into memory fails at once
    outputs: list[NDArray[np.float32]] = []
    with evaluating(model):
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = collate([features[int(row)] for row in rows])
            if head == "masked-language":
                outputs = outputs or [np.zeros(len(features), np.float32) for _ in range(3)]
                for full, part in zip(outputs, _masked(model, batch, device), strict=True):
                    full[rows] = part
                if progress is not None:
                    progress(min(start + batch_size, len(order)), len(order))
                continue
            inputs = {key: value.to(device) for key, value in batch.items() if key not in LABEL_KEYS}
            result = model(**inputs)
            for index, name in enumerate(names):
                values = result[name].float().cpu().numpy()
                if start == 0:
                    outputs.append(np.full((len(features), values.shape[1]), _NOWHERE, np.float32))
                if head == "question-answering":
                    values = np.where(inputs["attention_mask"].cpu().numpy() == 1, values, _NOWHERE)
                outputs[index][rows, : values.shape[1]] = values
            if progress is not None:
                progress(min(start + batch_size, len(order)), len(order))
    return outputs


def _masked(model: nn.Module, batch: Mapping[str, Tensor], device: torch.device) -> list[NDArray[np.float32]]:
    """Sums over the predicted tokens of each row: -log p, whether the most probable token is right, how many."""
    inputs = {key: value.to(device) for key, value in batch.items()}
    outputs, labels = masked_outputs(model, inputs)
    logits = outputs["logits"]
    row = (inputs["labels"] != IGNORED).nonzero()[:, 0]
    loss = functional.cross_entropy(logits.float(), labels, reduction="none")
    hits = (logits.argmax(-1) == labels).float()
    none = torch.zeros(len(inputs["labels"]), device=device)
    return [none.index_add(0, row, part).cpu().numpy() for part in (loss, hits, torch.ones_like(loss))]


def score_task(
    model: nn.Module, task: Task, tokenizer: PreTrainedTokenizerBase, batch_size: int, bars: Bars, what: str
) -> Metrics:
    """The task's official metrics of ``model`` on its whole validation split; ``what`` names the bar.

    Raises ``TrainingError`` where the model's weights are not finite: its answers would say nothing.
    """
    lost = finite_problems(dict(model.named_parameters()), "the trained model", "a lower learning rate")
    if lost:
        raise TrainingError(*lost)
    features = task.features("validation", tokenizer, lambda done, total: bars("tokenising", done, total))
    collate = Collate(tokenizer)
    outputs = predict(model, features, collate, task.head, batch_size, lambda done, total: bars(what, done, total))
    return task.score(outputs, features)
