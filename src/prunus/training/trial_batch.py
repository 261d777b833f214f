"""A batch through the model before anything is trained: what tokenizer, data and model cannot do together, as problems.

The model of a trial has the embeddings, one layer and the head of the real one, in memory that is allocated but not written:
all weights are 0. Which indices a table has and which shapes meet does not depend on weights, so that what fails here fails in
the training, and nothing is read from disk. Every forward is the architecture's own code on the CPU, so how a family counts
positions (RoBERTa begins after its padding token) needs no table of ours.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from prunus.errors import Problem, TargetError, first_line
from prunus.models.loading import from_config
from prunus.models.masked_language import masked_outputs
from prunus.sparsity.depth import keep_layers
from prunus.tasks.base import Feature, HeadKind
from prunus.tasks.collate import Collate, TokenizedRows

__all__ = ["Trial", "batch_problems", "row_problems", "trial_model", "trial_of"]

_SHORTEST: Final = 8
"""Tokens of a row that every model reads: the least ``task.max_length``."""


@dataclass(frozen=True)
class Trial:
    """A model to try, and which key of the recipe names it."""

    key: str
    model: Any
    tokens: int
    """TokenizedRows of its table of tokens."""
    reads: int
    """Tokens of the longest row that it takes, up to the length that was asked for."""


def trial_model(config: PreTrainedConfig, head: HeadKind) -> nn.Module:
    """The model of ``config`` with at most one layer and weights of 0, in evaluation mode."""
    with init_empty_weights(include_buffers=False):
        model = from_config(config, head)
    with suppress(TargetError):  # layers that are shared, or under a name of their own: all of them are run
        keep_layers(model, [0])
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) not in made:
                # calloc's pages take no memory before they are written; torch.zeros writes them.
                made[id(parameter)] = nn.Parameter(torch.from_numpy(np.zeros(parameter.shape, np.float32)))
            setattr(module, name, made[id(parameter)])
    prepared: nn.Module = model.float().eval()
    return prepared


def trial_of(
    key: str, config: PreTrainedConfig, head: HeadKind, tokenizer: PreTrainedTokenizerBase, length: int
) -> Trial:
    """Finds how long a row ``model`` reads: ``length``, or the longest one below it that does not fail."""
    model: Any = trial_model(config, head)
    embeddings = model.get_input_embeddings()
    tokens = int(embeddings.weight.shape[0])
    ids = [one for one in tokenizer("the")["input_ids"] if one < tokens] or [0]

    def takes(count: int) -> bool:
        row = [*ids[:1], *[ids[len(ids) // 2]] * (count - 2), *ids[-1:]]
        batch = Collate(tokenizer)([{"input_ids": row, "attention_mask": [1] * count}])
        try:
            _forward(model.base_model if head == "masked-language" else model, batch)
        except Exception:  # each architecture has its own way to fail
            return False
        return True

    if takes(length) or not takes(min(length, _SHORTEST)):
        return Trial(key, model, tokens, length)  # what fails at any length is told by the batch
    low, high = _SHORTEST, length
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if takes(middle) else (low, middle)
    return Trial(key, model, tokens, low)


@torch.inference_mode()
def _forward(model: Any, batch: Mapping[str, Tensor]) -> None:
    model(**batch)


def row_problems(
    trials: Sequence[Trial],
    splits: Callable[[], Sequence[Sequence[Feature]]],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
) -> list[Problem]:
    """TokenizedRows that are too long for a model, or hold tokens that it has no embedding for.

    ``splits`` gives the rows of both splits. It is asked only where ``length`` or the size of the tokenizer allows such rows.
    """
    short = [trial for trial in trials if trial.reads < length]
    few = [trial for trial in trials if trial.tokens < len(tokenizer)]
    if not short and not few:
        return []
    rows = splits()
    longest, highest = _extremes(rows)
    problems = []
    least = min((trial.reads for trial in short), default=length)
    if longest > least:
        trial = next(trial for trial in short if trial.reads == least)
        rule = f"be at most the {least} tokens that the model of {trial.key} reads, as the data have longer rows"
        problems.append(Problem("task.max_length", length, rule, str(least)))
    for trial in few:
        if highest >= trial.tokens:
            rule = f"have an embedding for token {highest}, which its tokenizer makes of the data"
            fix = "model.resize_token_embeddings(len(tokenizer)) and saving it, or the model's own tokenizer"
            problems.append(Problem(trial.key, f"{trial.tokens} embeddings", rule, fix))
    return problems


def _extremes(splits: Sequence[Sequence[Feature]]) -> tuple[int, int]:
    """The length of the longest row, and the highest token."""
    longest = highest = 0
    for rows in splits:
        for i in range(len(rows)):
            ids = rows[i]["input_ids"]
            longest, highest = max(longest, len(ids)), max(highest, *ids)
    return longest, highest


def batch_problems(
    trial: Trial, features: Sequence[Feature], head: HeadKind, tokenizer: PreTrainedTokenizerBase
) -> list[Problem]:
    """What keeps the model from taking its longest rows beside its shortest one."""
    lengths = (
        features.lengths() if isinstance(features, TokenizedRows) else [len(row["input_ids"]) for row in features[:64]]
    )
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    chosen = dict.fromkeys([order[0], *order[-2:]])
    batch = Collate(tokenizer)([features[i] for i in chosen])
    try:
        if head == "masked-language":
            with torch.inference_mode():
                masked_outputs(trial.model, batch)
        else:
            _forward(trial.model, batch)
    except Exception as error:  # each architecture has its own way to fail
        name = type(trial.model).__name__
        if "padding token" in str(error):
            rule = "have a padding token, for batches of rows of different lengths"
            fix = 'tokenizer.add_special_tokens({"pad_token": "[PAD]"}), resizing the embeddings, and saving both'
            return [Problem(trial.key, name, rule, fix)]
        rule = f"take a batch of the data ({type(error).__name__}: {first_line(error)})"
        return [Problem(trial.key, name, rule, "the model's own tokenizer, or another model")]
    return []
