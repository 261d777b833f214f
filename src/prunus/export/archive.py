"""A model on disk at the size of what is left of it, and back again: every number is what it was (a zero loses its sign).

    archive.safetensors    every tensor of the model, each in the smallest of the forms that give it back exactly
    config.json, ranges.safetensors, prunus.json, modules of sentence-transformers    as they were
    tokenizer              as it saves itself

Forms, by name in the metadata's JSON ``tensors`` (name -> form, shape ``[outputs, inputs]``, block ``[rows, columns]``):

    plain     NAME            the tensor as it is
    whole     NAME.values     int8 [outputs, inputs]
              NAME.steps      float32 [outputs]                    weight = values * steps of its output
    kept      NAME.mask       uint8, one bit a block, row by row, first block in the highest bit, 1 = kept
              NAME.values     float32 [kept blocks, rows * columns], in the order of the mask
    kept8     mask as in ``kept``, values int8, steps as in ``whole``

int8 forms are for weights that quantization-aware training has put on their grid: value times step is then the weight, to the
last bit. Other matrices keep their float32 values.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from safetensors import SafetensorError, safe_open
from torch import Tensor

from prunus._version import __version__
from prunus.checkpoint.huggingface import METHOD
from prunus.checkpoint.sentence_files import find_sentence_files, model_directory
from prunus.checkpoint.staged import copy_files, staged
from prunus.checkpoint.tensor_io import MASKS_FILE, RANGES_FILE, read_tensors, write_tensors
from prunus.checkpoint.weights import read_weights, weight_files
from prunus.errors import CheckpointError, Problem
from prunus.export.packed import COPIED
from prunus.export.smaller import read_model
from prunus.export.source import carry_sentence_files, carry_tokenizer
from prunus.grid import from_integers, largest, symmetric_step, to_integers
from prunus.models.checkpoints import finite_problems
from prunus.runtime.families import read_settings

__all__ = ["ARCHIVE", "export_archive", "read_archive", "restore_archive", "write_archive"]

ARCHIVE: Final = "archive.safetensors"
FACTS: Final = "archive.json"
MODEL: Final = "model.safetensors"
FORMAT: Final = {"format": "prunus-archive", "version": "1"}
BLOCKS: Final = ((1, 1), (4, 1), (1, 4))
KEEPS: Final = (*COPIED, RANGES_FILE, MASKS_FILE)
LARGEST: Final = 2**40
"""Elements that a header may claim."""


@dataclass(frozen=True)
class Form:
    """One tensor in one of the forms."""

    kind: str
    shape: tuple[int, ...]
    block: tuple[int, int] = (1, 1)

    def json(self) -> dict[str, Any]:
        """For the metadata."""
        return {"form": self.kind, "shape": list(self.shape), "block": list(self.block)}


def on_grid(weight: Tensor, bound: Tensor | None, bits: int) -> tuple[Tensor, Tensor] | None:
    """Whole numbers and steps whose products are the weight exactly; None where there are none."""
    if bound is None or bound.shape != (weight.shape[0], 1):
        return None
    step = symmetric_step(bound.float(), bits)
    integers = to_integers(weight, step, -largest(bits), largest(bits))
    return (integers.to(torch.int8), step[:, 0]) if torch.equal(from_integers(integers, step), weight) else None


def blocked(matrix: NDArray[Any], block: tuple[int, int]) -> NDArray[Any]:
    """``[outputs, inputs]`` -> ``[blocks, rows * columns]``, row by row of blocks."""
    rows, columns = block
    outputs, inputs = matrix.shape
    parts = matrix.reshape(outputs // rows, rows, inputs // columns, columns)
    return parts.transpose(0, 2, 1, 3).reshape(-1, rows * columns)


def unblocked(parts: NDArray[Any], shape: tuple[int, int], block: tuple[int, int]) -> NDArray[Any]:
    """The reverse of ``blocked``."""
    rows, columns = block
    blocks = parts.reshape(shape[0] // rows, shape[1] // columns, rows, columns)
    return blocks.transpose(0, 2, 1, 3).reshape(shape)


def smallest(name: str, weight: Tensor, bound: Tensor | None, bits: int) -> tuple[Form, dict[str, Tensor]]:
    """The form of one tensor that takes the fewest bytes, and its arrays."""
    shape = tuple(weight.shape)
    if weight.dim() != 2 or weight.dtype != torch.float32 or 0 in shape:
        return Form("plain", shape), {name: weight}
    weight = weight.contiguous()
    integers = on_grid(weight, bound, bits)
    values = weight.numpy() if integers is None else integers[0].numpy()
    steps = {} if integers is None else {f"{name}.steps": integers[1]}
    if integers is None:
        best: tuple[Form, dict[str, Tensor]] = Form("plain", shape), {name: weight}
    else:
        best = Form("whole", shape), {f"{name}.values": torch.from_numpy(values), **steps}
    present = values != 0  # a negative zero is a zero
    for block in BLOCKS:
        if shape[0] % block[0] or shape[1] % block[1]:
            continue
        kept = blocked(present, block).any(1)
        arrays = {
            f"{name}.mask": torch.from_numpy(np.packbits(kept)),
            f"{name}.values": torch.from_numpy(blocked(values, block)[kept]),
            **steps,
        }
        if size(arrays) < size(best[1]):
            best = Form("kept" if integers is None else "kept8", shape, block), arrays
    return best


def size(arrays: Mapping[str, Tensor]) -> int:
    """Bytes of tensors."""
    return sum(array.numel() * array.element_size() for array in arrays.values())


def write_archive(path: Path, tensors: Mapping[str, Tensor], ranges: Mapping[str, Tensor]) -> dict[str, Form]:
    """Writes tensors into a file, whole or not at all; returns the form of each.

    ``ranges`` are what quantization-aware training learned (``ranges.safetensors``), empty for other models.
    """
    forms: dict[str, Form] = {}
    arrays: dict[str, Tensor] = {}
    for name, weight in tensors.items():
        layer = name.removesuffix(".weight")
        bits = int(ranges.get(f"{layer}.bits", torch.tensor(8)))
        forms[name], parts = smallest(name, weight, ranges.get(f"{layer}.weight_range"), bits)
        arrays |= parts
    described = json.dumps({name: form.json() for name, form in forms.items()})
    write_tensors(path, arrays, FORMAT | {"prunus": __version__, "tensors": described})
    return forms


def read_archive(path: Path) -> dict[str, Tensor]:
    """The tensors that ``write_archive`` was given.

    Raises:
        CheckpointError: a file that is damaged, or of another version; each array that does not fit is named.

    """
    arrays = read_tensors(path)
    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:  # pragma: no cover (read a moment ago)
        raise CheckpointError(Problem(str(path), str(error), "be a whole safetensors file")) from None
    got = {key: metadata.get(key) for key in FORMAT}
    if got != FORMAT:
        rule = f"be {FORMAT['format']} {FORMAT['version']}"
        raise CheckpointError(
            Problem(str(path), f"{got['format']} {got['version']}", rule, "prunus export --to archive")
        )
    try:
        listed = json.loads(metadata.get("tensors", ""))
    except (ValueError, RecursionError):
        listed = None
    if not isinstance(listed, dict):
        raise CheckpointError(Problem(str(path), "no list of tensors", "list its tensors", "an intact file"))
    problems: list[Problem] = []
    tensors = {name: whole_tensor(name, form, arrays, problems) for name, form in listed.items()}
    if problems:
        raise CheckpointError(*problems[:20])
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def whole_tensor(name: str, stated: Any, arrays: Mapping[str, Tensor], problems: list[Problem]) -> Tensor | None:
    """One tensor; what is wrong with it is noted, and nothing is allocated that its arrays do not bear out."""
    form = read_form(stated)
    if form is None:
        problems.append(Problem(name, stated, "be a form, a shape and a block", "an intact file"))
        return None
    if form.kind == "plain":
        return taken(arrays, name, None, form.shape, problems)
    outputs, inputs = form.shape
    eight = form.kind in {"whole", "kept8"}
    kind = torch.int8 if eight else torch.float32
    steps = taken(arrays, f"{name}.steps", torch.float32, (outputs,), problems) if eight else torch.ones(0)
    if form.kind == "whole":
        values = taken(arrays, f"{name}.values", kind, (outputs, inputs), problems)
        return None if values is None or steps is None else from_integers(values.float(), steps[:, None])
    rows, columns = form.block
    blocks = (outputs // rows) * (inputs // columns)
    mask = taken(arrays, f"{name}.mask", torch.uint8, (-(-blocks // 8),), problems)
    if mask is None or steps is None:
        return None
    kept = np.unpackbits(mask.numpy(), count=blocks).astype(bool)
    values = taken(arrays, f"{name}.values", kind, (int(kept.sum()), rows * columns), problems)
    if values is None:
        return None
    parts = np.zeros((blocks, rows * columns), values.numpy().dtype)
    parts[kept] = values.numpy()
    weight = torch.from_numpy(unblocked(parts, (outputs, inputs), form.block))
    return from_integers(weight.float(), steps[:, None]) if eight else weight


def read_form(stated: Any) -> Form | None:
    """A form out of the metadata; None where it is none."""
    if not isinstance(stated, dict) or stated.get("form") not in {"plain", "whole", "kept", "kept8"}:
        return None
    shape, block = stated.get("shape"), stated.get("block")
    if not isinstance(shape, list) or not isinstance(block, list):
        return None
    if not all(type(one) is int and 0 <= one < LARGEST for one in shape) or tuple(block) not in BLOCKS:
        return None
    if stated["form"] != "plain":
        fits = len(shape) == 2 and not shape[0] % block[0] and not shape[1] % block[1]
        if not fits or shape[0] * shape[1] > LARGEST:
            return None
    return Form(stated["form"], tuple(shape), (block[0], block[1]))


def taken(
    arrays: Mapping[str, Tensor], name: str, kind: torch.dtype | None, shape: tuple[int, ...], problems: list[Problem]
) -> Tensor | None:
    """An array of the file, if it is of this type and shape."""
    array = arrays.get(name)
    if array is not None and (kind is None or array.dtype == kind) and tuple(array.shape) == shape:
        return array
    got = "nothing" if array is None else f"{array.dtype} {tuple(array.shape)}"
    problems.append(Problem(name, got, f"be {kind or 'a tensor'} {shape}", "an intact file"))
    return None


def export_archive(
    directory: Path, output: Path, *, overwrite: bool = False, console: Console | None = None
) -> dict[str, Any]:
    """Archives a saved model; reads the archive back and compares every tensor before it counts.

    Returns the facts that ``archive.json`` holds: forms, and bytes of the pruned weights and of the whole file, each also
    compressed by zlib (level 6), as float32, as int8 where the model was trained in it, and as archived.

    Raises:
        PrunusError: no model there, weights that its ``config.json`` does not describe or that are not finite, an output that
            is taken, or a disk that is full.

    """
    sentences = find_sentence_files(directory)
    directory = model_directory(directory)
    files = weight_files(directory)
    if (output / ARCHIVE).exists() and not overwrite:
        rule = "not hold an archive yet"
        raise CheckpointError(Problem("output", str(output), rule, "--overwrite or another directory"))
    tensors = read_weights(directory)
    ranges = read_tensors(directory / RANGES_FILE) if (directory / RANGES_FILE).is_file() else {}
    lost = [*finite_problems(tensors, str(directory)), *finite_problems(ranges, str(directory / RANGES_FILE))]
    if lost:
        raise CheckpointError(*lost)
    _compare(directory)
    with staged(output, FACTS, new="" if overwrite else ARCHIVE) as partial:
        copy_files(directory, partial, KEEPS)
        carry_tokenizer(directory, partial, console)
        if sentences is not None:
            sentences.copy(partial)
        forms = write_archive(partial / ARCHIVE, tensors, ranges)
        back = read_archive(partial / ARCHIVE)
        for name, tensor in tensors.items():
            if name not in back or not torch.equal(back[name], tensor):
                raise CheckpointError(Problem(name, "another value", "be read back as it was", "a bug report"))
        facts = {
            "prunus": __version__,
            "forms": {name: form.json() for name, form in forms.items()},
            "bytes": sizes(tensors, ranges, forms),
            "files": {"model": sum(f.stat().st_size for f in files), "archive": (partial / ARCHIVE).stat().st_size},
        }
        (partial / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return facts


def _compare(directory: Path) -> None:
    """Raises ``PrunusError`` where the weights are not those that ``config.json`` describes.

    The weights of another tool's quantization, which ``config.json`` names, have that tool's names and types: they are archived
    as they are.
    """
    config = read_settings(directory / "config.json").get("quantization_config")
    if not config or (isinstance(config, Mapping) and config.get("quant_method") == METHOD):
        read_model(directory)


def restore_archive(
    directory: Path, output: Path, *, overwrite: bool = False, console: Console | None = None
) -> dict[str, Any]:
    """The directory that was archived: ``model.safetensors`` with every tensor as it was, and what lay beside it.

    Raises:
        CheckpointError: no whole archive there, or an output that is taken.

    """
    if (output / MODEL).exists() and not overwrite:
        rule = "not hold a model yet"
        raise CheckpointError(Problem("output", str(output), rule, "--overwrite or another directory"))
    if not (directory / ARCHIVE).is_file():
        fix = f"prunus export {directory} --to archive"
        raise CheckpointError(Problem(str(directory / ARCHIVE), "nothing", "be a file", fix))
    tensors = read_archive(directory / ARCHIVE)
    with staged(output, MODEL, new="" if overwrite else MODEL) as partial:
        copy_files(directory, partial, KEEPS)
        carry_tokenizer(directory, partial, console)
        carry_sentence_files(directory, partial)
        write_tensors(partial / MODEL, tensors, {"format": "pt"})
    return {"tensors": len(tensors), "bytes": (output / MODEL).stat().st_size}


def sizes(
    tensors: Mapping[str, Tensor], ranges: Mapping[str, Tensor], forms: Mapping[str, Form]
) -> dict[str, dict[str, list[int]]]:
    """Bytes, plain and compressed, of ``pruned`` (what is stored as kept blocks) and of ``all`` tensors."""
    kinds = {form.kind for form in forms.values()}
    pruned = "kept8" if "kept8" in kinds else "kept"
    parts = {"pruned": [name for name, form in forms.items() if form.kind == pruned], "all": list(tensors)}
    result: dict[str, dict[str, list[int]]] = {}
    for part, names in parts.items():
        dense, int8, archive = [0, 0], [0, 0], [0, 0]
        for name in names:
            weight, layer = tensors[name], name.removesuffix(".weight")
            bits = int(ranges.get(f"{layer}.bits", torch.tensor(8)))
            bound = ranges.get(f"{layer}.weight_range")
            add(dense, {name: weight})
            integers = on_grid(weight, bound, bits) if forms[name].kind in {"whole", "kept8"} else None
            add(int8, {name: weight} if integers is None else {"values": integers[0], "steps": integers[1]})
            add(archive, smallest(name, weight, bound, bits)[1])
        result[part] = {"float32": dense, "archive": archive} | ({"int8": int8} if ranges else {})
    return result


def add(total: list[int], arrays: Mapping[str, Tensor]) -> None:
    """Their bytes, and their bytes after zlib."""
    for array in arrays.values():
        raw = array.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        total[0] += len(raw)
        total[1] += len(zlib.compress(raw, 6))
