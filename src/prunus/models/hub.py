"""Models of the Hub as directories: their snapshot in the cache of huggingface_hub, where each file lies under its own name.

Everything that reads a directory then reads a model of the Hub alike: weights of any form, the tokenizer, the modules of a
sentence-transformers model. What is missing is downloaded, unless ``HF_HUB_OFFLINE`` is set.
"""

from pathlib import Path
from typing import Final

from prunus.checkpoint.sentence_files import find_sentence_files
from prunus.errors import Problem, PrunusError, RecipeError, first_line

__all__ = ["cached_snapshot", "name_of", "snapshot"]

_TEXTS: Final = ("*.json", "*.txt", "*.model", "*.codes", "*.jinja")
"""Configurations, tokenizers, modules."""
_WEIGHTS: Final = {
    "safetensors": ("model.safetensors", "model-*-of-*.safetensors"),
    "bin": ("pytorch_model.bin", "pytorch_model-*-of-*.bin"),
}
"""Forms of weights, the first that is there is read; in repositories there are often other copies beside them."""


def snapshot(name: str, key: str, revision: str | None = None) -> Path:
    """The directory of a model of the Hub. Raises ``RecipeError`` where it cannot be had."""
    try:
        return _fetched(name, revision, local=False)
    except PrunusError:
        raise
    except Exception as error:  # the network, the repository, the cache: each has its own errors
        rule = f"be a model that can be read ({first_line(error)})"
        raise RecipeError(Problem(key, name, rule, "a directory, minilm, or a network for a Hub id")) from None


def cached_snapshot(name: str) -> Path | None:
    """The directory of a model of the Hub that is in the cache; None where it is not. Nothing is downloaded."""
    try:
        return _fetched(name, None, local=True)
    except PrunusError:
        raise
    except Exception:  # no name of the Hub, or not in the cache
        return None


def name_of(directory: Path) -> str:
    """The name of a directory; of a snapshot in the cache the name that the model has on the Hub."""
    directory = directory.resolve()
    repository = directory.parent.parent.name
    if directory.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/")
    return directory.name


def _fetched(name: str, revision: str | None, local: bool) -> Path:
    from huggingface_hub import snapshot_download

    def fetch(patterns: list[str]) -> Path:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=local))

    folder = fetch(list(_TEXTS))
    files = find_sentence_files(folder)
    places = {""} if files is None else {module.path for module in files.modules}
    for form, names in _WEIGHTS.items():
        wanted = [f"{place}/{each}".lstrip("/") for place in sorted(places) for each in names]
        fetch(wanted)
        places = {place for place in places if not any((folder / place).glob(f"*.{form}"))}
        if not places:
            break
    return folder
