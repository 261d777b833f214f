"""Models in wrappers: the same targets, masks and locks as the model by itself; heads and adapters are never among them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as tf
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import prunus
from prunus import Masker, Pruning, Schedule, TargetError, Targets
from prunus.sparsity import Span, Unstructured, select
from prunus.sparsity.structures import pattern_for
from prunus.sparsity.wrappers import bodies, body_of, parameter, submodule, unwrapped
from small import SIZES

# PEFT asks models for a property that transformers renames in its next major version.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

ONCE = Schedule("one_shot", Span(0))


def bert(head: str = "ForSequenceClassification", seed: int = 0, **more: Any) -> Any:
    torch.manual_seed(seed)
    return getattr(tf, f"Bert{head}")(tf.BertConfig(**SIZES, **more)).eval()


def compiled(model: nn.Module) -> nn.Module:
    wrapper = torch.compile(model, backend="eager")
    assert isinstance(wrapper, nn.Module)
    return wrapper


def inside_compiled(model: Any) -> Any:
    """Layer by layer, as large models are compiled."""
    for index, layer in enumerate(model.bert.encoder.layer):
        model.bert.encoder.layer[index] = compiled(layer)
    return model


def recomputed(model: Any) -> Any:
    for index, layer in enumerate(model.bert.encoder.layer):
        model.bert.encoder.layer[index] = checkpoint_wrapper(layer)
    return model


def lora(model: Any, **more: Any) -> Any:
    choice = {"r": 2, "target_modules": ["query", "value"], "modules_to_save": ["classifier"], **more}
    return peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", **choice))


def ia3(model: Any) -> Any:
    names = ["key", "value", "output.dense"]
    return peft.get_peft_model(model, peft.IA3Config(target_modules=names, feedforward_modules=["output.dense"]))


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "DataParallel": nn.DataParallel,
    "compiled": compiled,
    "layers compiled": inside_compiled,
    "activation checkpointing": recomputed,
    "compiled DataParallel": lambda model: compiled(nn.DataParallel(model)),
    "LoRA": lora,
    "LoRA on every layer": lambda model: lora(model, target_modules="all-linear"),
    "DoRA": lambda model: lora(model, use_dora=True),
    "IA3": ia3,
    "compiled LoRA": lambda model: compiled(lora(model)),
    "LoRA, a layer of the body trained as a copy": lambda model: lora(
        model, modules_to_save=["layer.1.intermediate.dense"]
    ),
    "prompt tuning": lambda model: peft.get_peft_model(
        model, peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)
    ),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_targets_are_those_of_the_model_by_itself(name: str) -> None:
    plain = select(bert(), Targets(), Unstructured())
    wrapped = select(WRAPPERS[name](bert()), Targets(), Unstructured())
    assert len(plain.taken) == 12
    assert dict(wrapped.taken) == dict(plain.taken)


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_masker_made_for_the_model_works_on_its_wrapper_and_the_other_way_round(name: str) -> None:
    rule = Pruning(0.5, "4x1", "magnitude", Schedule("linear", Span(1), end=Span(3), every=Span(1)))
    plain, there, back = bert(), bert(), bert()
    wrapped_there, wrapped_back = WRAPPERS[name](there), WRAPPERS[name](back)
    runs = ((plain, plain), (bert_of := there, wrapped_there), (wrapped_back, back))
    found = []
    for made_for, used_on in runs:
        masker = Masker(bert() if made_for is bert_of else made_for, rule, 4)
        for _ in range(4):
            masker.step(used_on)
        masker.finish(used_on)
        found.append(masker.masks)
    assert all(torch.equal(found[0][key], other[key]) for other in found[1:] for key in found[0])
    for key, mask in found[0].items():
        assert torch.equal(parameter(wrapped_there, key) == 0, ~mask)


def locked(model: Any) -> Any:
    Masker(model, Pruning(0.5, "4x1", "magnitude", ONCE), 1)
    return model


def steps(model: nn.Module, count: int = 3) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    inputs = {"input_ids": torch.arange(5, 13)[None], "labels": torch.tensor([1])}
    for _ in range(count):
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", ["DataParallel", "compiled", "LoRA", "DoRA", "LoRA on every layer"])
@pytest.mark.parametrize("first", ["lock", "wrapper"])
def test_locked_zeros_stay_and_adapters_learn(name: str, first: str) -> None:
    model = locked(bert())
    zeros = {key: parameter(model, key) == 0 for key in select(model, Targets(), Unstructured()).taken}
    if first == "lock":
        scheduler, wrapped = prunus.lock(model, pattern="4x1"), WRAPPERS[name](model)
    else:
        wrapped = WRAPPERS[name](model)
        scheduler = prunus.lock(wrapped, pattern="4x1")
    assert list(scheduler.masker.masks) == list(zeros)
    learning = {key: value.detach().clone() for key, value in wrapped.named_parameters() if value.requires_grad}
    steps(wrapped)
    assert all(torch.equal(parameter(model, key) == 0, zero) for key, zero in zeros.items())
    last = dict(wrapped.named_parameters())
    still = [key for key in learning if "lora_B" in key and not last[key].any()]
    assert not still
    assert any(not torch.equal(value, last[key]) for key, value in learning.items())
    assert sum(fact.zeros for fact in scheduler.remove_pruning()) == sum(int(zero.sum()) for zero in zeros.values())


def test_adapters_are_taken_where_they_are_named() -> None:
    model = lora(bert())
    assert not any("lora" in name for name in select(model, Targets(include=("query",)), Unstructured()).taken)
    taken = select(model, Targets(include=(r"query\.lora_A",)), Unstructured()).taken
    assert [name.rpartition("query.")[2] for name in taken] == ["lora_A.default.weight"] * 2
    skipped = select(model, Targets(), Unstructured()).skipped
    reasons = {reason for name, (_, reason) in skipped.items() if "lora" in name}
    assert reasons == {"an adapter; name it in include to prune it"}


def test_structures_of_an_adapted_model_are_those_of_the_model() -> None:
    for model in (bert(), lora(bert()), lora(bert(), target_modules="all-linear"), nn.DataParallel(bert())):
        masker = Masker(model, Pruning(0.5, "heads", "magnitude", ONCE), 1)
        names = [f"bert.encoder.layer.{i}.attention.output.dense.weight" for i in range(2)]
        assert sorted(masker.masks) == names
        assert str(pattern_for(model, "heads")) == "*x8"


def small(name: str, config: str, **more: Any) -> Any:
    torch.manual_seed(0)
    return getattr(tf, name)(getattr(tf, config)(**more))


T5 = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
LLAMA = {key: value for key, value in SIZES.items() if key != "max_position_embeddings"}


class Siamese(nn.Module):
    """Two encoders and a head, as people write them."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.passage = bert("Model"), bert("Model", seed=1)
        self.score = nn.Linear(32, 1)


class Written(tf.PreTrainedModel):  # type: ignore[misc]
    """A Hugging Face model of one's own, which does not say what its body is called."""

    config_class = tf.BertConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.encoder = tf.BertModel(config, add_pooling_layer=False)
        self.head = nn.Linear(16, 3)
        self.post_init()


BODIES: dict[str, tuple[Callable[[], Any], list[str], list[str]]] = {
    # model, its bodies, Linear weights that are heads
    "bare": (lambda: bert("Model"), [""], []),
    "classifier": (bert, ["bert"], ["classifier"]),
    "its body as a submodule": (lambda: nn.ModuleDict({"a": bert()}), ["a.bert"], ["a.classifier"]),
    "two encoders": (Siamese, ["query", "passage"], ["score"]),
    "own class": (lambda: Written(tf.BertConfig(**SIZES)), ["encoder"], ["head"]),
    "causal": (
        lambda: small("LlamaForCausalLM", "LlamaConfig", **LLAMA, num_key_value_heads=2),
        ["model"],
        ["lm_head"],
    ),
    "encoder-decoder": (
        lambda: small("T5ForConditionalGeneration", "T5Config", **T5),
        ["encoder", "decoder"],
        [],
    ),
    "encoder-decoder with a classifier": (
        lambda: small("T5ForSequenceClassification", "T5Config", **T5),
        ["transformer"],
        ["classification_head.dense", "classification_head.out_proj"],
    ),
    "two models put together": (
        lambda: tf.EncoderDecoderModel(
            encoder=bert("Model"), decoder=bert("LMHeadModel", is_decoder=True, add_cross_attention=True)
        ),
        ["encoder", "decoder.bert"],
        ["decoder.cls.predictions.transform.dense"],
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_the_body_is_found_and_the_head_stays_dense(name: str) -> None:
    make, names, heads = BODIES[name]
    model = make()
    assert [body.name for body in bodies(model)] == names
    selection = select(model, Targets(), Unstructured())
    for head in heads:
        assert selection.skipped[f"{head}.weight"][1].startswith("head of the task")
    assert not any(head in taken for taken in selection.taken for head in heads)
    assert selection.taken


NO_BODY: dict[str, tuple[Callable[[], Any], str]] = {
    "layers": (lambda: nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)), "name what is pruned in a model whose body"),
    "a head by itself": (lambda: bert().classifier, "name what is pruned in a model whose body"),
    "compiled layers": (lambda: compiled(nn.Sequential(nn.Linear(8, 8))), "name what is pruned"),
    "a body without Linear modules": (
        lambda: small("GPT2ForSequenceClassification", "GPT2Config", vocab_size=40, n_embd=16, n_layer=1, n_head=2),
        r"find a torch.nn.Linear in the model's body \(transformer\)",
    ),
}


@pytest.mark.parametrize("name", NO_BODY)
def test_a_model_whose_body_is_not_known_is_refused(name: str) -> None:
    make, message = NO_BODY[name]
    with pytest.raises(TargetError, match=message):
        select(make(), Targets(), Unstructured())
    with pytest.raises(TargetError, match=message):
        prunus.lock(make())


def test_layers_that_are_named_are_pruned_in_any_module() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    assert list(select(model, Targets(include=(r"^0\.",)), Unstructured()).taken) == ["0.weight"]


def test_names_that_are_not_there() -> None:
    with pytest.raises(TargetError, match=r"bert.encoder.layer.7.output.dense.weight must be in the model"):
        parameter(bert(), "bert.encoder.layer.7.output.dense.weight")
    with pytest.raises(TargetError, match="BertModel"):
        Masker(bert(), Pruning(0.5, "4x1", "magnitude", ONCE), 1).apply(bert("Model"))
    with pytest.raises(TargetError, match="has 2"):
        body_of(Siamese(), "distill.contrast")
    assert submodule(nn.DataParallel(bert()), "bert.encoder.layer.1").__class__.__name__ == "BertLayer"
    model = bert()
    assert unwrapped(compiled(nn.DataParallel(model))) is model


def test_a_sentence_transformer_is_pruned_in_its_encoder_alone(tmp_path: Path) -> None:
    st = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer

    bert("Model").save_pretrained(tmp_path)
    tokens = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "film"])}
    tf.BertTokenizerFast(vocab=tokens).save_pretrained(tmp_path)
    modules = [Transformer(str(tmp_path)), Pooling(16, pooling_mode="mean"), Dense(in_features=16, out_features=16)]
    model = st.SentenceTransformer(modules=modules, device="cpu")
    masker = Masker(model, Pruning(0.5, "4x1", "magnitude", ONCE), 1)
    assert len(masker.masks) == 12
    assert all(".encoder.layer." in name for name in masker.masks)
    found = [name for name, (_, reason) in masker.selections[0].skipped.items() if reason.startswith("head")]
    assert found == ["2.linear.weight"]
    prunus.lock(model, pattern="4x1").remove_pruning()
