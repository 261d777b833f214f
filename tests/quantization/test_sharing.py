"""Modules and weights under several names, modes of modules, and saved ranges with parts missing."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

from prunus.errors import TargetError
from prunus.export.onnx import twin_of
from prunus.quantization import Quantization, QuantLinear, quantize, restore, to_float
from prunus.quantization.layers import QuantEmbedding
from prunus.quantization.sharing import joined
from small import SIZES

WIDE: dict[str, Any] = SIZES | {
    "initializer_range": 0.3,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
FIRST, SECOND = (f"bert.encoder.layer.{i}.output.dense" for i in range(2))
BATCH = {
    "input_ids": torch.randint(0, 40, (4, 8), generator=torch.Generator().manual_seed(0)),
    "attention_mask": torch.ones(4, 8, dtype=torch.long),
}


def bert(kind: type[Any] = BertForSequenceClassification) -> Any:
    torch.manual_seed(0)
    return kind(BertConfig(**WIDE)).eval()


def outputs(model: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(**BATCH).logits
    return logits


def trained(model: Any) -> None:
    """Steps that are large enough to drive ranges of one weight apart, where there are two."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(4):
        model(**BATCH).logits.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def share_module(model: Any) -> None:
    model.get_submodule(SECOND.rpartition(".")[0]).dense = model.get_submodule(FIRST)


def share_weight(model: Any) -> None:
    model.get_submodule(SECOND).weight = model.get_submodule(FIRST).weight


def share_layer(model: Any) -> None:
    model.bert.encoder.layer[1] = model.bert.encoder.layer[0]


def untouched(model: Any) -> None:
    """Its decoder has the weight of its embeddings."""


SHARED: dict[str, tuple[type[Any], Callable[[Any], None], Quantization]] = {
    "module": (BertForSequenceClassification, share_module, Quantization()),
    "weight": (BertForSequenceClassification, share_weight, Quantization(overflow_fix=True)),
    "layer": (BertForSequenceClassification, share_layer, Quantization(mode="symmetric")),
    "decoder": (BertForMaskedLM, untouched, Quantization()),
    "decoder, 7 bits": (BertForMaskedLM, untouched, Quantization(overflow_fix=True)),
    "decoder, tables": (BertForMaskedLM, untouched, Quantization(embeddings=True, overflow_fix=True)),
}


@pytest.mark.parametrize("name", SHARED)
def test_what_is_shared_is_rounded_once_and_restored_exactly(name: str) -> None:
    kind, share, spec = SHARED[name]
    model = bert(kind)
    share(model)
    quantize(model, spec, [BATCH])
    assert not [name for name, module in model.named_modules(remove_duplicate=False) if type(module) is nn.Linear]
    trained(model)
    expected = outputs(model)
    twins = twin_of(model).named_modules(remove_duplicate=False)
    assert not [key for key, module in twins if isinstance(module, QuantLinear | QuantEmbedding)]
    ranges = to_float(model)
    for key, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Linear) or f"{key}.weight_range" in ranges:
            whole = module.weight / ranges[f"{key}.weight_range"] * (63 if ranges[f"{key}.bits"] == 7 else 127)
            assert (whole - whole.round()).abs().max() < 1e-3, key
    restore(model, ranges)
    assert torch.equal(outputs(model), expected)
    again = to_float(model)
    assert again.keys() == ranges.keys()
    assert all(torch.equal(value, ranges[key]) for key, value in again.items())


def test_a_shared_module_is_one_module_under_both_names() -> None:
    model = bert()
    share_module(model)
    assert FIRST in quantize(model, Quantization(), [BATCH])
    for kind in (QuantLinear, nn.Linear, QuantLinear):
        assert type(model.get_submodule(FIRST)) is kind
        assert model.get_submodule(FIRST) is model.get_submodule(SECOND)
        if kind is QuantLinear:
            ranges = to_float(model)
        else:
            restore(model, {key: value for key, value in ranges.items() if not key.startswith(SECOND)})
    assert {key.removeprefix(FIRST) for key in ranges if key.startswith(FIRST)} == {
        key.removeprefix(SECOND) for key in ranges if key.startswith(SECOND)
    }


def test_a_shared_weight_has_one_range() -> None:
    model = bert()
    share_weight(model)
    quantize(model, Quantization(), [BATCH])
    first, second = model.get_submodule(FIRST), model.get_submodule(SECOND)
    assert first is not second
    assert second.weight_bound is first.weight_range
    assert f"{SECOND}.weight_range" not in model.state_dict()
    assert first.input_range is not second.input_range
    twin = copy.deepcopy(model)
    assert twin.get_submodule(SECOND).weight_bound is twin.get_submodule(FIRST).weight_range


def test_the_table_of_a_quantized_decoder_is_quantized_with_it() -> None:
    model = bert(BertForMaskedLM)
    quantize(model, Quantization(), [BATCH])
    words, decoder = model.bert.embeddings.word_embeddings, model.cls.predictions.decoder
    assert type(words) is QuantEmbedding
    assert decoder.weight is words.weight
    assert decoder.weight_bound is words.weight_bound
    assert type(model.bert.embeddings.position_embeddings) is nn.Embedding


@pytest.mark.parametrize(
    ("kind", "share", "exclude", "names"),
    [
        (BertForSequenceClassification, share_weight, r"0\.output\.dense", (FIRST, SECOND)),
        (BertForSequenceClassification, share_weight, r"1\.output\.dense", (FIRST, SECOND)),
        (BertForMaskedLM, untouched, "embeddings", ("word_embeddings", "predictions.decoder")),
    ],
)
def test_a_weight_shared_with_a_float_module_is_refused(
    kind: type[Any], share: Callable[[Any], None], exclude: str, names: tuple[str, str]
) -> None:
    model = bert(kind)
    share(model)
    with pytest.raises(TargetError, match="share its weight only with layers that are quantized too") as told:
        quantize(model, Quantization(exclude=(exclude,)), [BATCH])
    assert all(name in str(told.value) for name in names)
    assert not any(isinstance(module, QuantLinear | QuantEmbedding) for module in model.modules())


def test_a_module_excluded_by_one_name_stays_float_under_both() -> None:
    model = bert()
    share_module(model)
    quantize(model, Quantization(exclude=(r"1\.output\.dense",)), [BATCH])
    assert type(model.get_submodule(FIRST)) is nn.Linear
    assert model.get_submodule(FIRST) is model.get_submodule(SECOND)


def test_a_module_that_reads_two_tensors_has_one_range_with_their_other_readers() -> None:
    assert joined([["a", "b"], ["c"], ["b"], ["d", "c", "e"]]) == [["a", "b"], ["c", "d", "e"]]
    model = bert()
    attention = [layer.attention.self for layer in model.bert.encoder.layer]
    attention[1].key = attention[0].key
    quantize(model, Quantization(), [BATCH])
    attention = [layer.attention.self for layer in model.bert.encoder.layer]
    assert len({id(part.reads) for each in attention for part in (each.query, each.key, each.value)}) == 1
    reads = attention[0].query.reads
    assert any(module is reads for module in model.modules())
    assert reads.get_parameter("high") != 1


def modes(model: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


@pytest.mark.parametrize("outer", [True, False])
def test_every_module_keeps_its_mode(outer: bool) -> None:
    model = bert().train(outer)
    model.bert.train(not outer)
    model.bert.encoder.layer[1].train(outer)
    before = modes(model)
    quantize(model, Quantization(embeddings=True), [BATCH])
    after = modes(model)
    assert {name: after[name] for name in before} == before
    inside = [name for name in after if name.endswith("_range")]
    assert inside
    assert all(after[name] == after[name.rpartition(".")[0]] for name in inside)
    ranges = to_float(model)
    assert modes(model) == before
    restore(model, ranges)
    assert {name: modes(model)[name] for name in before} == before


def test_modes_come_back_after_a_failure() -> None:
    model = bert()
    model.bert.train()
    before, during = modes(model), []

    def fails(model: nn.Module, batch: Any) -> None:
        during.append(modes(model))
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        quantize(model, Quantization(), [BATCH], fails)
    assert not any(during[0].values())
    assert modes(model) == before


def test_a_model_that_is_quantized_already_is_refused() -> None:
    model = bert()
    quantize(model, Quantization(), [BATCH])
    expected = outputs(model)
    with pytest.raises(TargetError, match=r"14 layers are quantized already\n.*to_float"):
        quantize(model, Quantization(), [BATCH])
    assert torch.equal(outputs(model), expected)


@pytest.mark.parametrize(
    ("mode", "gone"),
    [
        ("mixed", "input_range.low"),
        ("mixed", "input_range.high"),
        ("symmetric", "input_range.bound"),
        ("mixed", "bits"),
        ("mixed", "weight_range"),
        ("mixed", "output_range.bound"),
    ],
)
@pytest.mark.parametrize("everywhere", [True, False])
def test_ranges_with_a_part_missing_are_refused(mode: Any, gone: str, everywhere: bool) -> None:
    model = bert()
    quantize(model, Quantization(mode=mode), [BATCH])
    ranges = to_float(model)
    query = "bert.encoder.layer.0.attention.self.query"
    names = [key for key in ranges if key.endswith(gone)] if everywhere else [f"{query}.{gone}"]
    left = {key: value for key, value in ranges.items() if key not in names}
    if everywhere and gone == "output_range.bound":
        restore(model, left)  # what attention: false leaves
        return
    with pytest.raises(TargetError) as told:
        restore(model, left)
    if mode == "symmetric":
        names = [name.replace("bound", side) for name in names for side in ("low", "high")]
    assert sorted(problem.key for problem in told.value.problems) == sorted(names)
    assert not any(isinstance(module, QuantLinear) for module in model.modules())


def test_different_ranges_for_one_weight_are_refused() -> None:
    model, other = bert(), bert()
    share_weight(model)
    quantize(other, Quantization(), [BATCH])
    with pytest.raises(TargetError, match="as both are of one weight") as told:
        restore(model, to_float(other))
    assert FIRST in str(told.value)
    assert SECOND in str(told.value)
