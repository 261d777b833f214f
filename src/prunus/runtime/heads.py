"""What a task's model does with the hidden states: a few small products, in numpy (one thread).

sequence classification    first token -> dense -> activation -> classes        [sequences, classes]
token classification       every token -> classes                               [tokens, classes]
question answering         every token -> start, end                            [tokens, 2]
none                       hidden states; the pooled first token where there is one
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from prunus.errors import EngineError, Problem
from prunus.runtime.families import encoder_of
from prunus.runtime.reference import ACTIVATIONS

__all__ = ["Head", "head_kind", "head_of", "head_of_settings"]

Array = NDArray[Any]
_KINDS: Final = {
    "ForSequenceClassification": "sequence",
    "ForTokenClassification": "tokens",
    "ForQuestionAnswering": "span",
}


@dataclass(frozen=True)
class Head:
    """``kind`` and its dense layers, each (weight ``[outputs, inputs]``, bias, activation)."""

    kind: str
    """``sequence``, ``tokens``, ``span`` or ``none``."""
    layers: tuple[tuple[Array, Array, Callable[[Array], Array]], ...]

    def __call__(self, states: Array) -> Array:
        """``[rows, hidden]`` -> ``[rows, outputs]``."""
        for weight, bias, activation in self.layers:
            # not by matmul: it wakes the threads of BLAS, which spin for milliseconds on the processors the engine needs
            states = activation(np.vecdot(states[:, None], weight) + bias)
        return states


def head_of_settings(settings: Mapping[str, Any], embeds: bool = False) -> str:
    """The architecture whose head a model has: the first that ``config.json`` names.

    With ``embeds`` it is an encoder without a head, whatever head it was trained with, unless that head is a task's:
    sentence-transformers reads the encoder alone.
    """
    named = settings.get("architectures") or [""]
    name = str(named[0]) if isinstance(named, list) else str(named)
    return "Model" if embeds and not name.endswith(tuple(_KINDS)) else name


def head_kind(architecture: str) -> str:
    """``Head.kind`` of an architecture of ``transformers``. Raises ``EngineError`` for one without a head here."""
    for end, kind in _KINDS.items():
        if architecture.endswith(end):
            return kind
    if architecture.endswith("Model") and not architecture.endswith("HeadModel"):
        return "none"
    rule = "be an encoder, or one with a head for sequence classification, token classification or question answering"
    fix = "the encoder alone: AutoModel.from_pretrained(DIRECTORY).save_pretrained(...), and its tokenizer"
    raise EngineError(Problem("config.json: architectures", architecture or "nothing", rule, fix))


def same(x: Array) -> Array:
    return x


def head_of(architecture: str, family: str, tensors: dict[str, Array], hidden: int) -> Head:
    """The head that an architecture of ``transformers`` names.

    Args:
        architecture: the first of ``config.json``'s ``architectures``.
        family: its ``model_type``.
        tensors: with names ``head.*``.
        hidden: features of the encoder.

    Raises:
        EngineError: an architecture without a head here, or a tensor of its head that is missing or has another shape.

    """

    def layer(
        name: str, inputs: int, activation: Callable[[Array], Array]
    ) -> tuple[Array, Array, Callable[[Array], Array]]:
        weight, bias = tensors.get(f"head.{name}.weight"), tensors.get(f"head.{name}.bias")
        if (
            weight is None
            or bias is None
            or weight.ndim != 2
            or weight.shape[1] != inputs
            or bias.shape != (len(weight),)
        ):
            got = "nothing" if weight is None else tuple(weight.shape)
            raise EngineError(Problem(f"head.{name}", got, f"be a dense layer of {inputs} inputs"))
        return weight, bias, activation

    kind = head_kind(architecture)
    if kind == "sequence":
        names = encoder_of(family)[1].classifier
        activation = np.tanh if names.activation == "tanh" else ACTIVATIONS[names.activation]
        dense = layer(names.first, hidden, activation)
        return Head("sequence", (dense, layer(names.last, len(dense[0]), same)))
    if kind == "tokens":
        return Head("tokens", (layer("classifier", hidden, same),))
    if kind == "span":
        span = layer("qa_outputs", hidden, same)
        if len(span[0]) != 2:
            raise EngineError(Problem("head.qa_outputs", f"{len(span[0])} outputs", "have two: start and end"))
        return Head("span", (span,))
    pooler = encoder_of(family)[1].pooler
    return Head("none", (layer(pooler, hidden, np.tanh),) if f"head.{pooler}.weight" in tensors else ())
