"""What a run would do, as facts: tensors, steps, memory. Nothing is trained for it."""

import re
from dataclasses import asdict
from math import ceil
from typing import Any

from prunus.checkpoint.huggingface import layout_of
from prunus.sparsity.pruning import Rule
from prunus.training.run_plan import RunPlan

__all__ = ["plan_facts"]


def plan_facts(plan: RunPlan) -> dict[str, Any]:
    """What ``prunus plan`` prints: plain values, nothing measured by training."""
    recipe, task = plan.recipe, plan.task
    trainable = _trainable(plan)
    rules: list[dict[str, Any]] = []
    for rule in plan.rules:
        updates = rule.timetable.update_steps
        final = rule.pruning.allocation.final
        zeros = sum(int(final(name, rule.sparsity) * out * inp) for name, (out, inp) in rule.selection.taken.items())
        rules.append(
            {
                "pattern": str(rule.pattern),
                "asked": rule.pruning.pattern,
                "lock": rule.pruning.lock,
                "criterion": rule.criterion.name,
                "sparsity": rule.sparsity,
                "scope": rule.pruning.allocation.scope,
                "tensors": [{"name": name, "shape": list(shape)} for name, shape in rule.selection.taken.items()],
                "skipped": [
                    {"name": name, "shape": list(shape), "reason": reason}
                    for name, (shape, reason) in rule.selection.skipped.items()
                ],
                "weights": rule.selection.weights,
                "zeros": zeros,
                "schedule": {
                    "kind": rule.timetable.kind,
                    "first": updates[0],
                    "last": updates[-1],
                    "updates": len(updates),
                    "every": updates[1] - updates[0] if len(updates) > 1 else 0,
                    "sparsity": [[step, rule.timetable.sparsity(step, rule.sparsity)] for step in updates],
                },
                "bytes": _rule_bytes(rule),
            }
        )
    return {
        "recipe": asdict(recipe),
        "model": {
            "name": recipe.model.name,
            "architecture": type(plan.skeleton).__name__,
            "parameters": plan.parameters,
            "trainable": trainable,
        },
        "task": {
            "name": task.name,
            "head": task.head,
            "metric": task.metric,
            "train_examples": task.size("train"),
            "validation_examples": task.size("validation"),
            "train_features": len(plan.train_features),
            "notes": list(task.notes),
        },
        "steps": {
            "per_epoch": plan.length.steps_per_epoch,
            "total": plan.length.total,
            "dense": plan.dense_length.total if recipe.needs_dense else 0,
        },
        "rules": rules,
        "budget": plan.budget,
        "quantize": None
        if recipe.quantize is None
        else {"layers": list(plan.quantized), "mode": recipe.quantize.mode, "samples": recipe.quantize.samples},
        "bytes": {
            "weights": 4 * plan.parameters,
            "gradients": 4 * trainable,
            "optimizer": 8 * trainable,
            "teacher": 4 * plan.parameters * len(plan.teachers),
            "banks": _bank_bytes(plan),
            "masks": sum(rule["bytes"]["masks"] for rule in rules),
            "scores": sum(rule["bytes"]["scores"] for rule in rules),
            "dense_weights": sum(rule["bytes"]["dense_weights"] for rule in rules),
        },
    }


def _trainable(plan: RunPlan) -> int:
    frozen = [re.compile(pattern) for pattern in plan.recipe.train.freeze]
    named = plan.skeleton.named_parameters()
    return sum(p.numel() for name, p in named if not any(regex.search(name) for regex in frozen))


def _bank_bytes(plan: RunPlan) -> int:
    """What contrastive terms keep of every example: half precision, a model each, a snapshot for each step of the grid."""
    if plan.recipe.distill is None:
        return 0
    contrast, due = plan.recipe.distill.contrast, max((rule.sparsity for rule in plan.rules), default=0.0)
    models = len(contrast.terms)
    if "snc" in contrast.terms:
        snapshots = ceil(due / contrast.snc.every) - 1
        models += min(snapshots, contrast.snc.last or snapshots) - 1
    layout = layout_of(plan.skeleton.config)
    width = int(plan.config.get_text_config().hidden_size)
    if layout is not None and layout.hidden is not None:
        width = len(layout.hidden)
    return 2 * max(0, models) * width * len(plan.train_features)


def _rule_bytes(rule: Rule) -> dict[str, int]:
    """Memory that the masker will hold: masks (1 byte a weight), scores, dense weights where regrowth is allowed."""
    units = 0
    for shape in rule.selection.taken.values():
        rows, columns = shape if rule.pattern.needs_element_scores else rule.pattern.units(shape)
        units += rows * columns
    return {
        "masks": rule.selection.weights,
        "scores": 4 * len(rule.criterion.state) * units if rule.criterion.needs_gradient else 0,
        "dense_weights": 4 * rule.selection.weights if rule.pruning.revive else 0,
    }
