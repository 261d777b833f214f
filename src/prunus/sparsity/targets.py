"""Targets: which parameters a rule prunes, by name.

Candidates are the weights of ``torch.nn.Linear`` modules. Without an ``include`` list, those inside the task-free body of
a Hugging Face model (``model.base_model_prefix``) are taken, so that the task's head stays dense whatever it is called;
without an ``exclude`` list, poolers and projections of the embeddings stay dense too. Every 2-D parameter that is not
taken is reported with the reason.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from torch import nn

from prunus.errors import Problem, TargetError, nearest
from prunus.sparsity.patterns import Pattern

__all__ = ["DEFAULT_EXCLUDE", "Selection", "Targets", "select"]

DEFAULT_EXCLUDE: Final = ("pooler", "embeddings")


@dataclass(frozen=True)
class Targets:
    """Regular expressions (``re.search``) on parameter names; None means the defaults of the module's docstring."""

    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Selection:
    """What a rule prunes and what it leaves: names in the model's order, with shapes ``(out, in)``."""

    taken: Mapping[str, tuple[int, int]]
    skipped: Mapping[str, tuple[tuple[int, ...], str]]
    """name -> (shape, reason)"""

    @property
    def weights(self) -> int:
        """Number of weights in the tensors that are pruned."""
        return sum(out * inp for out, inp in self.taken.values())


def _compile(patterns: Sequence[str], key: str, found: list[Problem]) -> list[re.Pattern[str]]:
    compiled = []
    for pattern in patterns:
        try:
            compiled.append(re.compile(pattern))
        except re.error as error:
            found.append(Problem(key, pattern, f"be a regular expression ({error})", repr(re.escape(pattern))))
    return compiled


def linear_weights(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Names and shapes of the weights of all Linear modules, in the model's order, shared ones once."""
    names = {name for name, _ in model.named_parameters()}  # a weight tied to an embedding is listed there, not here
    return {
        f"{name}.weight": (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and f"{name}.weight" in names
    }


def select(model: nn.Module, targets: Targets, pattern: Pattern, key: str = "targets") -> Selection:
    """Resolves ``targets`` in ``model``; shapes that the pattern does not divide are skipped with the reason.

    Raises ``TargetError`` for a bad regular expression, for targets that match nothing, and where no tensor that matches
    divides.
    """
    found: list[Problem] = []
    include = _compile(targets.include or (), f"{key}.include", found)
    exclude = _compile(DEFAULT_EXCLUDE if targets.exclude is None else targets.exclude, f"{key}.exclude", found)
    linears = linear_weights(model)
    for regex in exclude if targets.exclude is not None else ():
        if linears and not any(regex.search(name) for name, _ in model.named_parameters()):
            rule = "match at least one parameter of the model"
            found.append(Problem(f"{key}.exclude", regex.pattern, rule, _nearest_part(regex.pattern, linears)))
    if found:
        raise TargetError(*found)

    # A Hugging Face model names its body; a plain module has none, and all of it counts as body.
    body = getattr(model, "base_model_prefix", "")
    prefix = f"{body}." if body and any(name.startswith(f"{body}.") for name in linears) else ""
    taken: dict[str, tuple[int, int]] = {}
    skipped: dict[str, tuple[tuple[int, ...], str]] = {}
    matched = 0
    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        if parameter.dim() < 2:
            continue
        if name not in linears:
            skipped[name] = (shape, "not the weight of a Linear module")
        elif targets.include is None and not name.startswith(prefix):
            skipped[name] = (shape, "head of the task (outside the model's body); name it in include to prune it")
        elif targets.include is not None and not any(regex.search(name) for regex in include):
            skipped[name] = (shape, "not in include")
        elif hit := next((regex.pattern for regex in exclude if regex.search(name)), None):
            skipped[name] = (shape, f"excluded by '{hit}'")
        else:
            matched += 1
            reason = pattern.misfit(linears[name])
            if reason is None:
                taken[name] = linears[name]
            else:
                skipped[name] = (shape, f"{pattern} does not divide it: {reason}")
    if not matched:
        raise TargetError(_nothing_matches(targets, linears, key))
    if not taken:
        example = next(name for name, (_, reason) in skipped.items() if "does not divide" in reason)
        shape, reason = skipped[example]
        rule = f"divide at least one of the {matched} tensors it is asked to prune ({example} {list(shape)}: {reason})"
        raise TargetError(Problem(f"{key.rsplit('.', 1)[0]}.pattern", str(pattern), rule, "1x1, or other targets"))
    return Selection(taken, skipped)


def _nothing_matches(targets: Targets, linears: Mapping[str, tuple[int, int]], key: str) -> Problem:
    if not linears:
        return Problem(key, "no Linear module", "find at least one torch.nn.Linear in the model", "another model")
    if targets.include is None:
        rule = "leave at least one Linear weight to prune"
        return Problem(f"{key}.exclude", list(targets.exclude or DEFAULT_EXCLUDE), rule, "fewer patterns")
    rule = "match at least one Linear weight that exclude leaves"
    fix = _nearest_part(targets.include[0] if targets.include else "", linears)
    return Problem(f"{key}.include", list(targets.include), rule, fix)


def _nearest_part(pattern: str, linears: Mapping[str, tuple[int, int]]) -> str:
    """The part of a parameter's name that a pattern may have meant."""
    known = sorted({part for name in linears for part in name.split(".") if not part.isdigit()})
    return nearest(max(re.split(r"\W+", pattern), key=len), known)
