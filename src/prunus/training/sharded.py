"""A model that FSDP2 shards for its training, and that is whole before and after it.

``fully_shard`` gives modules another class, hooks, and parameters of which each process holds some rows. ``Whole`` remembers
what they were and puts it back, with parameters that every process has collected from all: what comes after a training
(evaluation, saving, export) sees an ordinary model.
"""

from typing import Any, final

import torch
from torch import nn

from prunus.sparsity.measure import is_sharded, whole

__all__ = ["Whole"]

_OWN = ("_parameters", "_buffers", "_modules", "training")


@final
class Whole:
    """What the modules of ``model`` are now; hooks that are added later go again with ``restore``, if it was sharded."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = [(module, type(module), _copied(vars(module))) for module in model.modules()]

    @torch.no_grad()
    def restore(self, model: nn.Module) -> None:
        """Puts a sharded model together, in place; one that is whole stays as it is. All processes call it."""
        modules: list[Any] = list(model.modules())
        for each in modules:
            if hasattr(each, "reshard"):
                each.reshard()  # a forward leaves the outermost parameters collected
        if not any(is_sharded(parameter) for parameter in model.parameters()):
            return
        made: dict[int, nn.Parameter] = {}  # tied parameters stay tied
        for module, kind, held in self._modules:
            for name, parameter in module._parameters.items():
                if parameter is not None and is_sharded(parameter):
                    if id(parameter) not in made:
                        made[id(parameter)] = nn.Parameter(whole(parameter.detach()), parameter.requires_grad)
                    module._parameters[name] = made[id(parameter)]
            kept = {name: vars(module)[name] for name in _OWN}
            module.__class__ = kind
            module.__dict__ = _copied(held) | kept


def _copied(held: dict[str, Any]) -> dict[str, Any]:
    """Its dictionaries of hooks are copies: what is added later is not in them."""
    return {
        name: value.copy() if name.endswith("_hooks") and hasattr(value, "copy") else value
        for name, value in held.items()
    }
