"""Compaction: what does nothing is taken out, and the layers become smaller.

With the columns C_j of the layer that reads structure j (``structures``), x_j what the structure gives, b the reader's bias:

    y = sum over j of C_j x_j + b

A structure goes where its term is zero or constant; a constant goes into the bias:

    C_j = 0                                           nothing to add
    heads, value rows 0:        x_j = v_j             its value bias, whatever is attended to: b <- b + C_j v_j
    neurons, first rows 0:      x_j = f(b_j)          f the activation: b <- b + C_j f(b_j)
    gated neurons, one of the two rows 0 without bias: x_j = 0, for activations with f(0) = 0

Rows of the layers that write it go with it. What is left is smaller Linear modules under their old names. A layer without any
neuron gives its bias; one without any head gives the bias of its output projection, where the architecture allows it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from prunus.architectures import ACTIVATION_ATTRIBUTES, HEAD_COUNT_ATTRIBUTES
from prunus.errors import Problem, TargetError
from prunus.sparsity.structures import Structure, structures

__all__ = ["Emptied", "Layout", "NoHeads", "compact", "live", "shrink"]

Layout = dict[str, list[int]]
"""Reader of a structure -> the numbers of the heads or neurons that are left; only where some are gone."""


@torch.no_grad()
def live(model: nn.Module, structure: Structure, fold: bool = False) -> list[int]:
    """Numbers of the structures that do something; ``fold`` adds what the others give to the reader's bias."""
    reader = _linear(model, structure.reader)
    bias: Tensor | None = reader.bias
    columns = reader.weight.reshape(reader.out_features, structure.units, structure.width)
    read = columns.ne(0).any(2).any(0)
    constant = _constants(model, structure, bias is not None)
    if constant is None:
        return [int(j) for j in torch.nonzero(read).flatten()]
    still, values = constant
    unread = read & still
    if fold and bias is not None and bool(unread.any()):
        bias.add_((columns * values).sum(2)[:, unread].sum(1))
    return [int(j) for j in torch.nonzero(read & ~still).flatten()]


def _constants(model: nn.Module, structure: Structure, biased: bool) -> tuple[Tensor, Tensor] | None:
    """Which structures give the same whatever comes in (bool ``[units]``), and what (``[units, width]``)."""
    writers = [
        part
        for writer in structure.writers
        for part in _parts(_linear(model, writer.name), writer.parts, structure.units)
    ]
    if structure.kind == "heads":
        rows, bias = writers[2]  # query, key, value
        values = bias if bias is not None else rows.new_zeros(rows.shape[:2])
        values = values.repeat(1, structure.width // values.shape[1])  # the query heads that share it
        still = ~rows.ne(0).any(2).any(1)
    else:
        activation = _activation(model, structure)
        if activation is None:
            return None
        empty = [~rows.ne(0).any(2).any(1) for rows, _ in writers]
        biases = [bias if bias is not None else rows.new_zeros(rows.shape[:2]) for rows, bias in writers]
        if len(writers) == 1:
            still, values = empty[0], activation(biases[0])
        else:  # gated: the product of two
            zero = bool(activation(torch.zeros(1)).eq(0).all())
            still = torch.zeros_like(empty[0])
            for rows, bias in zip(empty, biases, strict=True):
                still |= rows & ~bias.ne(0).any(1) & zero
            values = torch.zeros_like(biases[0])
    if not biased:
        still = still & ~values.ne(0).any(1)
    return still, values


def _parts(linear: nn.Linear, parts: int, units: int) -> list[tuple[Tensor, Tensor | None]]:
    """Rows ``[units, width, in]`` and biases ``[units, width]`` of each part of a layer that writes structures."""
    rows = linear.weight.detach().view(parts, units, -1, linear.in_features)
    if linear.bias is None:
        return [(part, None) for part in rows]
    return list(zip(rows, linear.bias.detach().view(parts, units, -1), strict=True))


def _activation(model: nn.Module, structure: Structure) -> Any:
    """The activation between a feed-forward network's projections, by where transformers keeps it."""
    holder: Any = model.get_submodule(structure.writers[0].name.rpartition(".")[0])
    for name in ACTIVATION_ATTRIBUTES:
        if callable(getattr(holder, name, None)):
            return getattr(holder, name)
    return None


@torch.no_grad()
def shrink(model: nn.Module, layout: Mapping[str, Sequence[int]]) -> None:
    """Leaves each structure of ``layout`` what it names; also for a model without weights (on the meta device).

    Raises ``TargetError`` for readers that are not there, numbers out of range, and an attention without any head in an
    architecture that cannot do without.
    """
    known = {structure.reader: structure for structure in structures(model)}
    for reader, kept in layout.items():
        structure = known.get(reader)
        if structure is None or len(set(kept)) != len(kept) or not all(0 <= j < structure.units for j in kept):
            rule = (
                "name a layer that reads heads or neurons, and some of them"
                if structure is None
                else (f"be different numbers in 0..{structure.units - 1}")
            )
            raise TargetError(Problem(f"layout: {reader}", list(kept)[:8], rule, "a layout that prunus has written"))
        if structure.kind == "heads" and not kept and _generates(model):
            rule = "keep a head in each layer of a decoder, whose cache counts by them"
            raise TargetError(Problem(f"heads of {structure.owner}", 0, rule, "allocation.max_per_tensor below 1"))
        _keep(model, structure, sorted(kept))


def _keep(model: nn.Module, structure: Structure, kept: list[int]) -> None:
    _narrow(model, structure.reader, columns=_spread(kept, structure.width))
    for writer in structure.writers:
        rows = _spread(kept, writer.width)
        each = structure.units * writer.width
        _narrow(model, writer.name, torch.cat([rows + part * each for part in range(writer.parts)]), parts=writer.parts)
    if structure.kind != "heads":
        return
    owner: Any = model.get_submodule(structure.owner)
    if not kept:
        parent, _, name = structure.owner.rpartition(".")
        kept_modules = [structure.reader, *structure.sum] if structure.reader.startswith(f"{structure.owner}.") else []
        inside = {each.rpartition(".")[2]: model.get_submodule(each) for each in kept_modules}
        setattr(model.get_submodule(parent), name, NoHeads(inside, adds=bool(structure.sum)))
        return
    width = structure.width
    for attribute, value in zip(HEAD_COUNT_ATTRIBUTES, (len(kept), len(kept) * width), strict=True):
        if isinstance(getattr(owner, attribute, None), int):
            setattr(owner, attribute, value)
    if len(kept) < structure.units:
        owner.register_forward_pre_hook(_Bias(kept), with_kwargs=True)


@final
class Emptied(nn.Linear):
    """A Linear without outputs gives ``parts`` zeros in their place, one without inputs its bias whatever comes.

    Engines that run exported graphs have no tensors without elements.
    """

    def __init__(self, linear: nn.Linear, parts: int = 1) -> None:
        nn.Module.__init__(self)
        self.weight, self.bias = linear.weight, linear.bias
        self.out_features, self.in_features = linear.weight.shape
        self._parts = parts

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - Linear's own name
        """``[..., parts]``, or ``[..., out]``."""
        nothing = torch.zeros_like(input[..., :1])
        if not self.out_features:
            return nothing.expand(*input.shape[:-1], self._parts)
        return nothing + (self.bias if self.bias is not None else input.new_zeros(self.out_features))


@final
class NoHeads(nn.Module):
    """An attention without heads: zeros, through those modules behind it that are its own.

    Args:
        modules: name -> the output projection, then dropout and norm; empty where other modules hold them.
        adds: whether the attention adds its input to the projection's output, before the norm.

    """

    def __init__(self, modules: Mapping[str, nn.Module], adds: bool = False) -> None:
        super().__init__()
        self._adds = adds
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        """``[..., 1]``, the bias of the projection, or what the norm gives for the sum ``[..., hidden]``."""
        output = torch.zeros_like(hidden_states[..., :1])
        modules = list(self.children())
        for module in modules[:-1] if self._adds else modules:
            output = module(output)
        return modules[-1](hidden_states + output) if self._adds else output, None


@final
class _Bias:
    """Where an attention is given a bias of positions for each head (MPNet), it gets those of the heads that are left."""

    def __init__(self, kept: Sequence[int]) -> None:
        self._kept = list(kept)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        position_bias = kwargs.get("position_bias")
        if isinstance(position_bias, Tensor) and position_bias.dim() == 4 and position_bias.shape[1] > len(self._kept):
            kwargs = {**kwargs, "position_bias": position_bias[:, self._kept]}
        given = tuple(
            value[:, self._kept]
            if i == 2 and isinstance(value, Tensor) and value.dim() == 4 and value.shape[1] > len(self._kept)
            else value
            for i, value in enumerate(args)
        )
        return given, kwargs


def compact(model: nn.Module) -> Layout:
    """Takes the heads and neurons that do nothing out of ``model``, in place; what is left of each layer that lost some.

    The outputs stay what they were, to the rounding of sums. Raises ``TargetError`` as ``shrink`` does.
    """
    layout: Layout = {}
    for structure in structures(model):
        kept = live(model, structure, fold=True)
        if len(kept) < structure.units:
            layout[structure.reader] = kept
    shrink(model, layout)
    return layout


def _generates(model: nn.Module) -> bool:
    ask: Any = getattr(model, "can_generate", None)
    return bool(ask is not None and ask())


def _linear(model: nn.Module, name: str) -> nn.Linear:
    module = model.get_submodule(name)
    if not isinstance(module, nn.Linear):
        raise TargetError(Problem(name, type(module).__name__, "be a torch.nn.Linear", "another model"))
    return module


def _spread(kept: Sequence[int], width: int) -> Tensor:
    # On the processor, whatever device models are being made on.
    return torch.tensor([j * width + i for j in kept for i in range(width)], dtype=torch.int64, device="cpu")


def _narrow(
    model: nn.Module, name: str, rows: Tensor | None = None, columns: Tensor | None = None, parts: int = 1
) -> None:
    linear = _linear(model, name)
    weight = linear.weight.detach()
    if rows is not None:
        weight = weight[rows.to(weight.device)]
        if linear.bias is not None:
            bias = linear.bias.detach()[rows.to(weight.device)]
            linear.bias = nn.Parameter(bias, linear.bias.requires_grad)
    if columns is not None:
        weight = weight[:, columns.to(weight.device)]
    linear.weight = nn.Parameter(weight.contiguous(), linear.weight.requires_grad)
    linear.out_features, linear.in_features = weight.shape
    if not weight.numel():
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, Emptied(linear, parts))
