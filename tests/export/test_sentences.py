"""Sentence embeddings of packed models against sentence-transformers itself."""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_tensors
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import CNN, Dropout, LayerNorm, Pooling, WeightedLayerPooling
from torch import nn
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from prunus.errors import CheckpointError, EngineError, PrunusError
from prunus.export import Calibration, export_packed
from prunus.export.archive import export_archive, restore_archive
from prunus.export.smaller import compact_directory
from prunus.runtime import Engine, load
from prunus.serving.app import create_app
from prunus.sparsity import Masker, Pruning, Schedule, Span
from small import WORDS, save_tiny_bert

TEXTS = ["good film", "Very long book, two three red blue one two three", "blue", ""]
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNUS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain encoder whose states are far from the same for all tokens."""
    place = save_tiny_bert(tmp_path_factory.mktemp("encoder") / "bert")
    torch.manual_seed(1)
    model = AutoModel.from_pretrained(place)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.4) if parameter.ndim == 2 else None
    model.save_pretrained(place)
    return place


def sentence_model(encoder: Path, place: Path, *more: nn.Module, pooling: Any = "mean", **config: Any) -> Any:
    """A saved sentence-transformers model, loaded again: Transformer, Pooling, and ``more``."""
    torch.manual_seed(2)
    include, own = config.pop("include_prompt", True), config.pop("transformer", {})
    modules = [Transformer(str(encoder), **own), Pooling(16, pooling, include), *more]
    SentenceTransformer(modules=modules, device="cpu", **config).save(str(place))
    return SentenceTransformer(str(place), device="cpu", truncate_dim=config.get("truncate_dim"))


def packed(source: Path, place: Path, **options: Any) -> Engine:
    export_packed(source, place, "float32", threads=1, **options)
    return load(place, threads=1)


def agree(engine: Engine, model: Any, texts: Sequence[str] = TEXTS, **options: Any) -> None:
    found, expected = engine.encode(texts, **options), model.encode(list(texts), **options)
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 2e-5 * max(1.0, float(np.abs(expected).max()))


@pytest.mark.parametrize("pooling", ["cls", MODES, MODES[::-1]], ids=["cls", "all", "reversed"])
@pytest.mark.parametrize("more", [(), (Normalize(),)], ids=["plain", "normalized"])
def test_every_pooling(encoder: Path, tmp_path: Path, pooling: Any, more: tuple[nn.Module, ...]) -> None:
    model = sentence_model(encoder, tmp_path / "st", *more, pooling=pooling)
    with packed(tmp_path / "st", tmp_path / "packed") as engine:
        agree(engine, model)
        agree(engine, model, normalize_embeddings=True)
        agree(engine, model, normalize_embeddings=False)
        assert engine.encode(TEXTS[0]).shape == (engine.features,) == model.encode(TEXTS[0]).shape
        assert engine.encode([]).shape == (0, engine.features)


@pytest.mark.parametrize(
    "more",
    [
        lambda: (Dense(16, 8), Normalize()),
        lambda: (Dense(16, 24, bias=False, activation_function=nn.Identity()),),
        lambda: (Dense(16, 16, activation_function=nn.GELU(), use_residual=True), Dense(16, 4)),
        lambda: (Dense(16, 8, activation_function=nn.ReLU(), use_residual=True), Normalize()),
        lambda: (Dense(16, 8, activation_function=nn.Sigmoid()), Dense(8, 8, activation_function=nn.SiLU())),
        lambda: (Normalize(), Dropout(0.5), LayerNorm(16), Dense(16, 5)),
    ],
)
def test_modules_after_the_pooling(encoder: Path, tmp_path: Path, more: Any) -> None:
    model = sentence_model(encoder, tmp_path / "st", *more())
    with packed(tmp_path / "st", tmp_path / "packed") as engine:
        agree(engine, model)
    export_packed(tmp_path / "st", tmp_path / "packed", "float32", overwrite=True)  # a directory that holds one already
    with load(tmp_path / "packed", threads=1) as engine:
        agree(engine, model)


@pytest.mark.parametrize("include_prompt", [True, False])
def test_prompts(encoder: Path, tmp_path: Path, include_prompt: bool) -> None:
    prompts = {"query": "who is the ", "document": ""}
    options = {"include_prompt": include_prompt, "prompts": prompts, "default_prompt_name": "query"}
    model = sentence_model(encoder, tmp_path / "st", pooling=MODES, **options)
    with packed(tmp_path / "st", tmp_path / "packed") as engine:
        agree(engine, model)
        agree(engine, model, prompt_name="document")
        agree(engine, model, prompt="not one ")
        with pytest.raises(EngineError, match="prompt_name must be one of document, query"):
            engine.encode(TEXTS, prompt_name="passage")


def edited(place: Path, name: str, **values: Any) -> None:
    path = place / name
    held = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(held | values))


@pytest.mark.parametrize("length", [3, 30, 4000])
def test_the_longest_input_is_that_of_the_settings(encoder: Path, tmp_path: Path, length: int) -> None:
    sentence_model(encoder, tmp_path / "st")
    edited(tmp_path / "st", "sentence_bert_config.json", max_seq_length=length)
    edited(tmp_path / "st", "tokenizer_config.json", model_max_length=20)
    with packed(tmp_path / "st", tmp_path / "packed") as engine:
        agree(engine, SentenceTransformer(str(tmp_path / "st"), device="cpu"), [*TEXTS, " ".join(WORDS * 3)])


def test_lower_case_a_smaller_result_and_texts_cut_on_the_left(encoder: Path, tmp_path: Path) -> None:
    shutil.copytree(encoder, tmp_path / "cased")
    held = json.loads((tmp_path / "cased" / "tokenizer.json").read_text())
    held["normalizer"] = None
    (tmp_path / "cased" / "tokenizer.json").write_text(json.dumps(held))
    edited(
        tmp_path / "cased", "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", truncation_side="left"
    )
    sentence_model(tmp_path / "cased", tmp_path / "st", Normalize(), truncate_dim=5)
    texts = ["GOOD Film", "good film", *TEXTS]
    for lower in (True, False):
        edited(tmp_path / "st", "sentence_bert_config.json", do_lower_case=lower, max_seq_length=5)
        model = SentenceTransformer(str(tmp_path / "st"), device="cpu")
        with packed(tmp_path / "st", tmp_path / "packed", overwrite=True) as engine:
            agree(engine, model, texts)
            assert engine.features == 5
            assert np.array_equal(*engine.encode(texts[:2])) == lower


def old_layout(source: Path, place: Path) -> None:
    """The layout of old versions: the transformer in a folder, names of classes and of pooling modes as then."""
    place.mkdir()
    inner = place / "0_Transformer"
    inner.mkdir()
    for path in source.iterdir():
        to = inner if path.is_file() and path.name not in ("modules.json", "README.md") else place
        shutil.copytree(path, to / path.name) if path.is_dir() else shutil.copyfile(path, to / path.name)
    (inner / "config_sentence_transformers.json").rename(place / "config_sentence_transformers.json")
    modules = json.loads((place / "modules.json").read_text())
    for module in modules:
        module["type"] = f"sentence_transformers.models.{module['type'].rpartition('.')[2]}"
    modules[0]["path"] = "0_Transformer"
    (place / "modules.json").write_text(json.dumps(modules))
    modes = {f"pooling_mode_{mode}": mode == "cls_token" for mode in ("mean_tokens", "cls_token", "max_tokens")}
    (place / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16} | modes))
    (inner / "sentence_bert_config.json").write_text('{"max_seq_length": 7, "do_lower_case": false}')


@pytest.mark.parametrize("named", ["", "0_Transformer"])
def test_the_old_layout_by_its_root_or_by_its_transformer(encoder: Path, tmp_path: Path, named: str) -> None:
    sentence_model(encoder, tmp_path / "new", Dense(16, 8), pooling="cls")
    old_layout(tmp_path / "new", tmp_path / "old")
    model = SentenceTransformer(str(tmp_path / "old"), device="cpu")
    with packed(tmp_path / "old" / named, tmp_path / "packed") as engine:
        agree(engine, model)


def test_an_encoder_without_modules_gives_means_of_length_one(encoder: Path, tmp_path: Path) -> None:
    model = SentenceTransformer(str(encoder), device="cpu")  # it makes a mean of its own
    with packed(encoder, tmp_path / "packed") as engine:
        agree(engine, model, normalize_embeddings=True)
        agree(engine, model, normalize_embeddings=False)
        assert np.array_equal(engine.encode(TEXTS), engine.encode(TEXTS, normalize_embeddings=True))


def test_a_checkpoint_of_a_language_model_and_int8(encoder: Path, tmp_path: Path) -> None:
    model = sentence_model(encoder, tmp_path / "st", pooling="cls")
    AutoModelForMaskedLM.from_pretrained(encoder).save_pretrained(tmp_path / "st")
    model = SentenceTransformer(str(tmp_path / "st"), device="cpu")
    (tmp_path / "texts").write_text("\n".join(TEXTS[:3]))
    export_packed(tmp_path / "st", tmp_path / "packed", "int8", Calibration(tmp_path / "texts"), threads=1)
    with load(tmp_path / "packed", threads=1) as engine:
        found, expected = engine.encode(TEXTS[:3]), model.encode(TEXTS[:3])
    cosine = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() > 0.98


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: SentenceTransformer(modules=[Transformer(str(d)), CNN(16), Pooling(16)]), r"CNN"),
        (
            lambda d: SentenceTransformer(modules=[Transformer(str(d)), WeightedLayerPooling(16)]),
            "WeightedLayerPooling",
        ),
        (lambda d: SentenceTransformer(modules=[Transformer(str(d))]), "be one Transformer, then one Pooling"),
        (
            lambda d: SentenceTransformer(
                modules=[Transformer(str(d)), Dense(16, 8, module_input_name="token_embeddings")]
            ),
            "P",
        ),
        (
            lambda d: SentenceTransformer(
                modules=[Transformer(str(d)), Pooling(16), Dense(16, 8, activation_function=nn.Hardtanh())]
            ),
            "activation_function must be a class of torch.nn",
        ),
        (
            lambda d: SentenceTransformer(modules=[Transformer(str(d)), Normalize("token_embeddings"), Pooling(16)]),
            "have the Pooling next to the Transformer",
        ),
    ],
)
def test_what_the_engine_does_not_have_is_refused_by_name(
    encoder: Path, tmp_path: Path, change: Any, words: str
) -> None:
    change(encoder).save(str(tmp_path / "st"))
    with pytest.raises(CheckpointError, match=words):
        export_packed(tmp_path / "st", tmp_path / "packed", "float32")
    assert not (tmp_path / "packed").exists()


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("sentence_bert_config.json", {"max_seq_length": "many"}, "max_seq_length must be a whole number"),
        ("sentence_bert_config.json", {"query_expansion": {"a": 1}}, "query_expansion must be left out"),
        ("sentence_bert_config.json", {"model_args": {"add_pooling_layer": False}}, "model_args must be left out"),
        (
            "sentence_bert_config.json",
            {"transformer_task": "fill-mask"},
            "transformer_task must be 'feature-extraction'",
        ),
        ("1_Pooling/config.json", {"pooling_mode": "attention"}, "pooling_mode must be some of cls"),
        ("config_sentence_transformers.json", {"default_prompt_name": "a"}, "default_prompt_name must be the name"),
        ("config_sentence_transformers.json", {"truncate_dim": 0}, "truncate_dim must be a whole number"),
    ],
)
def test_settings_that_the_engine_does_not_have_are_refused(
    encoder: Path, tmp_path: Path, name: str, values: dict[str, Any], words: str
) -> None:
    sentence_model(encoder, tmp_path / "st")
    edited(tmp_path / "st", name, **values)
    with pytest.raises(PrunusError, match=words):
        export_packed(tmp_path / "st", tmp_path / "packed", "float32")


@pytest.mark.parametrize(
    "modules",
    [
        "[]",
        "{}",
        "not JSON",
        '[{"type": "a.Transformer", "path": "../.."}]',
        '[{"path": ""}]',
        '[{"type": "somebody.Model"}]',
    ],
)
def test_modules_that_cannot_be_read_are_refused(encoder: Path, tmp_path: Path, modules: str) -> None:
    shutil.copytree(encoder, tmp_path / "st")
    (tmp_path / "st" / "modules.json").write_text(modules)
    with pytest.raises(CheckpointError, match=r"modules\.json"):
        export_packed(tmp_path / "st", tmp_path / "packed", "float32")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pooling": ["sum"]}, "pooling must list"),
        ({"steps": [{"kind": "code"}]}, "steps must list"),
        ({"max_length": -1}, "max_length must be"),
        ({"default_prompt": "a"}, "default_prompt must be"),
        ({"pooling": ["cls", "mean"]}, r"sentence.0.weight must be finite float32"),
        ("mean", "description must be a JSON object"),
    ],
)
def test_a_damaged_description_is_an_engine_error(
    encoder: Path, tmp_path: Path, change: dict[str, Any] | str, words: str
) -> None:
    from safetensors import safe_open

    sentence_model(encoder, tmp_path / "st", Dense(16, 8))
    packed(tmp_path / "st", tmp_path / "packed").close()
    path = tmp_path / "packed" / "packed.safetensors"
    arrays = load_file(path)
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    assert metadata["version"] == "3"
    held = json.loads(metadata["sentence"])
    save_file(arrays, path, metadata | {"sentence": json.dumps(change if isinstance(change, str) else held | change)})
    with pytest.raises(EngineError, match=words):
        load(tmp_path / "packed")


def test_a_module_of_integers_is_refused(encoder: Path, tmp_path: Path) -> None:
    sentence_model(encoder, tmp_path / "st", Dense(16, 8))
    (path,) = (tmp_path / "st").glob("*_Dense/model.safetensors")
    held = load_file(path)
    save_file(held | {"linear.weight": held["linear.weight"].astype("int8")}, path)
    with pytest.raises(CheckpointError, match=r"linear\.weight must be stored in a float type"):
        packed(tmp_path / "st", tmp_path / "packed")


# other commands


def test_the_server_gives_the_same_embeddings(encoder: Path, tmp_path: Path) -> None:
    from starlette.testclient import TestClient

    options = {"include_prompt": False, "prompts": {"query": "who is the "}, "default_prompt_name": "query"}
    model = sentence_model(encoder, tmp_path / "st", Dense(16, 8), pooling="cls", **options)
    with packed(tmp_path / "st", tmp_path / "packed") as engine, TestClient(create_app(engine)) as client:
        reply = client.post("/v1/embeddings", json={"input": TEXTS}).json()
        assert client.post("/v1/embeddings", json={"input": "good", "dimensions": 8}).status_code == 200
    found = np.array([row["embedding"] for row in reply["data"]])
    assert np.abs(found - model.encode(TEXTS)).max() < 1e-5


@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize("activation", [None, nn.Identity(), nn.Sigmoid()])
def test_the_server_scores_as_a_cross_encoder(encoder: Path, tmp_path: Path, labels: int, activation: Any) -> None:
    from starlette.testclient import TestClient

    shutil.copytree(encoder, tmp_path / "plain")
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=labels).save_pretrained(tmp_path / "plain")
    model = CrossEncoder(str(tmp_path / "plain"), activation_fn=activation, device="cpu")
    model.save(str(tmp_path / "ce"))
    pairs = [["good film", "bad book"], ["red", "blue"]]
    expected = model.predict([tuple(pair) for pair in pairs]).reshape(2, labels)
    with packed(tmp_path / "ce", tmp_path / "packed") as engine, TestClient(create_app(engine)) as client:
        rows = client.post("/classify", json={"inputs": pairs}).json()
    found = [[{r["label"]: r["score"] for r in row}[f"LABEL_{i}"] for i in range(labels)] for row in rows]
    assert np.abs(np.array(found) - expected).max() < 1e-5


@pytest.mark.parametrize("old", [False, True])
def test_what_compact_and_archive_write_is_the_same_model(encoder: Path, tmp_path: Path, old: bool) -> None:
    sentence_model(encoder, tmp_path / "st", Dense(16, 8), Normalize(), pooling="cls")
    model = AutoModel.from_pretrained(tmp_path / "st")
    Masker(model, Pruning(0.5, "ffn", "magnitude", Schedule("one_shot", Span(0))), 1)
    model.save_pretrained(tmp_path / "st")
    source = tmp_path / "st"
    if old:
        old_layout(source, source := tmp_path / "old")
    expected = SentenceTransformer(str(source), device="cpu").encode(TEXTS)
    compact_directory(source, tmp_path / "compact")
    export_archive(source, tmp_path / "archive")
    restore_archive(tmp_path / "archive", tmp_path / "restored")
    restore_archive(tmp_path / "archive", tmp_path / "restored", overwrite=True)
    for place in ("compact", "restored"):
        found = SentenceTransformer(str(tmp_path / place), device="cpu").encode(TEXTS)
        assert np.abs(found - expected).max() < 1e-5
        with packed(tmp_path / place, tmp_path / f"{place}-packed") as engine:
            assert np.abs(engine.encode(TEXTS) - expected).max() < 1e-5
    first, second = (
        load_tensors(tmp_path / "restored" / "model.safetensors"),
        AutoModel.from_pretrained(tmp_path / "st"),
    )
    assert all(torch.equal(first[name], value) for name, value in second.state_dict().items())
