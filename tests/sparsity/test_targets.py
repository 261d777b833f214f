"""Targets: exactly the encoder's Linear weights of seven architectures, by name and with reasons for all the rest."""

from typing import Any

import pytest
import torch
import transformers as tf
from tiny import two_layers
from torch import nn

from prunus.errors import TargetError
from prunus.sparsity import NofM, Selection, Targets, Unstructured, parse_pattern, select

LAYERS, WIDTH, HIDDEN, WORDS = 2, 32, 48, 50
COMMON: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": HIDDEN,
    "max_position_embeddings": 64,
}
RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}
# architecture: config, its own arguments, Linear weights per layer, and per layer weights in all
ARCHITECTURES: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "Bert": ("BertConfig", COMMON, 6, 4 * WIDTH**2 + 2 * WIDTH * HIDDEN),
    "DistilBert": (
        "DistilBertConfig",
        {"vocab_size": WORDS, "dim": WIDTH, "n_layers": LAYERS, "n_heads": 4, "hidden_dim": HIDDEN},
        6,
        4 * WIDTH**2 + 2 * WIDTH * HIDDEN,
    ),
    "Roberta": ("RobertaConfig", COMMON, 6, 4 * WIDTH**2 + 2 * WIDTH * HIDDEN),
    "Electra": ("ElectraConfig", {**COMMON, "embedding_size": 16}, 6, 4 * WIDTH**2 + 2 * WIDTH * HIDDEN),
    "DebertaV2": (
        "DebertaV2Config",
        {**COMMON, **RELATIVE, "share_att_key": True},
        6,
        4 * WIDTH**2 + 2 * WIDTH * HIDDEN,
    ),
    # Wqkv [3w, w], Wo [w, w], Wi [2h, w] (gated), Wo [w, h]
    "ModernBert": (
        "ModernBertConfig",
        {**COMMON, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
        4,
        4 * WIDTH**2 + 3 * WIDTH * HIDDEN,
    ),
    "MPNet": ("MPNetConfig", COMMON, 6, 4 * WIDTH**2 + 2 * WIDTH * HIDDEN),
}
HEADS = ("ForSequenceClassification", "ForQuestionAnswering")


def build(name: str, head: str = "ForSequenceClassification") -> nn.Module:
    config, arguments, _, _ = ARCHITECTURES[name]
    torch.manual_seed(0)
    model = getattr(tf, name + head)(getattr(tf, config)(**arguments))
    assert isinstance(model, nn.Module)
    return model


def linears(model: nn.Module) -> set[str]:
    return {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_linear_weights_of_the_encoder_and_nothing_else(name: str, head: str) -> None:
    _, _, tensors, weights = ARCHITECTURES[name]
    model = build(name, head)
    selection = select(model, Targets(), Unstructured())
    assert len(selection.taken) == tensors * LAYERS
    assert selection.weights == weights * LAYERS
    assert all(".layer." in taken or ".layers." in taken for taken in selection.taken)
    matrices = {name for name, parameter in model.named_parameters() if parameter.dim() >= 2}
    assert selection.taken.keys() | selection.skipped.keys() == matrices
    assert not selection.taken.keys() & selection.skipped.keys()
    for taken, shape in selection.taken.items():
        assert tuple(model.get_parameter(taken).shape) == shape
    inside = {taken for taken in linears(model) if ".layer." in taken or ".layers." in taken}
    assert set(selection.taken) == inside


REASONS = {
    # what is skipped of each, beyond embedding tables: (part of the name, part of the reason)
    "Bert": [("bert.pooler.dense", "excluded by 'pooler'"), ("classifier", "head of the task")],
    "DistilBert": [("pre_classifier", "head of the task"), ("classifier", "head of the task")],
    "Roberta": [("classifier.dense", "head of the task"), ("classifier.out_proj", "head of the task")],
    "Electra": [("embeddings_project", "excluded by 'embeddings'"), ("classifier.dense", "head of the task")],
    "DebertaV2": [("pooler.dense", "head of the task"), ("rel_embeddings", "not the weight of a Linear")],
    "ModernBert": [("head.dense", "head of the task"), ("classifier", "head of the task")],
    "MPNet": [("relative_attention_bias", "not the weight of a Linear"), ("classifier.dense", "head of the task")],
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_is_skipped_says_why(name: str) -> None:
    selection = select(build(name), Targets(), Unstructured())
    for part, reason in [*REASONS[name], ("embeddings", "not the weight of a Linear")]:
        found = [why for skipped, (_, why) in selection.skipped.items() if part in skipped]
        assert any(reason in why for why in found), (part, found)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_head_for_answers_stays_dense(name: str) -> None:
    selection = select(build(name, "ForQuestionAnswering"), Targets(), Unstructured())
    head = "classifier" if name == "ModernBert" else "qa_outputs"
    shape, reason = selection.skipped[f"{head}.weight"]
    assert shape == (2, WIDTH)
    assert "head of the task" in reason


def test_a_bare_body_is_pruned_too() -> None:
    model = tf.BertModel(tf.BertConfig(**COMMON))
    selection = select(model, Targets(), Unstructured())
    assert len(selection.taken) == 6 * LAYERS
    assert selection.skipped["pooler.dense.weight"][1] == "excluded by 'pooler'"


def test_a_weight_tied_to_an_embedding_is_left_alone() -> None:
    model = tf.BertForMaskedLM(tf.BertConfig(**COMMON))
    selection = select(model, Targets(include=(r".",), exclude=()), Unstructured())
    assert "cls.predictions.decoder.weight" not in {*selection.taken, *selection.skipped}
    assert len(selection.taken) == 6 * LAYERS + 1  # and the head's own transform, as the include list asks


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (Targets(include=(r"attention",)), 4 * LAYERS),
        (Targets(include=(r"layer\.0\.", r"layer\.1\.intermediate")), 7),
        (Targets(include=(r"\.(query|key)\.",)), 2 * LAYERS),
        (Targets(exclude=(r"attention", "pooler")), 2 * LAYERS),
        (Targets(exclude=()), 6 * LAYERS + 1),  # the pooler of BERT is part of its body
        (Targets(include=("pooler",), exclude=()), 1),
        (Targets(include=("classifier",)), 1),
        (Targets(include=("",)), 6 * LAYERS + 1),  # everything: the head too, the pooler not
    ],
)
def test_include_and_exclude(targets: Targets, expected: int) -> None:
    assert len(select(build("Bert"), targets, Unstructured()).taken) == expected


def test_not_included_is_a_reason() -> None:
    selection = select(build("Bert"), Targets(include=("query",)), Unstructured())
    assert selection.skipped["bert.encoder.layer.0.attention.self.key.weight"][1] == "not in include"


def test_names_come_in_the_order_of_the_model() -> None:
    model = build("Bert")
    order = [name for name, _ in model.named_parameters()]
    taken = list(select(model, Targets(), Unstructured()).taken)
    assert taken == sorted(taken, key=order.index)


def odd() -> nn.Sequential:
    """``[30, 32]`` and ``[32, 30]``."""
    return two_layers(width=32, hidden=30)


@pytest.mark.parametrize(
    ("pattern", "taken", "skipped", "reason"),
    [
        ("4x1", "2.weight", "0.weight", "4x1 does not divide it: 30 % 4 = 2"),
        ("1x4", "0.weight", "2.weight", "1x4 does not divide it: 30 % 4 = 2"),
        ("2:4", "0.weight", "2.weight", "2:4 does not divide it: 30 % 4 = 2"),
    ],
)
def test_shapes_that_do_not_divide_are_skipped_and_reported(
    pattern: str, taken: str, skipped: str, reason: str
) -> None:
    selection = select(odd(), Targets(), parse_pattern(pattern))
    assert list(selection.taken) == [taken]
    assert selection.skipped[skipped][1] == reason


def failure(model: nn.Module, targets: Targets, pattern: str = "1x1") -> TargetError:
    with pytest.raises(TargetError) as caught:
        select(model, targets, parse_pattern(pattern), "prune[0].targets")
    return caught.value


def test_nothing_that_divides_is_an_error() -> None:
    (problem,) = failure(odd(), Targets(), "32x32").problems
    assert (problem.key, problem.value) == ("prune[0].pattern", "32x32")
    assert "divide at least one of the 2 tensors" in problem.rule
    assert "0.weight [30, 32]: 32x32 does not divide it: 30 % 32 = 30" in problem.rule
    assert problem.fix.startswith("1x1")


@pytest.mark.parametrize(
    ("targets", "key", "fix"),
    [
        (Targets(include=("attenton",)), "include", "attention"),
        (Targets(include=(r"encoder.*\.queri\.weight",)), "include", "encoder"),
        (Targets(include=("intermediat_",)), "include", "intermediate"),
        (Targets(include=("pooler",)), "include", "pooler"),  # there, but excluded by default
        (Targets(exclude=("weight",)), "exclude", "fewer patterns"),
        (Targets(include=()), "include", "one of"),
    ],
)
def test_nothing_that_matches_names_the_nearest(targets: Targets, key: str, fix: str) -> None:
    (problem,) = failure(build("Bert"), targets).problems
    assert problem.key == f"prune[0].targets.{key}"
    assert fix in problem.fix


def test_bad_regular_expressions_come_all_at_once() -> None:
    error = failure(build("Bert"), Targets(include=("(", "layer"), exclude=("[a",)))
    assert [problem.key for problem in error.problems] == ["prune[0].targets.include", "prune[0].targets.exclude"]
    assert [problem.value for problem in error.problems] == ["(", "[a"]
    assert all("be a regular expression" in problem.rule for problem in error.problems)


def test_a_model_without_linear_modules_is_an_error() -> None:
    (problem,) = failure(nn.Sequential(nn.Conv1d(4, 4, 1)), Targets()).problems
    assert "find at least one torch.nn.Linear" in problem.rule


class Nested(nn.Module):
    """No Hugging Face model; one Linear is used under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.body = two_layers()
        self.again = self.body[0]
        self.bilinear = nn.Bilinear(2, 3, 4)


@pytest.mark.parametrize(
    ("model", "taken", "skipped"),
    [
        (two_layers(), ["0.weight", "2.weight"], []),
        (Nested(), ["body.0.weight", "body.2.weight"], ["bilinear.weight"]),
    ],
)
def test_plain_modules(model: nn.Module, taken: list[str], skipped: list[str]) -> None:
    selection = select(model, Targets(), NofM(2, 4))
    assert list(selection.taken) == taken
    assert list(selection.skipped) == skipped


def test_weights_counts_the_taken_ones() -> None:
    assert Selection({"a": (3, 4), "b": (2, 5)}, {"c": ((9, 9), "no")}).weights == 22
