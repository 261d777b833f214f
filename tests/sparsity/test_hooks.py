"""Whatever hooks this library puts on modules are gone when it is done with them, also where something goes wrong meanwhile."""

import copy
import gc
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import two_layers
from torch import nn

from prunus import Masker, Pruning, Schedule, TrainingError
from prunus.distillation.reuse import first_layer
from prunus.errors import TargetError
from prunus.models.masked_language import masked_outputs
from prunus.quantization import Quantization, quantize
from prunus.sparsity import Span
from prunus.training.contrast import representing
from small import tiny_model

LATER = Schedule("linear", Span(1), end=Span(4), every=Span(1))


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def watched() -> tuple[nn.Sequential, Masker]:
    model = two_layers()
    return model, Masker(model, Pruning(0.5, "1x1", "wanda", LATER), 8)


def test_scores_that_fail_leave_no_hook() -> None:
    model, masker = watched()
    assert hooks(model) == 2
    model(torch.full((2, 32), torch.nan))
    with pytest.raises(TrainingError, match="NaN or infinite scores"):
        masker.step(model)
    assert hooks(model) == 0


def test_a_training_that_is_broken_off_leaves_no_hook() -> None:
    def training() -> None:
        masker = Masker(model, Pruning(0.5, "1x1", "wanda", LATER), 8)
        model(torch.ones(2, 32))
        masker.step(model)
        raise KeyboardInterrupt

    model = two_layers()
    with pytest.raises(KeyboardInterrupt):
        training()
    gc.collect()
    assert hooks(model) == 0
    model(torch.ones(2, 32))


def test_rules_that_do_not_fit_leave_no_hook() -> None:
    model = two_layers()
    with pytest.raises(Exception, match="masker state"):
        Masker(model, Pruning(0.5, "1x1", "wanda", LATER), 8, state={"mask.other": torch.ones(1, 1) == 1})
    gc.collect()
    assert hooks(model) == 0


def test_copies_of_a_model_are_not_observed() -> None:
    model, masker = watched()
    model(torch.ones(2, 32))
    before = {key: value.clone() for key, value in masker.state_dict().items()}
    other = copy.deepcopy(model)
    other(torch.full((2, 32), 9.0))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    loaded(torch.full((2, 32), 9.0))
    assert all(torch.equal(value, before[key]) for key, value in masker.state_dict().items())
    model(torch.full((2, 32), 9.0))
    assert not all(torch.equal(value, before[key]) for key, value in masker.state_dict().items())


def fails(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("out of memory")


def in_quantize(model: Any) -> None:
    quantize(model, Quantization(), [{"input_ids": torch.ones(1, 4, dtype=torch.int64)}], fails)


def in_a_head(model: Any) -> None:
    model.classifier.forward = fails
    first_layer(model)


def in_masked_places(model: Any) -> None:
    model.classifier.forward = fails
    masked_outputs(model, {"input_ids": torch.ones(1, 4, dtype=torch.int64), "labels": torch.ones(1, 4)})


def in_representations(model: Any) -> None:
    with representing(model):
        fails()


@pytest.mark.parametrize("work", [in_quantize, in_a_head, in_masked_places, in_representations])
def test_other_work_that_fails_leaves_no_hook(work: Callable[[Any], None]) -> None:
    model = tiny_model()
    before = hooks(model)
    with pytest.raises((RuntimeError, TargetError), match="out of memory"):
        work(model)
    assert hooks(model) == before


@pytest.mark.parametrize("fail", [False, True])
def test_looking_for_the_first_layer_leaves_every_module_in_its_mode(fail: bool) -> None:
    model = tiny_model().train()
    model.bert.eval()
    before = [module.training for module in model.modules()]
    if fail:
        with pytest.raises(TargetError, match="out of memory"):
            in_a_head(model)
    else:
        first_layer(model)
    assert [module.training for module in model.modules()] == before
