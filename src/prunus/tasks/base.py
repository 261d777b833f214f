"""What a task is to the rest of prunus: examples in, features for the trainer, official metrics out.

A task owns its data (already read from local files, the Hub, or the Python installation), knows the head a model needs
for it, turns each split into features, and turns a model's raw outputs into metrics. It knows nothing of training.

Feature dictionaries hold plain Python lists (``input_ids``, ``attention_mask``, ``token_type_ids`` where the tokenizer
makes them) without padding; the collator pads each batch to its longest row.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
from transformers import PreTrainedTokenizerBase

__all__ = ["Feature", "HeadKind", "Metrics", "Split", "Task"]

Feature = dict[str, Any]
Metrics = dict[str, float]
Split = Literal["train", "validation"]
HeadKind = Literal["classification", "regression", "question-answering", "masked-language"]


class Task(Protocol):
    """One task with its two splits in memory."""

    @property
    def name(self) -> str:
        """As the recipe names it: ``squad``, ``sst2``, ``pydocs-qa``, ..."""

    @property
    def head(self) -> HeadKind:
        """Which ``AutoModelFor...`` head the task trains."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in the order of their ids; empty for regression and question answering."""

    @property
    def metric(self) -> str:
        """Name of the main metric among those that ``score`` returns; higher is better for every task."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the results must know (a subset, reconstructed data, ...), one sentence each."""

    def size(self, split: Split) -> int:
        """Number of examples (sentences, questions), before any is cut into several features."""

    def features(
        self, split: Split, tokenizer: PreTrainedTokenizerBase, progress: Callable[[int, int], None] | None = None
    ) -> Sequence[Feature]:
        """Tokenised rows of a split; ``progress(done, total)`` is called now and then.

        Training rows carry ``labels`` (an int, or a float for regression, or a list with one id a token, -100 where there is
        nothing to predict) or ``start_positions`` and ``end_positions``.
        """

    def score(self, outputs: Sequence[np.ndarray], features: Sequence[Feature]) -> Metrics:
        """Official metrics, as fractions in [0, 1] (correlations in [-1, 1]), of raw outputs on the validation split.

        ``outputs`` is ``[logits]`` with logits ``[rows, classes]``, or ``[start, end]``, each ``[rows, longest row]``
        padded on the right, or ``[loss, hits, masked]``, each ``[rows]``, in the order of ``features``.
        """

    def baselines(self) -> Mapping[str, Metrics]:
        """Metrics of trivial answers on the validation split (majority class, lexical rule); may be empty."""
