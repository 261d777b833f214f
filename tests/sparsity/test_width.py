"""Narrower residual streams against gates on the whole model: norms over the features that are left, zeros elsewhere."""

from typing import Any

import pytest
import torch
from test_compact import ARCHITECTURES, inputs_of, logits, model_of
from torch import Tensor, nn
from transformers import BertForMaskedLM

from prunus import TargetError
from prunus.sparsity.structures import structures
from prunus.sparsity.width import keep_features, stream_axes, strength
from small import CONFIGS

KEPT = [0, 2, 3, 5, 8, 9, 10, 15]


def gated(model: Any, kept: list[int]) -> None:
    """The larger model that says the same: zeros along the stream where the gate is 0, norms that count the rest."""
    width = model.config.get_text_config().hidden_size
    gate = torch.zeros(width)
    gate[kept] = 1
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, axes in stream_axes(model).items():
            for axis in axes:
                shape = [1] * named[name].dim()
                shape[axis] = width
                named[name].mul_(gate.view(shape))
    for module in list(model.modules()):
        if isinstance(module, nn.LayerNorm) and module.weight.shape == (width,):

            def norm(x: Tensor, module: Any = module) -> Tensor:
                mean = (x * gate).sum(-1, keepdim=True) / gate.sum()
                spread = ((x - mean).square() * gate).sum(-1, keepdim=True) / gate.sum()
                bias = module.bias if module.bias is not None else 0.0
                return (x - mean) / (spread + module.eps).sqrt() * module.weight + bias

            module.forward = norm
        elif type(module).__name__.endswith("RMSNorm"):

            def rms(x: Tensor, module: Any = module) -> Tensor:
                size = (x.square() * gate).sum(-1, keepdim=True) / gate.sum()
                return x * torch.rsqrt(size + module.variance_epsilon) * module.weight

            module.forward = rms


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_narrow_model_is_the_gated_one(architecture: str) -> None:
    narrow, whole = model_of(architecture), model_of(architecture)
    gated(whole, KEPT)
    keep_features(narrow, KEPT)
    torch.testing.assert_close(logits(narrow, architecture), logits(whole, architecture), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits(narrow, architecture), logits(model_of(architecture), architecture), atol=1e-3)
    before = {name: p.shape for name, p in model_of(architecture).named_parameters()}
    axes = stream_axes(whole)
    for name, parameter in narrow.named_parameters():
        expected = [len(KEPT) if i in axes.get(name, ()) else size for i, size in enumerate(before[name])]
        assert list(parameter.shape) == expected
    for each in structures(narrow):
        assert each.units in (4, 2, 32, 24)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_it_trains(architecture: str) -> None:
    model = model_of(architecture)
    keep_features(model, KEPT)
    model.train()
    loss = model(**inputs_of(architecture), labels=torch.tensor([0, 1, 2])).loss
    loss.backward()
    assert sum(float(p.grad.abs().sum()) for p in model.parameters() if p.grad is not None) > 0


def test_shapes_without_weights_are_the_same() -> None:
    model = model_of("bert")
    with torch.device("meta"):
        empty = type(model)(model.config)
    keep_features(model, KEPT)
    keep_features(empty, KEPT)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    assert {name: p.shape for name, p in empty.named_parameters()} == shapes


def test_tied_tables_stay_tied() -> None:
    model = BertForMaskedLM(CONFIGS["bert"]())
    keep_features(model, KEPT)
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    assert model(**inputs_of("bert")).logits.shape[-1] == 40


def test_strength_is_the_norm_along_the_stream_or_the_gradient_of_a_gate() -> None:
    model = model_of("bert")
    expected = torch.zeros(16, dtype=torch.float64)
    for name, axes in stream_axes(model).items():
        for axis in axes:
            expected += model.get_parameter(name).detach().double().square().movedim(axis, 0).reshape(16, -1).sum(1)
    torch.testing.assert_close(strength(model).double(), expected.sqrt(), rtol=1e-5, atol=0)
    model(**inputs_of("bert"), labels=torch.tensor([0, 1, 2])).loss.backward()
    gates = torch.ones(16, requires_grad=True)
    for each in structures(model):
        for writer in each.writers:
            model.get_submodule(writer.name).register_forward_pre_hook(lambda m, given: (given[0] * gates,))
    (gradient,) = torch.autograd.grad(model(**inputs_of("bert"), labels=torch.tensor([0, 1, 2])).loss, [gates])
    torch.testing.assert_close(strength(model), gradient.abs(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kept", [[], [1, 1], [16]])
def test_numbers_that_are_not_there_are_told(kept: list[int]) -> None:
    with pytest.raises(TargetError, match=r"hidden must be one or more different numbers in 0\.\.15"):
        keep_features(model_of("bert"), kept)
