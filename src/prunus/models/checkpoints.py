"""Saved models, loaded and checked the same way by every command that reads one.

configuration    outputs are read by name, and only those that are asked for, whatever the model was saved to give
weights          none is missing, none has another shape than ``config.json`` says, none holds NaN or infinity

transformers draws weights that a checkpoint lacks and goes on, and it loads NaN as any other number.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from prunus.architectures import POOLER
from prunus.checkpoint.weights import weight_files
from prunus.errors import CheckpointError, EngineError, Problem, PrunusError, RecipeError, first_line

__all__ = ["check_encoder", "finite_problems", "load_checkpoint", "read_config"]

_FIX: Final = "saving it again, or another model"
_FINITE: Final = "a checkpoint from before they were lost"
_OUTPUTS: Final = {"return_dict": True, "output_attentions": False, "output_hidden_states": False}


def read_config(source: str | Path, key: str = "directory", revision: str | None = None) -> PreTrainedConfig:
    """The configuration of a directory or of a model of the Hub, whose model gives its outputs by name.

    Raises ``RecipeError`` where it cannot be read.
    """
    try:
        config = AutoConfig.from_pretrained(source, revision=revision)
    except PrunusError:
        raise
    except Exception as error:
        # Whatever a configuration from outside lacks (a file, a type, a network) is told, not typed.
        rule = f"be a model that can be read ({first_line(error)})"
        fix = "a directory, minilm, or a network for a Hub id"
        if "has no setter" in str(error):
            rule = f"have a config.json whose keys can be set ({first_line(error)})"
            fix = "removing that key from config.json"
        raise RecipeError(Problem(key, str(source), rule, fix)) from None
    parts = [getattr(config, name, None) for name in getattr(config, "sub_configs", {})]
    for part in (config, *parts):
        for name, value in _OUTPUTS.items() if part is not None else ():
            setattr(part, name, value)
    if isinstance(config.architectures, str):  # as hands write it
        config.architectures = [config.architectures]
    return config


def check_encoder(config: PreTrainedConfig, name: str) -> None:
    """Raises ``EngineError`` for a model that does not read one text in both directions: ``name`` is its class."""
    kind, rule = config.model_type, ""
    if getattr(config, "is_encoder_decoder", False) or kind in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        rule = "be an encoder, such as BERT, not an encoder with a decoder"
    elif kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES or getattr(config, "is_decoder", False):
        rule = "be an encoder that reads text in both directions, such as BERT"
    if rule:
        raise EngineError(
            Problem(f"config.json: model_type of {name}", kind, rule, "--to archive, and prunus eval, which take it")
        )


def load_checkpoint(
    auto: Any,
    source: str | Path,
    config: PreTrainedConfig,
    key: str = "directory",
    *,
    drawn: bool = False,
    new_head: bool = False,
    **more: Any,
) -> PreTrainedModel:
    """The model of ``source`` in float32 and evaluation mode, checked.

    Args:
        auto: class of transformers with ``from_pretrained``.
        source: a directory, or a Hub id.
        config: its configuration.
        key: what problems call the model.
        drawn: the checkpoint has no head of this kind: transformers draws it.
        new_head: the head counts as missing, and its shape does not matter, whatever the checkpoint holds.
        more: arguments of ``from_pretrained``.

    Raises:
        CheckpointError: weights that are missing, damaged, of another shape, or not finite.

    """
    _check_files(Path(source), key)
    try:
        more |= {"config": config, "dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}
        model, loaded = auto.from_pretrained(source, **more)
    except PrunusError:
        raise
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            Problem(key, str(source), f"hold whole files of weights ({first_line(error)})", _FIX)
        ) from None
    except Exception as error:  # each architecture has its own way to refuse a configuration or a state
        rule = f"be a model that transformers loads ({first_line(error)})"
        raise CheckpointError(Problem(key, str(source), rule, _FIX)) from None
    body = f"{model.base_model_prefix}."
    wrong = [each for each in loaded["mismatched_keys"] if not new_head or str(each[0]).startswith(body)]
    if wrong:
        name, stored_shape, model_shape = wrong[0]
        rule = f"have the shape {list(model_shape)} that its config.json describes"
        fix = _FIX if str(name).startswith(body) else f"model.head: new, which draws the head afresh; or {_FIX}"
        raise CheckpointError(Problem(f"{name} of {key}", list(stored_shape), rule, fix))
    lacking = _lacking(model, loaded["missing_keys"], drawn or new_head)
    if lacking:
        rule = f"hold the weights that its config.json describes ({lacking[0]} is missing, one of {len(lacking)})"
        raise CheckpointError(Problem(key, str(source), rule, _FIX))
    named = dict(model.named_parameters())
    bad = finite_problems({name: p for name, p in named.items() if not new_head or name.startswith(body)}, key)
    if bad:
        raise CheckpointError(*bad)
    result: PreTrainedModel = model.eval()
    return result


def _check_files(directory: Path, key: str) -> None:
    """Raises ``CheckpointError`` for files of weights that are missing or cut short; nothing of a Hub id is looked at."""
    for path in weight_files(directory) if directory.is_dir() else ():
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, "pt"):
                    pass
        except (OSError, SafetensorError) as error:
            rule = f"hold whole files of weights ({path.name}: {first_line(error)})"
            raise CheckpointError(Problem(key, str(directory), rule, _FIX)) from None


def _lacking(model: PreTrainedModel, missing: Iterable[str], drawn: bool) -> list[str]:
    """Weights that should have been in the checkpoint: those of the body, and those of a head that was trained.

    A pooler counts where a trained head reads it. A body alone may lack its own: sentence-transformers saves none.
    """
    parameters = {name for name, _ in model.named_parameters()}
    body = f"{model.base_model_prefix}."
    alone = not any(name.startswith(body) for name in parameters)
    absent = sorted(name for name in missing if name in parameters and (name.startswith(body) or not drawn))
    return [name for name in absent if f".{POOLER}." not in f".{name}" or not (drawn or alone)]


def finite_problems(tensors: Mapping[str, Tensor], key: str, fix: str = _FINITE) -> list[Problem]:
    """One problem for all tensors that hold NaN or infinity: the first ones by name, and how many numbers."""
    bad: dict[str, int] = {}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.is_meta:
            values = tensor.detach()
            fine = torch.isfinite(values.float() if values.element_size() == 1 else values)  # torch asks no 8-bit float
            if not bool(fine.all()):
                bad[name] = int((~fine).sum())
    if not bad:
        return []
    names = ", ".join(list(bad)[:3]) + (f" and {len(bad) - 3} more tensors" if len(bad) > 3 else "")
    got = f"NaN or infinity in {sum(bad.values())} of them"
    return [Problem(f"the numbers in {names} of {key}", got, "be finite", fix)]
