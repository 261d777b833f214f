"""Whether a Trainer's checkpoint was written to its end.

    trainer_state.json    comes last, and names the step of the directory
    *.safetensors         the header says how long the file is
    *.pt, *.pth           zip files, whose directory is at their end

What a killed process left is passed over, and so is what a full disk or a lost power cut short.
"""

import json
import zipfile
from pathlib import Path
from typing import Final

__all__ = ["is_whole"]

_STATE: Final = "trainer_state.json"
_BYTES: Final = 1 << 28


def is_whole(directory: Path, needs: str | None = None) -> bool:
    """Whether the checkpoint in ``checkpoint-STEP`` is; ``needs`` names one more file that has to be there."""
    step = directory.name.rpartition("-")[2]
    if needs is not None and not (directory / needs).is_file():
        return False
    try:
        with (directory / _STATE).open("rb") as file:
            state = json.loads(file.read(_BYTES))
        if not isinstance(state, dict) or str(state.get("global_step")) != step:
            return False
        files = [path for path in directory.iterdir() if path.is_file()]
        return all(_reaches_its_end(path) for path in files)
    except (OSError, ValueError, RecursionError, TypeError, KeyError, AttributeError, IndexError):
        return False


def _reaches_its_end(path: Path) -> bool:
    if path.suffix in (".pt", ".pth"):
        return zipfile.is_zipfile(path)
    if path.suffix != ".safetensors":
        return True
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        size = path.stat().st_size
        if not 2 <= length <= min(size - 8, _BYTES):
            return False
        header = json.loads(file.read(length))
    ends = [held["data_offsets"][1] for name, held in header.items() if name != "__metadata__"]
    return bool(8 + length + max(ends, default=0) == size)
