"""Undoes FSDP2's sharding after a training: every process gets an ordinary model with all of its parameters.

``fully_shard`` gives modules another class, hooks, and parameters of which each process holds some rows.
``GatheredParameters`` records the modules before that and restores them afterwards with parameters gathered from all
processes, so that evaluation, saving and export see a plain model.
"""

from typing import Any, final

import torch
from torch import nn

from prunus.sparsity.measure import is_sharded, whole
from prunus.sparsity.sharding import reshard

__all__ = ["GatheredParameters"]

_KEPT = ("_parameters", "_buffers", "_modules", "training")


@final
class GatheredParameters:
    """Records the modules of ``model`` before it is sharded; ``restore`` also removes hooks that were added since."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = [(module, type(module), _copied(vars(module))) for module in model.modules()]

    @torch.no_grad()
    def restore(self, model: nn.Module) -> None:
        """Gathers the parameters of a sharded model in place; an unsharded one is left alone. All processes call it."""
        reshard(model.modules())  # a forward leaves the outermost parameters collected
        if not any(is_sharded(parameter) for parameter in model.parameters()):
            return
        made: dict[int, nn.Parameter] = {}  # tied parameters stay tied
        for module, kind, attributes in self._modules:
            for name, parameter in module._parameters.items():
                if parameter is not None and is_sharded(parameter):
                    if id(parameter) not in made:
                        made[id(parameter)] = nn.Parameter(whole(parameter.detach()), parameter.requires_grad)
                    module._parameters[name] = made[id(parameter)]
            kept = {name: vars(module)[name] for name in _KEPT}
            module.__class__ = kind
            module.__dict__ = _copied(attributes) | kept


def _copied(attributes: dict[str, Any]) -> dict[str, Any]:
    """The attributes with copies of the dictionaries of hooks, which later hooks do not enter."""
    return {
        name: value.copy() if name.endswith("_hooks") and hasattr(value, "copy") else value
        for name, value in attributes.items()
    }
