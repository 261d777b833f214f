"""Files of tensors, written whole or not at all, and masks at one bit a weight.

masks.safetensors    name -> uint8 [ceil(out * in / 8)], row-major, first weight in the highest bit, 1 = kept;
                     the shape stands in the header's metadata as "out,in"
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from prunus.errors import CheckpointError, Problem

__all__ = ["MASKS_FILE", "RANGES_FILE", "read_masks", "read_tensors", "write_masks", "write_tensors"]

MASKS_FILE: Final = "masks.safetensors"
RANGES_FILE: Final = "ranges.safetensors"
"""Learned ranges of a quantized model, as ``quantization.to_float`` returns them."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes beside ``path`` and renames, so that a reader sees the old file or the new one.

    The same tensors and metadata give the same bytes, whatever their order.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        ordered = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
        save_file(ordered, partial, dict(metadata or {}))
        _sort_metadata(partial)
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(Problem(path.name, str(error), "be writable", "another disk or more space")) from error


def _sort_metadata(path: Path) -> None:
    """Sorts the metadata in a file's header, in place: safetensors writes its keys in a random order."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        if len(header.get("__metadata__", {})) < 2:
            return
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= size:  # the same keys and values, so as long as before
            file.seek(8)
            file.write(text.ljust(size))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file; ``CheckpointError`` for a damaged one."""
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            Problem(str(path), str(error), "be a whole safetensors file", "an earlier one")
        ) from error


def write_masks(path: Path, masks: Mapping[str, Tensor]) -> None:
    """Masks (bool ``[out, in]``, True = kept) at one bit a weight."""
    packed = {name: torch.from_numpy(np.packbits(mask.cpu().numpy(), axis=None)) for name, mask in masks.items()}
    write_tensors(path, packed, {name: f"{mask.shape[0]},{mask.shape[1]}" for name, mask in masks.items()})


def read_masks(path: Path) -> dict[str, Tensor]:
    """The masks that ``write_masks`` wrote; ``CheckpointError`` where sizes do not agree."""
    masks = {}
    packed = read_tensors(path)
    with safe_open(path, "pt") as file:
        shapes = file.metadata() or {}
    for name, bits in packed.items():
        sizes = shapes.get(name, "").split(",")
        if (
            len(sizes) != 2
            or not all(size.isdecimal() for size in sizes)
            or bits.dtype != torch.uint8
            or bits.dim() != 1
        ):
            raise CheckpointError(
                Problem(f"{path.name}: {name}", shapes.get(name), "have a shape 'out,in'", "an intact file")
            )
        out, inp = int(sizes[0]), int(sizes[1])
        if bits.numel() != (out * inp + 7) // 8:
            rule = f"hold one bit for each of {out} x {inp} weights"
            raise CheckpointError(Problem(f"{path.name}: {name}", f"{bits.numel()} bytes", rule, "an intact file"))
        flat = np.unpackbits(bits.numpy(), count=out * inp)
        masks[name] = torch.from_numpy(flat.astype(bool)).view(out, inp)
    return masks
