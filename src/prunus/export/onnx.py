"""A quantized model as ONNX: explicit QuantizeLinear / DequantizeLinear around products of bytes, weights stored in int8.

    x -> Q (uint8, one step and zero) -> DQ -> MatMul -> + b [-> Q (int8) -> DQ]
                     w int8 [out, in] -> DQ (a step per output) -> transpose /

Both OpenVINO and ONNX Runtime fuse this into integer kernels. Layers that read the same tensor share one Q. Sparse weights stay
sparse: zero is stored as zero.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunus.architectures import KEYS
from prunus.grid import byte_step_and_zero, largest, symmetric_step, to_integers
from prunus.quantization.layers import ActivationRange, QuantEmbedding, QuantLinear
from prunus.quantization.sharing import put, sites
from prunus.tasks.collate import TOKEN_KEYS

__all__ = ["Interface", "export_onnx", "twin_of"]

OPSET: Final = 20
LONGEST: Final = 512


def node(
    name: str, inputs: Sequence[Tensor], dtype: torch.dtype, shape: Sequence[Any], axis: int | None = None
) -> Tensor:
    """An operator of ONNX in the exported graph; it does not run in torch."""
    attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
    y: Tensor = torch.onnx.ops.symbolic(name, inputs, attributes, dtype=dtype, shape=shape)
    return y


class Grid(nn.Module):
    """A learned range as Q and DQ."""

    def __init__(self, activation_range: ActivationRange) -> None:
        super().__init__()
        self.scale: Tensor
        self.zero: Tensor
        if activation_range.signed:
            step, zero = (
                symmetric_step(activation_range.get_parameter("bound").detach()),
                torch.zeros((), dtype=torch.int8),
            )
        else:
            step, zero_point = byte_step_and_zero(
                activation_range.get_parameter("low").detach(), activation_range.get_parameter("high").detach()
            )
            zero = zero_point.to(torch.uint8)
        self.register_buffer("scale", step.float().reshape(()).clone())
        self.register_buffer("zero", zero.reshape(()).clone())

    def forward(self, x: Tensor) -> Tensor:
        """x, through bytes."""
        integers = node("QuantizeLinear", (x, self.scale, self.zero), self.zero.dtype, x.shape)
        return node("DequantizeLinear", (integers, self.scale, self.zero), torch.float32, x.shape)


def whole_weight(weight: Tensor, bound: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """int8 ``[rows, columns]`` and steps ``[rows]``."""
    step = symmetric_step(bound.detach(), bits)
    integers = to_integers(weight.detach(), step, -largest(bits), largest(bits))
    return integers.to(torch.int8), step.reshape(-1).float().clone()


class LinearTwin(nn.Module):
    """A quantized Linear as it is exported."""

    def __init__(self, layer: QuantLinear, grids: dict[int, Grid]) -> None:
        super().__init__()
        self.weight: Tensor
        self.scale: Tensor
        self.zeros: Tensor
        weight, scale = whole_weight(layer.weight, layer.weight_bound, layer.bits)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("zeros", torch.zeros(len(weight), dtype=torch.int8))
        self.bias = layer.bias
        self.reads = None if layer.reads is None else grids.setdefault(id(layer.reads), Grid(layer.reads))
        self.writes = None if layer.output_range is None else Grid(layer.output_range)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in_features]`` -> ``[..., out_features]``."""
        if self.reads is not None:
            x = self.reads(x)
        shape = self.weight.shape
        weight = node("DequantizeLinear", (self.weight, self.scale, self.zeros), torch.float32, shape, axis=0)
        y = x @ weight.t()
        y = y if self.bias is None else y + self.bias
        return y if self.writes is None else self.writes(y)


class EmbeddingTwin(nn.Module):
    """A quantized table as it is exported: bytes are looked up, then scaled."""

    def __init__(self, table: QuantEmbedding) -> None:
        super().__init__()
        self.weight: Tensor
        self.scale: Tensor
        weight, scale = whole_weight(table.weight, table.weight_bound, table.bits)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale[:, None])

    def forward(self, ids: Tensor) -> Tensor:
        """Ids -> rows."""
        return functional.embedding(ids, self.weight).float() * functional.embedding(ids, self.scale)


def twin_of(model: nn.Module) -> nn.Module:
    """A copy of a quantized model with the layers as they are exported."""
    twin = deepcopy(model).eval()
    grids: dict[int, Grid] = {}
    for site in sites(twin):
        if isinstance(site.module, QuantLinear):
            put(twin, site.names, LinearTwin(site.module, grids))
        elif isinstance(site.module, QuantEmbedding):
            put(twin, site.names, EmbeddingTwin(site.module))
    return twin


class Interface(nn.Module):
    """The model with positional inputs and a tuple of outputs, as exporters want it."""

    def __init__(self, model: nn.Module, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        self.model, self.inputs, self.outputs = model, tuple(inputs), tuple(outputs)

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """In the order of ``inputs``; outputs in the order of ``outputs``."""
        outputs = self.model(**dict(zip(self.inputs, values, strict=True)))
        return tuple(outputs[name] for name in self.outputs)


def export_onnx(model: nn.Module, example: Mapping[str, Tensor], outputs: Sequence[str], path: Path) -> None:
    """Writes a model, quantized or not, as one ONNX file with dynamic batch and length.

    Args:
        model: on the CPU.
        example: named inputs ``[sequences, tokens]``, both at least two.
        outputs: names of the model's outputs.
        path: the file.

    """
    import warnings

    names = [name for name in TOKEN_KEYS if name in example]
    longest = int(getattr(getattr(model, "config", None), KEYS.positions, LONGEST))
    shape = {0: torch.export.Dim("batch", min=1, max=65536), 1: torch.export.Dim("tokens", min=1, max=longest)}
    wrapped = Interface(twin_of(model), names, outputs)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program: Any = torch.onnx.export(
            wrapped,
            tuple(example[name] for name in names),
            input_names=names,
            output_names=list(outputs),
            dynamic_shapes=((shape,) * len(names),),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
        program.save(str(path))
