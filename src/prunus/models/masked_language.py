"""Models for masked language modelling, asked only where something is predicted.

The head of such a model multiplies every token with the whole vocabulary, which for a small encoder is more work than all of
its layers. Loss, teacher and metrics need the masked places alone: the states of the others are left out before the head.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from prunus.sparsity.wrappers import body_of
from prunus.tasks.collate import IGNORED

__all__ = ["masked_outputs"]


def masked_outputs(
    model: nn.Module, inputs: Mapping[str, Tensor], asks: Mapping[str, bool] | None = None
) -> tuple[dict[str, Any], Tensor]:
    """Outputs of a batch with ``labels`` ``[rows, tokens]``, with ``logits`` ``[predicted tokens, vocabulary]``; their labels.

    ``asks`` are further arguments of the model; what it gives beside the logits is of all tokens.
    """
    places = inputs["labels"] != IGNORED
    with only_at(model, places):
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"}, **(asks or {}))
    return {**outputs, "logits": outputs.logits[0]}, inputs["labels"][places]


@contextmanager
def only_at(model: nn.Module, places: Tensor) -> Iterator[None]:
    """While it lasts, the body of a model gives the states of these places (bool ``[rows, tokens]``) as one row."""

    def chosen(module: nn.Module, inputs: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[places][None]
        return output

    handle = body_of(model, "model").register_forward_hook(chosen)
    try:
        yield
    finally:
        handle.remove()
