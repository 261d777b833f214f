"""Masked language modelling (Devlin et al. 2019, arXiv:1810.04805, section 3.1): text in, perplexity and accuracy out.

    of all tokens but special ones, ``mask_share`` are predicted, at least one a row; of these

        80 %    become [MASK]
        10 %    become a token drawn from the vocabulary
        10 %    stay

    loss          mean over predicted tokens of -log p(token)
    perplexity    exp(loss)
    accuracy      share of predicted tokens that are the most probable one; the main metric

Which tokens are predicted is a function of (seed, epoch, row) and of nothing else: a resumed training sees what the stopped one
would have seen, whatever was prefetched. Rows to evaluate on are masked once.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp
from typing import Any, Final, final, overload

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase

from prunus.errors import DataError, Problem, RecipeError
from prunus.paths import expanded
from prunus.tasks.base import Feature, HeadKind, Metrics, Split
from prunus.tasks.collate import IGNORED
from prunus.tasks.corpus import Choices, Corpus, TokenRows, stored
from prunus.tasks.lines import no_file
from prunus.tasks.sources import HubSplit, Origin
from prunus.tasks.spec import TaskSpec

__all__ = ["BlockShuffle", "MaskedLanguageTask", "MaskedRows", "load_masked_language", "locate_text", "settings"]

MASKED, REPLACED = 0.8, 0.1
ENDINGS: Final = (".txt", ".jsonl", ".txt.gz", ".jsonl.gz")
BLOCK: Final = 4096
"""Rows that are shuffled together, in an order of blocks that is shuffled too: memory stays the same for any corpus."""


@final
class MaskedRows(Sequence[Feature]):
    """Rows with masks drawn for the current epoch."""

    def __init__(
        self, rows: TokenRows, tokenizer: PreTrainedTokenizerBase, share: float, seed: int, limit: int | None
    ) -> None:
        self.rows, self.share, self.seed, self.epoch = rows, share, seed, 0
        self.mask, self.vocabulary = int(tokenizer.mask_token_id), len(tokenizer)
        self.special = np.array(sorted(tokenizer.all_special_ids))
        self.length = len(rows) if limit is None else min(limit, len(rows))

    @property
    def digest(self) -> str:
        """Names the rows and their masks, whatever the epoch."""
        return repr([self.rows.digest, self.share, self.seed, self.length])

    def set_epoch(self, epoch: int) -> None:
        """Masks of another epoch from now on."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> Feature: ...

    @overload
    def __getitem__(self, index: slice) -> list[Feature]: ...

    def __getitem__(self, index: int | slice) -> Feature | list[Feature]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        ids = self.rows[position]
        draw = np.random.Generator(np.random.PCG64([self.seed, self.epoch, position]))
        places = np.flatnonzero(~np.isin(ids, self.special))
        count = min(len(places), max(1, round(self.share * len(places))))
        chosen = draw.permutation(places)[:count]
        labels = np.full(len(ids), IGNORED)
        labels[chosen] = ids[chosen]
        fate = draw.random(count)
        ids[chosen[fate < MASKED]] = self.mask
        other = chosen[(fate >= MASKED) & (fate < MASKED + REPLACED)]
        ids[other] = draw.integers(0, self.vocabulary, len(other))
        return {"input_ids": ids.tolist(), "attention_mask": [1] * len(ids), "labels": labels.tolist()}

    def sampler(self, seed: int) -> "BlockShuffle":
        """The order of a training's rows."""
        return BlockShuffle(self, seed)


@final
class BlockShuffle(Sampler[int]):
    """Blocks in random order, rows in random order within each; by (seed, epoch) alone."""

    def __init__(self, rows: MaskedRows, seed: int) -> None:
        self.rows, self.seed, self.epoch = rows, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """The order, and the masks, of another epoch."""
        self.epoch = epoch
        self.rows.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[int]:
        draw = np.random.Generator(np.random.PCG64([self.seed, self.epoch]))
        for block in draw.permutation(-(-len(self.rows) // BLOCK)):
            first = int(block) * BLOCK
            yield from (first + draw.permutation(min(BLOCK, len(self.rows) - first))).tolist()


@final
@dataclass(frozen=True)
class MaskedLanguageTask:
    """Text with its held-out part; implements ``prunus.tasks.base.Task``. Tokens are made, or found, at the first use."""

    spec: TaskSpec
    origins: Mapping[Split, Origin]
    corpora: dict[str, Corpus] = field(default_factory=dict)
    more_notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As the recipe names it."""
        return "mlm"

    @property
    def head(self) -> HeadKind:
        """The head that a model needs."""
        return "masked-language"

    @property
    def labels(self) -> tuple[str, ...]:
        """None: tokens are predicted."""
        return ()

    @property
    def metric(self) -> str:
        """The main metric; perplexity and loss are lower where it is higher."""
        return "accuracy"

    @property
    def notes(self) -> tuple[str, ...]:
        """How many documents the rows come from, and what was held out."""
        split: Split = "train" if "train" in self.origins else "validation"
        notes = [
            f"rows of up to {self.spec.max_length or 128} tokens, of {corpus.documents[split]:,} documents"
            for corpus in self.corpora.values()
        ][:1]
        if "validation" not in self.origins:
            every = round(1 / self.spec.held_out)
            notes.append(f"evaluated on every {every}th document of the text, which is not trained on")
        return (*notes, *self.more_notes)

    def corpus(self, tokenizer: PreTrainedTokenizerBase, progress: Callable[[int, int], None] | None = None) -> Corpus:
        """The tokens of both splits."""
        key = str(id(tokenizer))
        if key not in self.corpora:
            held_out = 0.0 if "validation" in self.origins else self.spec.held_out
            choices = Choices(self.spec.max_length or 128, self.spec.short_share, held_out, self.spec.subset_seed)
            self.corpora[key] = stored(dict(self.origins), choices, tokenizer, progress)
        return self.corpora[key]

    def size(self, split: Split) -> int:
        """Rows; 0 before the text was read."""
        rows = next((len(corpus.rows[split]) for corpus in self.corpora.values()), 0)
        limit = self._limit(split)
        return rows if limit is None else min(rows, limit)

    def features(
        self, split: Split, tokenizer: PreTrainedTokenizerBase, progress: Callable[[int, int], None] | None = None
    ) -> MaskedRows:
        """Masked rows of a split. Raises ``RecipeError`` for a tokenizer without the special tokens of such rows."""
        _check_tokenizer(tokenizer)
        rows = self.corpus(tokenizer, progress).rows[split]
        seed = self.spec.subset_seed + (split == "validation")
        return MaskedRows(rows, tokenizer, self.spec.mask_share, seed, self._limit(split))

    def _limit(self, split: Split) -> int | None:
        return self.spec.max_train_samples if split == "train" else self.spec.max_validation_samples

    def score(self, outputs: Sequence[NDArray[Any]], features: Sequence[Feature]) -> Metrics:
        """From ``[loss, hits, masked]``, each ``[rows]``: sums over the predicted tokens of a row."""
        loss, hits, masked = (float(np.asarray(part, np.float64).sum()) for part in outputs)
        mean = loss / masked
        return {"accuracy": hits / masked, "loss": mean, "perplexity": exp(min(mean, 700.0))}

    def baselines(self) -> Mapping[str, Metrics]:
        """None."""
        return {}


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    special = {
        "mask": tokenizer.mask_token_id,
        "first": tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id,
        "last": tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id,
    }
    absent = [name for name, token in special.items() if token is None]
    if absent:
        rule = "have a token for masked places, and one for the ends of a row"
        raise RecipeError(Problem("the tokenizer", f"no {absent[0]} token", rule, "an encoder such as minilm"))


def settings(spec: TaskSpec) -> list[Problem]:
    """Settings that no text can make good."""
    problems = []
    for name, low, high in (("mask_share", 0.0, 1.0), ("short_share", -1e-9, 1.0), ("held_out", 0.0, 0.5)):
        value = getattr(spec, name)
        if not low < value <= high:
            problems.append(
                Problem(f"task.{name}", value, f"be a share above {max(low, 0):g} and up to {high:g}", "0.1")
            )
    return problems


def locate_text(
    spec: TaskSpec, splits: Sequence[Split] = ("train", "validation")
) -> tuple[dict[Split, Origin], list[Problem]]:
    """Where the text of ``splits`` is: ``train`` (and ``validation``), or the one text file in ``data``, or ``hub``."""
    origins: dict[Split, Origin] = {}
    problems: list[Problem] = []
    named: tuple[tuple[Split, str | None], ...] = (("train", spec.train), ("validation", spec.validation))
    for split, name in named:
        if name is None or split not in splits:
            continue
        try:
            path = expanded(name, f"task.{split}")
        except RecipeError as error:
            problems += error.problems
            continue
        problem = no_file(f"task.{split}", path, "a text file: .txt, .jsonl, also .gz")
        if problem is not None:
            problems.append(problem)
        elif not path.name.lower().endswith(ENDINGS):
            problems.append(Problem(f"task.{split}", name, f"end in {', '.join(ENDINGS)}", "a text file"))
        origins[split] = path
    if "train" not in splits or spec.train is not None:
        return origins, problems
    if spec.data is not None:
        try:
            folder = expanded(spec.data, "task.data")
        except RecipeError as error:
            return origins, [*problems, *error.problems]
        texts = sorted(p for p in folder.glob("*") if p.name.lower().endswith(ENDINGS)) if folder.is_dir() else []
        if len(texts) == 1:
            origins["train"] = texts[0]
        else:
            got = ", ".join(path.name for path in texts[:5]) or "none"
            rule = f"be a directory with one text file ({', '.join(ENDINGS)}), here {got}"
            problems.append(Problem("task.data", spec.data, rule, "task.train, the file itself"))
    elif spec.hub is not None:
        name, _, configuration = spec.hub.partition(":")
        origins["train"] = HubSplit(name, configuration or None, "train")
    else:
        problems.append(
            Problem("task.train", None, "name a file of text", "--train-file text.txt, also .jsonl and .gz")
        )
    return origins, problems


def load_masked_language(spec: TaskSpec, origins: Mapping[Split, Origin]) -> MaskedLanguageTask:
    """The task; its text is read when its first rows are asked for."""
    if not origins:
        raise DataError(Problem("task.train", None, "name a file of text"))
    return MaskedLanguageTask(spec, dict(origins))
