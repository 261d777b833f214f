"""A packed model on disk: one directory, loaded by ``prunus.runtime.load``.

    packed.safetensors     all arrays; ``__metadata__`` holds ``format``, ``version``, ``precision``, and as JSON ``config``
                           (the model's config.json, with the defaults that it leaves out), ``layers`` (name -> weight
                           format, outputs, inputs) and ``sentence`` (see ``sentences``; null where there is none)
    config.json            of the model, as it was: for transformers, not read here
    tokenizer files        as the tokenizer itself saves them
    prunus.json            the facts of the run that made the model, where there were any

Arrays, by name (N counts layers from 0, ROLE is query, key, value, out, up or down):

    embeddings.word, .position, .type     float32 [rows, features]      embeddings.gamma, .beta     float32 [features]
    layers.N.ROLE.first        uint32     first record of each group of four outputs, or of each output (see ``pack``)
    layers.N.ROLE.records      uint8      see ``kernels.linear``
    layers.N.ROLE.scale, .bias float32    one number an output
    layers.N.attention.scale   float32    one number a head; int8 also ``.gain``, one a feature, and ``.zero``
    layers.N.{input,middle,intermediate}.{inverse,zero}      float32, int8 only: bytes of the activations
    head.*                     float32    dense layers of the task
    sentence.N.weight, .bias   float32    modules after the pooling of a sentence-transformers model

Nothing in a file is trusted: generated code takes addresses from indices, so every index, every count, every shape is checked
when a file is read, before any of it is used.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from prunus.errors import EngineError, Problem
from prunus.runtime.convert import ROLES, Model
from prunus.runtime.families import Shape, shape_of
from prunus.runtime.kernels.linear import RECORD
from prunus.runtime.pack import FLOAT32_FORMATS, INT8_FORMATS, Packed
from prunus.runtime.sentences import sentences_of

__all__ = ["FILE", "FORMAT", "VERSION", "read_model", "write_model"]

Array = NDArray[Any]
FILE = "packed.safetensors"
FORMAT = "prunus-packed"
VERSION = "3"
"""Versions 1 and 2 had other names of weight formats."""
PARTS = ("first", "records", "scale", "bias")


def write_model(model: Model, place: Path) -> None:
    """Writes a packed model to a file, or as ``packed.safetensors`` into a directory (beside, then moved into place)."""
    path = place / FILE if place.is_dir() else place
    arrays = dict(model.tensors)
    formats = {}
    for i, layer in enumerate(model.layers):
        for role, packed in layer.items():
            formats[f"layers.{i}.{role}"] = [packed.weight_format, *packed.shape]
            arrays |= {f"layers.{i}.{role}.{part}": getattr(packed, part) for part in PARTS}
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "precision": "int8" if model.integers else "float32",
        "config": json.dumps(model.settings),
        "layers": json.dumps(formats),
        "sentence": json.dumps(None if model.sentences is None else model.sentences.json()),
    }
    partial = path.with_name(path.name + ".partial")
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, partial, metadata=metadata)
    partial.replace(path)


def read_model(place: Path) -> Model:
    """Reads and checks a packed model: its directory, or the file itself.

    Raises:
        EngineError: what is missing, damaged, of another version, or out of range, each named.

    """
    path = place / FILE if place.is_dir() else place
    if not path.is_file():
        raise EngineError(Problem(str(path), "nothing", "be a file", f"prunus export {place} --to prunus"))
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError, ValueError, AttributeError) as error:
        raise EngineError(
            Problem(str(path), str(error), "be a whole safetensors file", "exporting the model again")
        ) from None
    if metadata.get("format") != FORMAT or metadata.get("version") != VERSION:
        got = f"{metadata.get('format')} {metadata.get('version')}"
        raise EngineError(Problem(str(path), got, f"be {FORMAT} {VERSION}", "exporting the model with this version"))
    return Check(arrays, metadata).model()


class Check:
    """Takes arrays out of a file one by one, and notes what is wrong with each."""

    def __init__(self, arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
        self.arrays, self.metadata, self.problems = dict(arrays), metadata, list[Problem]()

    def model(self) -> Model:
        """The whole model, or one error with all that is wrong."""
        settings = self.json("config")
        if not isinstance(settings, dict):
            raise EngineError(Problem("config", "damaged", "be a JSON object", "exporting the model again"))
        shape = shape_of(settings)
        precision = self.metadata.get("precision")
        if precision not in {"int8", "float32"}:
            raise EngineError(Problem("precision", precision, "be int8 or float32"))
        integers, formats = precision == "int8", self.json("layers")
        formats = formats if isinstance(formats, dict) else {}
        layers = [
            {role: self.packed(f"layers.{i}.{role}", formats, integers) for role in ROLES} for i in range(shape.layers)
        ]
        self.agree(shape, layers)
        if not self.problems:
            self.tensors(shape, layers, integers)
        if self.problems:
            raise EngineError(*self.problems[:20])
        parts = {f"layers.{i}.{role}.{part}" for i in range(shape.layers) for role in ROLES for part in PARTS}
        tensors = {n: a for n, a in self.arrays.items() if n not in parts and a.dtype == np.float32}
        checked = [{role: packed for role, packed in layer.items() if packed is not None} for layer in layers]
        sentences = None
        if self.metadata.get("sentence") != "null":
            sentences = sentences_of(self.json("sentence"), shape.hidden, tensors)
        return Model(shape, integers, checked, tensors, settings, sentences)

    def json(self, name: str) -> Any:
        """Metadata that is written as JSON; None where it is not."""
        try:
            return json.loads(self.metadata.get(name, "null"))
        except (ValueError, RecursionError):
            return None

    def floats(self, name: str, *shape: int) -> Array | None:
        """A float32 array of this shape, all finite."""
        value = self.arrays.get(name)
        if value is None:
            self.problems.append(Problem(name, "nothing", f"be a float32 array {shape}"))
        elif value.dtype != np.float32 or value.shape != shape:
            self.problems.append(Problem(name, f"{value.dtype} {value.shape}", f"be a float32 array {shape}"))
        elif not np.isfinite(value).all():
            self.problems.append(Problem(name, "NaN or infinity", "hold finite numbers alone"))
        else:
            return value
        return None

    def packed(self, name: str, formats: Mapping[str, Any], integers: bool) -> Packed | None:
        """One linear layer: its records are whole, their order and their indices are in range."""
        stated, allowed = formats.get(name), INT8_FORMATS if integers else FLOAT32_FORMATS
        weight_format, outputs, inputs = stated if isinstance(stated, list) and len(stated) == 3 else ("", 0, 0)
        sizes = all(type(size) is int and 0 < size < 2**16 for size in (outputs, inputs))
        if not sizes or weight_format not in allowed:
            self.problems.append(Problem(name, stated, f"be one of {', '.join(allowed)}, and two sizes below 65536"))
            return None
        rows = outputs + -outputs % 4
        scale, bias = self.floats(f"{name}.scale", rows), self.floats(f"{name}.bias", rows)
        first, records = self.arrays.get(f"{name}.first"), self.arrays.get(f"{name}.records")
        entries = (rows if weight_format in {"block_sparse_int8", "sparse_float32"} else rows // 4) + 1
        if first is None or first.dtype != np.uint32 or first.shape != (entries,):
            self.problems.append(Problem(f"{name}.first", describe(first), f"be a uint32 array ({entries},)"))
            return None
        if records is None or records.dtype != np.uint8 or records.ndim != 1 or records.size % RECORD[weight_format]:
            self.problems.append(
                Problem(f"{name}.records", describe(records), f"be bytes, {RECORD[weight_format]} a record")
            )
            return None
        count = records.size // RECORD[weight_format]
        steps = np.diff(first.astype(np.int64))
        if first[0] != 0 or first[-1] != count or (steps < 0).any():
            self.problems.append(Problem(f"{name}.first", "a list out of order", f"grow from 0 to {count}"))
            return None
        raw = records.reshape(count, RECORD[weight_format])
        limit = -(-inputs // 4) if weight_format == "block_sparse_int8" else inputs
        if weight_format == "dense_int8x4":
            fine = bool((steps == -(-inputs // 4)).all())
        else:
            index = (
                raw[:, :8].copy().view(np.uint16)
                if weight_format == "group_sparse_int8"
                else raw[:, :4].copy().view(np.uint32)
            )
            fine = not index.size or int(index.max()) < limit
        if not fine:
            self.problems.append(Problem(f"{name}.records", "an index out of range", f"point at inputs below {limit}"))
        weights = raw[:, 4:].copy().view(np.float32) if weight_format in FLOAT32_FORMATS else np.zeros(0, np.float32)
        if not np.isfinite(weights).all():
            self.problems.append(Problem(f"{name}.records", "NaN or infinity", "hold finite numbers alone"))
        if scale is None or bias is None:
            return None
        return Packed(weight_format, (outputs, inputs), first, records, scale, bias)

    def agree(self, shape: Shape, layers: list[dict[str, Packed | None]]) -> None:
        """Sizes of the layers fit each other."""
        for i, layer in enumerate(layers):
            if any(packed is None for packed in layer.values()):
                continue
            sizes = {role: packed.shape for role, packed in layer.items() if packed is not None}
            heads, intermediate_size = sizes["query"][0], sizes["up"][0]
            expected = dict.fromkeys(("query", "key", "value"), (heads, shape.hidden))
            expected |= {
                "out": (shape.hidden, heads),
                "up": (intermediate_size, shape.hidden),
                "down": (shape.hidden, intermediate_size),
            }
            for role, size in expected.items():
                if sizes[role] != size or heads % shape.size:
                    self.problems.append(
                        Problem(f"layers.{i}.{role}", sizes[role], f"have the shape {size}, in whole heads")
                    )

    def tensors(self, shape: Shape, layers: list[dict[str, Packed | None]], integers: bool) -> None:
        """All other arrays that the kernels read."""
        wide = shape.embedding_size or shape.hidden
        for name, rows in (("word", shape.vocab_size), ("position", shape.positions), ("type", shape.types)):
            self.floats(f"embeddings.{name}", rows, wide)
        for name in ("gamma", "beta"):
            self.floats(f"embeddings.{name}", wide)
        if shape.embedding_size:
            self.floats("projection.weight", shape.hidden, wide)
            self.floats("projection.bias", shape.hidden)
        if shape.max_distance:
            self.floats("relative", shape.heads, 2 * shape.max_distance + 64)
        for i, layer in enumerate(layers):
            query, up = layer["query"], layer["up"]
            if query is None or up is None:
                continue
            heads, intermediate_size = query.shape[0] // shape.size, up.shape[0] + -up.shape[0] % 4
            for norm in ("attention_norm", "output_norm"):
                for name in ("gamma", "beta"):
                    self.floats(f"layers.{i}.{norm}.{name}", shape.hidden)
            self.floats(f"layers.{i}.attention.scale", heads)
            if integers:
                self.floats(f"layers.{i}.attention.gain", query.shape[0])
                for name, size in (
                    ("input", shape.hidden),
                    ("middle", shape.hidden),
                    ("intermediate", intermediate_size),
                ):
                    self.floats(f"layers.{i}.{name}.inverse", size)
                for name in ("input", "middle", "intermediate", "attention"):
                    self.floats(f"layers.{i}.{name}.zero", 1)
        for name in self.arrays:
            if name.startswith("head."):
                self.floats(name, *self.arrays[name].shape)


def describe(array: Array | None) -> str:
    return "nothing" if array is None else f"{array.dtype} {array.shape}"
