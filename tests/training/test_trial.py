"""What a plan says of model, tokenizer and data together is what a training meets: the real models are the reference."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AlbertConfig,
    AutoConfig,
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
    T5Config,
)

import prunus
from prunus import CheckpointError, PrunusError, RecipeError
from prunus.checkpoint.huggingface import narrow
from prunus.errors import DataError
from prunus.export.graph import export_graph
from prunus.models.loading import load_model
from prunus.recipe import read_recipe
from prunus.tasks.base import HeadKind
from prunus.training.plan import plan_facts
from prunus.training.prepare import prepare
from prunus.training.run import run
from prunus.training.trial_batch import trial_model, trial_of
from small import CONFIGS, TOKENS, save_tiny_bert, small_recipe, tiny_tokenizer

_MORE: dict[str, Callable[[], PreTrainedConfig]] = {
    "opt": lambda: OPTConfig(
        vocab_size=TOKENS,
        hidden_size=16,
        ffn_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        word_embed_proj_dim=16,
        pad_token_id=0,
    ),
    "llama": lambda: LlamaConfig(
        vocab_size=TOKENS,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
    ),
    "t5": lambda: T5Config(
        vocab_size=TOKENS,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        pad_token_id=0,
        eos_token_id=3,
        decoder_start_token_id=0,
    ),
}
ALL = {**CONFIGS, **_MORE}


def reads(model: Any, length: int) -> bool:
    """Whether the real model takes a row of so many tokens, [CLS] words [SEP]."""
    ids = torch.tensor([[2, *[6] * (length - 2), 3]])
    try:
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
    except (IndexError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize("name", ALL)
def test_the_longest_row_is_that_of_the_real_model(name: str) -> None:
    config = ALL[name]()
    real = AutoModelForSequenceClassification.from_config(config).eval()
    found = trial_of("model.name", config, "classification", tiny_tokenizer(), 100).reads
    assert reads(real, found)
    assert found == 100 or not reads(real, found + 1)
    assert (found == 100) == (name in ("modernbert", "deberta-v2", "llama", "t5")) or name == "deberta-v2"


@pytest.mark.parametrize("head", ["classification", "question-answering", "masked-language"])
@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "mpnet"])
def test_a_trial_has_the_tables_and_the_head_of_the_model(name: str, head: HeadKind) -> None:
    config = CONFIGS[name]()
    model: Any = trial_model(config, head)
    assert model.get_input_embeddings().weight.shape[0] == TOKENS
    assert all(not bool(parameter.any()) for parameter in model.parameters())
    assert all(parameter.device.type == "cpu" and parameter.dtype == torch.float32 for parameter in model.parameters())
    assert config.num_hidden_layers == 2  # the configuration that was given is not changed


def endless(place: Path, **more: Any) -> Path:
    """A tiny BERT whose tokenizer names no longest row."""
    save_tiny_bert(place, **more)
    settings = json.loads((place / "tokenizer_config.json").read_text())
    settings.pop("model_max_length")
    (place / "tokenizer_config.json").write_text(json.dumps(settings))
    return place


def long_texts(place: Path, words: int) -> Path:
    place.mkdir()
    lines = [
        f"{' '.join(['film'] * (words if i == 7 else 5))} {'good' if i % 2 else 'bad'}\t{i % 2}" for i in range(16)
    ]
    (place / "texts.tsv").write_text("text\tlabel\n" + "\n".join(lines) + "\n")
    return place


def plain(model: Path, data: Path, **more: Any) -> dict[str, Any]:
    """A recipe without a teacher, and pruning that fits a training of any length."""
    raw = small_recipe(model, data, distill=None, dense=None, **more)
    raw["prune"]["schedule"] = {"kind": "one_shot", "start": 1}
    return {key: value for key, value in raw.items() if value}


def test_rows_are_cut_where_the_recipe_says_no_length(tmp_path: Path) -> None:
    raw = plain(endless(tmp_path / "bert", max_position_embeddings=20), long_texts(tmp_path / "data", 60))
    del raw["task"]["max_length"]
    raw["train"] |= {"epochs": 1, "evaluate_every": None}
    prepared = prepare(read_recipe(raw))
    assert prepared.recipe.task.max_length == 20
    assert max(len(row["input_ids"]) for row in prepared.train_features) == 20
    assert "rows are cut to the 20 tokens that the model of model.name reads" in plan_facts(prepared)["task"]["notes"]
    facts = run(read_recipe(raw), tmp_path / "out")
    assert facts.recipe["task"]["max_length"] == 20


def test_a_length_that_was_asked_for_is_refused_where_rows_are_as_long(tmp_path: Path) -> None:
    model = endless(tmp_path / "bert", max_position_embeddings=20)
    with pytest.raises(RecipeError, match=r"task.max_length must be at most the 20 tokens .*, got 32\n    try 20"):
        prepare(read_recipe(plain(model, long_texts(tmp_path / "long", 60))))
    prepare(read_recipe(plain(model, long_texts(tmp_path / "short", 6))))  # no row is as long


def test_rows_of_the_validation_split_count(tmp_path: Path) -> None:
    raw = plain(endless(tmp_path / "bert", max_position_embeddings=20), long_texts(tmp_path / "short", 6))
    raw["task"]["validation"] = str(long_texts(tmp_path / "long", 60) / "texts.tsv")
    with pytest.raises(RecipeError, match="at most the 20 tokens"):
        prepare(read_recipe(raw))


def test_tokens_without_an_embedding_are_told(tmp_path: Path) -> None:
    model = save_tiny_bert(tmp_path / "few", vocab_size=10)  # film is 7, book 8; very, not, long are above
    raw = plain(model, long_texts(tmp_path / "data", 6))
    prepare(read_recipe(raw))  # these words have embeddings
    (tmp_path / "data" / "texts.tsv").write_text("text\tlabel\ngood film\t0\nbad film\t1\nshort film\t0\n")
    with pytest.raises(RecipeError, match=r"model.name must have an embedding for token 12.*got 10 embeddings"):
        prepare(read_recipe(raw))


@pytest.mark.parametrize("tokens", [{"pad_token": None, "eos_token": "."}, {"pad_token": "[PAD]"}])
def test_a_decoder_without_padding_takes_that_of_the_tokenizer(
    tokens: dict[str, Any], small_data: Path, tmp_path: Path
) -> None:
    config = _MORE["llama"]()
    config.pad_token_id = None
    AutoModel.from_config(config).save_pretrained(tmp_path / "llama")
    tokenizer = tiny_tokenizer()
    for name, value in tokens.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(tmp_path / "llama")
    prepared = prepare(read_recipe(plain(tmp_path / "llama", small_data)))
    own = prepared.tokenizer.pad_token_id
    assert own == prepared.config.pad_token_id == (0 if tokens["pad_token"] else tokenizer.convert_tokens_to_ids("."))


def test_no_padding_at_all_is_told_with_the_fix(small_data: Path, tmp_path: Path) -> None:
    config = _MORE["llama"]()
    config.pad_token_id = None
    AutoModel.from_config(config).save_pretrained(tmp_path / "llama")
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "llama")
    with pytest.raises(RecipeError, match=r"model.name must have a padding token(.|\n)*add_special_tokens"):
        prepare(read_recipe(plain(tmp_path / "llama", small_data)))


# Heads


def classifier(place: Path, labels: int, names: list[str] | None = None) -> Path:
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=TOKENS,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        num_labels=labels,
    )
    if names is not None:
        config.id2label = dict(enumerate(names))
    BertForSequenceClassification(config).save_pretrained(place)
    tiny_tokenizer().save_pretrained(place)
    return place


@pytest.mark.parametrize(("labels", "regression"), [(3, False), (1, False), (3, True), (2, True)])
def test_another_head_is_refused_with_the_way_to_a_new_one(
    labels: int, regression: bool, small_data: Path, tmp_path: Path
) -> None:
    raw = plain(classifier(tmp_path / "other", labels), small_data)
    if regression:
        path = tmp_path / "scores.tsv"
        path.write_text("text\tscore\n" + "".join(f"good film\t{i / 4}\n" for i in range(16)))
        raw["task"] |= {"train": str(path), "validation": str(path), "columns": {"score": "score"}}
    with pytest.raises((RecipeError, DataError), match=r"labels of model.name must (.|\n)*try model.head: new"):
        prepare(read_recipe(raw))
    raw["model"]["head"] = "new"
    prepared = prepare(read_recipe(raw))
    assert prepared.config.num_labels == (1 if regression else 2)


def test_a_new_head_is_drawn_and_the_body_is_kept(tmp_path: Path) -> None:
    place = classifier(tmp_path / "old", 2, ["no", "yes"])
    old = BertForSequenceClassification.from_pretrained(place)
    config = AutoConfig.from_pretrained(place)
    config.architectures, config.num_labels = None, 2
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        new: Any = load_model(str(place), config, "classification", new_head=True)
        heads.append(new.classifier.weight)
        for name, value in old.bert.state_dict().items():
            assert torch.equal(value, new.bert.state_dict()[name])
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert not torch.equal(heads[0], old.classifier.weight)
    assert 0.005 < float(heads[0].detach().std()) < 0.05  # transformers draws it with a deviation of 0.02
    assert not bool(new.classifier.bias.any())


def test_a_run_with_a_new_head_and_a_dense_teacher(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    raw = small_recipe(classifier(tmp_path / "nli", 3), small_data)
    raw["model"]["head"] = "new"
    raw["task"] |= {"max_train_samples": 16, "max_validation_samples": 16}
    raw["train"] |= {"epochs": 1, "evaluate_every": None, "checkpoint_every": None}
    raw["prune"]["schedule"] = {"kind": "one_shot", "start": 1}
    first = run(read_recipe(raw), tmp_path / "out")
    again = run(read_recipe(raw), tmp_path / "again")  # the dense model that was kept has the head that it learned
    assert again.dense.cached
    assert again.dense.metrics == first.dense.metrics
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert saved.config.id2label == {0: "negative", 1: "positive"}


def test_a_body_of_another_shape_is_not_drawn_afresh(tmp_path: Path) -> None:
    place = classifier(tmp_path / "old", 2)
    config = AutoConfig.from_pretrained(place)
    config.intermediate_size = 64
    with pytest.raises(PrunusError, match=r"must have the shape .* that its config.json describes"):
        load_model(str(place), config, "classification", new_head=True)


def test_a_new_head_teaches_nobody(small_data: Path, tmp_path: Path) -> None:
    raw = small_recipe(classifier(tmp_path / "old", 2), small_data, dense=None, distill={"teacher": "start"})
    raw["model"]["head"] = "new"
    raw.pop("dense")
    with pytest.raises(RecipeError, match="be a model that is fine-tuned for classification, to teach itself"):
        prepare(read_recipe(raw))


def test_a_classifier_of_three_labels_answers_questions(small_data: Path, tmp_path: Path) -> None:
    raw = plain(classifier(tmp_path / "nli", 3), small_data, task="question-answering")
    prepared = prepare(read_recipe(raw))
    model = load_model(prepared.source, prepared.config, "question-answering")
    assert isinstance(model, AutoModelForQuestionAnswering._model_mapping[BertConfig])
    ids = torch.tensor([[2, 6, 3]])
    assert model(input_ids=ids).start_logits.shape == (1, 3)


def test_language_modelling_keeps_its_head(tmp_path: Path, tiny_bert: Path) -> None:
    (tmp_path / "text.txt").write_text("good film\n\n" * 60)
    raw = {
        "model": {"name": str(tiny_bert), "head": "new"},
        "task": {"name": "mlm", "train": str(tmp_path / "text.txt")},
    }
    with pytest.raises(RecipeError, match=r"model.head must be kept for masked language modelling"):
        prepare(read_recipe(raw))


def test_layers_that_are_shared_matter_where_layers_are_asked_for(small_data: Path, tmp_path: Path) -> None:
    """ALBERT has no list of layers: it is trained and pruned as it is, and refused where a depth is asked for."""
    config = AlbertConfig(
        vocab_size=TOKENS,
        embedding_size=8,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    AutoModel.from_config(config).save_pretrained(tmp_path / "albert")
    tiny_tokenizer().save_pretrained(tmp_path / "albert")
    raw = plain(tmp_path / "albert", small_data)
    assert prepare(read_recipe(raw)).rules[0].selection.taken
    raw["model"]["depth"] = 1
    with pytest.raises(RecipeError, match=r"model.name must have layers with weights of their own"):
        prepare(read_recipe(raw))


def test_a_compacted_model_is_planned_and_pruned_again_as_it_is(small_data: Path, tmp_path: Path) -> None:
    """Ragged layers, fewer features: the plan counts what the file holds, and a run begins with it."""
    model: Any = BertForSequenceClassification.from_pretrained(classifier(tmp_path / "whole", 2))
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight[:, ::2] = 0
        model.bert.encoder.layer[0].attention.output.dense.weight[:, :8] = 0
    prunus.compact(model)
    narrow(model, range(12))
    model.save_pretrained(tmp_path / "small")
    tiny_tokenizer().save_pretrained(tmp_path / "small")
    raw = plain(tmp_path / "small", small_data, quantize={"samples": 8})
    raw["task"] |= {"max_train_samples": 16, "max_validation_samples": 16}
    raw["train"] |= {"epochs": 1, "evaluate_every": None, "checkpoint_every": None}
    plan = plan_facts(prepare(read_recipe(raw)))
    named = dict(model.named_parameters())
    assert plan["model"]["parameters"] == sum(parameter.numel() for parameter in named.values())
    (rule,) = plan["rules"]
    assert all(tuple(tensor["shape"]) == tuple(named[tensor["name"]].shape) for tensor in rule["tensors"])
    facts = run(read_recipe(raw), tmp_path / "out")
    assert facts.sparse.sparsity >= 0.5
    # Rounding to 8 bits made more weights zero, beside the blocks; the masks that were saved say which are locked.
    lock = raw | {"prune": {"lock": True, "pattern": "4x1"}}
    lock["model"] = {"name": str(tmp_path / "out")}
    again = run(read_recipe(lock), tmp_path / "locked")
    assert again.target_sparsity == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("damage", ["cut", "another shape"])
def test_weights_that_cannot_be_loaded_are_told_by_plan(damage: str, small_data: Path, tmp_path: Path) -> None:
    place = classifier(tmp_path / "bert", 2)
    if damage == "cut":
        (place / "model.safetensors").write_bytes((place / "model.safetensors").read_bytes()[:200])
    else:
        settings = json.loads((place / "config.json").read_text())
        (place / "config.json").write_text(json.dumps(settings | {"intermediate_size": 64}))
    told = (
        "hold whole files of weights"
        if damage == "cut"
        else r"have the shape \[(16, )?64(, 16)?\] that its config.json describes"
    )
    with pytest.raises(PrunusError, match=told):
        prepare(read_recipe(plain(place, small_data)))


def test_weights_that_are_missing_are_not_drawn_in_silence(small_data: Path, tmp_path: Path) -> None:
    place = classifier(tmp_path / "model", 2)
    tensors = load_file(place / "model.safetensors")
    del tensors["bert.encoder.layer.1.output.dense.weight"]
    save_file(tensors, place / "model.safetensors", {"format": "pt"})
    raw = plain(place, small_data)
    for head in ("saved", "new"):
        if head == "new":
            raw["model"]["head"] = "new"
        with pytest.raises(PrunusError, match=r"bert.encoder.layer.1.output.dense.weight is missing, one of 1"):
            run(read_recipe(raw), tmp_path / head)


def test_a_model_that_was_saved_to_give_tuples_trains(small_data: Path, tmp_path: Path) -> None:
    place = classifier(tmp_path / "model", 2)
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | {"return_dict": False}))
    facts = run(read_recipe(plain(place, small_data)), tmp_path / "out")
    assert facts.sparse is not None


def test_weights_under_a_wrappers_names_are_missing(small_data: Path, tmp_path: Path) -> None:
    """A state saved from DataParallel: every name has ``module.`` in front, and transformers would draw the whole model."""
    place = classifier(tmp_path / "model", 2)
    tensors = {f"module.{name}": value for name, value in load_file(place / "model.safetensors").items()}
    save_file(tensors, place / "model.safetensors", {"format": "pt"})
    with pytest.raises(PrunusError, match="is missing, one of"):
        run(read_recipe(plain(place, small_data)), tmp_path / "out")
    with pytest.raises(CheckpointError, match="is missing, one of"):
        export_graph(place, tmp_path / "onnx", "onnx", "float32")
