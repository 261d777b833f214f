"""Checks of a run before it trains: functions of the recipe's parts, or of the whole plan, that return problems.

No weights are read and nothing changes here.
"""

import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec

import torch
from torch import nn

from prunus.distillation.feature_distiller import FeatureDistiller
from prunus.distillation.logits import Distillation, TeacherSettings
from prunus.distributed.deepspeed import asked_stage, deepspeed_problems
from prunus.distributed.processes import process_count
from prunus.errors import Problem, collecting
from prunus.models.loading import config_for, meta_model
from prunus.recipe import DistillSpec
from prunus.recipe_blocks import TrainSpec
from prunus.sparsity.pruning import Rule
from prunus.tasks.base import HeadKind
from prunus.training.arguments import argument_problems
from prunus.training.run_plan import Length, RunPlan

__all__ = ["plan_problems", "teaching_problems", "training_problems"]


def training_problems(trainings: Mapping[str, TrainSpec], distill: DistillSpec | None) -> list[Problem]:
    """What these trainings (``train``, ``dense``) cannot do with this device, these packages and this many processes."""
    contrast = distill is not None and bool(distill.contrast.terms)
    arguments = [problem for key, train in trainings.items() for problem in argument_problems(train, key)]
    return arguments + _reporters(trainings["train"]) + _divides(trainings) + _not_here(trainings, contrast)


def teaching_problems(distill: DistillSpec | None, head: HeadKind) -> list[Problem]:
    """Contrastive terms that need labels which the task does not have."""
    problems = []
    for name, term in (distill.contrast.terms if distill is not None else {}).items():
        if term.supervised and head != "classification":
            rule = f"be 0 for {head}, which has no labels of classes"
            problems.append(Problem(f"distill.contrast.{name}.supervised", term.supervised, rule, "weight"))
    return problems


def plan_problems(plan: RunPlan) -> list[Problem]:
    """What keeps a resolved plan from running as it says."""
    recipe = plan.recipe
    problems = deepspeed_problems(recipe.prune, asked_stage())
    problems += _other_epochs(recipe.train, plan.length, len(plan.train_features)) + _layers(plan)
    return problems + _frozen_targets(recipe.train, plan.rules, plan.skeleton)


def _layers(plan: RunPlan) -> list[Problem]:
    """Layers of teachers that are to be compared with the model's and are not there; their models have no weights here."""
    distill, problems = plan.recipe.distill, list[Problem]()
    if distill is None:
        return problems
    configs = {"dense": plan.dense_config, "start": plan.config}
    all_settings: list[tuple[str, TeacherSettings | Distillation]] = [("distill", distill)]
    all_settings += [(f"distill.others[{index}]", other) for index, other in enumerate(distill.others)]
    for (key, settings), (name, teacher) in zip(all_settings, plan.teachers.items(), strict=True):
        if settings.hidden.weight or settings.attention.weight:
            config = configs.get(teacher) or config_for(teacher, plan.task, key=name, tokenizer=plan.tokenizer)
            model = meta_model(config, plan.task.head, name)
            with collecting(problems):
                FeatureDistiller(settings.hidden, settings.attention, plan.skeleton, model, key=key)
    return problems


def _divides(trainings: Mapping[str, TrainSpec]) -> list[Problem]:
    """A batch is shared by the processes."""
    problems = []
    for key, train in trainings.items():
        if train.batch_size % process_count():
            rule = f"be a multiple of the {process_count()} processes, which share it"
            nearest_ = max(1, round(train.batch_size / process_count())) * process_count()
            problems.append(Problem(f"{key}.batch_size", train.batch_size, rule, str(nearest_)))
    return problems


def _not_here(trainings: Mapping[str, TrainSpec], contrast: bool) -> list[Problem]:
    """What this device, or this recipe's other choices, cannot do."""
    problems = []
    key = next((key for key, train in trainings.items() if train.precision == "fp16"), None)  # dense follows train
    if key is not None and not torch.accelerator.is_available():
        rule = "be used on an accelerator: the loss is not scaled on a CPU"
        problems.append(Problem(f"{key}.precision", "fp16", rule, "bf16"))
    if contrast and trainings["train"].compile:
        rule = "be false with distill.contrast, which looks into the model at each step"
        problems.append(Problem("train.compile", True, rule, "false"))
    return problems


def _reporters(train: TrainSpec) -> list[Problem]:
    """Those that are asked for and not installed."""
    rule = "be installed"
    return [
        Problem("train.report_to", name, rule, f"pip install {name}")
        for name in train.report_to
        if find_spec(name) is None
    ]


def _other_epochs(train: TrainSpec, length: Length, rows: int) -> list[Problem]:
    """Whether the recipe says another number of steps than the data make."""
    if train.steps_per_epoch in (None, length.steps_per_epoch):
        return []
    batch = train.batch_size * train.gradient_accumulation_steps
    rule = f"be the {length.steps_per_epoch} optimizer steps that {rows:,} rows in batches of {batch} make"
    fix = f"{length.steps_per_epoch}, leaving it out, or the data and the batch size that the recipe was written for"
    return [Problem("train.steps_per_epoch", train.steps_per_epoch, rule, fix)]


def _frozen_targets(train: TrainSpec, rules: Sequence[Rule], model: nn.Module) -> list[Problem]:
    problems = []
    for index, pattern in enumerate(train.freeze):
        try:
            regex = re.compile(pattern)
        except re.error as error:
            problems.append(Problem(f"train.freeze[{index}]", pattern, f"be a regular expression ({error})"))
            continue
        if not any(regex.search(name) for name, _ in model.named_parameters()):
            rule = "match at least one parameter"
            problems.append(Problem(f"train.freeze[{index}]", pattern, rule, "embeddings"))
        for rule_ in rules:
            hit = next((name for name in rule_.selection.taken if regex.search(name)), None)
            if hit is not None and rule_.criterion.needs_gradient:
                text = f"leave {hit} trainable, whose gradient criterion {rule_.criterion.name} needs"
                problems.append(Problem(f"train.freeze[{index}]", pattern, text, "criterion: magnitude"))
    return problems
