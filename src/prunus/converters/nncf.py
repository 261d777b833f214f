"""NNCF's ``nncf_config.json`` (2.4 to 2.19): magnitude sparsity and quantization, one or both.

Scopes name modules of NNCF's own traced graph; what they keep out of BERT is what a recipe leaves in float, or dense, anyway
(embeddings, layer normalization, sums, the product with the values), or a name that a recipe can exclude (pooler, classifier).
"""

import re
from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any, Final

from prunus.converters.reading import ConfigBlock, Converted

__all__ = ["convert_nncf"]

DENSE_ANYWAY: Final = re.compile(r"embedding|layer_?norm", re.I)
FLOAT_ANYWAY: Final = re.compile(r"embedding|layer_?norm|__i?add__|matmul_1|truediv|softmax|gelu|dropout", re.I)
PLAIN: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
RANGES: Final = {
    "min_max": "min_max",
    "mean_min_max": "mean_min_max",
    "percentile": "percentile",
    "mean_percentile": "percentile",
}


def convert_nncf(values: Mapping[str, Any]) -> Converted:
    """The recipe that an NNCF configuration means."""
    lost: list[str] = []
    top = ConfigBlock(values, "", lost)
    recipe: dict[str, Any] = {}
    for key in ("input_info", "log_dir", "target_device"):
        top.take(key)  # how to trace a model, and where logs go: a recipe needs neither
    algorithms = top.take("compression")
    for i, one in enumerate([algorithms] if isinstance(algorithms, Mapping) else algorithms or []):
        block = (
            ConfigBlock(one, f"compression[{i}]", lost)
            if isinstance(one, Mapping)
            else ConfigBlock({}, f"compression[{i}]", lost)
        )
        name = block.take("algorithm")
        if name == "magnitude_sparsity":
            recipe["prune"], counted = sparsity(block)
            if counted is not None:
                recipe["train"] = {"steps_per_epoch": counted}  # the data must agree
        elif name == "quantization":
            recipe["quantize"] = quantization(block)
        else:
            block.lose("algorithm", "has no counterpart; what belongs to it is left out")
            continue
        block.rest()
    top.rest()
    return Converted(recipe, lost)


def sparsity(block: ConfigBlock) -> tuple[dict[str, Any], int | None]:
    """``magnitude_sparsity`` -> ``prune``, and the optimizer steps of an epoch where it says them."""
    params = block.block("params")
    initial = block.number("sparsity_init", 0.0)
    if initial and params.values.get("schedule") != "adaptive":
        block.lose("sparsity_init", "a schedule starts dense")
    importance = params.take("weight_importance", block.take("weight_importance", "normed_abs"))
    scope = params.take("sparsity_level_setting_mode", "global")
    if scope not in {"global", "local"}:
        params.lose("sparsity_level_setting_mode", "is neither global nor local")
    allocation: dict[str, Any] = {"scope": "tensor" if scope == "local" else "global"}
    if allocation["scope"] == "global":
        allocation |= {"importance": "plain" if importance == "abs" else "normed", "max_per_tensor": 1.0}
    rule: dict[str, Any] = {
        "pattern": "unstructured",
        "sparsity": target(params),
        "criterion": "magnitude",
        "revive": True,
        "schedule": schedule(params, initial),
        "allocation": allocation,
    }
    excluded = scopes(block, "ignored_scopes", DENSE_ANYWAY)
    included = scopes(block, "target_scopes", None)
    if excluded:
        rule["targets"] = {"exclude": excluded}
    if included:
        rule["targets"] = rule.get("targets", {}) | {"include": included}
    counted = params.take("steps_per_epoch")
    if counted is not None and (isinstance(counted, bool) or not isinstance(counted, int) or counted < 1):
        params.lose("steps_per_epoch", "is not a whole number above 0")
        counted = None
    params.rest()
    return rule, counted


def target(params: ConfigBlock) -> float:
    """The final sparsity; the last level of ``multistep`` stands over the target."""
    value = params.number("sparsity_target", 0.5)
    if params.values.get("schedule") != "multistep":
        return value
    levels = params.take("multistep_sparsity_levels", [0.1, 0.5])
    fine = isinstance(levels, list) and levels and all(isinstance(one, int | float) and 0 < one < 1 for one in levels)
    return float(levels[-1]) if fine else value


def schedule(params: ConfigBlock, initial: float) -> dict[str, Any]:
    """``params`` -> ``prune.schedule``."""
    kind = params.take("schedule", "polynomial")
    end, freeze = params.number("sparsity_target_epoch", 90), params.number("sparsity_freeze_epoch", 100)
    steps = bool(params.take("update_per_optimizer_step", False))
    power, concave = params.number("power", 0.9), params.take("concave", True)
    keys: dict[str, Any] = {"kind": kind, "start": 0, "end": f"{end:g} epochs"}
    if kind == "polynomial" and not concave:
        keys["kind"] = {1.0: "linear", 3.0: "inc_cube"}.get(float(power), "polynomial")
        if keys["kind"] == "polynomial":
            params.lose("concave", "a convex ramp is there for the powers 1 and 3 alone")
    if keys["kind"] == "polynomial":
        keys["power"] = power
    elif kind == "multistep":
        steps_at, levels = params.take("multistep_steps", [90]), params.take("multistep_sparsity_levels", [0.1, 0.5])
        return staircase(steps_at, levels)
    elif kind == "adaptive":
        return adaptive(params, initial)
    elif kind not in {"polynomial", "exponential"}:
        params.lose("schedule", "has no counterpart; a polynomial of power 3 in its place")
        keys |= {"kind": "polynomial", "power": 3}
    if freeze > end:
        keys["hold"] = f"{freeze - end:g} epochs"
    return keys | {"every": 1 if steps else "1 epochs"}


def staircase(epochs: Sequence[float], levels: Sequence[float]) -> dict[str, Any]:
    """One level more than epochs."""
    share = [level / levels[-1] for level in levels]
    return {"kind": "multistep", "start": 0, "boundaries": [f"{at:g} epochs" for at in epochs], "levels": share}


def adaptive(params: ConfigBlock, initial: float) -> dict[str, Any]:
    """NNCF raises the level by 0.05 once ``patience`` epochs have reached it. By magnitude every epoch does, at once: what
    adapts where a level is learned is a staircase here.
    """
    patience, final = max(1, int(params.number("patience", 1))), params.number("sparsity_target", 0.5)
    step = params.number("step", 0.05)
    if not step > 0:
        params.lose("step", "is not above 0; 0.05 in its place")
        step = 0.05
    params.take("eps")  # how near a learned level must come; these are exact
    rises = max(0, ceil((final - initial) / step - 1e-9))
    epochs = [patience * (i + 1) - 1 for i in range(rises)]  # the first epochs count too
    levels = [initial, *(min(final, initial + step * (i + 1)) for i in range(rises))]
    if epochs and epochs[0] == 0:
        epochs, levels = epochs[1:], levels[1:]
    return staircase(epochs, levels) if epochs else {"kind": "one_shot", "start": 0}


def quantization(block: ConfigBlock) -> dict[str, Any]:
    """``quantization`` -> ``quantize``."""
    preset = block.take("preset", "performance")
    if preset not in {"performance", "mixed"}:
        block.lose("preset", "is neither performance nor mixed")
    keys: dict[str, Any] = {"mode": "mixed" if preset == "mixed" else "symmetric"}
    initializer = block.block("initializer")
    ranges = initializer.block("range")
    kind = ranges.take("type", "mixed_min_max")
    if kind not in RANGES:
        ranges.lose("type", "has no counterpart; mean_min_max in its place")
    keys |= {"ranges": RANGES.get(kind, "mean_min_max"), "samples": int(ranges.number("num_init_samples", 256))}
    ranges.rest()
    initializer.take("batchnorm_adaptation")  # these models have no batch normalization
    initializer.rest()
    fix = block.take("overflow_fix", "enable")
    if fix not in {"enable", "disable"}:
        block.lose("overflow_fix", "all layers or none; none in its place")
    keys["overflow_fix"] = fix == "enable"
    overrides = block.block("scope_overrides")
    activations = overrides.block("activations")
    for scope in activations.values:
        scoped = activations.block(scope)
        if "matmul_0" in scope and scoped.take("mode") == "symmetric":
            keys["attention"] = True  # query and key without a zero point
        scoped.rest()
    weights = overrides.block("weights")
    weights.rest()
    overrides.rest()
    for key, default in (
        ("quantize_inputs", True),
        ("quantize_outputs", False),
        ("export_to_onnx_standard_ops", False),
    ):
        if block.take(key, default) != default:
            block.lose(key, "has no counterpart")
    excluded = scopes(block, "ignored_scopes", FLOAT_ANYWAY)
    if excluded:
        keys["exclude"] = excluded
    return keys


def scopes(block: ConfigBlock, key: str, anyway: re.Pattern[str] | None) -> list[str]:
    """Scopes as regular expressions on names; those that a recipe observes anyway are not among them."""
    patterns = []
    for scope in block.texts(key):
        bare = scope.removeprefix("{re}").strip(".*^$")
        if anyway is not None and anyway.search(bare):
            continue
        if PLAIN.fullmatch(bare):
            patterns.append(bare)
        else:
            block.lost.append(
                f"{block.name(key)} = {scope!r}: names nodes of NNCF's own graph; name parameters instead"
            )
    return patterns
