"""What exports start from: tokenizers, settings and weights in every form that transformers reads."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertTokenizerFast,
    PreTrainedTokenizerFast,
)

from prunus.bench.command import bench
from prunus.checkpoint.weights import read_weights, weight_files
from prunus.errors import CheckpointError, EngineError
from prunus.export import Calibration, export_packed
from prunus.export.archive import export_archive, restore_archive
from prunus.export.graph import export_graph
from prunus.export.running import whereabouts
from prunus.export.smaller import compact_directory
from prunus.export.source import carry_tokenizer, full_settings
from prunus.runtime import load
from prunus.sparsity import Masker, Pruning, Schedule, Span
from prunus.training.run_facts import size_on_disk
from small import CONFIGS, VOCABULARY, WORDS, save_tiny_bert

TEXTS = ("a good film", "Very LONG book, two three", "naïve café")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNUS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def byte_pairs() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(WORDS)], trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def vocabulary_text(place: Path) -> None:
    """BERT's old form: vocab.txt and settings."""
    (place / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    settings = {"model_max_length": 32, "tokenizer_class": "BertTokenizer", "do_lower_case": True}
    (place / "tokenizer_config.json").write_text(json.dumps(settings))


def cased_vocabulary(place: Path) -> None:
    vocabulary_text(place)
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": False, "strip_accents": False}
    (place / "tokenizer_config.json").write_text(json.dumps(settings))


def vocabulary_and_merges(place: Path) -> None:
    """RoBERTa's old form: vocab.json, merges.txt and settings."""
    held = json.loads(byte_pairs().to_str())["model"]
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in held["merges"]]
    (place / "vocab.json").write_text(json.dumps(held["vocab"]))
    (place / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (place / "tokenizer_config.json").write_text(
        json.dumps({"model_max_length": 32, "tokenizer_class": "RobertaTokenizer"})
    )


def words_alone(place: Path) -> None:
    """A tokenizer of nobody's class: tokenizer.json alone."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]")
    whole.save_pretrained(place)


def added_words(place: Path) -> None:
    vocabulary_text(place)
    tokenizer = BertTokenizerFast.from_pretrained(place)
    tokenizer.add_tokens(["film", "e-mail@example.org"])
    (place / "vocab.txt").unlink()
    tokenizer.save_pretrained(place)


TOKENIZERS = [vocabulary_text, cased_vocabulary, vocabulary_and_merges, words_alone, added_words]


def saved(place: Path, tokenizer: Any, head: str = "classification") -> Path:
    """A small model with this form of tokenizer, whose embeddings know all of its ids."""
    config = CONFIGS["roberta" if tokenizer is vocabulary_and_merges else "bert"]()
    config.vocab_size, config.num_labels = 320, 3
    torch.manual_seed(0)
    kind = AutoModelForSequenceClassification if head == "classification" else AutoModel
    model = kind.from_config(config)
    Masker(model, Pruning(0.5, "ffn", "magnitude", Schedule("one_shot", Span(0))), 1)
    model.save_pretrained(place)
    tokenizer(place)
    return place


def ids(place: Path, *texts: str) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(place)
    return [tokenizer(text)["input_ids"] for text in texts or TEXTS]


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_the_tokenizer_goes_with_every_directory(tokenizer: Any, tmp_path: Path) -> None:
    source = saved(tmp_path / "source", tokenizer)
    (tmp_path / "texts").write_text("\n".join(TEXTS), encoding="utf-8")
    expected = ids(source)
    assert len({str(row) for row in expected}) > 1
    export_packed(source, tmp_path / "packed", "int8", Calibration(tmp_path / "texts"), threads=1)
    compact_directory(source, tmp_path / "compact")
    export_archive(source, tmp_path / "archive")
    restore_archive(tmp_path / "archive", tmp_path / "restored")
    for name in ("packed", "compact", "archive", "restored"):
        assert ids(tmp_path / name) == expected, name
    with load(tmp_path / "packed", threads=1) as engine:
        assert [row.tolist() for row in engine.tokenize(TEXTS)[0]] == expected
        pair = engine.tokenize([TEXTS[:2]])
        whole = AutoTokenizer.from_pretrained(source)(*TEXTS[:2])
        assert pair[0][0].tolist() == whole["input_ids"]
        assert pair[1][0].tolist() == whole.get("token_type_ids", [0] * len(pair[0][0]))


@pytest.fixture
def no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing a graph takes seconds; here an empty file stands for it."""
    monkeypatch.setattr("prunus.export.graph.write", lambda model, example, names, output, to: None)
    monkeypatch.setattr("prunus.export.graph.integer_products", lambda path, to: (3, 9))


@pytest.mark.usefixtures("no_graph")
@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_graphs_get_the_tokenizer_too(to: str, tmp_path: Path) -> None:
    source = saved(tmp_path / "source", vocabulary_and_merges)
    export_graph(source, tmp_path / "graph", to, "float32")
    assert ids(tmp_path / "graph") == ids(source)


def test_a_tokenizer_that_saves_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = saved(tmp_path / "source", vocabulary_text)
    whole = AutoTokenizer.from_pretrained(source)

    def other(place: Path, **options: Any) -> None:
        words = [word if word != "film" else "cinema" for word in VOCABULARY]
        (Path(place) / "vocab.txt").write_text("\n".join(words) + "\n")
        (Path(place) / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))

    monkeypatch.setattr(type(whole), "save_pretrained", lambda self, place, **options: other(place))
    with pytest.raises(CheckpointError, match="the tokenizer must give the same ids after it was saved"):
        export_packed(source, tmp_path / "packed", "float32")
    assert not (tmp_path / "packed").exists()


def test_no_tokenizer_is_none(tmp_path: Path) -> None:
    place = save_tiny_bert(tmp_path / "bert")
    (tmp_path / "out").mkdir()
    for path in place.glob("tokenizer*"):
        path.unlink()
    assert carry_tokenizer(place, tmp_path / "out") is None
    (place / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')  # settings of no words
    assert carry_tokenizer(place, tmp_path / "out") is None
    export_packed(place, tmp_path / "packed", "float32")
    with load(tmp_path / "packed", threads=1) as engine, pytest.raises(EngineError, match=r"tokenizer\.json"):
        engine.encode("a good film")


# settings


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet", "distilbert", "electra", "albert"])
def test_a_configuration_without_its_defaults(family: str, tmp_path: Path) -> None:
    config = CONFIGS[family]()
    if family in ("electra", "albert"):
        config.embedding_size = 16
    plain = type(config)()
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    held = json.loads(path.read_text())
    short = {key: value for key, value in held.items() if key == "model_type" or getattr(plain, key, None) != value}
    assert "pad_token_id" not in short
    path.write_text(json.dumps(short | {"architectures": held["architectures"]}))
    model = AutoModel.from_pretrained(tmp_path / "model").eval()
    export_packed(tmp_path / "model", tmp_path / "packed", "float32", threads=1)
    tokens = torch.randint(5, 40, (3, 9), generator=torch.Generator().manual_seed(0))
    tokens[1, 4] = tokens[2, 7:] = model.config.pad_token_id  # positions skip it wherever it stands
    with load(tmp_path / "packed", threads=1) as engine, torch.no_grad():
        found = engine(tokens, torch.ones_like(tokens)).last_hidden_state
        assert float((found - model(tokens, torch.ones_like(tokens)).last_hidden_state).abs().max()) < 1e-4
        rows = engine.states(list(tokens.numpy()))
        assert np.abs(np.stack(rows) - found.numpy()).max() < 1e-6


def test_own_settings_win_and_unknown_types_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "roberta", "layer_norm_eps": 0.5}')
    found = full_settings(tmp_path)
    assert (found["layer_norm_eps"], found["pad_token_id"], found["type_vocab_size"]) == (0.5, 1, 2)
    (tmp_path / "config.json").write_text('{"model_type": "nobodys", "a": 1}')
    assert full_settings(tmp_path) == {"model_type": "nobodys", "a": 1}


def test_positions_without_a_padding_token_are_refused(tmp_path: Path) -> None:
    model = AutoModel.from_config(CONFIGS["roberta"]())
    model.save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token_id": None}))
    with pytest.raises(EngineError, match="pad_token_id must be the id of a token"):
        export_packed(tmp_path / "model", tmp_path / "packed", "float32")


def test_weights_of_another_quantization_are_refused(tmp_path: Path) -> None:
    source = saved(tmp_path / "source", vocabulary_text)
    path = source / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(EngineError, match=r"quantization_config must be absent.*got 'fp8'"):
        export_packed(source, tmp_path / "packed", "float32")


# weights


def shards(place: Path, form: str) -> None:
    """Writes the weights of a directory in another form."""
    model = AutoModelForSequenceClassification.from_pretrained(place)
    state = model.state_dict()
    (place / "model.safetensors").unlink()
    if form == "sharded safetensors":
        model.save_pretrained(place, max_shard_size="10KB")
        assert len(list(place.glob("model-*.safetensors"))) > 1
    elif form == "bin":
        torch.save(state, place / "pytorch_model.bin")
    elif form == "old names":
        old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        for name in list(state):
            for new, was in old.items():
                if name.endswith(new):
                    state[name.removesuffix(new) + was] = state.pop(name)
        torch.save(state, place / "pytorch_model.bin")
    elif form == "sharded bin":
        names = list(state)
        halves = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
        for file, part in halves.items():
            torch.save({name: state[name] for name in part}, place / file)
        index = {name: file for file, part in halves.items() for name in part}
        (place / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    else:
        model.to(getattr(torch, form)).save_pretrained(place)


@pytest.mark.parametrize("form", ["sharded safetensors", "bin", "sharded bin", "old names", "bfloat16", "float16"])
def test_weights_of_every_form(form: str, tmp_path: Path) -> None:
    source = saved(tmp_path / "source", vocabulary_text)
    shards(source, form)
    model = AutoModelForSequenceClassification.from_pretrained(source, dtype=torch.float32).eval()
    tokens = torch.tensor([[2, 5, 6, 7, 3]])
    with torch.no_grad():
        expected = model(tokens).logits
    facts = export_packed(source, tmp_path / "packed", "float32", threads=1)
    assert facts["bytes"]["dense"] == sum(path.stat().st_size for path in weight_files(source)) == size_on_disk(source)
    with load(tmp_path / "packed", threads=1) as engine:
        assert float((engine(tokens).logits - expected).abs().max()) < 1e-5
    export_archive(source, tmp_path / "archive")
    restore_archive(tmp_path / "archive", tmp_path / "restored")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "restored", dtype=torch.float32).eval()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())


def test_a_bfloat16_directory_is_timed(tmp_path: Path) -> None:
    source = saved(tmp_path / "source", vocabulary_text, "none")
    AutoModel.from_pretrained(source).bfloat16().save_pretrained(source)
    facts = bench(source, ["prunus float32", "torch float32"], [(1, 4)], 1, 3)
    assert set(facts["cases"]["1 x 4"]) == {"prunus float32", "torch float32"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: next(d.glob("model-*")).unlink(), "must be a file beside the index"),
        (lambda d: (d / "model.safetensors.index.json").write_text("{}"), "weight_map must be a file"),
        (
            lambda d: (d / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x"}}'),
            r"\.\./x must be a file",
        ),
        (lambda d: (d / "model.safetensors.index.json").unlink(), "weights of .* must be there"),
    ],
)
def test_shards_that_are_not_there_are_told(change: Any, words: str, tmp_path: Path) -> None:
    source = saved(tmp_path / "source", vocabulary_text)
    shards(source, "sharded safetensors")
    change(source)
    with pytest.raises(CheckpointError, match=words):
        export_packed(source, tmp_path / "packed", "float32")


def test_a_file_with_code_in_it_is_not_run(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "touched",))

    torch.save({"a": Code()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin must be a whole file of tensors"):
        read_weights(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"half a file")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin must be a whole file of tensors"):
        read_weights(tmp_path)
    assert not (tmp_path / "touched").exists()


@pytest.mark.usefixtures("no_graph")
def test_products_that_stay_in_float_come_with_advice(tmp_path: Path) -> None:
    source = saved(tmp_path / "source", vocabulary_text)
    (tmp_path / "texts").write_text("\n".join([*TEXTS, *TEXTS]), encoding="utf-8")
    with pytest.raises(EngineError, match=r"got 3 int8, 9 float32 for bert\n.*try --precision float32"):
        export_graph(source, tmp_path / "onnx", "onnx", "int8", Calibration(tmp_path / "texts"))


@pytest.mark.parametrize("form", ["bin", "sharded safetensors"])
def test_the_torch_backend_takes_any_form(form: str, tmp_path: Path) -> None:
    source = saved(tmp_path / "source", vocabulary_text)
    shards(source, form)
    assert whereabouts(source, "torch") == weight_files(source)[0]
    weight_files(source)[0].unlink()
    with pytest.raises(EngineError, match=r"model\.safetensors must be in"):
        whereabouts(source, "torch")
