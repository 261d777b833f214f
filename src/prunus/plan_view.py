"""A plan as a person reads it in a terminal."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["plan_lines"]


def plan_lines(plan: Mapping[str, Any], verbose: bool = False) -> Iterator[str]:
    """The lines of ``prunus plan`` for the facts of ``prunus.training.plan.plan_facts``."""
    model, task, steps = plan["model"], plan["task"], plan["steps"]
    yield f"model    {model['name']}: {model['architecture']}, {_count(model['parameters'])} parameters"
    if model["trainable"] != model["parameters"]:
        yield f"         {_count(model['trainable'])} of them trained, the others frozen"
    yield (
        f"task     {task['name']}: {task['train_examples']:,} training examples ({task['train_features']:,} rows), "
        f"{task['validation_examples']:,} to evaluate on; main metric {task['metric']}"
    )
    for note in task["notes"]:
        yield f"         {note}"
    if steps["dense"]:
        yield f"dense    {steps['dense']:,} steps first, unless kept from an earlier run"
    yield f"train    {steps['total']:,} steps, {steps['per_epoch']:,} an epoch"
    if plan["budget"]:
        budget = plan["budget"]
        left = f"{budget['predicted']:.4f} is left by calculation"
        if "measured" in budget:
            left = f"{budget['measured']:.4f} was measured (by the table of layers {budget['predicted']:.4f})"
        share = f"{budget['share']:g} of the {budget['measure']}"
        yield f"budget   {share}: {budget['sparsity']:.4f} of the heads and neurons go, {left}"
    for rule in plan["rules"]:
        yield from _rule(rule, verbose)
    if not plan["rules"]:
        yield "prune    nothing: this recipe trains a dense model"
    if plan["quantize"]:
        settings = plan["quantize"]
        what = f"{len(settings['layers'])} layers in 8 bits, {settings['mode']}"
        yield f"quantize {what}; first ranges from {settings['samples']:,} samples"
    sizes = plan["bytes"]
    total = sum(sizes.values())
    parts = ", ".join(f"{name} {_mebibytes(size)}" for name, size in sizes.items() if size)
    yield f"memory   {_mebibytes(total)} before activations: {parts}"


def _rule(rule: Mapping[str, Any], verbose: bool) -> Iterator[str]:
    schedule, pattern = rule["schedule"], rule["pattern"]
    if rule["asked"] in ("heads", "ffn"):
        pattern = f"{rule['asked']} ({pattern})"
    if rule["lock"]:
        yield f"prune    the zeros of {len(rule['tensors'])} tensors stay: {rule['pattern']}, checked against the weights"
        return
    yield (
        f"prune    {len(rule['tensors'])} tensors, {_count(rule['weights'])} weights: {pattern} by "
        f"{rule['criterion']}, {rule['scope']} scope, to {rule['sparsity']:g} ({rule['zeros']:,} zeros)"
    )
    when = f"at step {schedule['first']}"
    if schedule["updates"] > 1:
        when = f"from step {schedule['first']} to {schedule['last']} every {schedule['every']}"
    yield f"         {schedule['kind']}: {schedule['updates']} mask updates {when}"
    if verbose:
        for event, sparsity in schedule["sparsity"]:
            yield f"           step {event:>7,}  sparsity {sparsity:.4f}"
    for shape, number in Counter(tuple(tensor["shape"]) for tensor in rule["tensors"]).items():
        yield f"         {number:>4} x {list(shape)}"
    if verbose:
        for tensor in rule["tensors"]:
            yield f"           {tensor['name']} {tensor['shape']}"
    reasons = Counter(skipped["reason"] for skipped in rule["skipped"])
    yield f"skipped  {len(rule['skipped'])} tensors"
    for reason, number in reasons.items():
        named = [skipped["name"] for skipped in rule["skipped"] if skipped["reason"] == reason]
        shown = named if verbose else named[:2]
        more = f" and {number - len(shown)} more" if number > len(shown) else ""
        yield f"         {number:>4}  {reason}: {', '.join(shown)}{more}"


def _count(number: int) -> str:
    return f"{number / 1e6:.1f} M" if number >= 100_000 else f"{number:,}"


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
