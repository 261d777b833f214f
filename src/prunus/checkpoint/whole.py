"""Whether a Trainer's checkpoint was written to its end.

    trainer_state.json    comes last, and names the step of the directory
    *.safetensors         the header says how long the file is
    *.pt, *.pth, *.bin    zip files, whose directory is at their end
    *.index.json          every shard that it names is there
    weights, optimizer, learning rate, random numbers    each has a file: without it Trainer would begin it anew in silence

What a killed process left is passed over, and so is what a full disk or a lost power cut short.
"""

import json
import zipfile
from pathlib import Path
from typing import Final

__all__ = ["is_whole"]

_STATE: Final = "trainer_state.json"
_BYTES: Final = 1 << 28
_DEEPSPEED: Final = "global_step*"
_PARTS: Final = (
    ("model*.safetensors", "pytorch_model*", _DEEPSPEED),
    ("optimizer*", _DEEPSPEED),
    ("scheduler.pt", _DEEPSPEED),
    ("rng_state*.pth",),
)
"""Names of what a checkpoint must hold; one of each."""


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
        if not all(any(any(directory.glob(name)) for name in names) for names in _PARTS):
            return False
        files = [path for path in directory.iterdir() if path.is_file()]
        return all(_reaches_its_end(path) for path in files)
    except (OSError, ValueError, RecursionError, TypeError, KeyError, AttributeError, IndexError):
        return False


def _reaches_its_end(path: Path) -> bool:
    if path.suffix in (".pt", ".pth", ".bin"):
        return zipfile.is_zipfile(path)
    if path.name.endswith(".index.json"):
        shards = set(json.loads(path.read_bytes())["weight_map"].values())
        return all((path.parent / shard).is_file() for shard in shards)
    if path.suffix != ".safetensors":
        return True
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        size = path.stat().st_size
        if not 2 <= length <= min(size - 8, _BYTES):
            return False
        header = json.loads(file.read(length))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return bool(8 + length + max(ends, default=0) == size)
