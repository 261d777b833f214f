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
    """`mlm` (masked language modelling); `squad`; a GLUE task (`cola`, `sst2`, `mrpc`, `stsb`, `qqp`, `mnli`,
    `mnli-mm`, `qnli`, `rte`, `wnli`); `classification` or `qa` for your own files; `pydocs-qa` or `pydocs-topic`
    for the small data that prunus contains."""
    train: str | None = None
    """Training file: JSON, JSONL, TSV or CSV, also `.gz`; for `mlm` plain text too."""
    validation: str | None = None
    """Validation file, of the same formats."""
    data: str | None = None
    """A directory that holds the task's files under their usual names. The default is the environment variable
    `PRUNUS_DATA`."""
    hub: str | None = None
    """A data set id of the Hub, `id` or `id:configuration`. Needs the extra `hub`."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """For your own files: role -> column name. Roles are `text`, `text_pair`, `label` (`score` for regression); or
    `question`, `context`, `answer`, `answer_start`, `id`."""
    mask_share: float = 0.15
    """`mlm`: fraction of tokens that are predicted; of these, 80 % are masked, 10 % replaced, 10 % unchanged."""
    short_share: float = 0.1
    """`mlm`: fraction of rows that are shorter than `max_length`."""
    held_out: float = 0.05
    """`mlm`: fraction of documents to evaluate on if there is no `validation` file."""
    max_length: int | None = None
    """Tokens per row. The default is 384 for question answering and 128 otherwise, and never more than the model
    accepts."""
    doc_stride: int = 128
    """Question answering: tokens that two neighbouring windows of a context share."""
    n_best: int = 20
    """Question answering: start and end candidates that are combined into answers."""
    max_answer_length: int = 30
    """Question answering: longest answer, in tokens."""
    max_train_samples: int | None = None
    """A random subset of the training examples. None means all."""
    max_validation_samples: int | None = None
    """A random subset of the validation examples; the report says that the metric is not official."""
    subset_seed: int = 0
    """Seed of the two subsets."""
