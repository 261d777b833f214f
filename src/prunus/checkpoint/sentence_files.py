"""The files of a sentence-transformers directory: ``modules.json``, and what it names.

    DIR/modules.json, config.json, model.safetensors, 1_Pooling/...       today's layout: the transformer lies in DIR itself
    DIR/modules.json, 0_Transformer/config.json, 1_Pooling/...            the older one

Whoever names ``DIR/0_Transformer`` means the model of ``DIR``.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from prunus.errors import CheckpointError, Problem

__all__ = ["CONFIGS", "MODULES", "SentenceFiles", "SentenceModule", "find_sentence_files", "model_directory"]

MODULES: Final = "modules.json"
SETTINGS: Final = "config_sentence_transformers.json"
CONFIGS: Final = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""Settings of the transformer, in the order in which sentence-transformers looks for them."""


@dataclass(frozen=True)
class SentenceModule:
    """A line of ``modules.json``."""

    name: str
    kind: str
    """Full name of its class."""
    path: str
    """Of its folder within the directory; empty for the directory itself."""


@dataclass(frozen=True)
class SentenceFiles:
    """A directory with ``modules.json``."""

    root: Path
    modules: tuple[SentenceModule, ...]

    @property
    def transformer(self) -> Path:
        """Where the first module lies: the transformer with its weights and its tokenizer."""
        return self.root / self.modules[0].path

    def settings(self) -> dict[str, Any]:
        """``config_sentence_transformers.json``; empty where there is none."""
        return read_object(self.root / SETTINGS)

    def copy(self, output: Path) -> None:
        """Writes everything but the transformer's own model into ``output``, where the transformer comes to lie in the root."""
        entries = read_json(self.root / MODULES)
        for path in {module.path for module in self.modules[1:] if module.path}:
            if (self.root / path).is_dir():
                shutil.copytree(self.root / path, output / path, dirs_exist_ok=True)
        (output / MODULES).write_text(json.dumps([entries[0] | {"path": ""}, *entries[1:]], indent=2), encoding="utf-8")
        places = [self.root / SETTINGS, *(self.transformer / name for name in CONFIGS)]
        for place in places:
            if place.is_file():
                shutil.copyfile(place, output / place.name)


def find_sentence_files(directory: Path) -> SentenceFiles | None:
    """The sentence-transformers directory that ``directory`` is, or whose transformer it is; None where it is neither.

    Raises:
        CheckpointError: a ``modules.json`` that cannot be read, or that names folders outside its directory.

    """
    if (directory / MODULES).is_file():
        return SentenceFiles(directory, modules_of(directory / MODULES))
    parent = directory.resolve().parent
    if (parent / MODULES).is_file():
        modules = modules_of(parent / MODULES)
        if modules[0].path == directory.resolve().name:
            return SentenceFiles(parent, modules)
    return None


def model_directory(directory: Path) -> Path:
    """Where the model of a directory lies: the folder of the transformer in a sentence-transformers directory, else itself."""
    if (directory / "config.json").is_file():
        return directory
    files = find_sentence_files(directory)
    return directory if files is None else files.transformer


def modules_of(path: Path) -> tuple[SentenceModule, ...]:
    entries = read_json(path)
    fine = isinstance(entries, list) and entries and all(isinstance(entry, dict) for entry in entries)
    if not fine:
        raise CheckpointError(Problem(str(path), "something else", "list the modules of a sentence-transformers model"))
    modules: list[SentenceModule] = []
    for entry in entries:
        kind, folder = entry.get("type"), entry.get("path", "")
        inside = isinstance(folder, str) and not {"..", "/"} & set(PurePosixPath(folder).parts) and "\\" not in folder
        if not isinstance(kind, str) or not inside:
            rule = "have a type, and a path inside the directory"
            raise CheckpointError(Problem(f"{path}: module", str(entry)[:80], rule, "an intact modules.json"))
        modules.append(
            SentenceModule(str(entry.get("name", len(modules))), kind, "" if folder == "." else folder.strip("/"))
        )
    return tuple(modules)


def read_json(path: Path) -> Any:
    """A JSON file; ``CheckpointError`` where it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(Problem(str(path), str(error)[:120], "be a JSON file", "an intact directory")) from None


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file."""
    if not path.is_file():
        return {}
    value = read_json(path)
    if not isinstance(value, dict):
        raise CheckpointError(Problem(str(path), type(value).__name__, "hold an object", "an intact directory"))
    return value
