"""By default only the repeated layers of a body are pruned: not the heads and projections that some families keep inside it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf
from torch import nn

import prunus
from prunus import Masker, Pruning, Schedule, TargetError
from prunus.sparsity import Span, Targets, Unstructured, select
from small import SIZES

NARROW = {**SIZES, "embedding_size": 8}
OPT = {"vocab_size": 40, "hidden_size": 16, "word_embed_proj_dim": 8, "ffn_dim": 32, "num_hidden_layers": 2}
FUNNEL = {"vocab_size": 40, "block_sizes": [1, 2], "num_decoder_layers": 1, "d_model": 16, "n_head": 2, "d_head": 8}
LATENTS = {"d_latents": 16, "d_model": 16, "num_latents": 4, "num_self_attends_per_block": 2, "vocab_size": 40}
SPEECH = {
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 20,
}
CONVOLUTIONS = {"conv_dim": [8], "conv_stride": [2], "conv_kernel": [3], "num_conv_pos_embedding_groups": 2}
PAGES = {
    **SIZES,
    "input_size": 8,
    "patch_size": 4,
    "coordinate_size": 4,
    "shape_size": 0,
    "max_2d_position_embeddings": 20,
}
SEEING = {"visual_feat_dim": 8, "l_layers": 2, "x_layers": 1, "r_layers": 1}

# model, configuration, its arguments: how many weights are taken, parts of names that stay dense
FAMILIES: dict[str, tuple[str, str, dict[str, Any], int, list[str]]] = {
    "ALBERT": ("AlbertForSequenceClassification", "AlbertConfig", NARROW, 6, ["embedding_hidden_mapping_in", "pooler"]),
    "RemBERT": (
        "RemBertForSequenceClassification",
        "RemBertConfig",
        {**SIZES, "input_embedding_size": 8},
        12,
        ["embedding_hidden_mapping_in"],
    ),
    "OPT": (
        "OPTForCausalLM",
        "OPTConfig",
        {**OPT, "num_attention_heads": 2, "max_position_embeddings": 40},
        12,
        ["project_in", "project_out"],
    ),
    "ELECTRA": ("ElectraForTokenClassification", "ElectraConfig", NARROW, 12, ["embeddings_project", "classifier"]),
    "ConvBERT": ("ConvBertForSequenceClassification", "ConvBertConfig", NARROW, 16, ["embeddings_project"]),
    "DeBERTa": ("DebertaV2Model", "DebertaV2Config", NARROW, 12, ["embeddings.embed_proj"]),
    "DPR, answers": ("DPRReader", "DPRConfig", SIZES, 12, ["qa_outputs", "qa_classifier"]),
    "DPR, questions": ("DPRQuestionEncoder", "DPRConfig", {**SIZES, "projection_dim": 8}, 12, ["encode_proj"]),
    "ESM": (
        "EsmForMaskedLM",
        "EsmConfig",
        {**SIZES, "pad_token_id": 1, "mask_token_id": 4},
        12,
        ["contact_head.regression", "lm_head.dense"],
    ),
    "Funnel": ("FunnelForQuestionAnswering", "FunnelConfig", {**FUNNEL, "d_inner": 32}, 24, ["qa_outputs"]),
    "Funnel, base": ("FunnelForSequenceClassification", "FunnelConfig", {**FUNNEL, "d_inner": 32}, 18, ["classifier"]),
    "Perceiver": (
        "PerceiverForMaskedLM",
        "PerceiverConfig",
        {**LATENTS, "num_self_attention_heads": 2, "num_cross_attention_heads": 2, "max_position_embeddings": 20},
        12,
        ["encoder.cross_attention", "decoding_cross_attention"],
    ),
    "Wav2Vec2": ("Wav2Vec2ForCTC", "Wav2Vec2Config", SPEECH | CONVOLUTIONS, 12, ["feature_projection", "lm_head"]),
    "LayoutLMv3": ("LayoutLMv3ForSequenceClassification", "LayoutLMv3Config", PAGES, 12, ["rel_pos_bias", "rel_pos_x"]),
    "LXMERT": ("LxmertModel", "LxmertConfig", {**SIZES, **SEEING, "num_hidden_layers": {}}, 34, ["visn_fc", "box_fc"]),
    "XLM": (
        "XLMForSequenceClassification",
        "XLMConfig",
        {"vocab_size": 40, "emb_dim": 16, "n_layers": 2, "n_heads": 2},
        12,
        [],
    ),
    "one layer": (
        "MPNetForSequenceClassification",
        "MPNetConfig",
        {**SIZES, "num_hidden_layers": 1},
        6,
        ["classifier"],
    ),
}


def built(name: str) -> Any:
    kind, config, arguments, _, _ = FAMILIES[name]
    torch.manual_seed(0)
    given = {key: value for key, value in arguments.items() if value != {}}
    return getattr(tf, kind)(getattr(tf, config)(**given))


@pytest.mark.parametrize("name", FAMILIES)
def test_only_the_repeated_layers_are_taken(name: str) -> None:
    model = built(name)
    *_, count, dense = FAMILIES[name]
    selection = select(model, Targets(), Unstructured())
    assert len(selection.taken) == count
    assert all(any(part.isdigit() for part in taken.split(".")) for taken in selection.taken)
    for part in dense:
        reasons = [reason for skipped, (_, reason) in selection.skipped.items() if part in skipped]
        assert reasons, part
        assert not any(part in taken for taken in selection.taken)
    masked = Masker(model, Pruning(0.5, "unstructured", "magnitude", Schedule("one_shot", Span(0))), 1).masks
    assert masked.keys() == selection.taken.keys()
    assert prunus.lock(model).masker.masks.keys() == selection.taken.keys()


@pytest.mark.parametrize(
    ("name", "include"),
    [("ALBERT", "embedding_hidden_mapping_in"), ("OPT", "project_in"), ("DPR, answers", "qa_classifier")],
)
def test_what_stays_dense_can_be_named(name: str, include: str) -> None:
    model = built(name)
    (shape, reason) = next(
        found for skipped, found in select(model, Targets(), Unstructured()).skipped.items() if include in skipped
    )
    assert reason == "outside the repeated layers of the model's body; name it in include to prune it"
    taken = select(model, Targets(include=(include,)), Unstructured()).taken
    assert list(taken.values()) == [shape]
    for exclude in (
        (),
        (r"attention|attn",),
    ):  # takes the place of the names of poolers and embeddings, not of the rule
        assert not any(include in each for each in select(model, Targets(exclude=exclude), Unstructured()).taken)


class Block(nn.Module):
    """Two layers, as a transformer repeats them."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)


class OtherBlock(Block):
    """Another kind, as in models that mix attention and recurrence."""


class TaskHead(Block):
    """A head of more than one layer."""


class Body(nn.Module):
    """A body of one's own."""

    base_model_prefix = ""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 8)
        for name, part in parts.items():
            self.add_module(name, part)


OWN: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "a list": (lambda: Body(layers=nn.ModuleList([Block(), Block()])), ["layers.0", "layers.1"]),
    "one layer": (lambda: Body(layers=nn.ModuleList([Block()])), ["layers.0"]),
    "a chain": (lambda: Body(layers=nn.Sequential(Block(), Block())), ["layers.0", "layers.1"]),
    "two kinds": (lambda: Body(layers=nn.ModuleList([Block(), OtherBlock()])), ["layers.0", "layers.1"]),
    "two lists": (
        lambda: Body(first=nn.ModuleList([Block()]), second=nn.ModuleList([OtherBlock()])),
        ["first.0", "second.0"],
    ),
    "a list of lists": (
        lambda: Body(blocks=nn.ModuleList([nn.ModuleList([Block()]), nn.ModuleList([Block()])])),
        ["blocks.0.0", "blocks.1.0"],
    ),
    "heads by name": (
        lambda: Body(layers=nn.ModuleList([Block()]), heads=nn.ModuleList([Block(), Block()])),
        ["layers.0"],
    ),
    "heads by class": (
        lambda: Body(layers=nn.ModuleList([Block()]), tasks=nn.ModuleList([TaskHead(), TaskHead()])),
        ["layers.0"],
    ),
    "heads of one layer": (
        lambda: Body(layers=nn.ModuleList([Block()]), tasks=nn.ModuleList([nn.Linear(8, 2), nn.Linear(8, 3)])),
        ["layers.0"],
    ),
    "a head that is a chain": (
        lambda: Body(layers=nn.ModuleList([Block()]), score=nn.Sequential(Block(), nn.ReLU(), nn.Linear(8, 2))),
        ["layers.0"],
    ),
    "compiled layers": (
        lambda: Body(layers=nn.ModuleList([torch.compile(Block(), backend="eager"), Block()])),  # type: ignore[list-item]
        ["layers.0", "layers.1"],
    ),
}


@pytest.mark.parametrize("name", OWN)
def test_repeated_layers_of_modules_of_ones_own(name: str) -> None:
    make, layers = OWN[name]
    taken = select(make(), Targets(), Unstructured()).taken
    assert sorted(taken) == sorted(f"{layer}.{part}.weight" for layer in layers for part in ("up", "down"))


def test_of_a_body_that_repeats_nothing_all_layers_are_taken() -> None:
    taken = select(Body(first=Block(), second=Block()), Targets(), Unstructured()).taken
    assert len(taken) == 5


def test_a_body_whose_repeated_layers_have_no_linear_is_told() -> None:
    model = Body(layers=nn.ModuleList([nn.Sequential(nn.Conv1d(8, 8, 1))]))
    with pytest.raises(TargetError, match=r"find a torch\.nn\.Linear in the model's body"):
        select(model, Targets(), Unstructured())
    assert list(select(model, Targets(include=("embed",), exclude=()), Unstructured()).taken) == ["embed.weight"]
