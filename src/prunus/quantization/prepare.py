"""A float model -> one that trains in 8 bits: ``quantize(model, spec, batches)``, in place.

Which layers read the same tensor is seen in one forward pass: they share one range (query, key and value; one kernel then
serves all three when the model is exported).
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunus.architectures import is_score_operand
from prunus.errors import Problem, TargetError, nearest
from prunus.quantization.fake import symmetric
from prunus.quantization.layers import ActivationRange, QuantEmbedding, QuantLinear, observing
from prunus.quantization.spec import Quantization

__all__ = ["attach", "quantize", "restore", "same_input", "to_float"]


def attach(model: nn.Module, spec: Quantization, readers: Iterable[Iterable[str]]) -> list[str]:
    """Puts quantized layers in the place of the float ones; ranges of activations are still to be set.

    Args:
        model: changed in place; its parameters are kept, under their names.
        spec: what is quantized.
        readers: names of Linear layers, in groups that read the same tensor.

    Returns:
        Names of the quantized modules.

    Raises:
        TargetError: nothing to quantize.

    """
    excluded = [re.compile(regex) for regex in spec.exclude]
    modules = [name for name, module in model.named_modules() if type(module) in (nn.Linear, nn.Embedding)]
    unmet = [regex for regex in excluded if not any(regex.search(name) for name in modules)]
    if unmet:
        parts = sorted({part for name in modules for part in name.split(".") if not part.isdigit()})
        rule = "match at least one Linear or Embedding layer"
        raise TargetError(
            *(Problem("quantize.exclude", one.pattern, rule, nearest(one.pattern, parts)) for one in unmet)
        )
    bits = 7 if spec.overflow_fix else 8
    linear: dict[str, QuantLinear] = {}
    names = []
    for name, module in list(model.named_modules()):
        if any(regex.search(name) for regex in excluded):
            continue
        if type(module) is nn.Linear:
            linear[name] = QuantLinear(module, bits)
            put(model, name, linear[name])
            names.append(name)
        elif type(module) is nn.Embedding and spec.embeddings:
            put(model, name, QuantEmbedding(module))
            names.append(name)
    if not linear:
        raise TargetError(Problem("quantize.exclude", list(spec.exclude), "leave at least one Linear layer", "fewer"))
    for group in readers:
        linears = [linear[name] for name in group if name in linear]
        for i, layer in enumerate(linears):
            if i == 0:
                layer.input_range = ActivationRange(spec.mode == "symmetric", layer.weight.device)
            elif linears[0].input_range is not None:
                layer.shared = (linears[0].input_range,)
    for name, layer in linear.items():
        if layer.reads is None:
            layer.input_range = ActivationRange(spec.mode == "symmetric", layer.weight.device)
        if spec.attention and is_score_operand(name):
            layer.output_range = ActivationRange(signed=True, device=layer.weight.device)
    return names


def quantize(
    model: nn.Module,
    spec: Quantization,
    batches: Iterable[Mapping[str, Tensor]],
    call: Callable[[nn.Module, Mapping[str, Tensor]], Any] = lambda model, batch: model(**batch),
) -> list[str]:
    """Quantizes a model in place and sets its first ranges from real batches.

    Args:
        model: any PyTorch model with ``nn.Linear`` layers.
        spec: what is quantized.
        batches: inputs; at least one.
        call: how a batch is given to the model.

    Returns:
        Names of the quantized modules.

    Raises:
        TargetError: nothing to quantize, or no batch.

    """
    batches = list(batches)
    if not batches:
        raise TargetError(Problem("quantize.samples", 0, "leave at least one batch to take ranges from", "300"))
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            names = attach(model, spec, same_input(model, lambda: call(model, batches[0])))
            with observing(model, spec.ranges):
                for batch in batches:
                    call(model, batch)
    finally:
        model.train(training)
    return names


@torch.no_grad()
def to_float(model: nn.Module) -> dict[str, Tensor]:
    """Float layers again, in place, with weights on their grid; returns all ranges by name.

    The names are those of the quantized layers with ``.weight_range`` ``[rows, 1]``, ``.input_range.low`` and ``.high`` or
    ``.bound``, ``.output_range.bound`` behind them, and ``.bits``; a shared range stands under each of its layers.
    """
    ranges: dict[str, Tensor] = {}
    for name, module in list(model.named_modules()):
        if not isinstance(module, QuantLinear | QuantEmbedding):
            continue
        ranges[f"{name}.weight_range"] = module.weight_range.detach().abs()
        if isinstance(module, QuantEmbedding):
            module.weight.copy_(symmetric(module.weight, module.weight_range, narrow=True)).add_(0.0)  # and not -0
            rows = nn.Embedding(
                module.num_embeddings, module.embedding_dim, module.padding_idx, module.max_norm, device="meta"
            )
            rows.weight = module.weight
            put(model, name, rows)
            continue
        module.weight.copy_(symmetric(module.weight, module.weight_range, module.bits, narrow=True)).add_(0.0)
        ranges[f"{name}.bits"] = torch.tensor(module.bits, device=module.weight.device)
        for role, activation_range in (("input_range", module.reads), ("output_range", module.output_range)):
            for key, value in activation_range.named_parameters() if activation_range is not None else ():
                ranges[f"{name}.{role}.{key}"] = value.detach().abs() if key == "bound" else value.detach().clone()
        dense = nn.Linear(module.in_features, module.out_features, module.bias is not None, device="meta")
        dense.weight, dense.bias = module.weight, module.bias
        put(model, name, dense)
    return ranges


@torch.no_grad()
def restore(model: nn.Module, ranges: Mapping[str, Tensor]) -> None:
    """The quantized model again, from what ``to_float`` returned, in place.

    Raises:
        TargetError: ranges of layers that the model does not have, or of another shape, or not finite.

    """
    problems = []
    for key, value in ranges.items():
        if not torch.isfinite(value.float()).all():
            problems.append(Problem(key, "NaN or infinity", "be finite", "an intact file of ranges"))
    layers = dict(model.named_modules())
    for name in sorted({key.removesuffix(".weight_range") for key in ranges if key.endswith(".weight_range")}):
        module, weight_range = layers.get(name), ranges[f"{name}.weight_range"]
        if not isinstance(module, nn.Linear | nn.Embedding) or weight_range.shape != (len(module.weight), 1):
            rule = f"belong to a layer of the model with {len(weight_range)} rows"
            problems.append(
                Problem(f"{name}.weight_range", tuple(weight_range.shape), rule, "the model it was saved with")
            )
            continue
        if isinstance(module, nn.Embedding):
            rows = QuantEmbedding(module)
            rows.weight_range.copy_(weight_range)
            put(model, name, rows)
            continue
        layer = QuantLinear(module, int(ranges.get(f"{name}.bits", torch.tensor(8))))
        layer.weight_range.copy_(weight_range)
        layer.input_range = read_range(ranges, f"{name}.input_range", module.weight.device)
        layer.output_range = read_range(ranges, f"{name}.output_range", module.weight.device)
        put(model, name, layer)
    if problems:
        raise TargetError(*problems)


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


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Sets the submodule of a dotted name."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
