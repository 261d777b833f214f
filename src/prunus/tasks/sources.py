"""Where the rows of a split come from: a named file, a directory, ``$PRUNUS_DATA``, or a data set of the Hub.

A directory is searched as it is and in the folders that a task usually has below it (``SST-2``, ``glue/SST-2``), for
the usual file names of a split with each ending that ``prunus.tasks.files`` reads. The Hub is asked only if the recipe
names a data set; the package ``datasets`` (extra ``hub``) is imported then.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np

from prunus.errors import DataError, MissingExtra, Problem, RecipeError, nearest
from prunus.paths import expanded
from prunus.tasks.base import Split
from prunus.tasks.files import KINDS, ColumnLayout, FileProblems, Row, file_kind, read_rows, select
from prunus.tasks.lines import no_file
from prunus.tasks.spec import TaskSpec

__all__ = ["HubSplit", "Origin", "Places", "locate", "open_rows", "subset", "subset_notes"]

ENVIRONMENT: Final = "PRUNUS_DATA"

_HUB: Final = re.compile(r"(?P<id>[\w.-]+(/[\w.-]+)?)(:(?P<configuration>[\w.-]+))?")

T = TypeVar("T")


@dataclass(frozen=True)
class HubSplit:
    """One split of a data set of the Hub."""

    id: str
    configuration: str | None
    split: str


Origin = Path | HubSplit


@dataclass(frozen=True)
class Places:
    """The usual names of a task's data.

    ``folders`` are tried below a data directory, in order; ``stems`` are file names without endings; ``hub_splits`` are
    the names of the splits in the Hub's data set; ``hub`` is the id that is suggested where no data is found.
    """

    folders: tuple[str, ...]
    stems: Mapping[Split, tuple[str, ...]]
    hub_splits: Mapping[Split, str]
    hub: str = ""


def locate(
    spec: TaskSpec, places: Places, splits: Sequence[Split] = ("train", "validation")
) -> tuple[dict[Split, Origin], list[Problem]]:
    """Where each of ``splits`` is, and what keeps it from being found. Looks at names only, reads nothing."""
    origins: dict[Split, Origin] = {}
    problems: list[Problem] = []
    files: dict[Split, str | None] = {"train": spec.train, "validation": spec.validation}
    named = [(split, files[split]) for split in splits]
    for split, name in named:
        if name is None:
            continue
        try:
            path = expanded(name, f"task.{split}")
        except RecipeError as error:
            problems += error.problems
            continue
        origins[split] = path
        problems += _check_file(f"task.{split}", path)
    open_splits = [split for split, name in named if name is None]
    if open_splits and spec.data is not None:
        try:
            folder = expanded(spec.data, "task.data")
        except RecipeError as error:
            return origins, [*problems, *error.problems]
        if folder.is_dir():
            origins |= _search(folder, places, open_splits)
            problems += [_not_in(folder, "task.data", places, split) for split in open_splits if split not in origins]
        else:
            problems.append(Problem("task.data", spec.data, "be an existing directory", _sibling(folder)))
        return origins, problems
    environment = os.environ.get(ENVIRONMENT)
    if open_splits and environment and Path(environment).is_dir():
        origins |= _search(Path(environment), places, open_splits)
    missing = [split for split in open_splits if split not in origins]
    if missing and spec.hub is not None:
        match = _HUB.fullmatch(spec.hub)
        if match is None:
            problems.append(Problem("task.hub", spec.hub, "be owner/name or owner/name:configuration", places.hub))
        else:
            hub = {s: HubSplit(match["id"], match["configuration"], places.hub_splits[s]) for s in missing}
            return origins | hub, problems
    elif missing:
        problems += [Problem(f"task.{split}", None, "name a file", _advice(places)) for split in missing]
    return origins, problems


def _check_file(key: str, path: Path) -> list[Problem]:
    problem = no_file(key, path, "" if path.exists() else _sibling(path))
    if problem is not None:
        return [problem]
    if file_kind(path) is None:
        endings = ", ".join("." + kind for kind in KINDS)
        return [Problem(key, str(path), f"end in {endings}, or one of these and .gz")]
    return []


def _sibling(path: Path) -> str:
    if not path.parent.is_dir():
        return f"a path that exists: there is no directory {path.parent}"
    names = sorted(entry.name for entry in path.parent.iterdir())[:50]
    return nearest(path.name, names) if names else f"another directory: {path.parent} is empty"


def _advice(places: Places) -> str:
    folder = f"task.data or ${ENVIRONMENT}, a directory with {places.stems['train'][0]}.tsv or the like"
    if len(places.folders) > 1:
        folder += f" in it or in {places.folders[1]}"
    return folder + (f", or task.hub: {places.hub}" if places.hub else ", or task.hub, a data set of the Hub")


def _not_in(folder: Path, key: str, places: Places, split: Split) -> Problem:
    stems = " or ".join(places.stems[split])
    return Problem(key, str(folder), f"hold the {split} file ({stems}, ending in {', '.join('.' + k for k in KINDS)})")


def _search(folder: Path, places: Places, splits: Sequence[Split]) -> dict[Split, Origin]:
    """The files of the first folder that has all the splits, or else of the first that has any."""
    best: dict[Split, Origin] = {}
    for below in places.folders:
        origins: dict[Split, Origin] = {}
        for split in splits:
            names = [f"{stem}.{kind}{gz}" for stem in places.stems[split] for kind in KINDS for gz in ("", ".gz")]
            hit = next((folder / below / name for name in names if (folder / below / name).is_file()), None)
            if hit is not None:
                origins[split] = hit
        if len(origins) == len(splits):
            return origins
        best = best or origins
    return best


def open_rows(origin: Origin, layout: ColumnLayout, file_problems: FileProblems) -> Iterator[Row]:
    """The rows of a split. Raises DataError, and MissingExtra where the Hub is asked without ``datasets``."""
    if isinstance(origin, Path):
        return read_rows(origin, layout, file_problems)
    return _hub_rows(origin, layout, file_problems)


def _hub_rows(origin: HubSplit, layout: ColumnLayout, file_problems: FileProblems) -> Iterator[Row]:
    try:
        import datasets
    except ImportError as error:
        fix = 'pip install "prunus[hub]", or files: task.train and task.validation'
        raise MissingExtra(Problem("task.hub", origin.id, "have the package datasets installed", fix)) from error
    try:
        table: Any = datasets.load_dataset(origin.id, origin.configuration, split=origin.split)
    except Exception as error:
        # Whatever goes wrong between here and the Hub (no network, no such data set, no such split) is told, not typed.
        message = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        name = origin.id + (f":{origin.configuration}" if origin.configuration else "")
        fix = "a network or a filled cache, another id, or files: task.train and task.validation"
        problem = Problem("task.hub", f"{name} ({message})", f"be a data set with a split {origin.split}", fix)
        raise DataError(problem) from error
    names = {key: kind.names for key, kind in table.features.items() if isinstance(kind, datasets.ClassLabel)}
    source = f"{origin.id} {origin.split} row"
    count = 0
    for number, record in enumerate(table, start=1):
        count += 1
        for key, labels in names.items():
            if isinstance(record[key], int) and 0 <= record[key] < len(labels):
                record[key] = labels[record[key]]
        values = select(record, layout, f"{source} {number}", file_problems)
        if values is not None:
            yield Row(source, number, "", values)
    if not count:
        file_problems.fatal(source, "no rows", "be at least one")


def subset(rows: Sequence[T], count: int | None, seed: int) -> Sequence[T]:
    """``count`` rows of a random permutation by ``seed``, in their old order; all of them for None or a large count."""
    if count is None or count >= len(rows):
        return rows
    chosen = np.random.Generator(np.random.PCG64(seed)).permutation(len(rows))[:count]
    return [rows[i] for i in np.sort(chosen)]


def subset_notes(spec: TaskSpec, train: int, validation: int) -> tuple[str, ...]:
    """What a reader must know of ``subset``; ``train`` and ``validation`` are the numbers of all examples."""
    notes = []
    for count, total, split, more in (
        (spec.max_train_samples, train, "training", ""),
        (spec.max_validation_samples, validation, "validation", "; the metrics are not official"),
    ):
        if count is not None and count < total:
            notes.append(f"{count:,} of {total:,} {split} examples (seed {spec.subset_seed}){more}")
    return tuple(notes)
