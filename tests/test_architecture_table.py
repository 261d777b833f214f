"""The table of architectures against models of transformers, and names of families that have no entry."""

import re
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig

from prunus.architectures import (
    ARCHITECTURES,
    KEYS,
    LAYER_PARTS,
    is_score_operand,
    layer_part,
    split_layer,
    structure_regex,
)
from prunus.sparsity.structures import structures

TEXT = {"vocab_size": 40, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
FAMILIES: dict[str, dict[str, Any]] = {
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "vit": {"image_size": 8, "patch_size": 4},
    "albert": {"embedding_size": 16, "num_hidden_groups": 2},
    "electra": {"embedding_size": 16},
}


def config_of(family: str) -> PreTrainedConfig:
    keys = ARCHITECTURES[family].keys
    sizes = {keys.hidden_size: 32, keys.heads: 4, keys.intermediate_size: 24, keys.layers: 2}
    text = {} if family == "vit" else TEXT
    config: PreTrainedConfig = AutoConfig.for_model(family, **sizes, **text, **FAMILIES.get(family, {}))
    return config


def body_of(family: str) -> Any:
    with torch.device("meta"):
        return AutoModel.from_config(config_of(family))


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_each_name_of_an_entry_is_in_the_model(family: str) -> None:
    entry, model = ARCHITECTURES[family], body_of(family)
    assert model.base_model_prefix == entry.prefix
    modules = dict(model.named_modules())
    for number in range(2):
        layer = entry.layer.format(number)
        linears = {
            *entry.attention.inputs,
            entry.attention.output,
            *entry.feed_forward.inputs,
            entry.feed_forward.output,
        }
        for name in linears | {*entry.attention.positions}:
            assert isinstance(modules[layer + name], nn.Linear) or name.startswith("attention.self.pos_")
        assert layer + entry.attention.module in modules
        for name in (entry.feed_forward.module, entry.attention.norm, entry.attention.dropout):
            assert not name or layer + name in modules
        if entry.encoder is not None:
            assert isinstance(modules[layer + entry.encoder.attention_norm], nn.LayerNorm)
            assert isinstance(modules[layer + entry.encoder.output_norm], nn.LayerNorm)
    if entry.encoder is not None:
        names = entry.encoder
        for name in (names.word_embeddings, names.position_embeddings, names.type_embeddings):
            assert not name or isinstance(modules[name], nn.Embedding)
        assert isinstance(modules[names.embedding_norm], nn.LayerNorm)
        assert not names.projection or isinstance(modules[names.projection], nn.Linear)
        assert not names.relative_positions or names.relative_positions in dict(model.named_parameters())


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_transformers_answers_to_the_default_keys(family: str) -> None:
    config = config_of(family)
    assert (getattr(config, KEYS.hidden_size), getattr(config, KEYS.heads), getattr(config, KEYS.layers)) == (32, 4, 2)
    assert getattr(config, ARCHITECTURES[family].keys.intermediate_size) == 24


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_structures_are_those_of_the_entry(family: str) -> None:
    entry = ARCHITECTURES[family]
    held = structures(body_of(family))
    assert [each.kind for each in held] == ["heads", "ffn"] * 2
    for place, each in enumerate(held):
        layer = entry.layer.format(place // 2)
        part = entry.attention if each.kind == "heads" else entry.feed_forward
        assert each.reader == layer + part.output
        assert each.owner == (layer + part.module if part.module else "")
        writers = [writer.name for writer in each.writers]
        assert writers[: len(set(part.inputs))] == [layer + name for name in dict.fromkeys(part.inputs)]
        assert each.units == (4 if each.kind == "heads" else 24)


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_reports_name_the_parts_of_each_family(family: str) -> None:
    entry = ARCHITECTURES[family]
    attention, feed_forward = entry.attention, entry.feed_forward
    expected = dict(zip(attention.inputs, ("qkv",) * 3 if attention.fused else ("q", "k", "v"), strict=True))
    expected |= {attention.output: "o", feed_forward.gate: "ffn gate"}
    expected |= {feed_forward.input: "ffn in", feed_forward.output: "ffn out"}  # ModernBERT's gate is in its input
    expected.pop("", None)
    for name, part in expected.items():
        place = split_layer(f"{entry.prefix}.{entry.layer.format(3)}{name}.weight")
        assert place is not None
        assert place[1] == 3
        assert layer_part(place[2]) == part
    assert set(expected.values()) <= set(LAYER_PARTS)


def test_scores_are_quantized_where_one_product_makes_them() -> None:
    for family, entry in ARCHITECTURES.items():
        names = {entry.attention.query, entry.attention.key}
        told = {name for name in names if is_score_operand(f"layer.0.{name}")}
        assert told == (names if not (entry.attention.fused or entry.attention.positions) else set()), family
        assert not is_score_operand(f"layer.0.{entry.attention.output}")
        assert not is_score_operand(f"layer.0.{entry.feed_forward.output}")
    assert not is_score_operand("layer.0.attention.value")


@pytest.mark.parametrize(
    ("name", "structure"),
    [
        ("layer.0.attention.output.dense.weight", "heads"),
        ("layer.0.crossattention.output.dense.weight", "heads"),
        ("h.0.attn.c_proj.weight", "heads"),
        ("blocks.0.attn.out_proj.weight", "heads"),
        ("blocks.0.o_proj.weight", "heads"),
        ("layers.0.fc2.weight", "ffn"),
        ("layers.0.linear2.weight", "ffn"),
        ("layers.0.self_attn.out_proj.weight", None),
        ("block.0.layer.0.SelfAttention.o.weight", None),
        ("layers.0.attention.output.dense.bias", None),
    ],
)
def test_families_without_an_entry(name: str, structure: str | None) -> None:
    assert bool(re.search(structure_regex("heads"), name)) == (structure == "heads")
    assert bool(re.search(structure_regex("ffn"), name)) == (structure == "ffn")
