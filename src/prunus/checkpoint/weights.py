"""The weights of a Hugging Face directory, in any of the forms in which transformers writes them.

    model.safetensors      model.safetensors.index.json and its shards
    pytorch_model.bin      pytorch_model.bin.index.json and its shards

They are looked for in this order, which is transformers' own.
"""

from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from prunus.checkpoint.sentence_files import read_object
from prunus.checkpoint.tensor_io import read_tensors
from prunus.errors import CheckpointError, Problem, first_line

__all__ = ["integer_weights", "read_file", "read_weights", "weight_files"]

WHOLE: Final = ("model.safetensors", "pytorch_model.bin")
OLD: Final = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
"""Names that conversions from TensorFlow left in old checkpoints; transformers renames them too."""


def weight_files(directory: Path) -> list[Path]:
    """The files that hold a model's weights: one, or the shards that an index names.

    Raises:
        CheckpointError: none are there, or an index names a shard that is missing or lies elsewhere.

    """
    for name in WHOLE:
        if (directory / name).is_file():
            return [directory / name]
        index = directory / f"{name}.index.json"
        if index.is_file():
            shards = read_object(index).get("weight_map")
            names = sorted({str(shard) for shard in shards.values()}) if isinstance(shards, dict) else []
            missing = [
                Problem(f"{index}: {shard}", "nothing", "be a file beside the index", "copying all shards")
                for shard in names or ["weight_map"]
                if Path(shard).name != shard or not (directory / shard).is_file()
            ]
            if missing:
                raise CheckpointError(*missing[:20])
            return [directory / shard for shard in names]
    rule = f"be there: {' or '.join(WHOLE)}, or the index of its shards"
    raise CheckpointError(Problem(f"weights of {directory}", "nothing", rule, "the directory of a saved model"))


def read_weights(directory: Path) -> dict[str, Tensor]:
    """All tensors of a model, as they were saved; ``CheckpointError`` where they cannot be read."""
    weights: dict[str, Tensor] = {}
    for path in weight_files(directory):
        weights |= read_file(path)
    for name in list(weights):
        for old, new in OLD.items():
            if name.endswith(old):
                weights[name.removesuffix(old) + new] = weights.pop(name)
    return weights


def integer_weights(directory: Path) -> dict[str, str]:
    """Names of the tensors of a model that are stored in no float type, with their types; buffers of indices are among them.

    Of safetensors the headers alone are read. Raises ``CheckpointError`` where the files cannot be read.
    """
    result: dict[str, str] = {}
    for path in weight_files(directory):
        if path.suffix != ".safetensors":
            tensors = read_file(path)
            result |= {
                name: str(t.dtype).removeprefix("torch.") for name, t in tensors.items() if not t.is_floating_point()
            }
            continue
        try:
            with safe_open(path, "pt") as file:
                kinds = {name: str(file.get_slice(name).get_dtype()) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            rule = f"be a whole safetensors file ({first_line(error)})"
            raise CheckpointError(Problem(str(path), "something else", rule, "an intact file")) from None
        result |= {name: kind for name, kind in kinds.items() if not kind.startswith(("F", "BF"))}
    return result


def read_file(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, or of one that ``torch.save`` wrote; no code in it is run."""
    if path.suffix == ".safetensors":
        return read_tensors(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file, or one with code in it, ends in many kinds of errors
        rule = f"be a whole file of tensors ({first_line(error)})"
        raise CheckpointError(Problem(str(path), "something else", rule, "saving the model as safetensors")) from None
    if not isinstance(state, dict):
        raise CheckpointError(Problem(str(path), type(state).__name__, "map names to tensors", "an intact file"))
    return {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
