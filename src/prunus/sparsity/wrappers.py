"""Parameters and modules of a model by their plain names, whatever wraps the model.

A plain name is the name that a parameter has in the model as it was built. Wrappers put parts in front of it or into it:

    DataParallel, DistributedDataParallel    module.
    torch.compile                            _orig_mod.
    FSDP, activation checkpointing           _fsdp_wrapped_module., _checkpoint_wrapped_module.
    PEFT                                     base_model.model. in front; base_layer. in an adapted layer;
                                             modules_to_save.NAME. in a layer that is trained as a copy

Masks are kept by plain names, so a masker made for a model works on the same model in any wrapper, and the other way round.

The *body* of a model is the part without a task's head: the ``base_model`` of a Hugging Face model, wherever in the given
module it stands. A module of any other origin is a body if its class has an attribute ``base_model_prefix``, "" for all of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from torch import nn

from prunus.errors import Problem, TargetError

__all__ = ["Place", "bodies", "body_of", "parameter", "places", "submodule", "text_config", "unwrapped"]

_WRAPPED: Final = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "base_layer")


@dataclass(frozen=True)
class Place:
    """A module in a model: its plain name, and whether it belongs to an adapter (LoRA and the like) beside the model."""

    name: str
    module: nn.Module
    adapter: bool


def _wrapped(module: nn.Module) -> nn.Module | None:
    """What ``module`` wraps, one level down; None where it is no wrapper."""
    children, kind = module._modules, type(module)
    for name in _WRAPPED:
        if name in children:
            return children[name]
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return children["module"]
    # Of PEFT, by what its classes define: it is not imported here, and need not be installed.
    if "base_model" in children and hasattr(kind, "get_base_model"):
        return children["base_model"]
    if "model" in children and hasattr(kind, "inject_adapter"):
        return children["model"]
    copies = children.get("modules_to_save")
    if "original_module" in children and isinstance(copies, nn.ModuleDict):
        active: Any = getattr(module, "active_adapters", ())
        names = [name for name in active if name in copies]
        return copies[names[0]] if names else children["original_module"]
    return None


def unwrapped(module: nn.Module) -> nn.Module:
    """The model inside the outermost wrappers; ``module`` itself where there are none."""
    while (inner := _wrapped(module)) is not None:
        module = inner
    return module


def places(model: nn.Module) -> Iterator[Place]:
    """Every module of ``model`` once, by its plain name, a parent before its children; wrappers themselves are left out."""
    return _places(model, "", False, set())


def _places(module: nn.Module, name: str, adapter: bool, seen: set[int]) -> Iterator[Place]:
    if id(module) in seen:
        return
    seen.add(id(module))
    inner = _wrapped(module)
    if inner is None:
        yield Place(name, module, adapter)
    else:
        yield from _places(inner, name, adapter, seen)
        if "modules_to_save" in module._modules:  # what else is there does not take part
            return
    for part, child in module.named_children():
        yield from _places(child, f"{name}.{part}" if name else part, adapter or inner is not None, seen)


def submodule(model: nn.Module, name: str) -> nn.Module:
    """The module of a plain name. Raises ``TargetError`` where there is none."""
    return unwrapped(_descend(model, name, name))


def parameter(model: nn.Module, name: str) -> nn.Parameter:
    """The parameter of a plain name. Raises ``TargetError`` where there is none."""
    path, _, last = name.rpartition(".")
    weight: nn.Parameter = _member(_descend(model, path, name), last, "_parameters", name, model)
    return weight


def _descend(model: nn.Module, path: str, name: str) -> nn.Module:
    """The module of a dotted ``path``; ``name`` is what an error names."""
    module = model
    for part in path.split(".") if path else ():
        module = _member(module, part, "_modules", name, model)
    return module


def _member(module: nn.Module, part: str, kind: str, name: str, model: nn.Module) -> Any:
    """The child (or parameter) ``part`` of the innermost module that has one."""
    levels = [module]
    while (inner := _wrapped(levels[-1])) is not None:
        levels.append(inner)
    for level in reversed(levels):
        child = vars(level)[kind].get(part)
        if child is not None:
            return child
    rule = f"be in the model ({type(unwrapped(model)).__name__}), which has no {part} there"
    raise TargetError(Problem(name, "nothing of that name", rule, "the model that the names were found in"))


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
