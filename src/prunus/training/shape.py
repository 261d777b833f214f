"""Depth and width of the model that a training begins with: cut before the first step, by what the model does on real examples.

layers, depth     ``sparsity.depth``: those named, or those with the most influence
hidden            ``sparsity.width``: the features that weigh most
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from prunus.checkpoint.huggingface import narrow, shorten
from prunus.errors import Problem, RecipeError
from prunus.recipe_blocks import ModelSpec
from prunus.sparsity.depth import influence, is_first_fixed, layers_of, spread
from prunus.sparsity.width import stream_width, strength

__all__ = ["cut", "cut_shapes"]


def cut_shapes(skeleton: Any, spec: ModelSpec) -> None:
    """Cuts a model without weights to the shapes that ``cut`` leaves; which layers and features they are does not matter here.

    Raises ``RecipeError`` for more than there are.
    """
    layers = width = 0
    if spec.layers or spec.depth is not None:
        layers = len(layers_of(skeleton, "model.name")[1])
    if spec.hidden is not None:
        width = stream_width(skeleton)
    for name, value, most in (("depth", spec.depth, layers), ("hidden", spec.hidden, width)):
        if value is not None and value > most:
            raise RecipeError(Problem(f"model.{name}", value, f"be at most the {most} of the model", str(most)))
    if layers:
        shorten(skeleton, spec.layers or spread(layers, spec.depth or 1), "model.layers")
    if spec.hidden is not None and spec.hidden < width:
        narrow(skeleton, range(spec.hidden))


def cut(model: Any, spec: ModelSpec, batches: Callable[[], Iterable[Mapping[str, Tensor]]]) -> dict[str, Any]:
    """Cuts ``model`` in place and returns which layers and how many features are left; nothing where nothing was asked."""
    facts: dict[str, Any] = {}
    if spec.layers or spec.depth is not None:
        kept = list(spec.layers)
        if spec.depth is not None:
            turned = influence(model, batches())
            facts["influence"] = turned
            fixed = is_first_fixed(model)  # then it is kept, whatever it turns
            kept = sorted(sorted(range(len(turned)), key=lambda i: (not (fixed and i == 0), -turned[i]))[: spec.depth])
        shorten(model, kept, "model.layers")
        facts["layers"] = kept
    if spec.hidden is not None and spec.hidden < stream_width(model):
        order = torch.argsort(strength(model), descending=True, stable=True)
        narrow(model, sorted(order[: spec.hidden].tolist()))
        facts["hidden"] = spec.hidden
    return facts
