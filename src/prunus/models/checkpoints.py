"""Saved models, loaded and checked the same way by every command that reads one.

configuration    outputs are read by name, and only those that are asked for, whatever the model was saved to give
weights          none is missing, none has another shape than ``config.json`` says, none holds NaN or infinity, none is stored
                 as integers, and none is of a layer that ``config.json`` does not describe

transformers draws weights that a checkpoint lacks and goes on, leaves layers out, and loads NaN, or integers that lost their
scales, as any other number.
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

from prunus.architectures import POOLER, other_layers
from prunus.checkpoint.weights import integer_weights, weight_files
from prunus.errors import CheckpointError, EngineError, Problem, PrunusError, RecipeError, first_line

__all__ = ["check_encoder", "finite_problems", "load_checkpoint", "read_config"]

_FIX: Final = "saving it again, or another model"
_SAVED_WITH: Final = "the config.json that was saved with these weights, or saving the model again"
_FINITE: Final = "a checkpoint from before they were lost"
_OUTPUTS: Final = {"return_dict": True, "output_attentions": False, "output_hidden_states": False}


def read_config(source: str | Path, key: str = "directory") -> PreTrainedConfig:
    """The configuration of a directory, whose model gives its outputs by name.

    Raises ``RecipeError`` where it cannot be read.
    """
    try:
        config = AutoConfig.from_pretrained(source)
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
        source: a directory.
        config: its configuration.
        key: what problems call the model.
        drawn: the checkpoint has no head of this kind: transformers draws it.
        new_head: the head counts as missing, and its shape does not matter, whatever the checkpoint holds.
        more: arguments of ``from_pretrained``.

    Raises:
        CheckpointError: weights that are missing, damaged, of another shape, not finite, stored as integers, or of layers that
            ``config`` does not describe.

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
    where = str(source) if key == "directory" else key
    inside = _body_names(model)
    stored_wrong = _integer_problems(model, Path(source), loaded["unexpected_keys"], where)
    stored_wrong += _layer_problems(model, inside, loaded["unexpected_keys"], where)
    if stored_wrong:
        raise CheckpointError(*stored_wrong)
    wrong = [each for each in loaded["mismatched_keys"] if not new_head or str(each[0]) in inside]
    if wrong:
        name, stored_shape, model_shape = wrong[0]
        rule = f"have the shape {list(model_shape)} that its config.json describes"
        fix = _SAVED_WITH
        if key == "model.name" and str(name) not in inside:
            fix = f"model.head: new, which draws the head afresh; or {_FIX}"
        raise CheckpointError(Problem(f"{name} of {where}", list(stored_shape), rule, fix))
    lacking = _lacking(model, loaded["missing_keys"], drawn or new_head)
    if lacking:
        rule = f"hold the weights that its config.json describes ({lacking[0]} is missing, one of {len(lacking)})"
        raise CheckpointError(Problem(key, str(source), rule, _FIX))
    named = dict(model.named_parameters())
    bad = finite_problems({name: p for name, p in named.items() if not new_head or name in inside}, where)
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


def _body_names(model: PreTrainedModel) -> set[str]:
    """Names of the parameters and buffers of the body; all of them where the model is a body alone."""
    names = {name for name, _ in [*model.named_parameters(), *model.named_buffers()]}
    return {name for name in names if name.startswith(f"{model.base_model_prefix}.")} or names


def _integer_problems(model: PreTrainedModel, directory: Path, unexpected: Iterable[str], where: str) -> list[Problem]:
    """One problem for all weights that the model takes and that the files store in no float type.

    A checkpoint may name its tensors with or without the prefix of the body. What the model does not take is left alone, and
    so are buffers of integers, such as indices of positions.
    """
    if not directory.is_dir():
        return []
    body = f"{model.base_model_prefix}."
    fine = {name.removeprefix(body) for name in unexpected}
    fine |= {name.removeprefix(body) for name, buffer in model.named_buffers() if not buffer.is_floating_point()}
    wrong = {
        name: kind
        for name, kind in integer_weights(directory).items()
        if name.removeprefix(body) not in fine and not name.endswith("_ids")
    }
    if not wrong:
        return []
    name, kind = next(iter(wrong.items()))
    got = f"{kind}, in {len(wrong)} {'weights' if len(wrong) > 1 else 'weight'}"
    rule = "be stored in a float type: integers have lost the scales that make them weights"
    return [Problem(f"{name} of {where}", got, rule, "the model as it was before it became integers")]


def _layer_problems(
    model: PreTrainedModel, inside: Iterable[str], unexpected: Iterable[str], where: str
) -> list[Problem]:
    """One problem for all tensors of repeated layers of the body for which the configuration has no layer."""
    body = f"{model.base_model_prefix}."
    known = {name.removeprefix(body) for name in inside}
    beyond = other_layers((name.removeprefix(body) for name in unexpected), known)
    if not beyond:
        return []
    got = f"{beyond[0]}, one of {len(beyond)} tensors of other layers"
    return [Problem(f"layers in the weights of {where}", got, "be those that its config.json describes", _SAVED_WITH)]


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
