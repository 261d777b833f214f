"""Sparse linear layers for a PyTorch model of any kind: ``accelerate(model)`` puts them in the place of its own.

For models that have no fused engine. What is gained is the product alone: each call turns rows of features into tiles and back,
and the rest of the model stays as slow as it was. A layer is replaced only where its zeros pay (``choose_format``).

    float32    agrees with the dense layer up to the order of sums
    int8       inputs are rounded to bytes, one step for all tokens of a call: (highest - lowest) / 255
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prunus.errors import EngineError, Problem
from prunus.grid import byte_step_and_zero
from prunus.runtime.isa import Isa, choose
from prunus.runtime.jit import compile_kernels
from prunus.runtime.kernels.drive import DriveSpec
from prunus.runtime.kernels.linear import LinearSpec
from prunus.runtime.kernels.norm import EmbedSpec, QuantizeSpec, ReadSpec
from prunus.runtime.kernels.step import TILE
from prunus.runtime.pack import Packed, choose_format, pack, unpack
from prunus.runtime.processors import processors
from prunus.runtime.program import Address, Argument, BoundProgram, Step, Stride, kernels_of
from prunus.runtime.thread_pool import ThreadPool, aligned

__all__ = ["SparseLinear", "accelerate"]

Array = NDArray[Any]
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
PAYS = 0.7
"""A layer is replaced where at most this share of its weights is left in the groups of four that hold any."""


class SparseLinear(nn.Module):
    """``nn.Linear`` for inference on the CPU, with packed weights; the same call, shapes and result.

    The dense weight stays beside the packed one: ``state_dict`` and ``save_pretrained`` write it, ``load_state_dict``, a change
    of type and a change in place pack it again, and a copy of the module shares its threads. Training, gradients and other
    devices are refused with an ``EngineError``.
    """

    def __init__(self, dense: nn.Linear, pool: ThreadPool, isa: Isa, integers: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = dense.in_features, dense.out_features
        self._pool, self._isa, self._integers = pool, isa, integers
        self._take(dense.weight.detach(), None if dense.bias is None else dense.bias.detach())
        self.training = dense.training

    @property
    def weight(self) -> Tensor:
        """``[out_features, in_features]``, as the dense layer had it."""
        return self._weight

    @property
    def bias(self) -> Tensor | None:
        """``[out_features]``, or None."""
        return self._bias

    def _take(self, weight: Tensor, bias: Tensor | None) -> None:
        """Packs these; they are plain tensors here, so that no optimizer finds them."""
        if weight.device.type != "cpu":
            raise EngineError(
                Problem("device", str(weight.device), "be the CPU: packed weights run nowhere else", "cpu")
            )
        if weight.dtype not in FLOATS:
            rule = "be float32, or what float32 holds: the kernels compute in it"
            raise EngineError(Problem("dtype", str(weight.dtype), rule, "model.float()"))
        self._weight, self._bias = weight, bias
        numbers = weight.float().numpy()
        added = np.zeros(len(numbers), np.float32) if bias is None else bias.float().numpy()
        weight_format = "group_sparse_int8" if self._integers else choose_format(numbers != 0, self._integers)
        self._packed: Packed = pack(weight_format, numbers, added)
        self._added = self._packed.bias.copy()
        self._sums = np.zeros(len(self._added), np.float32)
        if self._integers:
            self._sums[: len(numbers)] = unpack(self._packed).astype(np.int64).sum(1)
        self._program = _linear_program(self._packed, self._integers)
        self._code = compile_kernels(self._isa, kernels_of(self._program))
        self._versions = self._now()

    def _now(self) -> tuple[int, ...]:
        """Changes with every change in place."""
        return tuple(tensor._version for tensor in (self._weight, self._bias) if tensor is not None)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SparseLinear":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._take(fn(self._weight), None if self._bias is None else fn(self._bias))
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self._weight
        if self._bias is not None:
            destination[prefix + "bias"] = self._bias

    def _load_from_state_dict(
        self, state: Any, prefix: str, metadata: Any, strict: bool, missing: Any, unexpected: Any, errors: Any
    ) -> None:
        expected = {"weight": self._weight} if self._bias is None else {"weight": self._weight, "bias": self._bias}
        loaded = {}
        for name, tensor in expected.items():
            given = state.get(prefix + name)
            if given is None:
                missing += [prefix + name] if strict else []
            elif given.shape != tensor.shape:
                errors.append(f"size mismatch for {prefix}{name}: {tuple(given.shape)} for {tuple(tensor.shape)}")
            else:
                loaded[name] = given.detach().to("cpu", tensor.dtype, copy=True)
        if strict:
            unexpected += [n for n in state if n.startswith(prefix) and n.removeprefix(prefix) not in expected]
        if loaded:
            self._take(loaded.get("weight", self._weight), loaded.get("bias", self._bias))

    def __deepcopy__(self, memo: dict[int, Any]) -> "SparseLinear":
        """Weights of its own, the same threads."""
        copied = self.__class__.__new__(self.__class__)
        memo[id(self)] = copied
        copied.__dict__ = self.__dict__ | {
            name: {} if isinstance(value, dict) and not value else deepcopy(value, memo)
            for name, value in self.__dict__.items()
            if name not in ("_pool", "_isa", "_code", "_program", "_packed", "_added", "_sums", "_weight", "_bias")
        }
        copied._take(self._weight.clone(), None if self._bias is None else self._bias.clone())
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Threads and machine code stay in their process."""
        fix = "its state_dict, and accelerate() where it is loaded"
        raise EngineError(
            Problem("SparseLinear", "an accelerated layer", "stay in its process: it is not pickled", fix)
        )

    def extra_repr(self) -> str:
        """As ``nn.Linear`` prints it, with its weight format."""
        return f"in_features={self.in_features}, out_features={self.out_features}, weight_format={self._packed.weight_format}"

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in_features]`` -> ``[..., out_features]``.

        Raises:
            EngineError: in training mode, or for an input on another device; and in the backward pass.

        """
        if self.training:
            fix = "model.eval(), or training the dense model and accelerating it afterwards"
            raise EngineError(Problem("an accelerated layer", "training mode", "be used for inference", fix))
        if x.device.type != "cpu":
            raise EngineError(Problem("input", str(x.device), "be on the CPU, as packed weights are", "x.cpu()"))
        if self._now() != self._versions:
            self._take(self._weight, self._bias)
        if torch.is_grad_enabled() and x.requires_grad:
            answer: Tensor = NoGradient.apply(x, self)  # type: ignore[no-untyped-call]
            return answer
        return self.product(x)

    def product(self, x: Tensor) -> Tensor:
        """The layer's result, without a graph."""
        rows = x.detach().reshape(-1, self.in_features).to(torch.float32).contiguous().numpy()
        if not len(rows):
            return x.new_zeros((*x.shape[:-1], self.out_features))
        y = torch.from_numpy(self._run(rows))
        return y.reshape(*x.shape[:-1], self.out_features).to(x.dtype)

    def _run(self, rows: Array) -> Array:
        tokens, packed, outputs = len(rows), self._packed, self.out_features
        wide_in, wide_out = _rounded(self.in_features), _rounded(outputs)
        tiles = -(-tokens // TILE)
        given = np.zeros((tiles * TILE, wide_in), np.float32)
        given[:tokens, : self.in_features] = rows
        buffers: dict[str, Array] = {
            "widths": np.full(tiles, TILE, np.int64),
            "starts": np.arange(tiles, dtype=np.int64) * TILE,
            "rows": given,
            "row_numbers": np.arange(tiles * TILE, dtype=np.int32),
            "zero_ids": np.zeros(tiles * TILE, np.int32),
            "zero_row": np.zeros((1, wide_in), np.float32),
            "x": aligned((tiles, wide_in, TILE), np.float32),
            "y": aligned((tiles, wide_out, TILE), np.float32),
            "result": aligned((tiles * TILE, wide_out), np.float32),
            "scale": packed.scale,
            "bias": self._added,
        }
        if self._integers:
            buffers |= self._quantization(rows, (tiles, wide_in))
        program = BoundProgram(self._program, self._code, buffers, self._pool.threads)
        with self._pool:
            self._pool.run(program.by_tiles(tiles), 64)
        return np.ascontiguousarray(buffers["result"][:tokens, :outputs])

    def _quantization(self, rows: Array, shape: tuple[int, int]) -> dict[str, Array]:
        """Buffers of an int8 layer for these inputs: their bytes, step and zero, and the layer's scale and bias."""
        tiles, wide = shape
        step, zero = map(float, byte_step_and_zero(np.float64(rows.min()), np.float64(rows.max())))
        scale = (self._packed.scale * step).astype(np.float32)
        return {
            "x_bytes": aligned((tiles, wide, TILE), np.uint8),
            "inverse": np.full(wide, 1 / step, np.float32),
            "zero": np.array([zero], np.float32),
            "scale": scale,
            "bias": (self._added - zero * scale * self._sums).astype(np.float32),
        }


def _rounded(features: int) -> int:
    """Features as the kernels that turn rows into tiles take them: a multiple of 16."""
    return features + -features % 16


def _linear_program(packed: Packed, integers: bool) -> list[Step]:
    """Rows of features -> tiles -> (bytes ->) the product -> rows; the buffers are those of ``SparseLinear._run``."""
    wide_out, wide_in = map(_rounded, packed.shape)
    x: dict[str, Argument] = {"x": Address("x"), "x_step": Stride("x"), "features": wide_in}
    ids = {"word_ids": Address("row_numbers"), "position_ids": Address("zero_ids"), "type_ids": Address("zero_ids")}
    tables = {"word": Address("rows"), "position": Address("zero_row"), "type": Address("zero_row")}
    steps = [Step(EmbedSpec(), {**x, **ids, **tables})]
    source = "x"
    if integers:
        source = "x_bytes"
        scales = {"inverse": Address("inverse"), "zero": Address("zero")}
        steps.append(Step(QuantizeSpec(rows=True), {**x, "rows": Address(source), "y_step": Stride(source), **scales}))
    product: dict[str, Argument] = {"x": Address(source), "x_step": Stride(source), "y": Address("y")}
    product |= {"y_step": Stride("y"), "first": packed.first, "records": packed.records}
    product |= {"scale": Address("scale"), "bias": Address("bias")}
    steps.append(Step(LinearSpec(packed.weight_format, "store"), product, len(packed.scale) // 4))
    result: dict[str, Argument] = {"y": Address("result"), "y_row": Stride("result")}
    steps.append(Step(ReadSpec(), {"x": Address("y"), "x_step": Stride("y"), "features": wide_out, **result}))
    return steps


class NoGradient(torch.autograd.Function):
    """A layer's result whose backward pass is an error instead of a gradient that silently ends here."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: SparseLinear) -> Tensor:
        """The product."""
        return layer.product(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Raises ``EngineError``."""
        fix = "training the dense model, and accelerating it afterwards"
        raise EngineError(Problem("an accelerated layer", "a backward pass", "be used for inference", fix))


def accelerate(
    model: nn.Module,
    precision: str = "float32",
    threads: int | None = None,
    isa: str | None = None,
    at_most: float = PAYS,
) -> list[str]:
    """Replaces the sparse ``nn.Linear`` layers of a model, in place, for inference on the CPU.

    Args:
        model: any PyTorch model on the CPU; its other parts are left as they are.
        precision: ``float32`` or ``int8``.
        threads: shared by all layers; without it PyTorch's own number, within the CPU quota.
        isa: forces a path of instructions.
        at_most: layers of which a larger share would be computed are left dense.

    Returns:
        Names of the layers that were replaced.

    The model saves, loads, copies and changes its type as before; ``SparseLinear`` says what it refuses.

    Raises:
        ValueError: another precision, or a model in training mode.

    """
    if precision not in {"float32", "int8"}:
        raise ValueError(f"precision must be float32 or int8, got {precision!r}")
    if model.training:
        raise ValueError("accelerate is for inference: call model.eval() first")
    candidates: list[tuple[str, nn.Module, str, nn.Linear]] = []
    for path, parent in model.named_modules():
        for name, child in parent.named_children():
            if type(child) is nn.Linear and child.weight.device.type == "cpu" and plain(child):
                share = computed(child.weight.detach().float().numpy() != 0)
                if share <= at_most:
                    candidates.append((f"{path}.{name}".lstrip("."), parent, name, child))
    if not candidates:
        return []
    chosen = choose(isa)
    pool = ThreadPool(
        compile_kernels(chosen, [DriveSpec()]), threads or min(torch.get_num_threads(), max(1, processors()))
    )
    for _, parent, name, child in candidates:
        setattr(parent, name, SparseLinear(child, pool, chosen, precision == "int8"))
    return [path for path, *_ in candidates]


def plain(linear: nn.Linear) -> bool:
    """Whether nothing hangs on a layer that a replacement would lose: hooks, parametrizations, or another type."""
    hooks = (linear._forward_hooks, linear._forward_pre_hooks, linear._backward_hooks, linear._backward_pre_hooks)
    return not any(hooks) and "weight" in linear._parameters and linear.weight.dtype in FLOATS


def computed(kept: Array) -> float:
    """Share of the weights that lies in groups (four outputs, one input) with any weight left."""
    outputs = len(kept) // 4 * 4
    return float(kept[:outputs].reshape(-1, 4, kept.shape[1]).any(1).mean()) if outputs else 1.0
