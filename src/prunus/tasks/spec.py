"""Which task, from which data: the ``task:`` block of a recipe."""

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["TaskSpec"]


@dataclass(frozen=True)
class TaskSpec:
    """A task by name, and where its data is.

    Data is looked for in this order: ``train`` and ``validation`` (files: JSON, JSONL, TSV, CSV, each also ``.gz``);
    ``data`` (a directory with the task's usual file names); the directory in ``$PRUNUS_DATA``; ``hub`` (a data set id,
    ``id:configuration``), which needs the extra ``hub`` and a network or a cache. The ``pydocs-`` tasks need no data.
    """

    name: str = "pydocs-qa"
    """``mlm`` for text (masked language modelling); ``squad``; a GLUE task (``cola``, ``sst2``, ``mrpc``, ``stsb``, ``qqp``,
    ``mnli``, ``qnli``, ``rte``, ``wnli``); ``classification`` or ``qa`` for own files; ``pydocs-qa`` or ``pydocs-topic`` for
    the embedded data."""
    train: str | None = None
    validation: str | None = None
    data: str | None = None
    hub: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    """Own files only: role -> column name. Roles: ``text``, ``text_pair``, ``label``; or ``question``, ``context``,
    ``answer``, ``answer_start``, ``id``."""
    mask_share: float = 0.15
    """Share of tokens that are predicted (mlm): of these, 80 % are masked, 10 % replaced, 10 % as they are."""
    short_share: float = 0.1
    """Share of rows that are shorter than ``max_length`` (mlm)."""
    held_out: float = 0.05
    """Share of documents to evaluate on where there is no ``validation`` file (mlm)."""
    max_length: int | None = None
    """Tokens per row; None means 384 for question answering and 128 otherwise."""
    doc_stride: int = 128
    """Tokens that two neighbouring windows of one context share (question answering)."""
    n_best: int = 20
    """Start and end candidates that are combined into answers (question answering)."""
    max_answer_length: int = 30
    """Longest answer, in tokens (question answering)."""
    max_train_samples: int | None = None
    """A seeded random subset of the training examples; None is all of them."""
    max_validation_samples: int | None = None
    """A seeded random subset of the validation examples; results then are not official."""
    subset_seed: int = 0
