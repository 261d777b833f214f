"""The program of an encoder: a function of the model alone, which names the buffers of a ``Workspace``.

    x <- norm(word[ids] + position[positions] + type[types]), projected where embeddings are narrower than the layers
    each layer:  x <- norm(x + out(attend(query(x), key(x), value(x))))
                 x <- norm(x + down(act(up(x))))

The threads meet once a layer, before attention. Queries, keys and values of one layer may still be read while the next one's
are written, so there are two buffers of each.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunus.runtime.convert import Model
from prunus.runtime.kernels.attention import AttentionSpec
from prunus.runtime.kernels.linear import LinearSpec
from prunus.runtime.kernels.norm import EmbedSpec, NormalizeSpec, QuantizeSpec, ReadSpec
from prunus.runtime.kernels.step import TILE
from prunus.runtime.pack import Packed, pack
from prunus.runtime.program import Address, Argument, Step, Stride
from prunus.runtime.workspace import padded

__all__ = ["encoder_program", "layout_read"]

Array = NDArray[Any]
ATTENDED = {"query": "queries", "key": "keys", "value": "values"}
"""Layers before attention -> their buffers, which are also their epilogues for bytes."""


def layout_read(packed: Packed) -> str:
    """The layout of bytes that an int8 layer reads: ``rows`` or ``int8x4``."""
    return "rows" if packed.weight_format == "group_sparse_int8" else "int8x4"


def encoder_program(model: Model) -> list[Step]:
    """The steps from token ids to the hidden states of the last layer."""
    return _Writer(model).steps()


class _Writer:
    def __init__(self, model: Model) -> None:
        self.model, self.shape, self.tensors = model, model.shape, model.tensors

    def steps(self) -> list[Step]:
        layers = self.model.layers
        steps = self._embeddings([layers[0][role] for role in ATTENDED])
        for i, layer in enumerate(layers):
            following = [layers[i + 1][role] for role in ATTENDED] if i + 1 < len(layers) else []
            steps += [*self._attention(i, layer), *self._feed_forward(i, layer, following)]
        hidden: dict[str, Argument] = {"features": self.shape.hidden, "y": Address("output"), "y_row": Stride("output")}
        return [*steps, Step(ReadSpec(), {"x": Address("x"), "x_step": Stride("x"), **hidden})]

    def _embeddings(self, readers: Sequence[Packed]) -> list[Step]:
        embedding_size, t = self.shape.embedding_size, self.tensors
        x = "embeddings" if embedding_size else "x"
        ids: dict[str, Argument] = {name: Address(name) for name in ("word_ids", "position_ids", "type_ids")}
        tables = {name: t[f"embeddings.{name}"] for name in ("word", "position", "type")}
        size: dict[str, Argument] = {
            "x": Address(x),
            "x_step": Stride(x),
            "features": embedding_size or self.shape.hidden,
        }
        embed = Step(EmbedSpec(), {**size, **ids, **tables})
        if not embedding_size:
            return [embed, self._normalize("embeddings", "layers.0.input", readers)]
        projection = pack("group_sparse_float32", t["projection.weight"], t["projection.bias"])
        steps = [embed, self._normalize("embeddings", x=x), self._linear(projection, "store", x, "x")]
        if self.model.integers:
            where: dict[str, Argument] = {"x": Address("x"), "x_step": Stride("x"), "features": self.shape.hidden}
            layouts, bytes_ = self._bytes("layers.0.input", readers)
            steps.append(Step(QuantizeSpec(**layouts), {**where, **bytes_}))
        return steps

    def _attention(self, i: int, layer: dict[str, Packed]) -> list[Step]:
        """x <- x + out(attend(query(x), key(x), value(x)))."""
        model, s, t, key, out = self.model, self.shape, self.tensors, f"layers.{i}.", layer["out"]
        buffers = {role: f"{name}_{i % 2}" for role, name in ATTENDED.items()}
        steps = [
            self._linear(
                layer[role],
                ATTENDED[role] if model.integers else "matrix",
                self._source("x", layer[role]),
                buffers[role],
                y_row=Stride(buffers[role]),
            )
            for role in ATTENDED
        ]
        context = self._source("context", out)
        arguments: dict[str, Argument] = {name: Address(name) for name in ("spans", "segments")}
        arguments |= {name: Address(buffers[role]) for name, role in (("q", "query"), ("k", "key"), ("v", "value"))}
        arguments |= {"row": Stride(buffers["query"]), "v_row": Stride(buffers["value"]), "size": s.size}
        arguments |= {"scale": t[key + "attention.scale"], "y_step": Stride(context)}
        arguments[layout_read(out) if model.integers else "floats"] = Address(context)
        if model.integers:
            arguments |= {"gain": t[key + "attention.gain"], "zero": t[key + "attention.zero"]}
        if s.max_distance:
            arguments |= {"bias": t["relative"], "bias_row": t["relative"][0].nbytes, "max_distance": s.max_distance}
        heads = layer["query"].shape[0] // s.size
        attend = Step(AttentionSpec(model.integers, bool(s.max_distance)), arguments, heads, barrier=True)
        return [*steps, attend, self._linear(out, "add", context, "x")]

    def _feed_forward(self, i: int, layer: dict[str, Packed], following: Sequence[Packed]) -> list[Step]:
        """x <- norm(x), then x <- norm(x + down(act(up(x))))."""
        t, key, up, down = self.tensors, f"layers.{i}.", layer["up"], layer["down"]
        epilogue, scales = "store", dict[str, Argument]()
        if self.model.integers:
            epilogue = f"quantize_{layout_read(down)}"
            scales = {"inverse": t[key + "intermediate.inverse"], "zero": t[key + "intermediate.zero"]}
        return [
            self._normalize(key + "attention_norm", key + "middle", [up]),
            self._linear(up, epilogue, self._source("x", up), "intermediate", self.shape.activation, **scales),
            self._linear(down, "add", "intermediate", "x"),
            self._normalize(key + "output_norm", f"layers.{i + 1}.input", following),
        ]

    def _bytes(self, name: str, readers: Sequence[Packed]) -> tuple[dict[str, bool], dict[str, Argument]]:
        """The layouts of bytes of x that its readers need, and the arguments of a kernel that stores them."""
        if not self.model.integers or not readers:
            return {}, {}
        t, layouts = self.tensors, {layout_read(reader) for reader in readers}
        where: dict[str, Argument] = {layout: Address(f"x_{layout}") for layout in layouts}
        where |= {"y_step": self.shape.hidden * TILE}
        where |= {"inverse": t[f"{name}.inverse"], "zero": t[f"{name}.zero"]}
        return dict.fromkeys(sorted(layouts), True), where

    def _normalize(self, norm: str, bytes_name: str = "", readers: Sequence[Packed] = (), x: str = "x") -> Step:
        """Layer normalization of x, and bytes of it for the layers that read it."""
        layouts, bytes_ = self._bytes(bytes_name, readers)
        arguments: dict[str, Argument] = {"x": Address(x), "x_step": Stride(x)}
        arguments |= {name: self.tensors[f"{norm}.{name}"] for name in ("gamma", "beta")}
        arguments |= {"features": len(self.tensors[f"{norm}.gamma"])}
        arguments |= {"epsilon": np.array([self.shape.epsilon], np.float32)}
        return Step(NormalizeSpec(**layouts), arguments | bytes_)

    def _linear(
        self, packed: Packed, epilogue: str, x: str, y: str, activation: str = "none", **more: Argument
    ) -> Step:
        arguments: dict[str, Argument] = {"x": Address(x), "x_step": Stride(x), "y": Address(y), "y_step": Stride(y)}
        arguments |= {name: getattr(packed, name) for name in ("first", "records", "scale", "bias")}
        spec = LinearSpec(packed.weight_format, epilogue, activation)
        return Step(spec, arguments | more, padded(packed.shape[0]) // 4)

    def _source(self, name: str, reader: Packed) -> str:
        """The buffer that a layer reads: hidden states or context, in its layout."""
        return f"{name}_{layout_read(reader)}" if self.model.integers else name
