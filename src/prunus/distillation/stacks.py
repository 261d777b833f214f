"""Where a model's outputs hold its layers, and which of their tokens count.

    encoder, or decoder    hidden_states, attentions                      tokens of attention_mask
    encoder-decoder        encoder_hidden_states, encoder_attentions      tokens of attention_mask
                           decoder_hidden_states, decoder_attentions      tokens of decoder_attention_mask, else of labels

Without a mask all tokens count: a vision model's patches, say. A mask ``[rows, choices, tokens]`` belongs to a model that reads
the choices as rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any, Final

import torch
from torch import Tensor

from prunus.errors import Problem, TargetError
from prunus.sparsity.wrappers import unwrapped

__all__ = ["IGNORED", "Stack", "attended_of", "layers_of", "stacks_of"]

IGNORED: Final = -100
"""The label of a token that no loss counts."""


@dataclass(frozen=True)
class Stack:
    """Layers that follow one another: how many, how wide, and what the names of their outputs begin with."""

    prefix: str
    layers: int
    width: int


def stacks_of(model: Any, key: str) -> tuple[Stack, ...]:
    """One stack, or those of the encoder and the decoder. Raises ``TargetError`` where nothing says."""
    plain: Any = unwrapped(model)
    config = getattr(plain, "config", None)
    try:
        if not _decodes(plain):
            inner = config.get_text_config()  # type: ignore[union-attr]
            return (Stack("", int(inner.num_hidden_layers), _width(config, inner)),)
        if hasattr(config, "encoder") and hasattr(config, "decoder"):
            encoder, decoder = config.encoder, config.decoder  # type: ignore[union-attr]
        else:
            encoder, decoder = (config.get_text_config(**{part: True}) for part in ("encoder", "decoder"))  # type: ignore[union-attr]
        depth = int(getattr(decoder, "num_decoder_layers", None) or decoder.num_hidden_layers)
        return (
            Stack("encoder_", int(encoder.num_hidden_layers), int(encoder.hidden_size)),
            Stack("decoder_", depth, int(decoder.hidden_size)),
        )
    except (AttributeError, TypeError):
        rule = "be a Hugging Face model whose configuration gives num_hidden_layers and hidden_size"
        raise TargetError(Problem(key, type(plain).__name__, rule, "distilling the logits alone")) from None


def _decodes(model: Any) -> bool:
    """Whether a model runs an encoder and a decoder; the encoder of T5 alone keeps the configuration of both."""
    both = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    return both and "decoder_input_ids" in signature(model.forward).parameters


def _width(config: Any, inner: Any) -> int:
    """Features of the residual stream: of a narrowed model, those that are left."""
    left = getattr(getattr(config, "quantization_config", None), "hidden", None)
    return len(left) if left is not None else int(inner.hidden_size)


def layers_of(outputs: Mapping[str, Any], name: str, count: int, key: str, owner: str) -> tuple[Tensor, ...]:
    """The ``count`` outputs of that name. Raises ``TargetError`` where there are none, or another number of them."""
    layers = outputs.get(name)
    if not layers or any(each is None for each in layers):
        rule = f"be used with models that give {name}"
        raise TargetError(Problem(key, f"a {owner} without them", rule, "distilling the logits alone"))
    if len(layers) != count:
        rule = f"be used with models that give {name} for each of their layers: {count} of the {owner}"
        raise TargetError(Problem(key, len(layers), rule, "distilling the logits alone"))
    return tuple(layers)


def attended_of(inputs: Mapping[str, Any], prefix: str, rows: int, tokens: int, key: str) -> Tensor | None:
    """Bool ``[rows, tokens]``, the tokens of a stack that count; None for all. Raises ``TargetError`` for masks of pairs."""
    mask: Tensor | None
    if prefix == "decoder_":
        mask, labels = inputs.get("decoder_attention_mask"), inputs.get("labels")
        if mask is None and labels is not None and tuple(labels.shape) == (rows, tokens):
            mask = labels != IGNORED
        elif mask is None and labels is None and "decoder_input_ids" not in inputs:
            mask = inputs.get("attention_mask")  # the decoder reads the encoder's tokens, shifted
    else:
        mask = inputs.get("attention_mask")
    if mask is None:
        return None
    if mask.dim() in (2, 3) and mask.shape[-1] == tokens and mask.numel() == rows * tokens:
        return mask.reshape(rows, tokens).bool()
    rule = f"have one mark for each of the {tokens} tokens of a layer's output"
    fix = "distilling the logits alone; or a batch without attention_mask, where all tokens count"
    raise TargetError(Problem(key, f"an attention mask {list(mask.shape)}", rule, fix)) from None


def every(rows: int, tokens: int, device: torch.device) -> Tensor:
    """A mask that counts all tokens."""
    return torch.ones(rows, tokens, dtype=torch.bool, device=device)
