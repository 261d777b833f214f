"""Run plan: a recipe whose parts have been resolved, each once: data, models, teachers, budget, rules.

``prepare`` makes it and checks it (``plan_checks``); ``prunus plan`` prints it (``plan_facts``); ``run`` carries it out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from prunus.recipe import Recipe
from prunus.recipe_blocks import TrainSpec
from prunus.sparsity.pruning import Rule
from prunus.tasks.base import Feature, Task

__all__ = ["Length", "RunPlan", "length_of"]


@dataclass(frozen=True)
class Length:
    """A training in optimizer steps."""

    steps_per_epoch: int
    total: int


def length_of(features: int, train: TrainSpec) -> Length:
    """Optimizer steps as the Trainer counts them; the last micro-batches of an epoch make a step of their own."""
    steps = max(1, ceil(ceil(features / train.batch_size) / train.gradient_accumulation_steps))
    return Length(steps, train.max_steps if train.max_steps is not None else ceil(train.epochs * steps))


@dataclass(frozen=True)
class RunPlan:
    """A recipe that has met its data and its model's shapes, and can run."""

    recipe: Recipe
    """With the length of rows and the sparsities that the data, the model and the budget gave."""
    task: Task
    tokenizer: PreTrainedTokenizerBase
    config: PreTrainedConfig
    source: str
    """What ``from_pretrained`` takes."""
    dense_source: str
    """What the dense model is fine-tuned from; with ``dense_config``."""
    dense_config: PreTrainedConfig
    teachers: dict[str, str]
    """Key in the recipe -> ``dense``, ``start``, or what ``from_pretrained`` takes."""
    train_features: Sequence[Feature]
    length: Length
    dense_length: Length
    rules: tuple[Rule, ...]
    skeleton: nn.Module
    """The model without weights, of the shapes that its training begins with."""
    quantized: tuple[str, ...]
    """Names of the layers that will train in 8 bits."""
    budget: dict[str, Any]
    """What a budget came to: the sparsity of heads and neurons, the share that is left by calculation, and times."""

    @property
    def parameters(self) -> int:
        """How many the model has."""
        return sum(parameter.numel() for parameter in self.skeleton.parameters())
