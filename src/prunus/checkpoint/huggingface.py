"""Smaller layers that transformers loads again: a compacted model's ``config.json`` says what is left of each layer.

    "quantization_config": {"quant_method": "prunus",
                            "layout": {reader of heads or neurons: [numbers that are left], ...},
                            "hidden": [numbers of the features that are left]}          where the stream is narrower

transformers asks the method named there to change the model, which has no weights yet, before it reads them: the same
``shrink`` that made it smaller makes it smaller again. After that it is a plain model: it trains, and saves itself like this.
Without prunus transformers says that it does not know the method, and that shapes do not fit.

Where as many are left in every layer, and the architecture's own numbers can say so (neurons; groups of heads where the width
of a head is a number of its own), they do, and nothing else is written: such a model loads without prunus.

``import prunus`` is enough. transformers takes seconds to import, so nothing is registered before it is imported: a finder in
``sys.meta_path`` waits for ``transformers.quantizers.auto`` and is then removed (``import_hook.py``). At that moment
transformers is still importing other modules, so this one uses nothing else of it.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, Final, final

import torch
from torch import nn
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from prunus.architectures import INTERMEDIATE_SIZE_KEYS, KEYS
from prunus.errors import CheckpointError, Problem, TargetError
from prunus.sparsity.compact import Layout, shrink
from prunus.sparsity.compact import compact as take_out
from prunus.sparsity.depth import keep_layers, layers_of
from prunus.sparsity.structures import structures
from prunus.sparsity.width import keep_features

__all__ = [
    "METHOD",
    "PrunusLayout",
    "PrunusLoader",
    "compact",
    "layout_of",
    "mark",
    "narrow",
    "register",
    "shorten",
    "shrink_as_saved",
]

METHOD: Final = "prunus"
_READERS: Final = 100_000


@final
class PrunusLayout(QuantizationConfigMixin):  # type: ignore[misc]
    """What is left of the layers of a compacted model. Raises ``CheckpointError`` for what is no layout."""

    def __init__(self, layout: Any = None, hidden: Any = None, **kwargs: Any) -> None:
        self.quant_method = METHOD
        self.layout: Layout = _checked(layout if layout is not None else {})
        self.hidden: list[int] | None = hidden
        if hidden is not None and not _numbers(hidden):
            rule = "be a list of the numbers that are left"
            fix = "the config.json that prunus wrote"
            raise CheckpointError(Problem("config.json: layout: hidden", str(hidden)[:60], rule, fix))


def _numbers(given: Any) -> bool:
    return isinstance(given, list) and all(isinstance(j, int) and not isinstance(j, bool) for j in given)


def _checked(layout: Any) -> Layout:
    fix = "the config.json that prunus wrote"
    if not isinstance(layout, dict) or len(layout) > _READERS:
        raise CheckpointError(Problem("config.json: layout", type(layout).__name__, "map layers to numbers", fix))
    for reader, kept in layout.items():
        if not isinstance(reader, str) or not _numbers(kept):
            rule = "be a list of the numbers that are left"
            raise CheckpointError(Problem(f"config.json: layout: {reader}", str(kept)[:60], rule, fix))
    return layout


@final
class PrunusLoader(HfQuantizer):  # type: ignore[misc]
    """Makes a model as small as its layout says, before its weights are read."""

    requires_calibration = False

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        _apply(model, self.quantization_config)
        return model

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        """It saves as any model does."""
        return True

    @property
    def is_trainable(self) -> bool:
        """As any model is."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """As any model is."""
        return True


def _apply(model: Any, layout: PrunusLayout) -> None:
    shrink(model, fitted(model, layout.layout))
    if layout.hidden is not None:
        keep_features(model, layout.hidden)


def layout_of(config: Any) -> PrunusLayout | None:
    """The layout in a configuration, as ``AutoConfig`` reads it (a mapping) or as a loaded model holds it.

    Returns None where there is none. Raises ``CheckpointError`` for one that is damaged.
    """
    method = getattr(config, "quantization_config", None)
    if isinstance(method, Mapping) and method.get("quant_method") == METHOD:
        return PrunusLayout(method.get("layout"), method.get("hidden"))
    return method if isinstance(method, PrunusLayout) else None


def shrink_as_saved(model: Any) -> None:
    """Cuts a model that was made from a configuration to the sizes of its layout, in place; no layout: nothing is done.

    ``from_pretrained`` does this while it loads; ``from_config`` does not, and gives the architecture's full sizes. Raises
    ``CheckpointError`` for a layout that does not fit the model.
    """
    layout = layout_of(model.config)
    if layout is None:
        return
    try:
        _apply(model, layout)
    except TargetError as error:
        raise CheckpointError(*error.problems) from None
    model.config.quantization_config = layout


def fitted(model: Any, layout: Layout) -> Layout:
    """The layout with the names of this model: its body alone, or with another head."""
    prefix, modules = f"{model.base_model_prefix}.", {name for name, _ in model.named_modules()}
    result: Layout = {}
    for reader, kept in layout.items():
        names = (reader, reader.removeprefix(prefix), prefix + reader)
        result[next((name for name in names if name in modules), reader)] = kept
    return result


def compact(model: nn.Module) -> Layout:
    """Takes the heads and neurons that do nothing out of ``model``, in place; its outputs stay, to the rounding of sums.

        prunus.compact(model)
        model.save_pretrained("small")      # AutoModel....from_pretrained("small") after ``import prunus``

    Returns what is left of each layer that lost some (``sparsity.compact``), and writes it into the model's configuration:
    as a layout, or as the architecture's own numbers where every layer has as many left. Raises ``TargetError`` for a model
    whose heads and neurons are not found by name.
    """
    present = _held(model)
    before: Layout = dict(present.layout) if present is not None else {}
    layout = take_out(model)
    for reader, kept in layout.items():  # numbers of a model that was compacted before are those of what was left of it
        before[reader] = [before[reader][j] for j in kept] if reader in before else kept
    if before and hasattr(model, "config"):
        mark(model, before)
        if present is None or present.hidden is None:
            _say_plainly(model)
    return layout


def _say_plainly(model: Any) -> None:
    """Leaves the layout out where the architecture, made from its own numbers, has the shapes of ``model``."""
    numbers = _own_numbers(model, model.config.get_text_config())
    config = deepcopy(model.config)
    del config.quantization_config
    for name, value in numbers.items():
        setattr(config.get_text_config(), name, value)
    try:
        with torch.device("meta"):
            skeleton = type(model)(config)
    except Exception:  # a class of someone else's, made from more than a configuration
        return
    if _shapes(skeleton) == _shapes(model):
        # In place: the parts of a model share its configuration.
        del model.config.quantization_config
        for name, value in numbers.items():
            setattr(model.config.get_text_config(), name, value)


def _own_numbers(model: nn.Module, config: Any) -> dict[str, int]:
    """The configuration's numbers of neurons and heads, if every layer had as many as the first that has some."""
    left = {each.kind: each.units for each in reversed(structures(model))}
    sizes = [key for key in INTERMEDIATE_SIZE_KEYS if isinstance(getattr(config, key, None), int)]
    numbers = dict.fromkeys(sizes, left["ffn"]) if "ffn" in left else {}
    groups = getattr(config, KEYS.key_value_heads, None)
    if "heads" in left and groups and isinstance(getattr(config, KEYS.head_size, None), int):
        shared = getattr(config, KEYS.heads) // groups
        numbers |= {KEYS.heads: shared * left["heads"], KEYS.key_value_heads: left["heads"]}
    return numbers


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def narrow(model: nn.Module, kept: Sequence[int]) -> None:
    """Leaves these features of the residual stream (``sparsity.width``), and says so in the model's configuration."""
    present = _held(model)
    numbers = sorted(kept) if present is None or present.hidden is None else [present.hidden[i] for i in sorted(kept)]
    keep_features(model, kept)
    mark(model, {} if present is None else present.layout, numbers)


def shorten(model: nn.Module, kept: Sequence[int], key: str = "layers") -> None:
    """Leaves these layers (``sparsity.depth.keep_layers``). A layout follows: its readers are named by their new layers."""
    present = _held(model)
    before: Layout = fitted(model, present.layout) if present is not None else {}
    stem = layers_of(model, key)[0] + "."
    keep_layers(model, kept, key)
    if not before:
        return
    places = {str(old): new for new, old in enumerate(sorted(kept))}
    layout: Layout = {}
    for reader, numbers in before.items():
        layer, _, inside = reader.removeprefix(stem).partition(".")
        if not reader.startswith(stem):
            layout[reader] = numbers
        elif layer in places:
            layout[f"{stem}{places[layer]}.{inside}"] = numbers
    mark(model, layout)


def mark(model: nn.Module, layout: Layout, hidden: list[int] | None = None) -> None:
    """Writes into the model's configuration what is left of its layers, and of its stream (None: as it says already).

    Raises ``CheckpointError`` where another method's configuration stands there.
    """
    config: Any = model.config
    present = _held(model)
    if hidden is None and present is not None:
        hidden = present.hidden
    config.quantization_config = PrunusLayout(layout, hidden)


def _held(model: nn.Module) -> PrunusLayout | None:
    present = getattr(getattr(model, "config", None), "quantization_config", None)
    if present is not None and not isinstance(present, PrunusLayout):
        rule = "be absent: a layout cannot stand beside another method's"
        raise CheckpointError(Problem("config.json: quantization_config", str(present)[:60], rule, "compacting first"))
    return present


def register() -> None:
    """Makes the method known to transformers; a second time it changes nothing."""
    if METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(METHOD)(PrunusLayout)
        register_quantizer(METHOD)(PrunusLoader)


register()  # where this module was imported before transformers; see prunus/__init__.py
