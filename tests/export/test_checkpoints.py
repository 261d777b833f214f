"""What every command that loads a saved model makes of weights that are missing or not finite, and of other architectures."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

from prunus.bench.command import bench
from prunus.errors import CheckpointError, EngineError, MissingExtra, PrunusError, RecipeError
from prunus.export import Calibration, export_packed
from prunus.export.archive import export_archive
from prunus.export.graph import export_graph
from prunus.export.graph import load as load_for_graph
from prunus.export.smaller import compact_directory
from prunus.recipe import read_recipe
from prunus.runtime import load
from prunus.runtime.families import read_checkpoint
from prunus.runtime.transformers_backend import PrunusConfig, PrunusExporter
from prunus.training.prepare import prepare
from small import CONFIGS, TEXT_FILE, save_tiny_bert, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNUS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


Command = Callable[[Path, Path], Any]


@pytest.fixture
def plan_of(small_data: Path) -> Callable[[Path], Any]:
    def plan(place: Path) -> Any:
        spec = {"name": "classification", "train": str(small_data / TEXT_FILE), "max_length": 32}
        task = {**spec, "validation": spec["train"]}
        return prepare(read_recipe({"model": {"name": str(place)}, "task": task, "train": {"epochs": 1, "threads": 1}}))

    return plan


COMMANDS: dict[str, Command] = {
    "prunus": lambda place, out: export_packed(place, out, "float32", threads=1),
    "onnx": lambda place, out: export_graph(place, out, "onnx", "float32"),
    "openvino": lambda place, out: export_graph(place, out, "openvino", "float32"),
    "compact": compact_directory,
    "bench": lambda place, out: bench(place, ["prunus float32"], [(1, 4)], 1, 3),
    "archive": export_archive,
}


def classifier(place: Path) -> Path:
    model = tiny_model(labels=2)
    model.config.id2label = {0: "negative", 1: "positive"}
    model.config.label2id = {"negative": 0, "positive": 1}
    model.save_pretrained(place)
    tiny_tokenizer().save_pretrained(place)
    return place


def change(place: Path, **tensors: torch.Tensor | None) -> None:
    """Replaces tensors of a directory's file, or (None) takes them out; ``__`` stands for a dot."""
    held = load_file(place / "model.safetensors")
    for name, value in tensors.items():
        held.pop(name.replace("__", "."))
        if value is not None:
            held[name.replace("__", ".")] = value
    save_file(held, place / "model.safetensors", {"format": "pt"})


NAME = "bert__encoder__layer__1__output__dense__bias"
SHOWN = "bert.encoder.layer.1.output.dense.bias"


@pytest.mark.parametrize(
    ("command", "number"), [*((name, "nan") for name in [*COMMANDS, "plan"]), ("archive", "-inf"), ("onnx", "inf")]
)
def test_numbers_that_are_not_finite(command: str, number: str, tmp_path: Path, plan_of: Callable[[Path], Any]) -> None:
    place = classifier(tmp_path / "model")
    change(place, **{NAME: torch.full((16,), float(number))})
    run = {**COMMANDS, "plan": lambda place, out: plan_of(place)}[command]
    with pytest.raises(PrunusError, match="NaN or infinity") as told:
        run(place, tmp_path / "out")
    assert SHOWN.removeprefix("bert." if command == "bench" else "") in str(told.value)
    assert not (tmp_path / "out").exists()


def test_how_many_numbers_are_lost_is_told(tmp_path: Path, plan_of: Callable[[Path], Any]) -> None:
    place = classifier(tmp_path / "model")
    held = load_file(place / "model.safetensors")
    change(place, **{name.replace(".", "__"): torch.full_like(value, float("nan")) for name, value in held.items()})
    count = sum(value.numel() for value in held.values())
    with pytest.raises(RecipeError, match=rf"and {len(held) - 3} more tensors .* infinity in {count} of them"):
        plan_of(place)


@pytest.mark.parametrize("name", [NAME, "classifier__weight", "bert__pooler__dense__weight"])
@pytest.mark.parametrize("command", [*COMMANDS, "plan"])
def test_weights_that_a_checkpoint_lacks(
    command: str, name: str, tmp_path: Path, plan_of: Callable[[Path], Any]
) -> None:
    place, shown = classifier(tmp_path / "model"), name.replace("__", ".")
    change(place, **{name: None})
    if command == "bench" and name != NAME:  # the encoder alone is timed
        COMMANDS[command](place, tmp_path / "out")
        return
    run = {**COMMANDS, "plan": lambda place, out: plan_of(place)}[command]
    with pytest.raises(PrunusError) as told:
        run(place, tmp_path / "out")
    part = shown.removeprefix("bert.").removesuffix(".weight")
    assert part in str(told.value)
    assert "is missing, one of 1" in str(told.value) or "got 'nothing'" in str(told.value)


def test_a_checkpoint_of_an_encoder_may_lack_its_pooler(tmp_path: Path, plan_of: Callable[[Path], Any]) -> None:
    """As sentence-transformers and language models save it; the head of a new task is drawn with it."""
    place = save_tiny_bert(tmp_path / "model")
    change(place, pooler__dense__weight=None, pooler__dense__bias=None)
    plan_of(place)
    COMMANDS["bench"](place, tmp_path / "out")


@pytest.mark.parametrize("said", [{"return_dict": False}, {"output_hidden_states": True}, {"torchscript": True}])
def test_a_model_that_was_saved_to_give_other_outputs(said: dict[str, bool], tmp_path: Path) -> None:
    place = classifier(tmp_path / "model")
    model = AutoModelForSequenceClassification.from_pretrained(place).eval()
    weight = model.bert.encoder.layer[0].output.dense.weight
    with torch.no_grad():
        weight[:, ::2] = 0
    model.save_pretrained(place)
    (place / "config.json").write_text(json.dumps(json.loads((place / "config.json").read_text()) | said))
    tokens = torch.tensor([[2, 5, 6, 7, 3]])
    with torch.no_grad():
        expected = model(tokens).logits
        assert torch.equal(load_for_graph(place)(tokens)["logits"], expected)
    facts = compact_directory(place, tmp_path / "compact")
    assert facts["parameters"]["after"] < facts["parameters"]["before"]
    assert facts["largest_output"] > 0
    export_packed(place, tmp_path / "packed", "float32", threads=1)
    with load(tmp_path / "packed", threads=1) as engine:
        assert float((engine(tokens).logits - expected).abs().max()) < 1e-5
    assert len(bench(place, ["prunus float32", "torch float32"], [(1, 4)], 1, 3)["cases"]["1 x 4"]) == 2


@pytest.mark.parametrize("command", [*COMMANDS, "plan"])
def test_a_key_that_cannot_be_set_is_named(command: str, tmp_path: Path, plan_of: Callable[[Path], Any]) -> None:
    place = classifier(tmp_path / "model")
    held = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(held | {"use_return_dict": False}))
    run = {**COMMANDS, "plan": lambda place, out: plan_of(place)}[command]
    with pytest.raises(RecipeError, match=r"config\.json whose keys can be set .*'use_return_dict'"):
        run(place, tmp_path / "out")


# architectures


@pytest.mark.parametrize(
    "name",
    [
        "BertForMaskedLM",
        "BertForPreTraining",
        "BertLMHeadModel",
        "BertForMultipleChoice",
        "BertForNextSentencePrediction",
    ],
)
def test_a_pack_that_the_engine_would_refuse_is_not_written(name: str, tmp_path: Path) -> None:
    model = getattr(transformers, name)(CONFIGS["bert"]())
    place = tmp_path / "model"
    model.save_pretrained(place)
    tiny_tokenizer().save_pretrained(place)
    (tmp_path / "texts").write_text("a good film\n")
    for precision in ("int8", "float32"):
        with pytest.raises(EngineError, match=rf"encoder.*sequence classification.*got '{name}'"):
            export_packed(place, tmp_path / "out", precision, Calibration(tmp_path / "texts"))
    with pytest.raises(EngineError, match=f"got '{name}'"):
        PrunusExporter().export_program(model.eval(), {"input_ids": torch.tensor([[2, 5, 3]])}, PrunusConfig())
    assert not (tmp_path / "out").exists()
    # The advice that comes with it.
    transformers.AutoModel.from_pretrained(place).save_pretrained(tmp_path / "encoder")
    tiny_tokenizer().save_pretrained(tmp_path / "encoder")
    export_packed(tmp_path / "encoder", tmp_path / "out", "float32", threads=1)
    with load(tmp_path / "out", threads=1) as engine:
        assert engine.encode(["a good film"]).shape == (1, 16)


def test_a_head_without_its_tensors_is_not_packed(tmp_path: Path) -> None:
    place = classifier(tmp_path / "model")
    change(place, classifier__weight=None)
    with pytest.raises(EngineError, match=r"head\.classifier must be a dense layer"):
        export_packed(place, tmp_path / "out", "float32")
    assert not (tmp_path / "out").exists()


def test_training_that_ends_in_numbers_that_are_not_finite(tmp_path: Path) -> None:
    from prunus.errors import TrainingError
    from prunus.models.predict import score_task
    from prunus.progress import Bars

    model: Any = BertForSequenceClassification(CONFIGS["bert"]())
    with torch.no_grad():
        model.classifier.weight[0, 0] = float("inf")
    with pytest.raises(TrainingError, match=r"classifier\.weight of the trained model must be finite"):
        score_task(model, None, tiny_tokenizer(), 8, Bars(None), "evaluating")  # type: ignore[arg-type]


def test_checkpoint_errors_are_of_one_kind(tmp_path: Path) -> None:
    place = classifier(tmp_path / "model")
    change(place, **{NAME: torch.zeros(8)})
    for command in ("onnx", "compact", "bench", "archive"):
        with pytest.raises(CheckpointError, match=r"must have the shape \[16\] that its config.json") as told:
            COMMANDS[command](place, tmp_path / "out")
        assert f" of {place} must" in str(told.value)
        assert "model.head" not in str(told.value)


def test_the_head_is_drawn_afresh_only_where_that_mends_it(tmp_path: Path, plan_of: Callable[[Path], Any]) -> None:
    """``model.head`` is a key of recipes, and does nothing for the body."""
    for number, (name, shape, helps) in enumerate(
        [(NAME, (8,), False), ("classifier__weight", (2, 8), True), ("bert__pooler__dense__bias", (8,), False)]
    ):
        place = classifier(tmp_path / f"model{number}")
        change(place, **{name: torch.zeros(shape)})
        with pytest.raises(PrunusError, match="must have the shape") as told:
            plan_of(place)
        assert ("model.head: new" in str(told.value)) is helps
        for command in ("compact", "archive"):
            with pytest.raises(CheckpointError, match="must have the shape") as told:
                COMMANDS[command](place, tmp_path / "out")
            assert "model.head" not in str(told.value)
            assert str(place) in str(told.value)


# types


def as_stored(place: Path, form: str) -> None:
    """Rewrites the one file of weights in another form."""
    held = load_file(place / "model.safetensors")
    if form == "bin":
        (place / "model.safetensors").unlink()
        torch.save(held, place / "pytorch_model.bin")
    if form == "bare":  # names without the prefix of the body
        save_file({name.removeprefix("bert."): value for name, value in held.items()}, place / "model.safetensors")


MATRIX = "bert__encoder__layer__0__intermediate__dense__weight"


@pytest.mark.parametrize(
    ("name", "dtype", "form"),
    [
        (MATRIX, torch.int8, "whole"),
        (MATRIX, torch.uint8, "bin"),
        (MATRIX, torch.int64, "bare"),
        ("bert__encoder__layer__1__output__LayerNorm__weight", torch.bool, "whole"),
        ("bert__embeddings__word_embeddings__weight", torch.int16, "whole"),
        ("classifier__weight", torch.int8, "whole"),
    ],
)
def test_integers_are_no_weights(
    name: str, dtype: torch.dtype, form: str, tmp_path: Path, plan_of: Callable[[Path], Any]
) -> None:
    place = classifier(tmp_path / "model")
    shown = name.replace("__", ".")
    change(place, **{name: load_file(place / "model.safetensors")[shown].to(dtype)})
    as_stored(place, form)
    for command, run in {**COMMANDS, "plan": lambda place, out: plan_of(place)}.items():
        if command == "bench" and name.startswith("classifier"):  # the encoder alone is timed
            continue
        with pytest.raises(PrunusError, match="be stored in a float type") as told:
            run(place, tmp_path / command)
        assert shown.removeprefix("bert.") in str(told.value)
        kinds = {"torch.int8": "I8", "torch.int64": "I64", "torch.int16": "I16", "torch.uint8": "U8"}
        kinds["torch.bool"] = "BOOL"
        text = str(told.value)
        assert kinds[str(dtype)] in text or str(dtype).removeprefix("torch.") in text
        assert not (tmp_path / command).exists()


def test_integers_that_no_weight_is_made_of(tmp_path: Path, plan_of: Callable[[Path], Any]) -> None:
    """Old checkpoints hold the indices of positions; a head of another task is left alone."""
    place = classifier(tmp_path / "model")
    held = load_file(place / "model.safetensors")
    held["bert.embeddings.position_ids"] = torch.arange(64).unsqueeze(0)
    held["bert.embeddings.token_type_ids"] = torch.zeros(1, 64, dtype=torch.int64)
    save_file(held, place / "model.safetensors", {"format": "pt"})
    plan_of(place)
    for command, run in COMMANDS.items():
        if command != "compact":
            run(place, tmp_path / command)
    held["qa_outputs.weight"] = torch.zeros(2, 16, dtype=torch.int8)
    save_file(held, place / "model.safetensors", {"format": "pt"})
    plan_of(place)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_float_type_is_read(dtype: torch.dtype, tmp_path: Path, plan_of: Callable[[Path], Any]) -> None:
    place = classifier(tmp_path / "model")
    held = load_file(place / "model.safetensors")
    save_file({name: value.to(dtype) for name, value in held.items()}, place / "model.safetensors", {"format": "pt"})
    plan_of(place)
    for command in ("prunus", "archive"):
        COMMANDS[command](place, tmp_path / command)


def test_the_reader_without_transformers_refuses_the_same(tmp_path: Path) -> None:
    place = classifier(tmp_path / "model")
    whole = load_file(place / "model.safetensors")
    for name in (MATRIX, "classifier__weight"):
        shown = name.replace("__", ".")
        save_file(whole | {shown: whole[shown].to(torch.int8)}, place / "model.safetensors")
        with pytest.raises(EngineError, match=rf"{shown} must be stored in a float type.*, got 'int8'"):
            read_checkpoint(place)
    save_file(whole, place / "model.safetensors")
    read_checkpoint(place)
    held = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(held | {"num_hidden_layers": 1}))
    with pytest.raises(EngineError, match=r"encoder\.layer\.1\..*, one of 16 tensors of other layers"):
        read_checkpoint(place)


def test_an_archive_of_smaller_layers_and_of_another_tool(tmp_path: Path) -> None:
    place = classifier(tmp_path / "model")
    held = load_file(place / "model.safetensors")["bert.encoder.layer.0.output.dense.weight"]
    held[:, ::2] = 0
    change(place, bert__encoder__layer__0__output__dense__weight=held)
    compact_directory(place, tmp_path / "compact")
    export_archive(tmp_path / "compact", tmp_path / "archive")
    # What config.json says to be integers with scales is archived as it is.
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "compressed"}}))
    change(place, **{MATRIX: torch.ones(32, 16, dtype=torch.int8)})
    export_archive(place, tmp_path / "other")


# layers


@pytest.mark.parametrize("form", ["whole", "bin", "bare"])
def test_layers_that_the_configuration_leaves_out(form: str, tmp_path: Path, plan_of: Callable[[Path], Any]) -> None:
    place = classifier(tmp_path / "model")
    as_stored(place, form)
    held = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(held | {"num_hidden_layers": 1}))
    for command, run in {**COMMANDS, "plan": lambda place, out: plan_of(place)}.items():
        with pytest.raises(PrunusError, match=r"encoder\.layer\.1\..*, one of 16 tensors of other layers"):
            run(place, tmp_path / command)
        assert not (tmp_path / command).exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", sorted(set(CONFIGS) - {"bert"}))
def test_layers_that_the_configuration_of_a_family_leaves_out(family: str, tmp_path: Path) -> None:
    from transformers import AutoModel

    from prunus.models.checkpoints import load_checkpoint, read_config

    config = CONFIGS[family]()
    place = tmp_path / "model"
    AutoModel.from_config(config).save_pretrained(place)
    loaded = read_config(place)
    load_checkpoint(AutoModel, place, loaded)
    inner = loaded.get_text_config()
    keys = [key for key in ("num_hidden_layers", "n_layers", "num_layers", "n_layer") if hasattr(inner, key)]
    assert getattr(inner, keys[0]) > 1
    for key in (keys[0], "num_hidden_groups"):
        if hasattr(inner, key):
            setattr(inner, key, 1)
    if getattr(inner, "layer_types", None):
        inner.layer_types = inner.layer_types[:1]
    with pytest.raises(CheckpointError, match="tensors of other layers"):
        load_checkpoint(AutoModel, place, loaded)


_TOKENS: dict[str, Any] = {"vocab_size": 40, "pad_token_id": 0, "num_labels": 2}
OTHERS: dict[str, Callable[[], Any]] = {
    "T5ForSequenceClassification": lambda: transformers.T5Config(
        **_TOKENS, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, eos_token_id=3, decoder_start_token_id=0
    ),
    "BartForSequenceClassification": lambda: transformers.BartConfig(
        **_TOKENS | {"num_labels": 3},  # any other number is lost where transformers saves and reads its configuration
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=64,
        eos_token_id=3,
    ),
    "GPT2ForSequenceClassification": lambda: transformers.GPT2Config(
        **_TOKENS, n_embd=16, n_layer=2, n_head=2, n_positions=64
    ),
    "XLNetForSequenceClassification": lambda: transformers.XLNetConfig(
        vocab_size=40, d_model=16, n_layer=2, n_head=2, d_inner=32
    ),
    "ViTForImageClassification": lambda: transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    ),
    "ResNetForImageClassification": lambda: transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]
    ),
    "CLIPModel": lambda: transformers.CLIPConfig(
        text_config={"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
        },
        projection_dim=8,
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OTHERS)
def test_other_architectures_are_refused_in_words(name: str, tmp_path: Path, plan_of: Callable[[Path], Any]) -> None:
    place, kind = tmp_path / "model", getattr(transformers, name)
    kind(OTHERS[name]()).save_pretrained(place)
    tiny_tokenizer().save_pretrained(place)
    for command, run in COMMANDS.items():
        if command == "archive":
            continue
        with pytest.raises(PrunusError) as told:
            run(place, tmp_path / command)
        assert not (tmp_path / command).exists()
        text = str(told.value)
        assert "AttributeError" not in text or "read tokens or pixels alone" in text, command
    export_archive(place, tmp_path / "archive")  # which keeps the weights of any model
    if not name.endswith("ForSequenceClassification"):
        with pytest.raises(RecipeError, match="of an architecture with a head for classification"):
            plan_of(place)


@pytest.mark.parametrize("name", ["BertForPreTraining", "BertForNextSentencePrediction"])
def test_compaction_keeps_every_head(name: str, tmp_path: Path) -> None:
    model = getattr(transformers, name)(CONFIGS["bert"]())
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight[:, ::2] = 0
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    compact_directory(tmp_path / "model", tmp_path / "compact")
    again, tokens = type(model).from_pretrained(tmp_path / "compact").eval(), torch.tensor([[2, 5, 6, 3]])
    with torch.no_grad():
        for one, other in zip(again(tokens).values(), model.eval()(tokens).values(), strict=True):
            assert torch.allclose(one, other, atol=1e-5)


def test_a_configuration_that_computes_its_layers_is_planned(tmp_path: Path, plan_of: Callable[[Path], Any]) -> None:
    config = transformers.FunnelConfig(
        vocab_size=40, d_model=16, n_head=2, d_head=8, d_inner=32, block_sizes=[1, 1], num_labels=2
    )
    transformers.FunnelModel(config).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    assert plan_of(tmp_path / "model").parameters > 0


def test_what_an_exporter_cannot_do_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*args: object) -> None:
        raise RuntimeError("no operator of this kind\nand a long dump")

    monkeypatch.setattr("prunus.export.graph.export_onnx", lacking)
    place = classifier(tmp_path / "model")
    for to in ("onnx", "openvino"):
        with pytest.raises(
            EngineError, match=rf"can export to {to} \(RuntimeError: no operator of this kind\), got 'bert'"
        ):
            export_graph(place, tmp_path / "out", to, "float32")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"hidden_act": "nothing"}, "KeyError: 'nothing'"),
        ({"hidden_size": -16}, "RuntimeError: .*negative dimension"),
        ({"num_attention_heads": 0}, "ZeroDivisionError"),
        ({"num_attention_heads": 3}, "ValueError: .*not a multiple"),
    ],
)
def test_a_configuration_of_which_no_model_can_be_made(
    said: dict[str, Any], told: str, tmp_path: Path, plan_of: Callable[[Path], Any]
) -> None:
    place = classifier(tmp_path / "model")
    (place / "config.json").write_text(json.dumps(json.loads((place / "config.json").read_text()) | said))
    with pytest.raises(RecipeError, match=rf"have a config\.json that a model can be made of \({told}"):
        plan_of(place)
    for command, run in COMMANDS.items():
        with pytest.raises(PrunusError):
            run(place, tmp_path / command)


def test_eight_bit_floats_are_looked_at_too(tmp_path: Path) -> None:
    place = classifier(tmp_path / "model")
    numbers = torch.tensor([1.0] * 15 + [float("nan")]).to(torch.float8_e4m3fn)
    change(place, **{NAME: numbers})
    with pytest.raises(CheckpointError, match="NaN or infinity in 1 of them"):
        export_archive(place, tmp_path / "archive")
    change(place, **{NAME: torch.ones(16).to(torch.float8_e4m3fn)})
    save_file({"a.weight_range": torch.tensor([[float("inf")]])}, place / "ranges.safetensors")
    with pytest.raises(CheckpointError, match=r"a\.weight_range of .*ranges\.safetensors must be finite"):
        export_archive(place, tmp_path / "archive")
    (place / "ranges.safetensors").unlink()
    export_archive(place, tmp_path / "archive")


@pytest.mark.parametrize(("to", "lacking"), [("onnx", "onnxscript"), ("openvino", "openvino"), ("onnx", "onnxruntime")])
def test_a_package_that_is_not_there(to: str, lacking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = classifier(tmp_path / "model")
    monkeypatch.setattr("prunus.export.graph.find_spec", lambda name: None if name == lacking else object())
    with pytest.raises(MissingExtra, match=rf"export --to {to} must have its packages, got no package {lacking}"):
        export_graph(place, tmp_path / "out", to, "float32")


def test_an_architecture_that_is_written_as_a_text(tmp_path: Path, plan_of: Callable[[Path], Any]) -> None:
    place = classifier(tmp_path / "model")
    model = AutoModelForSequenceClassification.from_pretrained(place)
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight[:, ::2] = 0
    model.save_pretrained(place)
    held = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(held | {"architectures": held["architectures"][0]}))
    assert plan_of(place).config.architectures == ["BertForSequenceClassification"]
    assert type(load_for_graph(place)) is BertForSequenceClassification
    compact_directory(place, tmp_path / "compact")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "compact")
    assert torch.equal(again.classifier.weight, model.classifier.weight)
