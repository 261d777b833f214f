"""Quantized layers in a model: names, values, sharing, learning, and the way back to float."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from fake_device import fake_device
from prunus.checkpoint.tensor_io import read_tensors, write_tensors
from prunus.errors import TargetError
from prunus.quantization import Quantization, QuantLinear, quantize, restore, to_float
from prunus.quantization.fake import asymmetric, symmetric
from prunus.quantization.layers import RANGES, ActivationRange, QuantEmbedding, observing
from prunus.quantization.ranges import Observed


def bert(layers: int = 2) -> BertForSequenceClassification:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "num_hidden_layers": layers}
    model = BertForSequenceClassification(BertConfig(vocab_size=90, max_position_embeddings=40, **sizes)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def batches(count: int = 3) -> list[dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [
        {
            "input_ids": torch.randint(0, 90, (4, 12), generator=draw),
            "attention_mask": torch.ones(4, 12, dtype=torch.long),
        }
        for _ in range(count)
    ]


def quantized(spec: Quantization | None = None) -> BertForSequenceClassification:
    model = bert()
    quantize(model, spec or Quantization(), batches())
    return model


def test_names_of_parameters_stay() -> None:
    before, model = bert(), quantized(Quantization(embeddings=True))
    names = dict(model.named_parameters())
    plain = {name: value for name, value in names.items() if not name.endswith(RANGES)}
    assert list(plain) == [name for name, _ in before.named_parameters()]
    for name, value in before.named_parameters():
        assert torch.equal(plain[name], value)


def test_query_key_and_value_share_a_range_and_only_two_are_quantized_behind() -> None:
    model = quantized()
    layers = {name: module for name, module in model.named_modules() if isinstance(module, QuantLinear)}
    assert len(layers) == 2 * 6 + 2
    for i in range(2):
        query, key, value = (layers[f"bert.encoder.layer.{i}.attention.self.{n}"] for n in ("query", "key", "value"))
        assert query.reads is key.reads is value.reads
        assert [layer.output_range is not None for layer in (query, key, value)] == [True, True, False]
        assert query.output_range is not key.output_range
    own = [layer.input_range for layer in layers.values() if layer.input_range is not None]
    assert len(own) == 2 * 4 + 2
    assert not any("shared" in name for name in model.state_dict())


def test_a_layer_computes_what_its_formula_says() -> None:
    torch.manual_seed(3)
    dense = nn.Linear(16, 8)
    layer = QuantLinear(dense)
    layer.input_range, layer.output_range = ActivationRange(signed=False), ActivationRange(signed=True)
    layer.input_range.start(-1.0, 2.5)
    layer.output_range.start(-2.0, 1.0)
    x = torch.randn(5, 16)
    weight = symmetric(dense.weight, dense.weight.abs().amax(1, keepdim=True), narrow=True)
    inner = asymmetric(x, torch.tensor(-1.0), torch.tensor(2.5)) @ weight.T + dense.bias
    assert torch.allclose(layer(x), symmetric(inner, torch.tensor(2.0)), atol=1e-6)


@pytest.mark.parametrize(
    ("estimator", "expected"), [("min_max", (-5.0, 9.0)), ("mean_min_max", (-3.5, 6.5)), ("percentile", None)]
)
def test_estimators(estimator: str, expected: tuple[float, float] | None) -> None:
    seen = Observed(estimator)  # type: ignore[arg-type]
    first, second = torch.linspace(-2, 4, 4001), torch.linspace(-5, 9, 4001)
    seen.see(first)
    seen.see(second)
    if expected is None:
        edges = torch.tensor([0.001, 0.999])
        expected = tuple(((torch.quantile(first, edges) + torch.quantile(second, edges)) / 2).tolist())
    assert seen.span() == pytest.approx(expected, abs=1e-5)


def test_ranges_are_those_of_the_float_model() -> None:
    """While ranges are observed, nothing is rounded."""
    float_model, model = bert(), quantized(Quantization(ranges="min_max"))
    found: dict[str, list[float]] = {}

    def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        found.setdefault("x", []).append(inputs[0].max().item())

    name = "bert.encoder.layer.1.output.dense"
    handle = float_model.get_submodule(name).register_forward_pre_hook(hook)
    with torch.no_grad():
        for batch in batches():
            float_model(**batch)
    handle.remove()
    layer = model.get_submodule(name)
    assert isinstance(layer, QuantLinear)
    assert layer.input_range is not None
    assert layer.input_range.get_parameter("high").item() == pytest.approx(max(found["x"]), rel=1e-6)


def test_it_stays_close_to_float_and_symmetric_is_coarser() -> None:
    with torch.no_grad():
        expected = bert()(**batches()[0]).logits
        errors = {
            mode: (quantized(Quantization(mode=mode))(**batches()[0]).logits - expected).norm() / expected.norm()  # type: ignore[arg-type]
            for mode in ("mixed", "symmetric")
        }
    assert errors["mixed"] < 0.05
    assert errors["symmetric"] < 0.1


def test_zeros_stay_zero_through_training() -> None:
    model = quantized()
    layer = model.get_submodule("bert.encoder.layer.0.output.dense")
    assert isinstance(layer, QuantLinear)
    mask = torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(0)) > 0.8
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for batch in batches():
        with torch.no_grad():
            layer.weight.mul_(mask)
        model(**batch, labels=torch.tensor([0, 1, 0, 1])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        layer.weight.mul_(mask)
    to_float(model)
    assert (model.get_submodule("bert.encoder.layer.0.output.dense").weight[~mask] == 0).all()


def test_every_range_gets_a_gradient() -> None:
    model = quantized(Quantization(embeddings=True))
    model(**batches()[0], labels=torch.tensor([0, 1, 0, 1])).loss.backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None and "position_ids" not in name]
    assert not missing


@pytest.mark.parametrize("spec", [Quantization(), Quantization(mode="symmetric", embeddings=True, overflow_fix=True)])
def test_stripped_and_restored_it_answers_the_same(spec: Quantization, tmp_path: Path) -> None:
    model = quantized(spec)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(RANGES):
                parameter.mul_(0.9)  # ranges that were learned clip
        expected = model(**batches()[0]).logits
    write_tensors(tmp_path / "ranges.safetensors", to_float(model))
    assert not any(isinstance(module, QuantLinear | QuantEmbedding) for module in model.modules())
    assert list(dict(model.named_parameters())) == list(dict(bert().named_parameters()))
    again = copy.deepcopy(model)
    restore(again, read_tensors(tmp_path / "ranges.safetensors"))
    with torch.no_grad():
        assert torch.allclose(again(**batches()[0]).logits, expected, atol=2e-5)
    levels = model.get_submodule("bert.encoder.layer.1.intermediate.dense").weight.detach()
    assert max(len(row.unique()) for row in levels) <= (127 if spec.overflow_fix else 255)


def test_overflow_fix_keeps_weights_in_seven_bits() -> None:
    model = quantized(Quantization(overflow_fix=True))
    for module in model.modules():
        if isinstance(module, QuantLinear):
            whole = symmetric(module.weight, module.weight_range, module.bits, narrow=True) / module.weight_range * 63
            assert (whole - whole.round()).abs().max() < 1e-3
            assert whole.abs().max() <= 63.001


def test_excluded_layers_stay_float() -> None:
    model = quantized(Quantization(exclude=("pooler", r"classifier$")))
    assert type(model.classifier) is nn.Linear
    assert type(model.bert.pooler.dense) is nn.Linear
    assert type(model.bert.encoder.layer[0].output.dense) is QuantLinear


def test_mistakes_are_named() -> None:
    with pytest.raises(TargetError, match="leave at least one Linear layer"):
        quantize(bert(), Quantization(exclude=(".",)), batches())
    with pytest.raises(TargetError, match="at least one batch"):
        quantize(bert(), Quantization(), [])
    model = quantized()
    ranges = to_float(model)
    ranges["bert.pooler.dense.weight_range"] = torch.ones(5, 1)
    ranges["elsewhere.weight_range"] = torch.full((2, 1), torch.nan)
    with pytest.raises(TargetError) as caught:
        restore(model, ranges)
    assert {problem.key for problem in caught.value.problems} == {
        "bert.pooler.dense.weight_range",
        "elsewhere.weight_range",
    }


def test_a_failed_calibration_leaves_no_observer() -> None:
    model = quantized()
    with pytest.raises(RuntimeError, match="stop"), observing(model, "min_max"):
        raise RuntimeError("stop")
    assert not any(isinstance(m, ActivationRange) and m.observed is not None for m in model.modules())


def test_problems_of_the_choices() -> None:
    spec = Quantization(mode="mxed", ranges="max", samples=0, exclude=("(",))  # type: ignore[arg-type]
    keys = [problem.key for problem in spec.problems()]
    assert keys == ["quantize.mode", "quantize.ranges", "quantize.samples", "quantize.exclude[0]"]


@pytest.mark.parametrize("mode", ["mixed", "symmetric"])
def test_ranges_are_on_the_device_of_their_layer(mode: Any) -> None:
    """Also those without dimensions, which other devices would take from the CPU."""
    inputs = {"input_ids": torch.arange(5, 13)[None]}
    with fake_device() as device:
        model = bert().to(device)
        there = {name: value.to(device) for name, value in inputs.items()}
        quantize(model, Quantization(mode=mode, embeddings=True), [there])
        assert {value.device for value in [*model.parameters(), *model.buffers()]} == {device}
        expected = model(**there).logits.cpu()
        ranges = to_float(model)
        assert {value.device for value in ranges.values()} == {device}
        restore(model, {name: value.cpu() for name, value in ranges.items()})
        assert {value.device for value in [*model.parameters(), *model.buffers()]} == {device}
        assert torch.allclose(model(**there).logits.cpu(), expected, atol=1e-6)
