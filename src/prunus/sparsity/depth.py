"""Depth: a model with some of its layers, and which ones matter least.

keep_layers     the layers kept stand one behind the other; the configuration says how many there are, so that the result is a
plain model of its architecture and loads without prunus
influence       of layer l: 1 - mean over tokens of cos(h_l, h_{l+1}), h_l its input, h_{l+1} its output: what it turns
(block influence, Men et al. 2024, arXiv:2403.03853, equation 1)
spread          every so-manieth layer, the first among them (DistilBERT, Sanh et al. 2019, arXiv:1910.01108, 3)
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunus.architectures import KEYS, LAYER_GROUPS_KEYS
from prunus.errors import Problem, TargetError
from prunus.sparsity.wrappers import evaluating

__all__ = ["influence", "is_first_fixed", "keep_layers", "layers_of", "spread"]


def _config(model: Any) -> Any:
    config = model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def layers_of(model: Any, key: str = "model") -> tuple[str, nn.ModuleList]:
    """Name and list of the model's layers.

    Raises ``TargetError`` where no list is as long as the configuration says, and where layers share their weights.
    """
    config = _config(model)
    count = getattr(config, KEYS.layers, None)
    for shared in LAYER_GROUPS_KEYS:
        if getattr(config, shared, count) != count:
            rule = f"have layers with weights of their own; its configuration says {shared}: {getattr(config, shared)}"
            raise TargetError(Problem(key, type(model).__name__, rule, "another model"))
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, module
    rule = "have a list of as many layers as its configuration says"
    raise TargetError(Problem(key, type(model).__name__, rule, "another model"))


def keep_layers(model: Any, kept: Sequence[int], key: str = "layers") -> None:
    """Leaves these layers, in place and in their order.

    Raises ``TargetError`` for numbers that are not there, twice there, or none, and where a layer would come to a place whose
    layer has other weights: ModernBERT's first layer has no norm before attention, T5's holds the table of positions.
    """
    name, layers = layers_of(model)
    if not kept or len(set(kept)) != len(kept) or not all(0 <= i < len(layers) for i in kept):
        rule = f"be one or more different numbers in 0..{len(layers) - 1}"
        raise TargetError(Problem(key, list(kept), rule, str(spread(len(layers), max(1, len(layers) // 2)))))
    chosen = sorted(kept)
    _check_places(layers, chosen, key)
    _count_layers(model, len(chosen))
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, nn.ModuleList([layers[i] for i in chosen]))
    for place, i in enumerate(chosen):  # a decoder's cache goes by these
        for module in layers[i].modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                setattr(module, "layer_idx", place)  # noqa: B010 - mypy takes the plain form for a submodule
    config = _config(model)
    for attribute in KEYS.per_layer:
        values = getattr(config, attribute, None)
        if isinstance(values, list) and len(values) == len(layers):
            setattr(config, attribute, [values[i] for i in chosen])


def is_first_fixed(model: Any) -> bool:
    """Whether the first layer has weights that the others lack, or lacks some: it can neither go nor be replaced."""
    _, layers = layers_of(model)
    return any(_names(layer) != _names(layers[0]) for layer in layers)


def _names(layer: nn.Module) -> set[str]:
    return {name for name, _ in layer.named_parameters()}


def _check_places(layers: nn.ModuleList, chosen: Sequence[int], key: str) -> None:
    """Raises ``TargetError`` for a layer that the architecture, made again, would make with other weights in its new place."""
    for place, i in enumerate(chosen):
        other = _names(layers[i]) ^ _names(layers[place])
        if other:
            rule = f"leave layer {place} in its place: layer {i} differs from it in {min(other)}"
            fix = str(sorted({place, *chosen}))
            raise TargetError(Problem(key, list(chosen), rule, fix))


def _count_layers(model: Any, count: int) -> None:
    """Writes the number of layers into the configuration; ``TargetError`` for one that computes it from other keys."""
    config = _config(model)
    try:
        for counter in (KEYS.layers, *LAYER_GROUPS_KEYS):
            if hasattr(config, counter):
                setattr(config, counter, count)
    except (NotImplementedError, AttributeError):
        rule = f"have a configuration whose {KEYS.layers} can be set"
        raise TargetError(Problem("model", type(model).__name__, rule, "another model")) from None


def spread(layers: int, count: int) -> list[int]:
    """``count`` of the numbers below ``layers``, evenly: ``floor(i layers / count)``."""
    return [i * layers // count for i in range(count)]


@torch.no_grad()
def influence(model: Any, batches: Iterable[Mapping[str, Tensor]]) -> list[float]:
    """What each layer turns, a mean over the tokens attended to; higher matters more."""
    _, layers = layers_of(model)
    total, tokens = [0.0] * len(layers), 0
    with evaluating(model):
        for batch in batches:
            states = model(**{k: v for k, v in batch.items() if k != "labels"}, output_hidden_states=True).hidden_states
            mask = batch.get("attention_mask")
            kept = torch.ones(states[0].shape[:2], dtype=torch.bool) if mask is None else mask.bool()
            kept = kept.to(states[0].device)
            for i in range(len(layers)):
                turned = 1 - functional.cosine_similarity(
                    states[i][kept].double(), states[i + 1][kept].double(), dim=-1
                )
                total[i] += float(turned.sum())
            tokens += int(kept.sum())
    return [each / max(1, tokens) for each in total]
