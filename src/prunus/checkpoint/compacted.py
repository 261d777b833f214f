"""Smaller layers that transformers loads again: a compacted model's ``config.json`` says what is left of each layer.

    "quantization_config": {"quant_method": "prunus", "layout": {reader of heads or neurons: [numbers that are left], ...}}

transformers asks the method named there to change the model, which has no weights yet, before it reads them: the same
``shrink`` that made it smaller makes it smaller again. After that it is a plain model: it trains, and saves itself like this.
Without prunus transformers says that it does not know the method, and that shapes do not fit.

``import prunus`` is enough. transformers takes seconds to import, so nothing is registered before it is there: a finder in
``sys.meta_path`` waits for ``transformers.quantizers.auto``, and goes when it has come (``watch.py``). That module is imported
while transformers still imports others, so this one asks for nothing else of it.
"""

from typing import Any, Final, final

from torch import nn
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from prunus.errors import CheckpointError, Problem
from prunus.sparsity.compact import Layout, shrink
from prunus.sparsity.compact import compact as take_out

__all__ = ["METHOD", "PrunusLayout", "PrunusLoader", "compact", "mark", "register"]

METHOD: Final = "prunus"
_READERS: Final = 100_000


@final
class PrunusLayout(QuantizationConfigMixin):  # type: ignore[misc]
    """What is left of the layers of a compacted model. Raises ``CheckpointError`` for what is no layout."""

    def __init__(self, layout: Any = None, **kwargs: Any) -> None:
        self.quant_method = METHOD
        self.layout: Layout = _checked(layout if layout is not None else {})


def _checked(layout: Any) -> Layout:
    fix = "the config.json that prunus wrote"
    if not isinstance(layout, dict) or len(layout) > _READERS:
        raise CheckpointError(Problem("config.json: layout", type(layout).__name__, "map layers to numbers", fix))
    for reader, kept in layout.items():
        plain = isinstance(kept, list) and all(isinstance(j, int) and not isinstance(j, bool) for j in kept)
        if not isinstance(reader, str) or not plain:
            rule = "be a list of the numbers that are left"
            raise CheckpointError(Problem(f"config.json: layout: {reader}", str(kept)[:60], rule, fix))
    return layout


@final
class PrunusLoader(HfQuantizer):  # type: ignore[misc]
    """Makes a model as small as its layout says, before its weights are read."""

    requires_calibration = False

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        shrink(model, fitted(model, self.quantization_config.layout))
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


def fitted(model: Any, layout: Layout) -> Layout:
    """The layout with the names of this model: its body alone, or with another head."""
    prefix, modules = f"{model.base_model_prefix}.", {name for name, _ in model.named_modules()}
    own: Layout = {}
    for reader, kept in layout.items():
        names = (reader, reader.removeprefix(prefix), prefix + reader)
        own[next((name for name in names if name in modules), reader)] = kept
    return own


def compact(model: nn.Module) -> Layout:
    """Takes the heads and neurons that do nothing out of ``model``, in place; its outputs stay, to the rounding of sums.

        prunus.compact(model)
        model.save_pretrained("small")      # AutoModel....from_pretrained("small") after ``import prunus``

    Returns what is left of each layer that lost some (``sparsity.compact``), and writes it into the model's configuration.
    Raises ``TargetError`` for a model whose heads and neurons are not found by name.
    """
    held = getattr(getattr(model, "config", None), "quantization_config", None)
    before: Layout = dict(held.layout) if isinstance(held, PrunusLayout) else {}
    layout = take_out(model)
    for reader, kept in layout.items():  # numbers of a model that was compacted before are those of what was left of it
        before[reader] = [before[reader][j] for j in kept] if reader in before else kept
    if before and hasattr(model, "config"):
        mark(model, before)
    return layout


def mark(model: nn.Module, layout: Layout) -> None:
    """Writes into the model's configuration what is left of its layers."""
    config: Any = model.config
    held = getattr(config, "quantization_config", None)
    if held is not None and getattr(held, "quant_method", None) != METHOD:
        rule = "be absent: a layout cannot stand beside another method's"
        raise CheckpointError(Problem("config.json: quantization_config", str(held)[:60], rule, "compacting first"))
    config.quantization_config = PrunusLayout(layout)


def register() -> None:
    """Makes the method known to transformers; a second time it changes nothing."""
    if METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(METHOD)(PrunusLayout)
        register_quantizer(METHOD)(PrunusLoader)
