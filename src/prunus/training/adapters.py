"""Adapters of PEFT on a model whose own weights are pruned: Trainer saves the adapters alone.

    each checkpoint      the adapters by PEFT, the masks in the session's state: together with the dense base they are the model
    at the end           the adapters, and ``pruned_base``: a plain Hugging Face directory that they are loaded onto

Merging (``merge_and_unload``) adds dense products to the weights and fills the zeros, so nothing here merges.
"""

import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from prunus.checkpoint.tensor_io import write_tensors
from prunus.errors import CheckpointError, Problem, first_line
from prunus.sparsity.masker import Masker
from prunus.sparsity.measure import whole
from prunus.sparsity.wrappers import parameter, places, unwrapped

__all__ = ["BASE_DIRECTORY", "apply_masks", "tell_base", "unsaved", "write_base"]

BASE_DIRECTORY: Final = "pruned_base"
_COPIES: Final = ".modules_to_save."


def unsaved(model: nn.Module, masker: Masker | None) -> list[str]:
    """Plain names of the weights that are pruned and that ``save_pretrained`` leaves out, as it saves adapters alone.

    Zeros that are locked were there before, and stay where they are saved.
    """
    adapted = _adapted(model)
    if masker is None or adapted is None:
        return []
    below = {id(weight) for weight in adapted.parameters()}
    saved = {id(weight) for name, weight in model.named_parameters() if _COPIES in f".{name}"}
    saved |= {id(w) for place in places(model) if place.adapter for w in place.module.parameters(recurse=False)}
    grown = [name for rule in masker.rules if not rule.pruning.lock for name in rule.selection.taken]
    return [name for name in grown if id(parameter(model, name)) in below - saved]


def _adapted(model: nn.Module) -> nn.Module | None:
    """The part of a model that is saved as adapters: the model, or the encoder of a SentenceTransformer; None without any."""
    for module in model.modules():
        kind = type(module)
        if getattr(module, "_hf_peft_config_loaded", False) or (
            hasattr(kind, "get_base_model") and hasattr(module, "peft_config")
        ):
            return module
    return None


def tell_base(model: nn.Module, masker: Masker | None, directory: Path) -> None:
    """Warns before the first step that the pruned weights are saved apart, and where."""
    names = unsaved(model, masker)
    if names:
        text = (
            f"{len(names)} of the pruned tensors are below adapters, and Trainer saves the adapters alone: at the end of "
            f"training the pruned base is written to {directory / BASE_DIRECTORY}, and adapters are loaded onto that"
        )
        warnings.warn(text, UserWarning, stacklevel=2)


def apply_masks(model: nn.Module, masker: Masker, path: Path) -> None:
    """Prunes the base of a resumed training, which was loaded dense, by the masks of its checkpoint.

    Raises ``CheckpointError`` for a base that is trained: its weights are in no checkpoint.
    """
    trained = [name for name in unsaved(model, masker) if parameter(model, name).requires_grad]
    if trained:
        rule = "be frozen below adapters for a training to be resumed, as checkpoints hold the adapters alone"
        raise CheckpointError(Problem(trained[0], f"trained, beside {path}", rule, "training from the beginning"))
    masker.apply(model)


def write_base(model: nn.Module, directory: Path, writes: bool = True) -> None:
    """Writes what is below the adapters into ``directory``; where parameters are sharded, all processes call it.

    Raises ``CheckpointError`` where it cannot be written.
    """
    adapted = _adapted(model) or model
    base: Any = unwrapped(adapted)
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for place in places(adapted):
        if place.adapter:
            continue
        fleeting = place.module._non_persistent_buffers_set
        of_module = [*place.module.named_parameters(recurse=False), *place.module.named_buffers(recurse=False)]
        for name, tensor in of_module:
            if id(tensor) not in seen and name not in fleeting:  # tied weights once
                seen.add(id(tensor))
                tensors[f"{place.name}.{name}" if place.name else name] = whole(tensor.detach())
    if not writes:
        return
    config = deepcopy(base.config)
    config.architectures = [type(base).__name__]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(directory)
    except OSError as error:
        fix = "another output_dir; the model is in memory: model.save_pretrained(...), model.unload().save_pretrained(...)"
        raise CheckpointError(Problem(str(directory), first_line(error), "be written", fix)) from error
    write_tensors(directory / "model.safetensors", tensors, {"format": "pt"})
