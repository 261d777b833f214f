"""Parameters and modules of a model by their plain names, whatever wraps the model.

A plain name is the name that a parameter has in the model as it was built. Wrappers put parts in front of it or into it:

    DataParallel, DistributedDataParallel, AveragedModel    module.
    torch.compile                                           _orig_mod.
    FSDP, activation checkpointing                          _fsdp_wrapped_module., _checkpoint_wrapped_module.
    PEFT                                                    base_model.model. in front; base_layer. in an adapted layer;
                                                            modules_to_save.NAME. in a layer that is trained as a copy

Masks are kept by plain names, so a masker made for a model works on the same model in any wrapper, and the other way round.
A module of any other kind that contains the model (a SentenceTransformer, a module of one's own) adds a prefix to the plain
names. There a name is looked up in the one place where the model has it; two such places are an error.

The *body* of a model is the part without a task's head: the ``base_model`` of a Hugging Face model, wherever in the given
module it stands. A module of any other origin is a body if its class has an attribute ``base_model_prefix``, "" for all of it.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from torch import nn
from torch.optim.swa_utils import AveragedModel

from prunus.errors import Problem, TargetError

__all__ = [
    "Place",
    "bodies",
    "body_of",
    "child_of",
    "evaluating",
    "line_of",
    "names_of",
    "parameter",
    "places",
    "plain_names",
    "submodule",
    "text_config",
    "unwrapped",
]

_WRAPPED: Final = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_WRAPPED_BY_PEFT: Final = ("original_module", "base_layer", "base_model", "model")
_CHILDREN: Final = frozenset((*_WRAPPED, *_WRAPPED_BY_PEFT, "module"))
"""Names of the child that a wrapper may have; most modules have none of them, and every step of a training looks."""
# What the wrappers above put into the names of parameters, and sentence-transformers in front of them.
_PARTS: Final = re.compile(
    r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|base_layer|original_module"
    r"|modules_to_save\.[^.]+)\."
)
_FRONT: Final = re.compile(r"(module\.|base_model\.model\.)+")
_SENTENCE_TRANSFORMER: Final = re.compile(r"\d+\.(auto_)?model\.")


@dataclass(frozen=True)
class Place:
    """A module in a model: its plain name, and whether it belongs to an adapter (LoRA and the like) beside the model."""

    name: str
    module: nn.Module
    adapter: bool


def _wrapped(module: nn.Module) -> nn.Module | None:
    """What ``module`` wraps, one level down; None where it is no wrapper."""
    children = module._modules
    if _CHILDREN.isdisjoint(children):
        return None
    for name in _WRAPPED:
        if name in children:
            return children[name]
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel | AveragedModel):
        return children["module"]
    inner = next((name for name in _WRAPPED_BY_PEFT if children.get(name) is not None), None)
    if inner is None or not _is_peft(module):
        return None
    copies = children.get("modules_to_save")
    if isinstance(copies, nn.ModuleDict):
        active: Any = getattr(module, "active_adapters", ())
        names = [name for name in active if name in copies]
        if names:
            return copies[names[0]]
    return children[inner]


def _is_peft(module: nn.Module) -> bool:
    """Whether a class of PEFT, or one derived from it, made the module. PEFT is not imported and need not be installed."""
    return any(kind.__module__.partition(".")[0] == "peft" for kind in type(module).__mro__)


def unwrapped(module: nn.Module) -> nn.Module:
    """The model inside the outermost wrappers; ``module`` itself where there are none."""
    while (inner := _wrapped(module)) is not None:
        module = inner
    return module


def places(model: nn.Module) -> Iterator[Place]:
    """Every module of ``model`` once, by its plain name, a parent before its children; wrappers themselves are left out."""
    return _places(model, "", False, set())


def _places(module: nn.Module, name: str, adapter: bool, seen: set[int], *, again: bool = False) -> Iterator[Place]:
    """``again`` yields a shared module under each of its names; ``seen`` then holds the modules above this one only."""
    if id(module) in seen:
        return
    seen.add(id(module))
    inner = _wrapped(module)
    if inner is None:
        adapter = adapter or _is_peft(module)
        yield Place(name, module, adapter)
    else:
        yield from _places(inner, name, adapter, seen, again=again)
    if inner is None or "modules_to_save" not in module._modules:  # what else is there does not take part
        for part, child in module._modules.items():
            if child is not None and child is not inner:
                below = f"{name}.{part}" if name else part
                yield from _places(child, below, adapter or inner is not None, seen, again=again)
    if again:
        seen.discard(id(module))


def names_of(model: nn.Module, names: Iterable[str]) -> dict[str, list[str]]:
    """All plain names of the parameters of these plain names, the given one first.

    There are several where weights are tied or a module is shared. Raises ``TargetError`` where there is no such parameter.
    """
    several: dict[int, list[str]] = {}
    for place in _places(model, "", False, set(), again=True):
        for last, weight in place.module._parameters.items() if not place.adapter else ():
            several.setdefault(id(weight), []).append(f"{place.name}.{last}" if place.name else last)
    return {name: list(dict.fromkeys([name, *several.get(id(parameter(model, name)), [])])) for name in names}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode while it lasts; then each module has its own mode again, which need not be that of the whole model."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def submodule(model: nn.Module, name: str) -> nn.Module:
    """The module of a plain name. Raises ``TargetError`` where there is none."""
    return unwrapped(_find(model, name, "_modules")[-1])


def parameter(model: nn.Module, name: str) -> nn.Parameter:
    """The parameter of a plain name. Raises ``TargetError`` where there is none, or more than one."""
    weight: nn.Parameter = _find(model, name, "_parameters")[-1]
    return weight


def line_of(model: nn.Module, name: str) -> list[nn.Module]:
    """The modules from ``model`` down to the owner of a parameter, wrappers left out.

    Raises ``TargetError`` where there is no parameter of that plain name, or more than one.
    """
    *modules, _ = _find(model, name, "_parameters")
    return [unwrapped(module) for module in modules]


def _find(model: nn.Module, name: str, kind: str) -> list[Any]:
    """What stands on the way from ``model`` to the member of a plain name, at the end the member itself."""
    parts = name.split(".") if name else []
    way = _way(model, parts, kind)
    if way is not None:
        return way
    bare = _SENTENCE_TRANSFORMER.match(name)
    for rest in (parts, parts[2:] if bare else []):
        ways = _ways_inside(model, rest, kind) if rest else []
        if len(ways) == 1:
            return ways[0]
        if ways:
            rule = f"stand for one parameter of the model ({type(unwrapped(model)).__name__})"
            fix = "the name with the prefix that it has in this model"
            raise TargetError(Problem(name, f"{len(ways)} of that name", rule, fix))
    rule = f"be in the model ({type(unwrapped(model)).__name__}), which has no {_missing(model, parts, kind)} there"
    raise TargetError(Problem(name, "nothing of that name", rule, "the model that the names were found in"))


def _way(model: nn.Module, parts: list[str], kind: str) -> list[Any] | None:
    """``model``, the modules below it that ``parts`` name, and the member at their end; None where one is missing."""
    way: list[Any] = [model]
    for i, part in enumerate(parts):
        member = child_of(way[-1], part, kind if i == len(parts) - 1 else "_modules")
        if member is None:
            return None
        way.append(member)
    return way


def _ways_inside(model: nn.Module, parts: list[str], kind: str) -> list[list[Any]]:
    """The ways of ``parts`` from modules inside ``model`` to different members."""
    ways: dict[int, list[Any]] = {}
    for module in model.modules():
        if parts[0] in module._modules or parts[0] in module._parameters:
            way = _way(module, parts, kind)
            if way is not None:
                ways.setdefault(id(way[-1]), way)
    return list(ways.values())


def _missing(model: nn.Module, parts: list[str], kind: str) -> str:
    """The first part of a name that is not there."""
    depth = next(i for i in range(len(parts), 0, -1) if i == 1 or _way(model, parts[: i - 1], "_modules") is not None)
    return parts[depth - 1]


def child_of(module: nn.Module, part: str, kind: str = "_modules") -> Any:
    """The child (or, of ``kind`` "_parameters", the parameter) ``part`` of the innermost wrapped module that has one.

    None where none has. A child in a wrapper is given with its wrapper.
    """
    inner = _wrapped(module)
    if inner is None:
        return vars(module)[kind].get(part)
    levels = [module, inner]
    while (inner := _wrapped(levels[-1])) is not None:
        levels.append(inner)
    return next((child for level in reversed(levels) if (child := vars(level)[kind].get(part)) is not None), None)


def plain_names(model: nn.Module, names: Iterable[str]) -> dict[str, str | None]:
    """Plain names of parameters from the names that they have in ``model`` or in a wrapper of it, or in the model inside it.

    None stands for a name that is none of these. A parameter that the model has under several names gets the first.
    """
    plain: dict[int, str] = {}
    for place in places(model):
        for last, weight in place.module._parameters.items():
            if weight is not None:
                plain.setdefault(id(weight), f"{place.name}.{last}" if place.name else last)
    written = dict(model.named_parameters(remove_duplicate=False))
    return {name: _plain_name(model, name, written, plain) for name in names}


def _plain_name(
    model: nn.Module, name: str, written: Mapping[str, nn.Parameter], plain: Mapping[int, str]
) -> str | None:
    if name in written:
        return plain.get(id(written[name]))
    without = _PARTS.sub("", name)
    for each in dict.fromkeys((name, without, _PARTS.sub("", _FRONT.sub("", without, count=1)))):
        try:
            return plain.get(id(parameter(model, each)))
        except TargetError:
            continue
    return None


def bodies(model: nn.Module) -> list[Place]:
    """The bodies in ``model``: one for most models, two for an encoder and a decoder (or two encoders), none where none is
    known.
    """
    return list(_bodies(model, ""))


def _bodies(module: nn.Module, name: str) -> Iterator[Place]:
    module = unwrapped(module)
    prefix = getattr(type(module), "base_model_prefix", None)
    child = module._modules.get(prefix) if isinstance(prefix, str) else None
    if child is not None:
        yield Place(f"{name}.{prefix}" if name else str(prefix), unwrapped(child), False)
        return
    # One without its prefix is a body itself, unless it is put together from others (encoder and decoder).
    nested = [
        body for part, inner in module.named_children() for body in _bodies(inner, f"{name}.{part}" if name else part)
    ]
    if not nested and isinstance(prefix, str):
        yield Place(name, module, False)
    yield from nested


def body_of(model: nn.Module, key: str) -> nn.Module:
    """The one body of ``model``. Raises ``TargetError``, naming ``key``, where there is none, or several."""
    several = bodies(model)
    if len(several) != 1:
        rule = f"need a model with one body; {type(unwrapped(model)).__name__} has {len(several)}"
        raise TargetError(Problem(key, [place.name for place in several], rule, "a Hugging Face encoder with its head"))
    return several[0].module


def text_config(model: nn.Module) -> Any:
    """The configuration that says how many heads a transformer has, None where there is none."""
    modules = [unwrapped(model), *(place.module for place in bodies(model))]
    config: Any = next((each for module in modules if (each := getattr(module, "config", None)) is not None), None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config
