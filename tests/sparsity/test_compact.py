"""Masked and compacted models give the same, for every architecture and structure."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    Qwen2Config,
    Qwen2ForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

from prunus import Allocation, Masker, Pruning, Schedule, Span, TargetError
from prunus.sparsity.compact import compact, live, shrink
from prunus.sparsity.structures import structures
from small import CONFIGS, batch, rows, tiny_model

SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2}
SHARED: dict[str, Any] = {
    **SIZES,
    "vocab_size": 40,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
ARCHITECTURES = [*CONFIGS, "llama", "qwen2", "vit"]


def model_of(architecture: str) -> Any:
    """Four heads (groups of them) a layer, random biases."""
    torch.manual_seed(0)
    if architecture == "llama":
        model = LlamaForSequenceClassification(LlamaConfig(**SHARED, num_labels=3))
    elif architecture == "qwen2":
        model = Qwen2ForSequenceClassification(Qwen2Config(**SHARED, num_labels=3))
    elif architecture == "vit":
        config = ViTConfig(**SIZES, num_attention_heads=4, image_size=8, patch_size=4, num_labels=3)
        model = ViTForImageClassification(config)
    else:
        config = CONFIGS[architecture]()
        for name in ("num_attention_heads", "n_heads"):
            if hasattr(config, name):
                setattr(config, name, 4)
        config.num_labels = 3
        model = type(tiny_model(architecture))(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def inputs_of(architecture: str) -> dict[str, Tensor]:
    if architecture == "vit":
        return {"pixel_values": torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(3))}
    inputs = batch(rows(3))
    inputs["attention_mask"][1, 8:] = 0
    return {name: inputs[name] for name in ("input_ids", "attention_mask")}


def logits(model: Any, architecture: str) -> Tensor:
    with torch.no_grad():
        return model(**inputs_of(architecture)).logits  # type: ignore[no-any-return]


def pruned(architecture: str, structure: str, sparsity: float = 0.5) -> Any:
    model = model_of(architecture)
    rule = Pruning(sparsity, structure, "magnitude", Schedule("one_shot", Span(0)), Allocation("global", "normed"))
    Masker(model, rule, 1)
    return model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("structure", ["heads", "ffn"])
def test_masked_and_compacted_models_give_the_same(architecture: str, structure: str) -> None:
    model = pruned(architecture, structure)
    expected, before = logits(model, architecture), sum(p.numel() for p in model.parameters())
    whole = structures(model)
    layout = compact(model)
    assert layout
    own = [each for each in whole if each.kind == structure]
    left = sum(len(layout.get(each.reader, range(each.units))) for each in own)
    assert left == sum(each.units for each in own) // 2
    torch.testing.assert_close(logits(model, architecture), expected, rtol=1e-5, atol=2e-6)
    assert sum(p.numel() for p in model.parameters()) < before
    assert [name for name, _ in model.named_parameters()] == [
        name for name, _ in model_of(architecture).named_parameters()
    ]
    assert compact(model) == {}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("structure", ["heads", "ffn"])
def test_a_block_may_vanish(architecture: str, structure: str) -> None:
    model = model_of(architecture)
    first = next(each for each in structures(model) if each.kind == structure)
    with torch.no_grad():
        model.get_parameter(f"{first.reader}.weight").zero_()
    expected = logits(model, architecture)
    assert compact(model) == {first.reader: []}
    torch.testing.assert_close(logits(model, architecture), expected, rtol=1e-5, atol=2e-6)
    assert model.get_parameter(f"{first.reader}.weight").shape[1] == 0
    model.train()
    out = model(**inputs_of(architecture)).logits.sum()
    out.backward()
    assert compact(model) == {}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("structure", ["heads", "ffn"])
def test_what_writes_nothing_goes_too_and_its_constant_into_the_bias(architecture: str, structure: str) -> None:
    model = model_of(architecture)
    each = next(found for found in structures(model) if found.kind == structure)
    writer = each.writers[2] if structure == "heads" and len(each.writers) > 1 else each.writers[0]
    linear = model.get_submodule(writer.name)
    step = each.units * writer.width
    part = writer.parts - 1 if structure == "heads" else 0  # value, or the first half of a fused gate
    first = part * step + writer.width
    with torch.no_grad():
        linear.weight[first : first + writer.width] = 0
    expected, bias = logits(model, architecture), model.get_submodule(each.reader).bias
    gated = len(each.writers) > 1 or writer.parts > 1
    constant = linear.bias is not None and bool(linear.bias[first : first + writer.width].any())
    goes = not constant or (bias is not None and not (structure == "ffn" and gated))
    layout = compact(model)
    assert layout == ({each.reader: [j for j in range(each.units) if j != 1]} if goes else {})
    torch.testing.assert_close(logits(model, architecture), expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_layout_shrinks_a_model_without_weights_to_the_same_shapes(architecture: str) -> None:
    model = pruned(architecture, "heads", 0.5)
    Masker(model, Pruning(0.3, "ffn", "magnitude", Schedule("one_shot", Span(0)), Allocation("tensor")), 1)
    with torch.device("meta"):
        empty = type(model)(model.config)
    layout = compact(model)
    shrink(empty, layout)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    assert {name: p.shape for name, p in empty.named_parameters()} == shapes


def test_a_dense_model_stays_as_it_is() -> None:
    model = model_of("bert")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert compact(model) == {}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert live(model, structures(model)[0]) == [0, 1, 2, 3]


def test_a_decoder_keeps_a_head_in_each_layer() -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHARED))
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.zero_()
    with pytest.raises(TargetError, match="keep a head in each layer of a decoder"):
        compact(model)


def test_a_compacted_decoder_generates_the_same() -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHARED)).eval()
    schedule = Schedule("one_shot", Span(0))
    Masker(model, [Pruning(0.5, k, "magnitude", schedule, Allocation("tensor")) for k in ("heads", "ffn")], 1)
    prompt = torch.randint(4, 40, (2, 5), generator=torch.Generator().manual_seed(1))
    expected = model.generate(prompt, max_new_tokens=8, do_sample=False)
    assert compact(model)
    assert torch.equal(model.generate(prompt, max_new_tokens=8, do_sample=False), expected)


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ({"bert.encoder.layer.0.attention.output.dense": [0, 4]}, r"be different numbers in 0\.\.3"),
        ({"bert.encoder.layer.0.attention.output.dense": [1, 1]}, r"be different numbers in 0\.\.3"),
        ({"bert.encoder.layer.9.output.dense": [0]}, "name a layer that reads heads or neurons"),
        ({"classifier": [0]}, "name a layer that reads heads or neurons"),
    ],
)
def test_layouts_that_do_not_fit_are_told(layout: dict[str, list[int]], said: str) -> None:
    with pytest.raises(TargetError, match=said):
        shrink(model_of("bert"), layout)


def test_models_without_known_structures_are_told() -> None:
    with pytest.raises(TargetError, match="under a name that is known"):
        structures(nn.Sequential(nn.Linear(4, 4)))
