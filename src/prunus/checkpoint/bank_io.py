"""What models made of each training example, as files: ``states``, in half precision, ``[examples, width]``.

The header names the data (``digest``), so that no other's rows are taken for them.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from prunus.checkpoint.tensor_io import write_tensors
from prunus.errors import CheckpointError, Problem

__all__ = ["read_states", "write_states"]


def write_states(path: Path, states: Tensor, digest: str) -> None:
    """Writes the file whole or not at all; ``CheckpointError`` where it cannot."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(Problem(str(path), str(error), "be writable", "another directory")) from error
    write_tensors(path, {"states": states}, {"digest": digest})


def read_states(path: Path, examples: int, digest: str, mapped: bool = False) -> Tensor:
    """The states; ``mapped`` leaves them in the file, a row is read when it is asked for.

    Raises ``CheckpointError`` where the file is missing, damaged, or of other data.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata, shape, kind = _header(file)
            states: Tensor | None = file.get_tensor("states") if not mapped else None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(Problem(str(path), str(error), "be a whole bank", "a run without --resume")) from error
    if len(shape) != 2 or shape[0] != examples or kind != "F16":
        rule = f"hold a row in half precision for each of {examples} examples"
        raise CheckpointError(Problem(str(path), f"{kind} {shape}", rule, "the data that the run began with"))
    if metadata != digest:
        rule = "be of the data of this run, in its order"
        raise CheckpointError(Problem(str(path), metadata, rule, "the data that the run began with"))
    if states is not None:
        return states
    with path.open("rb") as plain:  # 8 bytes with the length of the header, the header, the numbers
        header = int.from_bytes(plain.read(8), "little")
    return torch.from_numpy(np.memmap(path, np.float16, "c", offset=8 + header).reshape(examples, -1))


def _header(file: Any) -> tuple[str | None, list[int], str]:
    states = file.get_slice("states")
    return (file.metadata() or {}).get("digest"), list(states.get_shape()), str(states.get_dtype())
