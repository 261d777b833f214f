"""The Trainer's arguments of a recipe's training, and which of them a recipe may set itself (``train.trainer``)."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Final

import torch
from transformers import TrainingArguments

from prunus.distributed.processes import process_count
from prunus.errors import Problem, first_line, nearest
from prunus.recipe_blocks import TrainSpec
from prunus.training.run_plan import Length

__all__ = ["OWN_SCHEDULES", "argument_problems", "training_arguments"]

OWN_SCHEDULES: Final = ("cosine_cycles", "linear_rewinding")
"""Learning rate schedules that transformers does not have."""
_KEPT_CHECKPOINTS: Final = 2

_RECIPE_KEYS: Final[Mapping[str, str]] = {
    "adam_beta1": "adam_beta1",
    "adam_beta2": "adam_beta2",
    "auto_find_batch_size": "batch_size",
    "bf16": "precision",
    "bf16_full_eval": "precision",
    "eval_steps": "evaluate_every",
    "eval_strategy": "evaluate_every",
    "fp16": "precision",
    "fp16_full_eval": "precision",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "greater_is_better": "keep",
    "learning_rate": "learning_rate",
    "load_best_model_at_end": "keep",
    "logging_steps": "log_every",
    "logging_strategy": "log_every",
    "lr_scheduler_type": "lr_scheduler",
    "max_grad_norm": "max_grad_norm",
    "max_steps": "max_steps",
    "metric_for_best_model": "keep",
    "num_train_epochs": "epochs",
    "optim": "optimizer",
    "per_device_eval_batch_size": "eval_batch_size",
    "per_device_train_batch_size": "batch_size",
    "report_to": "report_to",
    "save_steps": "checkpoint_every",
    "save_strategy": "checkpoint_every",
    "seed": "seed",
    "torch_compile": "compile",
    "train_sampling_strategy": "group_by_length",
    "warmup_steps": "warmup",
    "weight_decay": "weight_decay",
    **{
        f"{kind}_checkpointing{end}": "gradient_checkpointing"
        for kind in ("activation", "gradient")
        for end in ("", "_kwargs")
    },
}
"""Argument of the Trainer -> the key of ``train`` that sets it."""
_ELSEWHERE: Final[Mapping[str, str]] = {
    **dict.fromkeys(("deepspeed", "fsdp", "fsdp_config", "parallelism_config", "local_rank"), "accelerate launch"),
    "hub_token": "HF_TOKEN in the environment: a recipe is written into the run's facts",
    "output_dir": "--output",
    "resume_from_checkpoint": "--resume",
    **dict.fromkeys(
        (
            "dataloader_pin_memory",
            "disable_tqdm",
            "do_eval",
            "do_predict",
            "do_train",
            "enable_jit_checkpoint",
            "push_to_hub",
            "remove_unused_columns",
            "save_only_model",
            "save_total_limit",
            "use_cpu",
        ),
        "leaving it out",
    ),
}
"""Arguments that prunus sets, or that would break its checkpoints -> what to do."""


def argument_problems(train: TrainSpec, key: str) -> list[Problem]:
    """What is wrong with ``train.trainer``: names, types, and arguments that are the recipe's or prunus's own."""
    known = {each.name: each for each in fields(TrainingArguments)}
    problems = []
    for name, value in train.trainer.items():
        where = f"{key}.trainer.{name}"
        if name in _RECIPE_KEYS or name in _ELSEWHERE:
            fix = f"{key}.{_RECIPE_KEYS[name]}" if name in _RECIPE_KEYS else _ELSEWHERE[name]
            problems.append(Problem(where, value, "be left out: prunus sets it", fix))
        elif name not in known:
            problems.append(Problem(where, value, "be an argument of TrainingArguments", nearest(name, list(known))))
        elif not _fits(value, known[name].default):
            wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
            default = known[name].default
            problems.append(Problem(where, value, f"be {wanted[type(default)]}", str(default)))
    if not problems and train.trainer:
        try:
            TrainingArguments(output_dir="unused", report_to="none", use_cpu=True, **train.trainer)
        except Exception as error:  # each argument has its own checks
            rule = f"be taken by TrainingArguments ({first_line(error)})"
            problems.append(Problem(f"{key}.trainer", ", ".join(train.trainer), rule, "another value"))
    return problems


def _fits(value: Any, default: Any) -> bool:
    """Whether a value has the type of a plain default; others are left to TrainingArguments."""
    if default is MISSING or type(default) not in (bool, int, float, str):
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    return isinstance(value, int | float if isinstance(default, float) else type(default))


def training_arguments(train: TrainSpec, length: Length, checkpoints: Path, evaluate: bool) -> TrainingArguments:
    """Those of one training with checkpoints below ``checkpoints``, and with the further ones of ``train.trainer``."""

    def steps(name: str) -> int:
        span = getattr(train, name)
        return 0 if span is None else int(span.steps(length.total, length.steps_per_epoch))

    more: dict[str, Any] = dict(train.trainer)
    if train.gradient_checkpointing:
        known = {each.name for each in fields(TrainingArguments)}
        name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
        more |= {name: True, f"{name}_kwargs": {"use_reentrant": False}}
    if train.optimizer is not None:
        more["optim"] = train.optimizer
    save, check = max(1, steps("checkpoint_every")), max(1, steps("evaluate_every"))
    return TrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=train.epochs,
        max_steps=train.max_steps or -1,
        per_device_train_batch_size=train.batch_size // process_count(),
        per_device_eval_batch_size=train.eval_batch_size,
        gradient_accumulation_steps=train.gradient_accumulation_steps,
        learning_rate=train.learning_rate,
        lr_scheduler_type="constant" if train.lr_scheduler in OWN_SCHEDULES else train.lr_scheduler,
        warmup_steps=steps("warmup"),
        weight_decay=train.weight_decay,
        adam_beta1=train.adam_beta1,
        adam_beta2=train.adam_beta2,
        max_grad_norm=train.max_grad_norm,
        seed=train.seed,
        bf16=train.precision == "bf16" or (train.precision == "auto" and multiplies_bf16()),
        fp16=train.precision == "fp16",
        torch_compile=train.compile,
        train_sampling_strategy="group_by_length" if train.group_by_length else "random",
        logging_strategy="steps",
        logging_steps=max(1, steps("log_every")),
        save_strategy="steps" if train.checkpoint_every is not None else "no",
        save_steps=save,
        save_total_limit=_KEPT_CHECKPOINTS,
        eval_strategy="steps" if evaluate and train.evaluate_every is not None else "no",
        eval_steps=check,
        use_cpu=not torch.accelerator.is_available(),
        report_to=list(train.report_to) or "none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        **more,
    )


def multiplies_bf16() -> bool:
    """Whether the device that trains has instructions for bfloat16; without them, autocast to it is slower than float32."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    mkldnn: Any = torch.backends.mkldnn
    return bool(mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())
