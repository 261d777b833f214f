"""Text -> rows of tokens on disk, streamed: memory does not grow with the corpus.

    document    paragraphs up to a blank line (``.txt``), or one object's text (``.jsonl``, a data set of the Hub)
    stream      the tokens of the documents, one after the other, a separator between two
    row         [CLS] tokens [SEP], full to ``length``; with probability ``short`` of a random shorter length

Every k-th document is held out, with k = round(1 / held_out): the split does not depend on order of reading or on a seed.

A split is two files, both read through memory maps: ``tokens`` (uint16, or uint32 for a vocabulary above 65,536) and ``ends``
(int64, where each row ends). They are written beside their place and renamed, under a digest of the text, the tokenizer and
the choices.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, final, overload
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from prunus._version import __version__
from prunus.cache import cache_or_temporary
from prunus.errors import DataError, Problem
from prunus.tasks.base import Split
from prunus.tasks.files import ColumnLayout, FileProblems, read_lines, read_rows, text_of
from prunus.tasks.sources import HubSplit, Origin, open_rows

__all__ = ["Choices", "Corpus", "TokenRows", "read_documents", "stored"]

LAYOUT: Final = ColumnLayout({"text": ("text", "content", "document")})
AT_ONCE: Final = 2**18
"""Characters that are tokenised together, or one document: a tokenizer takes some hundred bytes a token."""
TOLD: Final = 256
"""Documents between two words of progress."""
SHORTEST: Final = 8

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Choices:
    """What decides the rows of a text."""

    length: int
    """Tokens of a full row, with its two special ones."""
    short: float
    """Share of rows that are shorter."""
    held_out: float
    """Share of documents that belong to the validation split; 0 where that has a file of its own."""
    seed: int


@final
@dataclass(frozen=True)
class TokenRows(Sequence[NDArray[np.int64]]):
    """Rows of tokens behind memory maps."""

    tokens: NDArray[Any]
    ends: NDArray[np.int64]
    digest: str
    """Of the text, the tokenizer and the choices that they come from."""

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> NDArray[np.int64]: ...

    @overload
    def __getitem__(self, index: slice) -> list[NDArray[np.int64]]: ...

    def __getitem__(self, index: int | slice) -> NDArray[np.int64] | list[NDArray[np.int64]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        first = int(self.ends[position - 1]) if position else 0
        return np.asarray(self.tokens[first : int(self.ends[position])], np.int64)


@dataclass(frozen=True)
class Corpus:
    """Both splits, tokenised, and how many documents each has."""

    rows: dict[Split, TokenRows]
    documents: dict[Split, int]


def read_documents(origin: Origin) -> Iterator[list[str]]:
    """Paragraphs of each document. Raises ``DataError`` for a file that cannot be read or holds no text."""
    file_problems, any_text = FileProblems(), False
    if isinstance(origin, Path) and origin.name.lower().removesuffix(".gz").endswith(".txt"):
        paragraphs: list[str] = []
        for _, line in read_lines(origin, file_problems):
            if line.strip():
                paragraphs.append(line.strip())
            elif paragraphs:
                any_text = True
                yield paragraphs
                paragraphs = []
        if paragraphs:
            any_text = True
            yield paragraphs
    else:
        rows = (
            open_rows(origin, LAYOUT, file_problems)
            if isinstance(origin, HubSplit)
            else read_rows(origin, LAYOUT, file_problems)
        )
        for row in rows:
            text = text_of(row, "text", file_problems)
            if text is None:
                continue
            paragraphs = [line.strip() for line in text.splitlines() if line.strip()]
            if paragraphs:
                any_text = True
                yield paragraphs
    file_problems.close()
    if not any_text:
        raise DataError(Problem(str(origin), "no text", "hold at least one paragraph", "a file with text"))


def stored(
    origins: dict[Split, Origin], choices: Choices, tokenizer: PreTrainedTokenizerBase, progress: Progress | None = None
) -> Corpus:
    """The corpus of these files, tokenised now or kept from an earlier run."""
    place = cache_or_temporary("tokens", digest(origins, choices, tokenizer))
    if not (place / "facts.json").is_file():
        partial = place.with_name(f"{place.name}.{uuid4().hex[:8]}.partial")
        partial.mkdir(parents=True)
        try:
            write(origins, choices, tokenizer, partial, progress)
            if not place.exists():
                partial.rename(place)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    facts = json.loads((place / "facts.json").read_text(encoding="utf-8"))
    kind = np.dtype(facts["dtype"])
    rows: dict[Split, TokenRows] = {}
    splits: tuple[Split, ...] = ("train", "validation") if "train" in origins else ("validation",)
    for split in splits:
        tokens, ends = (
            mapped(place / f"{split}.{part}", of) for part, of in (("tokens", kind), ("ends", np.dtype(np.int64)))
        )
        if not len(ends) or len(tokens) != ends[-1]:
            fix = f"more text, or a larger task.held_out; or removing {place}"
            raise DataError(Problem(f"the {split} split", f"{len(ends)} rows", "have at least one row of tokens", fix))
        rows[split] = TokenRows(tokens, ends, place.name)
    return Corpus(rows, facts["documents"])


def mapped(path: Path, kind: np.dtype[Any]) -> NDArray[Any]:
    """A file of numbers; an empty one cannot be mapped."""
    return np.memmap(path, kind, "r") if path.stat().st_size else np.zeros(0, kind)


def digest(origins: dict[Split, Origin], choices: Choices, tokenizer: PreTrainedTokenizerBase) -> str:
    """Names the tokens by everything that decides them."""
    sha = hashlib.sha256(json.dumps([asdict(choices), __version__], sort_keys=True).encode())
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    sha.update(
        (backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)).encode()
    )
    for split in sorted(origins):
        origin = origins[split]
        sha.update(split.encode())
        if isinstance(origin, HubSplit):
            sha.update(repr(origin).encode())
        else:
            sha.update(origin.name.encode())
            with origin.open("rb") as file:
                sha.update(hashlib.file_digest(file, "sha256").digest())
    return sha.hexdigest()[:16]


def write(
    origins: dict[Split, Origin],
    choices: Choices,
    tokenizer: PreTrainedTokenizerBase,
    place: Path,
    progress: Progress | None,
) -> None:
    """Streams every document into the rows of its split."""
    kind = np.dtype(np.uint16 if len(tokenizer) <= 2**16 else np.uint32)
    splits: tuple[Split, ...] = ("train", "validation")
    every = round(1 / choices.held_out) if choices.held_out else 0
    documents: dict[Split, int] = dict.fromkeys(splits, 0)
    packers = {split: Packer(place, split, kind, choices, tokenizer) for split in splits}
    try:
        for split, origin in origins.items():
            for number, ids in enumerate(tokenised(read_documents(origin), tokenizer), start=1):
                goes = "validation" if split == "train" and every and number % every == 0 else split
                packers[goes].add(ids)
                documents[goes] += 1
                if progress is not None and number % TOLD == 0:
                    progress(number, number)
    finally:
        for packer in packers.values():
            packer.close()
    facts = {"dtype": kind.name, "documents": documents}
    (place / "facts.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")


def tokenised(documents: Iterable[list[str]], tokenizer: PreTrainedTokenizerBase) -> Iterator[NDArray[Any]]:
    """Tokens of each document, without special ones."""
    for group in together(documents):
        flat = [paragraph for document in group for paragraph in document]
        ids = tokenizer(flat, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        at = 0
        for document in group:
            parts = ids[at : at + len(document)]
            at += len(document)
            yield np.concatenate([np.asarray(part, np.int64) for part in parts])


def together(documents: Iterable[list[str]]) -> Iterator[list[list[str]]]:
    """Documents in groups of about ``AT_ONCE`` characters."""
    group: list[list[str]] = []
    size = 0
    for document in documents:
        group.append(document)
        size += sum(map(len, document))
        if size >= AT_ONCE:
            yield group
            group, size = [], 0
    if group:
        yield group


@final
class Packer:
    """Fills the rows of one split and writes them."""

    def __init__(
        self, place: Path, split: Split, kind: np.dtype[Any], choices: Choices, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        first = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
        last = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
        self.first, self.last = np.array([first], kind), np.array([last], kind)
        self.kind, self.choices = kind, choices
        self.draw = np.random.Generator(np.random.PCG64([choices.seed, split == "validation"]))
        self.tokens = (place / f"{split}.tokens").open("wb")
        self.ends = (place / f"{split}.ends").open("wb")
        self.waiting: list[NDArray[Any]] = []
        self.held = self.end = 0
        self.room = self.next_room()

    def next_room(self) -> int:
        """Tokens of the next row, without its special ones."""
        full = self.choices.length - 2
        if self.draw.random() >= self.choices.short:
            return full
        return int(self.draw.integers(min(SHORTEST, full), full + 1))

    def add(self, ids: NDArray[Any]) -> None:
        """One document."""
        if self.held:
            self.waiting.append(self.last)
            self.held += 1
        self.waiting.append(ids.astype(self.kind))
        self.held += len(ids)
        if self.held >= self.room:
            stream, at = np.concatenate(self.waiting), 0
            while len(stream) - at >= self.room:
                self.write(stream[at : at + self.room])
                at += self.room
                self.room = self.next_room()
            self.waiting, self.held = [stream[at:]], len(stream) - at

    def write(self, ids: NDArray[Any]) -> None:
        """One row."""
        self.tokens.write(np.concatenate([self.first, ids, self.last]).tobytes())
        self.end += len(ids) + 2
        self.ends.write(np.array([self.end], np.int64).tobytes())

    def close(self) -> None:
        """What is left makes a last, shorter row."""
        if self.held >= min(SHORTEST, self.room):
            self.write(np.concatenate(self.waiting))
        self.tokens.close()
        self.ends.close()
