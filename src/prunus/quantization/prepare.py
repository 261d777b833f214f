"""A float model -> one that trains in 8 bits: ``quantize(model, spec, batches)``, in place.

Which layers read the same tensor is seen in one forward pass: they share one range (query, key and value; one kernel then
serves all three when the model is exported).
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from prunus.architectures import is_score_operand
from prunus.errors import Problem, TargetError, nearest
from prunus.quantization.fake import symmetric
from prunus.quantization.layers import ActivationRange, QuantEmbedding, QuantLinear, observing
from prunus.quantization.saved import restore_problems
from prunus.quantization.sharing import Site, float_sharers, joined, put, sites
from prunus.quantization.spec import Quantization
from prunus.sparsity.wrappers import evaluating

__all__ = ["attach", "quantize", "restore", "same_input", "to_float"]


def attach(model: nn.Module, spec: Quantization, readers: Iterable[Iterable[str]]) -> list[str]:
    """Puts quantized layers in the place of the float ones; ranges of activations are still to be set.

    A module under several names is one quantized module under all of them. Layers with the same weight share its range; an
    embedding table whose weight a quantized Linear has too is quantized with it, because its rows are stored rounded.

    Args:
        model: changed in place; its parameters are kept, under their names.
        spec: what is quantized. A module under several names is excluded if one of them matches.
        readers: names of Linear layers, in groups that read the same tensor.

    Returns:
        Names of the quantized modules; the first name of one that has several.

    Raises:
        TargetError: nothing to quantize, a model that is quantized already, or a weight that a quantized layer shares with a
            module that stays in float. The model is then unchanged.

    """
    everything = sites(model)
    wanted = chosen(everything, spec)
    bits = 7 if spec.overflow_fix else 8
    of_linears = {id(site.module.weight) for site in wanted if type(site.module) is nn.Linear}
    linear: dict[str, QuantLinear] = {}
    owners: dict[int, QuantLinear | QuantEmbedding] = {}
    for site in wanted:
        weight, layer = id(site.module.weight), site.module
        quantized: QuantLinear | QuantEmbedding
        if isinstance(layer, nn.Embedding):
            quantized = QuantEmbedding(layer, bits if weight in of_linears else 8, owners.get(weight))
        else:
            quantized = linear[site.names[0]] = QuantLinear(cast("nn.Linear", layer), bits, owners.get(weight))
        owners.setdefault(weight, quantized)
        put(model, site.names, quantized)
    signed = spec.mode == "symmetric"
    for group in joined(readers):
        linears = [linear[name] for name in group if name in linear]
        for i, each in enumerate(linears):
            if i == 0:
                each.input_range = ActivationRange(signed, each.weight.device)
            elif linears[0].input_range is not None:
                each.shared = (linears[0].input_range,)
    for site in wanted:
        if (one := linear.get(site.names[0])) is None:
            continue
        if one.reads is None:
            one.input_range = ActivationRange(signed, one.weight.device)
        if spec.attention and any(is_score_operand(name) for name in site.names):
            one.output_range = ActivationRange(signed=True, device=one.weight.device)
        one.train(one.training)
    return [site.names[0] for site in wanted]


def chosen(everything: Sequence[Site], spec: Quantization) -> list[Site]:
    """The Linear layers and tables that are to be quantized. Raises ``TargetError`` as ``attach`` does."""
    done = sum(isinstance(site.module, QuantLinear | QuantEmbedding) for site in everything)
    if done:
        got = f"{type(everything[0].module).__name__}, in which {done} layers are quantized already"
        raise TargetError(Problem("model", got, "be a float model", "to_float(model), which makes it float again"))
    excluded = [re.compile(regex) for regex in spec.exclude]
    kinds = [site for site in everything if type(site.module) in (nn.Linear, nn.Embedding)]
    names = [name for site in kinds for name in site.names]
    unmet = [regex for regex in excluded if not any(regex.search(name) for name in names)]
    if unmet:
        parts = sorted({part for name in names for part in name.split(".") if not part.isdigit()})
        rule = "match at least one Linear or Embedding layer"
        raise TargetError(
            *(Problem("quantize.exclude", one.pattern, rule, nearest(one.pattern, parts)) for one in unmet)
        )
    left = [site for site in kinds if not any(regex.search(name) for regex in excluded for name in site.names)]
    weights = {id(site.module.weight) for site in left if type(site.module) is nn.Linear}
    if not weights:
        raise TargetError(Problem("quantize.exclude", list(spec.exclude), "leave at least one Linear layer", "fewer"))
    wanted = [site for site in left if spec.embeddings or id(site.module.weight) in weights]
    problems = float_sharers(everything, wanted)
    if problems:
        raise TargetError(*problems)
    return wanted


def quantize(
    model: nn.Module,
    spec: Quantization,
    batches: Iterable[Mapping[str, Tensor]],
    call: Callable[[nn.Module, Mapping[str, Tensor]], Any] = lambda model, batch: model(**batch),
) -> list[str]:
    """Quantizes a model in place and sets its first ranges from real batches. Each module keeps its mode (train or eval).

    Args:
        model: any PyTorch model with ``nn.Linear`` layers.
        spec: what is quantized.
        batches: inputs; at least one.
        call: how a batch is given to the model.

    Returns:
        Names of the quantized modules; the first name of one that has several.

    Raises:
        TargetError: nothing to quantize, no batch, a model that is quantized already, or a weight that a quantized layer shares
            with a module that stays in float.

    """
    batches = list(batches)
    if not batches:
        raise TargetError(Problem("quantize.samples", 0, "leave at least one batch to take ranges from", "300"))
    with torch.no_grad():
        with evaluating(model):
            readers = same_input(model, lambda: call(model, batches[0]))
        names = attach(model, spec, readers)
        with evaluating(model), observing(model, spec.ranges):
            for batch in batches:
                call(model, batch)
    return names


@torch.no_grad()
def to_float(model: nn.Module) -> dict[str, Tensor]:
    """Float layers again, in place, with weights on their grid; returns all ranges by name.

    The names are those of the quantized layers with ``.weight_range`` ``[rows, 1]``, ``.input_range.low`` and ``.high`` or
    ``.bound``, ``.output_range.bound`` behind them, and ``.bits``; a shared range stands under each of its layers, and those of
    a module with several names under each of them.
    """
    ranges: dict[str, Tensor] = {}
    rounded: set[int] = set()
    for site in sites(model):
        module = site.module
        if not isinstance(module, QuantLinear | QuantEmbedding):
            continue
        if id(module.weight) not in rounded:
            rounded.add(id(module.weight))
            on_grid = symmetric(module.weight, module.weight_bound, module.bits, narrow=True)
            module.weight.copy_(on_grid).add_(0.0)  # and not -0
        for name in site.names:
            ranges |= {f"{name}.{key}": value for key, value in ranges_of(module).items()}
        dense: nn.Linear | nn.Embedding
        if isinstance(module, QuantEmbedding):
            dense = nn.Embedding(
                module.num_embeddings, module.embedding_dim, module.padding_idx, module.max_norm, device="meta"
            )
        else:
            dense = nn.Linear(module.in_features, module.out_features, module.bias is not None, device="meta")
            dense.bias = module.bias
        dense.weight = module.weight
        put(model, site.names, dense.train(module.training))
    return ranges


def ranges_of(layer: QuantLinear | QuantEmbedding) -> dict[str, Tensor]:
    """Copies of a layer's ranges, without its name."""
    ranges = {
        "weight_range": layer.weight_bound.detach().abs(),
        "bits": torch.tensor(layer.bits, device=layer.weight.device),
    }
    if isinstance(layer, QuantLinear):
        for role, activation_range in (("input_range", layer.reads), ("output_range", layer.output_range)):
            for key, value in activation_range.named_parameters() if activation_range is not None else ():
                ranges[f"{role}.{key}"] = value.detach().abs() if key == "bound" else value.detach().clone()
    return ranges


@torch.no_grad()
def restore(model: nn.Module, ranges: Mapping[str, Tensor]) -> None:
    """The quantized model again, from what ``to_float`` returned, in place.

    Raises:
        TargetError: ranges of layers that the model does not have, of another shape, not finite, or of which a part is missing;
            different ranges for one weight. The model is then unchanged.

    """
    several = [site for site in sites(model) if isinstance(site.module, nn.Linear | nn.Embedding)]
    problems = restore_problems(several, ranges)
    if problems:
        raise TargetError(*problems)
    owners: dict[int, QuantLinear | QuantEmbedding] = {}
    for site in several:
        module = site.module
        name = next((name for name in site.names if f"{name}.weight_range" in ranges), None)
        if name is None:
            continue
        bits, owner = int(ranges.get(f"{name}.bits", torch.tensor(8))), owners.get(id(module.weight))
        layer: QuantLinear | QuantEmbedding
        if isinstance(module, nn.Embedding):
            layer = QuantEmbedding(module, bits, owner)
        else:
            layer = QuantLinear(cast("nn.Linear", module), bits, owner)
            layer.input_range = read_range(ranges, f"{name}.input_range", layer.weight.device)
            layer.output_range = read_range(ranges, f"{name}.output_range", layer.weight.device)
        if layer.weight_range is not None:
            layer.weight_range.copy_(ranges[f"{name}.weight_range"])
        owners.setdefault(id(module.weight), layer)
        put(model, site.names, layer.train(module.training))


def read_range(ranges: Mapping[str, Tensor], name: str, device: torch.device) -> ActivationRange | None:
    """The range of that name, if it is there, on the device."""
    signed = f"{name}.bound" in ranges
    keys = ("bound",) if signed else ("low", "high")
    if not all(f"{name}.{key}" in ranges for key in keys):
        return None
    activation_range = ActivationRange(signed, device)
    for key in keys:
        activation_range.get_parameter(key).copy_(ranges[f"{name}.{key}"].reshape(()))
    return activation_range


def same_input(model: nn.Module, run: Callable[[], Any]) -> list[list[str]]:
    """Names of the Linear layers, grouped by the tensor that they read in one forward pass."""
    seen: dict[int, list[str]] = {}
    alive: list[Tensor] = []  # kept, so that no other tensor takes the place of one that is gone

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            alive.append(inputs[0])
            seen.setdefault(id(inputs[0]), []).append(name)

        return hook

    hooks = []
    try:
        for name, module in model.named_modules():
            if type(module) is nn.Linear:
                hooks.append(module.register_forward_pre_hook(watch(name)))
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return [list(dict.fromkeys(names)) for names in seen.values()]
