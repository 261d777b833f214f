"""Packed models against ``transformers``, and what a call takes and refuses."""

import copy
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from harness import HERE, Array, draw_ids, small_dense
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AlbertConfig,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    MPNetConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

from prunus.errors import EngineError
from prunus.runtime import Engine, load
from prunus.runtime.convert import calibrate, convert
from prunus.runtime.families import canonical, read_checkpoint
from prunus.runtime.store import write_model

VOCABULARY, LONGEST = 70, 200
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 68,
    "max_position_embeddings": LONGEST,
}
SHIFTED = SIZES | {"max_position_embeddings": LONGEST + 2, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
CONFIGS: dict[str, Any] = {
    "Bert": partial(BertConfig, **SIZES),
    "Roberta": partial(RobertaConfig, **SHIFTED, type_vocab_size=1),
    "XLMRoberta": partial(XLMRobertaConfig, **SHIFTED),
    "DistilBert": partial(
        DistilBertConfig,
        vocab_size=VOCABULARY,
        dim=32,
        n_layers=2,
        n_heads=4,
        hidden_dim=68,
        max_position_embeddings=LONGEST,
    ),
    "Electra": partial(ElectraConfig, **SIZES, embedding_size=16),
    "MPNet": partial(MPNetConfig, **SHIFTED),
    "Albert": partial(AlbertConfig, **SIZES | {"num_hidden_layers": 5}, embedding_size=16, num_hidden_groups=2),
}
MODELS = (
    "BertForSequenceClassification",
    "BertForQuestionAnswering",
    "BertForTokenClassification",
    "BertModel",
    "RobertaForSequenceClassification",
    "RobertaForQuestionAnswering",
    "XLMRobertaForSequenceClassification",
    "XLMRobertaModel",
    "DistilBertForQuestionAnswering",
    "DistilBertForSequenceClassification",
    "DistilBertModel",
    "ElectraForTokenClassification",
    "ElectraForSequenceClassification",
    "ElectraModel",
    "MPNetModel",
    "MPNetForSequenceClassification",
    "AlbertModel",
    "AlbertForSequenceClassification",
    "AlbertForQuestionAnswering",
    "AlbertForTokenClassification",
)
LENGTHS = (17, 9, 150, 1, 64, 2)


def saved(directory: Path, name: str, **more: Any) -> Any:
    """A random model of transformers, saved: every parameter far from where it started."""
    family = next(family for family in sorted(CONFIGS, key=len, reverse=True) if name.startswith(family))
    torch.manual_seed(0)
    config = CONFIGS[family](**({"num_labels": 5} if "Classification" in name else {}), **more)
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    model.save_pretrained(directory)
    return model


def packed(directory: Path, integers: bool = False) -> None:
    dense = read_checkpoint(directory)
    ids, types = draw_ids(dense.shape, (20, 60, 7))
    write_model(convert(dense, calibrate(dense, ids, types) if integers else None), directory)


def batch(model: Any, lengths: tuple[int, ...] = LENGTHS, seed: int = 1) -> dict[str, torch.Tensor]:
    """Padded on the right; no id of a token is that of padding."""
    generator = torch.Generator().manual_seed(seed)
    padding = model.config.pad_token_id or 0
    ids = torch.randint(3, VOCABULARY, (len(lengths), max(lengths)), generator=generator)
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    inputs = {"input_ids": ids.masked_fill(~mask, padding), "attention_mask": mask.long()}
    if getattr(model.config, "type_vocab_size", 1) > 1:
        types = torch.randint(0, 2, ids.shape, generator=generator)
        inputs["token_type_ids"] = types.masked_fill(~mask, 0)
    return inputs


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("bert")
    saved(place, "BertForTokenClassification")
    packed(place)
    return place


@pytest.fixture
def engine(directory: Path, shared_code: None) -> Iterator[Engine]:
    with load(directory, threads=1) as engine:
        yield engine


def test_albert_projects_embeddings_of_the_hidden_size_too(tmp_path: Path, shared_code: None) -> None:
    model = saved(tmp_path, "AlbertModel", embedding_size=32)
    packed(tmp_path)
    inputs = batch(model)
    with load(tmp_path, threads=1) as engine, torch.no_grad():
        real = inputs["attention_mask"].bool()
        difference = engine(**inputs).last_hidden_state - model(**inputs).last_hidden_state
        assert float(difference[real].abs().max()) < 1e-3


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_hidden_groups", 0), ("num_hidden_groups", 6), ("num_hidden_groups", 1.0), ("inner_group_num", 2)],
)
def test_layers_that_share_weights_in_other_ways_are_refused(key: str, value: Any, tmp_path: Path) -> None:
    saved(tmp_path, "AlbertModel")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(EngineError, match=f"{key} must be"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_the_same_numbers_as_transformers(name: str, threads: int, tmp_path: Path, shared_code: None) -> None:
    model = saved(tmp_path, name)
    packed(tmp_path)
    inputs = batch(model)
    with torch.no_grad():
        expected = model(**inputs)
    with load(tmp_path, threads=threads) as engine:
        assert (engine.architecture, engine.threads) == (name, threads)
        output = engine(**inputs)
    names = ["last_hidden_state" if name.endswith("Model") else "logits"]
    if name.endswith("QuestionAnswering"):
        names = ["start_logits", "end_logits"]
    if getattr(expected, "pooler_output", None) is not None:
        names.append("pooler_output")
    assert list(output) == names
    mask = inputs["attention_mask"].bool()
    for key in names:
        ours, theirs = output[key], expected[key]
        assert isinstance(ours, torch.Tensor)
        assert (ours.shape, ours.dtype) == (theirs.shape, torch.float32)
        by_token = ours.shape[:2] == mask.shape
        assert (ours - theirs)[mask if by_token else ...].abs().max() < 1e-4
        assert theirs.std() > 0.1
        if by_token:
            assert (ours[~mask] == (-10000 if key in ("start_logits", "end_logits") else 0)).all()


def test_bytes_are_near_float32(tmp_path: Path, shared_code: None) -> None:
    model = saved(tmp_path, "BertForTokenClassification")
    packed(tmp_path, integers=True)
    inputs = batch(model)
    with torch.no_grad():
        expected = model(**inputs).logits
    with load(tmp_path, threads=1) as engine:
        assert engine.facts()["precision"] == "int8"
        ours = engine(**inputs).logits
    mask = inputs["attention_mask"].bool()
    assert (ours - expected)[mask].norm() < 0.1 * expected[mask].norm()


def numbers(count: int = 3, length: int = 12) -> dict[str, Array]:
    draw = np.random.default_rng(0)
    return {"input_ids": draw.integers(3, VOCABULARY, (count, length)), "attention_mask": np.ones((count, length), int)}


def test_numpy_in_numpy_out(engine: Engine) -> None:
    inputs = numbers()
    output = engine(**inputs)
    assert type(output.logits) is np.ndarray
    assert (output.logits.shape, output.logits.dtype) == ((3, 12, 5), np.float32)
    given = engine(**{name: torch.tensor(value) for name, value in inputs.items()}).logits
    assert (given.numpy() == output.logits).all()
    assert (engine(inputs["input_ids"].tolist()).logits == output.logits).all()
    assert (engine(inputs["input_ids"].astype(np.int32)).logits == output.logits).all()
    assert np.abs(engine(inputs["input_ids"][0].tolist()).logits - output.logits[:1]).max() < 1e-5
    assert (engine(**inputs, return_dict=True, output_attentions=False, head_mask=None).logits == output.logits).all()


def test_an_output_is_read_by_name_attribute_and_position(engine: Engine) -> None:
    output = engine(**numbers())
    assert output["logits"] is output.logits is output[0] is output.to_tuple()[0]
    assert len(output[:1]) == 1
    with pytest.raises(AttributeError, match="hidden_states"):
        output.hidden_states  # noqa: B018
    with pytest.raises(KeyError):
        output["hidden_states"]


MASKS = {
    "left": [0, 0, 0, 1, 1, 1],
    "hole": [1, 1, 0, 0, 1, 1],
    "both": [0, 1, 0, 1, 1, 0],
    "right": [1, 1, 1, 0, 0, 0],
}


@pytest.mark.parametrize("name", [name for name in MODELS if name.endswith(("Model", "SequenceClassification"))])
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("filled", [True, False])
def test_masks_give_the_same_numbers_or_an_error(
    name: str, kind: str, filled: bool, tmp_path: Path, shared_code: None
) -> None:
    model = saved(tmp_path, name)
    packed(tmp_path)
    mask = torch.tensor([[1] * 6, MASKS[kind]])
    ids = torch.randint(3, VOCABULARY, (2, 6), generator=torch.Generator().manual_seed(4))
    if filled:
        ids = ids.masked_fill(mask == 0, model.config.pad_token_id or 0)
    refused = (name.startswith("MPNet") and kind in ("hole", "both")) or (
        name.endswith("Classification") and kind in ("left", "both")
    )
    with load(tmp_path, threads=1) as engine:
        if refused:
            with pytest.raises(EngineError, match=r"attention_mask\[1\] must (have no gap|begin with 1)"):
                engine(ids, mask)
            return
        output = engine(ids, mask)
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask)
    first = next(iter(output))
    keep = slice(None) if first == "logits" else mask.bool()
    assert float((output[first][keep] - expected[first][keep]).abs().max()) < 1e-4
    if "pooler_output" in expected and expected["pooler_output"] is not None:
        # What the pooler gives for a first token that is padding is not worth having, and is not given.
        assert ("pooler_output" in output) == (kind in ("hole", "right"))


def test_a_padding_token_within_a_text_counts_as_in_transformers(tmp_path: Path, shared_code: None) -> None:
    model = saved(tmp_path, "RobertaModel")
    packed(tmp_path)
    ids = torch.tensor([[0, 5, 1, 6, 1, 7, 2]])
    with load(tmp_path, threads=1) as engine, torch.no_grad():
        found = engine.states([ids[0].numpy()])[0]
        assert np.abs(found - model(ids).last_hidden_state[0].numpy()).max() < 1e-4


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (None, "texts must be a list of texts"),
        (7, "texts must be a list of texts"),
        ([None, "a"], r"texts\[0\] must be a text, or a pair of texts, got 'NoneType'"),
        (["a", 3.5], r"texts\[1\] must be a text"),
        ([("a", 2)], r"texts\[0\] must be a text"),
        ([["a", "b", "c"]], r"texts\[0\] must be a text"),
        (["half \ud83d"], r"texts\[0\] must be Unicode text without lone surrogates"),
    ],
)
def test_what_is_no_text_is_an_engine_error(sentences: tuple[Engine, Any], texts: Any, words: str) -> None:
    for call in (sentences[0].encode, sentences[0].tokenize):
        with pytest.raises(EngineError, match=words):
            call(texts)


def test_masks_of_any_type_and_holes(engine: Engine) -> None:
    inputs = numbers()
    mask = np.ones((3, 12), int)
    mask[1, 7:] = 0
    expected = engine(inputs["input_ids"], mask).logits
    for kind in (bool, np.float32, np.int8):
        assert (engine(inputs["input_ids"], mask.astype(kind)).logits == expected).all()
    assert (engine(inputs["input_ids"], torch.tensor(mask)).logits == expected).all()
    assert (expected[1, 7:] == 0).all()
    # the states are the same to the bit; the head is a product of BLAS, which may add in another order
    assert np.abs(engine(inputs["input_ids"][1:2, :7]).logits - expected[1, :7]).max() < 1e-5


@pytest.mark.parametrize("side", ["left", "holes"])
def test_positions_are_counted_as_transformers_does(side: str, tmp_path: Path, shared_code: None) -> None:
    model = saved(tmp_path, "BertForTokenClassification")
    packed(tmp_path)
    ids = torch.randint(3, VOCABULARY, (2, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[0, : 6 if side == "left" else 13 : 1 if side == "left" else 3] = 0
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).logits
    with load(tmp_path, threads=1) as engine:
        ours = engine(input_ids=ids, attention_mask=mask).logits
    assert (ours - expected)[mask.bool()].abs().max() < 1e-4


IDS = numbers()["input_ids"]


@pytest.mark.parametrize(
    "inputs",
    [
        {"input_ids": np.zeros((0, 5), int)},
        {"input_ids": np.zeros((2, 0), int)},
        {"input_ids": []},
        {"input_ids": [[]]},
        {"input_ids": np.full((1, LONGEST + 1), 3)},
        {"input_ids": [[3, -1]]},
        {"input_ids": [[3, VOCABULARY]]},
        {"input_ids": [[3, 2**31]]},
        {"input_ids": [[3, 2**32 + 3]]},
        {"input_ids": IDS, "attention_mask": np.ones((3, 11))},
        {"input_ids": IDS, "attention_mask": np.ones((2, 12))},
        {"input_ids": IDS, "attention_mask": np.ones(12)},
        {"input_ids": IDS, "attention_mask": np.ones((1, 12))},
        {"input_ids": IDS, "attention_mask": np.ones((3, 1))},
        {"input_ids": IDS, "attention_mask": np.ones((3, 1, 1, 12))},
        {"input_ids": IDS, "attention_mask": np.zeros((3, 12))},
        {"input_ids": IDS, "token_type_ids": np.zeros((3, 11), int)},
        {"input_ids": IDS, "token_type_ids": np.full((3, 12), 2)},
        {"input_ids": IDS, "token_type_ids": np.full((3, 12), -1)},
        {"input_ids": IDS, "output_attentions": True},
        {"input_ids": IDS, "input_id": 3},
        {"input_ids": IDS, "labels": 1},
        {"input_ids": IDS, "position_ids": np.arange(12)[None].repeat(3, 0)},
        {"input_ids": IDS, "inputs_embeds": torch.zeros(3, 12, 32)},
        {"input_ids": np.zeros((2, 2, 6), int)},
        {"input_ids": [[3, 4], [5]]},
        {"input_ids": [["three", "four"]]},
        {"input_ids": [[3.7, 4.2]]},
        {"input_ids": None},
        {"input_ids": [[3, 2**70]]},
    ],
    ids=lambda inputs: " ".join(f"{name}={str(value)[:20]}" for name, value in inputs.items()).replace("\n", ""),
)
def test_what_cannot_be_computed_is_an_engine_error(inputs: dict[str, Any], engine: Engine) -> None:
    with pytest.raises(EngineError) as caught:
        engine(**inputs)
    assert all(problem.key and problem.rule for problem in caught.value.problems)
    assert engine(**numbers()).logits.shape == (3, 12, 5)  # and it goes on


@pytest.mark.parametrize(
    ("sequences", "types"),
    [
        ([], None),
        ([[3], []], None),
        ([[3, 4]], [[0]]),
        ([[3, 4]], [[0, 2]]),
        ([[3, 4], [5]], [[0, 0]]),
        ([[3, 4]], [[0, 0], [0]]),
        ([[3, VOCABULARY]], None),
        ([[3] * (LONGEST + 1)], None),
    ],
)
def test_states_refuses_the_same(sequences: Any, types: Any, engine: Engine) -> None:
    with pytest.raises(EngineError):
        engine.states(sequences, types)


def test_all_mistakes_of_a_batch_come_at_once(engine: Engine) -> None:
    with pytest.raises(EngineError) as caught:
        engine.states([[3], [], [VOCABULARY], [3] * (LONGEST + 1)])
    assert [problem.key for problem in caught.value.problems] == [f"input_ids[{i}]" for i in (1, 2, 3)]


def test_the_longest_sequence(tmp_path: Path, engine: Engine, shared_code: None) -> None:
    assert engine.longest == LONGEST
    assert engine(np.full((1, LONGEST), 3)).logits.shape == (1, LONGEST, 5)
    saved(tmp_path, "MPNetModel")
    packed(tmp_path)
    with load(tmp_path, threads=1) as shifted:
        assert shifted.longest == LONGEST
        assert shifted(np.full((1, LONGEST), 3)).last_hidden_state.shape == (1, LONGEST, 32)


def test_a_batch_of_more_tokens_than_one_pass(engine: Engine) -> None:
    ids = np.random.default_rng(0).integers(3, VOCABULARY, (60, 150))
    whole = engine(ids).logits
    for row in (0, 27, 28, 59):
        assert np.abs(engine(ids[row : row + 1]).logits - whole[row]).max() < 1e-6


@pytest.mark.parametrize("threads", [1, 2])
def test_calls_from_several_threads(threads: int, directory: Path, shared_code: None) -> None:
    batches = [numbers(2 + i, 5 + 9 * i) for i in range(6)]
    with load(directory, threads=threads) as engine:
        expected = [engine(**inputs).logits for inputs in batches]
        wrong: list[object] = []

        def work(first: int) -> None:
            for step in range(12):
                i = (first + step) % len(batches)
                try:
                    if not (engine(**batches[i]).logits == expected[i]).all():
                        wrong.append(i)
                except Exception as error:
                    wrong.append(error)

        workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert wrong == []


def test_two_engines_in_one_process(directory: Path, tmp_path: Path, shared_code: None) -> None:
    saved(tmp_path, "MPNetModel")
    packed(tmp_path, integers=True)
    with load(directory, threads=2) as first, load(tmp_path, threads=2, isa=HERE[-1]) as second:
        inputs = numbers()
        logits, states = first(**inputs).logits, second(inputs["input_ids"]).last_hidden_state
        for _ in range(3):
            assert (first(**inputs).logits == logits).all()
            assert (second(inputs["input_ids"]).last_hidden_state == states).all()
        first.close()
        assert (second(inputs["input_ids"]).last_hidden_state == states).all()


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("used", [False, True])
def test_a_closed_engine_is_an_engine_error(threads: int, used: bool, directory: Path, shared_code: None) -> None:
    before = set(threading.enumerate())
    engine = load(directory, threads=threads)
    own = set(threading.enumerate()) - before
    assert len(own) == threads - 1
    if used:
        engine(**numbers())
    for _ in range(2):
        engine.close()
        with pytest.raises(EngineError, match="closed"):
            engine(**numbers())
    for thread in own:
        thread.join(5)
    assert not any(thread.is_alive() for thread in own)


def test_a_forgotten_engine_ends_its_threads(directory: Path, shared_code: None) -> None:
    before = set(threading.enumerate())
    engine = load(directory, threads=3)
    own = set(threading.enumerate()) - before
    engine(**numbers())
    del engine
    for thread in own:
        thread.join(5)
    assert len(own) == 2
    assert not any(thread.is_alive() for thread in own)


@pytest.mark.parametrize("threads", [0, -1, 257])
def test_a_wrong_number_of_threads(threads: int, directory: Path) -> None:
    with pytest.raises(EngineError, match="threads must be 1 to 256"):
        load(directory, threads=threads)


@pytest.mark.parametrize(("stated", "expected"), [("3", 3), ("0", None), ("two", None), ("-1", None), ("²", None)])
def test_the_environment_states_the_threads(
    stated: str, expected: int | None, directory: Path, monkeypatch: pytest.MonkeyPatch, shared_code: None
) -> None:
    monkeypatch.setenv("PRUNUS_THREADS", stated)
    if expected is None:
        with pytest.raises(EngineError, match="threads"):
            load(directory)
    else:
        with load(directory) as engine:
            assert engine.threads == expected


@pytest.mark.parametrize("isa", HERE)
def test_a_path_can_be_forced(isa: str, directory: Path, monkeypatch: pytest.MonkeyPatch, shared_code: None) -> None:
    monkeypatch.setenv("PRUNUS_ISA", isa)
    with load(directory, threads=1) as engine:
        assert engine.facts()["isa"] == isa
    monkeypatch.setenv("PRUNUS_ISA", "sse9")
    with pytest.raises(EngineError, match="sse9"):
        load(directory, threads=1)


def test_facts(engine: Engine, directory: Path) -> None:
    engine(**numbers())
    facts = engine.facts()
    assert (facts["architecture"], facts["precision"], facts["threads"]) == ("BertForTokenClassification", "float32", 1)
    assert facts["weight_formats"] == {"group_sparse_float32": 12}
    parameters = saved(directory.parent / "facts", "BertForTokenClassification").state_dict()
    linear = sum(p.numel() for name, p in parameters.items() if ".layer." in name and p.ndim == 2)
    assert 4 * linear < facts["bytes"]["layers"] < 6 * linear
    other = 4 * sum(p.numel() for name, p in parameters.items() if ".layer." not in name or "LayerNorm" in name)
    assert facts["bytes"]["embeddings and head"] == pytest.approx(other, rel=0.01)
    assert facts["bytes"]["working memory"] > 0


# sentences


@pytest.fixture
def sentences(tmp_path: Path, shared_code: None) -> Iterator[tuple[Engine, Any]]:
    model = saved(tmp_path, "BertModel")
    packed(tmp_path)
    vocabulary = {word: i for i, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "fine", "film", "bad"))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_padding(length=30)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 6}', encoding="utf-8")
    with load(tmp_path, threads=1) as engine:
        yield engine, model


def test_sentence_embeddings(sentences: tuple[Engine, Any]) -> None:
    engine, model = sentences
    rows = ([2, 4, 5, 6, 3], [2, 7, 3], [2, 4, 4, 4, 4, 3])
    expected = []
    for row in rows:
        with torch.no_grad():
            expected.append(model(input_ids=torch.tensor([row])).last_hidden_state[0].mean(0).numpy())
    texts = ["a fine film", "bad", "a a a a a a a a a"]  # the last is cut to 6 tokens
    assert [list(ids) for ids in engine.tokenize(texts)[0]] == [list(row) for row in rows]
    plain = engine.encode(texts, normalize_embeddings=False)
    assert np.abs(plain - np.stack(expected)).max() < 1e-5
    unit = engine.encode(texts)
    assert np.abs(unit - plain / np.linalg.norm(plain, axis=1, keepdims=True)).max() < 1e-6
    assert (engine.encode(texts[0]) == engine.encode(texts[:1])[0]).all()
    assert engine.encode([]).shape == (0, 32)
    ids, types = engine.tokenize([("a film", "bad")])
    assert (ids[0].tolist(), types[0].tolist()) == ([2, 4, 6, 3, 7, 3], [0, 0, 0, 0, 1, 1])


def test_without_a_tokenizer_sentences_are_an_engine_error(engine: Engine) -> None:
    with pytest.raises(EngineError, match=r"tokenizer\.json"):
        engine.encode("a fine film")


def test_an_engine_is_neither_copied_nor_pickled(engine: Engine) -> None:
    with pytest.raises(EngineError, match=r"try prunus\.runtime\.load"):
        deepcopy(engine)


# what a checkpoint may be


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"model_type": "gpt2"}, "model_type"),
        ({"model_type": "brt"}, "bert"),
        ({"model_type": None}, "model_type"),
        ({"hidden_act": "gelu_10"}, "hidden_act"),
        ({"hidden_size": 40}, "hidden_size"),
        ({"hidden_size": "32"}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"num_attention_heads": 5}, "heads"),
        ({"num_attention_heads": 16}, "heads"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_hidden_layers": 3}, "layer.2"),
        ({"num_hidden_layers": 2**24}, "num_hidden_layers"),
        ({"vocab_size": VOCABULARY + 1}, "word_embeddings"),
        ({"max_position_embeddings": -1}, "max_position_embeddings"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"type_vocab_size": 3}, "token_type"),
        ({"type_vocab_size": "two"}, "type_vocab_size"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps"),
        ({"layer_norm_eps": None}, "layer_norm_eps"),
        ({"layer_norm_eps": -1.0}, "layer_norm_eps"),
        ({"is_decoder": True}, "is_decoder"),
    ],
    ids=str,
)
def test_settings_that_have_no_engine(change: dict[str, Any], word: str, directory: Path) -> None:
    dense = read_checkpoint(directory)
    model = transformers.BertForTokenClassification.from_pretrained(directory)
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    with pytest.raises(EngineError, match=word):
        canonical({**dense.settings, **change}, state)


def drop(name: str, state: dict[str, Array]) -> None:
    del state[name]


def spoil(name: str, value: float, state: dict[str, Array]) -> None:
    state[name] = state[name].copy()
    state[name].flat[3] = value


def cut(name: str, state: dict[str, Array]) -> None:
    state[name] = state[name][1:]


@pytest.mark.parametrize(
    "change",
    [
        partial(drop, "bert.encoder.layer.1.attention.self.query.weight"),
        partial(drop, "bert.embeddings.LayerNorm.bias"),
        partial(cut, "bert.encoder.layer.0.attention.self.query.weight"),
        partial(cut, "bert.encoder.layer.0.intermediate.dense.weight"),
        partial(cut, "bert.encoder.layer.0.output.dense.bias"),
        partial(spoil, "bert.encoder.layer.0.output.dense.bias", np.nan),
        partial(spoil, "bert.embeddings.word_embeddings.weight", np.inf),
        partial(spoil, "classifier.weight", np.nan),
    ],
    ids=lambda change: f"{change.func.__name__} {change.args[0]}",
)
def test_tensors_that_do_not_fit(change: Any, directory: Path) -> None:
    model = transformers.BertForTokenClassification.from_pretrained(directory)
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    change(state)
    with pytest.raises(EngineError):
        canonical(copy.deepcopy(read_checkpoint(directory).settings), state)


@pytest.mark.parametrize("shape", [(32,), (32, 3), (32, 5), (0, 4)], ids=str)
def test_a_table_of_relative_positions_that_does_not_fit(shape: tuple[int, ...], tmp_path: Path) -> None:
    model = saved(tmp_path, "MPNetModel")
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    state["encoder.relative_attention_bias.weight"] = np.zeros(shape, np.float32)
    with pytest.raises(EngineError, match="relative_attention_bias"):
        canonical(read_checkpoint(tmp_path).settings, state)


@pytest.mark.parametrize(
    "architecture", ["BertForMaskedLM", "BertForPreTraining", "BertForMultipleChoice", "BertLMHeadModel", "", "Bert"]
)
def test_a_head_that_the_engine_does_not_have(architecture: str, shared_code: None) -> None:
    dense = small_dense("bert")
    dense.settings["architectures"] = [architecture]
    with pytest.raises(EngineError, match="architectures"):
        Engine(convert(dense), threads=1).close()


def test_half_precision_is_read(tmp_path: Path, shared_code: None) -> None:
    model = saved(tmp_path, "BertModel")
    model.half().save_pretrained(tmp_path)
    packed(tmp_path)
    inputs = batch(model)
    with torch.no_grad():
        expected = model.float()(**inputs).last_hidden_state
    with load(tmp_path, threads=1) as engine:
        ours = engine(**inputs).last_hidden_state
    assert (ours - expected)[inputs["attention_mask"].bool()].abs().max() < 1e-4


FORKS = """
import os, sys, threading
import numpy as np
from prunus.runtime import load

busy = sys.argv[2] == "busy"
engine = load(sys.argv[1], threads=2)
ids = np.arange(5, 65)[None].repeat(20, 0)
expected, stop = engine(ids), threading.Event()

def go_on():
    while not stop.is_set():
        engine(ids)

others = [threading.Thread(target=go_on) for _ in range(2 if busy else 0)]
for other in others:
    other.start()
children = []
for _ in range(5):
    child = os.fork()
    if not child:
        same = all(np.array_equal(engine(ids)[0], expected[0]) for _ in range(3))
        engine.close()
        os._exit(0 if same else 3)
    children.append(child)
states = [os.waitpid(child, 0)[1] for child in children]
stop.set()
same = np.array_equal(engine(ids)[0], expected[0])
print(states, same)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
@pytest.mark.parametrize("parent", ["idle", "busy"])
def test_a_forked_process_computes_the_same(parent: str, directory: Path, shared_code: None) -> None:
    told = subprocess.run(
        [sys.executable, "-c", FORKS, str(directory), parent], capture_output=True, text=True, timeout=120, check=True
    )
    assert told.stdout.split("\n")[0] == "[0, 0, 0, 0, 0] True", told.stderr
