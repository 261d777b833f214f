"""Targets: which parameters a rule prunes, by name.

Candidates are the weights of ``torch.nn.Linear`` modules, by their plain names (``wrappers``). Without an ``include`` list,
those in the repeated layers of the body of a Hugging Face model are taken (``repeated_layers``): the task's head stays dense
whatever it is called, and so do heads, poolers and projections of embeddings that are part of the body. A model whose body is
not known is refused. Without an ``exclude`` list, what is called a pooler or embeddings stays dense too; an ``exclude`` list
takes the place of these two names alone. Adapters (LoRA and the like) are taken only where an ``include`` pattern names them
and not just the layer beside which they stand. Every 2-D parameter that is not taken is reported with the reason.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from torch import nn

from prunus.errors import Problem, TargetError, nearest
from prunus.sparsity.patterns import Pattern
from prunus.sparsity.wrappers import Place, bodies, places, unwrapped

__all__ = ["DEFAULT_EXCLUDE", "Selection", "Targets", "repeated_layers", "select"]

DEFAULT_EXCLUDE: Final = ("pooler", "embeddings")
_HEAD_NAME: Final = re.compile(r"(^|_)(heads?|cls|classifiers?|predict(ors?|ions?)|scorers?|outputs?)$")
_HEAD_CLASS: Final = re.compile(r"(?<!Attention)(Heads?|Classifier|Predictor|Predictions?)$")


@dataclass(frozen=True)
class Targets:
    """Regular expressions (``re.search``) on parameter names; None means the defaults of the module's docstring."""

    include: tuple[str, ...] | None = None
    """Regular expressions on the parameter names to prune. The default is the Linear weights of the encoder's
    repeated layers; heads, poolers, embeddings and their projections stay dense."""
    exclude: tuple[str, ...] | None = None
    """Regular expressions on the parameter names not to prune. The default is names with `pooler` or `embeddings`."""


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


def _compile(patterns: Sequence[str], key: str, problems: list[Problem]) -> list[re.Pattern[str]]:
    compiled = []
    for pattern in patterns:
        try:
            compiled.append(re.compile(pattern))
        except re.error as error:
            problems.append(Problem(key, pattern, f"be a regular expression ({error})", repr(re.escape(pattern))))
    return compiled


@dataclass(frozen=True)
class _Matrix:
    """A parameter with two or more dimensions. ``linear`` is ``(out, in)`` of a Linear module's weight, None for others."""

    shape: tuple[int, ...]
    linear: tuple[int, int] | None
    beside: str | None
    """Of an adapter, the weight of the layer that it belongs to."""


def _matrices(model: nn.Module) -> dict[str, _Matrix]:
    """In the model's order, by plain name, shared ones once: a weight tied to an embedding stands under that name."""
    seen: set[int] = set()
    matrices = {}
    names = [place.name for place in places(model) if not place.adapter]
    for place in places(model):
        for last, parameter in place.module._parameters.items():
            if parameter is None or parameter.dim() < 2 or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            shape = tuple(parameter.shape)
            linear = _linear(place.module, shape) if last == "weight" and parameter.is_floating_point() else None
            beside = _beside(place, names) if place.adapter else None
            matrices[f"{place.name}.{last}" if place.name else last] = _Matrix(shape, linear, beside)
    return matrices


def _linear(module: nn.Module, shape: tuple[int, ...]) -> tuple[int, int] | None:
    if not isinstance(module, nn.Linear) or shape != (module.out_features, module.in_features):
        return None
    return module.out_features, module.in_features


def _beside(place: Place, names: Sequence[str]) -> str:
    """The weight of the layer with the longest name that the adapter's begins with."""
    layer = max((name for name in names if not name or place.name.startswith(f"{name}.")), key=len, default="")
    return f"{layer}.weight"


def _inside(name: str, body: Sequence[str]) -> bool:
    """Whether a parameter belongs to one of the bodies of these plain names; "" is the whole model."""
    return any(not each or name.startswith(f"{each}.") for each in body)


def _named(patterns: Sequence[str], name: str) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


def repeated_layers(model: nn.Module, body: Sequence[str]) -> list[str]:
    """Plain names of the layers that the bodies of these names repeat; of a body that repeats none, its own name.

    They are the modules of an ``nn.ModuleList``, and those of one class in an ``nn.Sequential``, where each is made of other
    modules. Lists of heads are not among them.
    """
    everything = {place.name: place.module for place in places(model) if not place.adapter}
    result = []
    for name in body:
        stem = f"{name}." if name else ""
        layers: list[str] = []
        for inner, module in everything.items():
            if (inner == name or inner.startswith(stem)) and not _inside(f"{inner}.", layers):
                layers += _repeats(inner, module, everything)
        result += layers or [name]
    return result


def _repeats(name: str, module: nn.Module, everything: Mapping[str, nn.Module]) -> list[str]:
    """The names of the layers that a container repeats; none where it is no such container, or one of heads."""
    if not isinstance(module, nn.ModuleList | nn.Sequential) or _HEAD_NAME.search(name.rpartition(".")[2]):
        return []
    names = [f"{name}.{part}" if name else part for part in module._modules]
    layers = [everything[each] for each in names if each in everything]
    kinds = {type(layer) for layer in layers}
    if not all(layer._modules for layer in layers) or any(_HEAD_CLASS.search(kind.__name__) for kind in kinds):
        return []
    chained = isinstance(module, nn.Sequential)
    return [] if chained and (len(kinds) > 1 or len(layers) == 1) else names


def select(model: nn.Module, targets: Targets, pattern: Pattern, key: str = "targets") -> Selection:
    """Resolves ``targets`` in ``model``; shapes that the pattern does not divide are skipped with the reason.

    Raises ``TargetError`` for a bad regular expression, for targets that match nothing, where no tensor that matches
    divides, and without ``include`` for a model whose body is not known.
    """
    problems: list[Problem] = []
    include = _compile(targets.include or (), f"{key}.include", problems)
    exclude = _compile(DEFAULT_EXCLUDE if targets.exclude is None else targets.exclude, f"{key}.exclude", problems)
    matrices = _matrices(model)
    linears = {name: matrix.linear for name, matrix in matrices.items() if matrix.linear is not None}
    everything = [f"{place.name}.{last}" for place in places(model) for last in place.module._parameters]
    for regex in exclude if targets.exclude is not None else ():
        if linears and not any(regex.search(name) for name in everything):
            rule = "match at least one parameter of the model"
            problems.append(Problem(f"{key}.exclude", regex.pattern, rule, _nearest_part(regex.pattern, linears)))
    body = [place.name for place in bodies(model)]
    layers = repeated_layers(model, body)
    if linears and not body and targets.include is None:
        rule = "name what is pruned in a model whose body is not known, so that no head is pruned unasked"
        fix = "Targets(include=(r'encoder',)), a regular expression for each group of weights"
        problems.append(Problem(f"{key}.include", type(unwrapped(model)).__name__, rule, fix))
    if problems:
        raise TargetError(*problems)

    taken: dict[str, tuple[int, int]] = {}
    skipped: dict[str, tuple[tuple[int, ...], str]] = {}
    matched = 0
    for name, matrix in matrices.items():
        shape, beside = matrix.shape, matrix.beside
        if matrix.linear is None:
            skipped[name] = (shape, "not the weight of a Linear module")
        elif beside is not None and not any(regex.search(name) and not regex.search(beside) for regex in include):
            skipped[name] = (shape, "an adapter; name it in include to prune it")
        elif targets.include is None and not _inside(name, body):
            skipped[name] = (shape, "head of the task (outside the model's body); name it in include to prune it")
        elif targets.include is None and not _inside(name, layers) and not _named(DEFAULT_EXCLUDE, name):
            skipped[name] = (shape, "outside the repeated layers of the model's body; name it in include to prune it")
        elif targets.include is not None and not any(regex.search(name) for regex in include):
            skipped[name] = (shape, "not in include")
        elif hit := next((regex.pattern for regex in exclude if regex.search(name)), None):
            skipped[name] = (shape, f"excluded by '{hit}'")
        else:
            matched += 1
            reason = pattern.misfit(matrix.linear)
            if reason is None:
                taken[name] = matrix.linear
            else:
                skipped[name] = (shape, f"{pattern} does not divide it: {reason}")
    if not matched:
        raise TargetError(_nothing_matches(targets, linears, body, layers, key))
    if not taken:
        example = next(name for name, (_, reason) in skipped.items() if "does not divide" in reason)
        shape, reason = skipped[example]
        rule = f"divide at least one of the {matched} tensors it should prune ({example} {list(shape)}: {reason})"
        raise TargetError(Problem(f"{key.rsplit('.', 1)[0]}.pattern", str(pattern), rule, "1x1, or other targets"))
    return Selection(taken, skipped)


def _nothing_matches(
    targets: Targets, linears: Mapping[str, tuple[int, int]], body: Sequence[str], layers: Sequence[str], key: str
) -> Problem:
    if not linears:
        return Problem(key, "no Linear module", "find at least one torch.nn.Linear in the model", "another model")
    inside = any(_inside(name, layers) for name in linears)
    if targets.include is None and not inside:
        rule = f"find a torch.nn.Linear in the model's body ({', '.join(body)}), whose layers are of another kind"
        return Problem(key, "none there", rule, "another model, or include with the layers outside the body")
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
