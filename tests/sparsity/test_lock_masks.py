"""Saved masks that a lock is given: names of any wrapper, numbers of any type that are 0 and 1, everything else refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers as tf
from tiny import two_layers
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import prunus
from prunus import Masker, Pruning, Schedule, TargetError
from prunus.sparsity import Span, Targets
from prunus.sparsity.wrappers import parameter, plain_names
from small import SIZES

# PEFT asks models for a property that transformers renames in its next major version.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

RULE = Pruning(0.5, "4x1", "magnitude", Schedule("one_shot", Span(0)))


def bert(head: str = "Model") -> Any:
    torch.manual_seed(0)
    return getattr(tf, f"Bert{head}")(tf.BertConfig(**SIZES)).eval()


def sentence_transformer(body: Any, place: Path) -> Any:
    st = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer

    body.save_pretrained(place)
    tokens = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "film"])}
    tf.BertTokenizerFast(vocab=tokens).save_pretrained(place)
    modules = [Transformer(str(place)), Pooling(16, pooling_mode="mean"), Dense(in_features=16, out_features=16)]
    return st.SentenceTransformer(modules=modules, device="cpu")


class Own(nn.Module):
    """A module of one's own around a model, with a head of its own."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.text, self.score = model, nn.Linear(16, 2)


def lora(model: Any) -> Any:
    choice = {"r": 2, "target_modules": ["query"], "modules_to_save": ["layer.1.intermediate.dense"]}
    return peft.get_peft_model(model, peft.LoraConfig(task_type="FEATURE_EXTRACTION", **choice))


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "DataParallel": nn.DataParallel,
    "AveragedModel": AveragedModel,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "compiled DataParallel": lambda model: torch.compile(nn.DataParallel(model), backend="eager"),
    "LoRA": lora,
    "averaged LoRA": lambda model: AveragedModel(lora(model)),
    "own": Own,
    "own in DataParallel": lambda model: nn.DataParallel(Own(model)),
    "own around DataParallel": lambda model: Own(nn.DataParallel(model)),
}


def written_masks(model: nn.Module) -> dict[str, Tensor]:
    """By the names of ``named_parameters``, as people save them."""
    return {
        name: value.detach() != 0
        for name, value in model.named_parameters()
        if ".encoder." in f".{name}" and value.dim() == 2 and "lora" not in name and "original_module" not in name
    }


def count(model: nn.Module) -> int:
    return sum(int((value == 0).sum()) for value in model.parameters() if value.dim() == 2)


@pytest.mark.parametrize("name", WRAPPERS)
def test_masks_of_the_plain_model_lock_its_wrapper_and_the_other_way_round(name: str) -> None:
    model = bert()
    masker = Masker(model, RULE, 1)
    wrapped = WRAPPERS[name](bert())
    assert len(masker.masks) == 12
    masker.apply(wrapped)  # the rule: a masker made for the plain model accepts its wrapper
    facts = masker.finish(wrapped)
    assert sum(fact.zeros for fact in facts) == sum(int((~mask).sum()) for mask in masker.masks.values())
    held = prunus.lock(wrapped, masks=masker.masks)
    assert len(held.remove_pruning()) == 12
    wrapped_names = written_masks(wrapped)
    assert len(wrapped_names) == 12
    if not name.startswith("own"):
        held = prunus.lock(model, pattern="4x1", masks=wrapped_names)
        assert all(torch.equal(held.masker.masks[key], mask) for key, mask in masker.masks.items())


@pytest.mark.parametrize("older", [False, True])
def test_masks_of_the_encoder_lock_a_sentence_transformer_and_the_other_way_round(older: bool, tmp_path: Path) -> None:
    body = bert()
    masker = Masker(body, RULE, 1)
    model = sentence_transformer(bert(), tmp_path)
    masker.apply(model)
    assert count(model) == count(body)
    held = prunus.lock(model, pattern="4x1", masks=masker.masks)
    masks = held.masker.masks
    assert len(masks) == 12
    assert all(name.startswith("0.model.encoder.") for name in masks)
    if older:  # the name of the same module in sentence-transformers 4
        masks = {name.replace("0.model.", "0.auto_model."): mask for name, mask in masks.items()}
    for other in (model, body, nn.DataParallel(model), AveragedModel(model)):
        again = prunus.lock(other, pattern="4x1", masks=masks)
        assert len(again.masker.masks) == 12
        assert sum(fact.zeros for fact in again.remove_pruning()) == sum(int((~m).sum()) for m in masks.values())
    made_there = Masker(model, RULE, 1)
    made_there.apply(body)
    made_there.finish(AveragedModel(model))


def test_a_name_that_the_model_has_twice_is_refused() -> None:
    masker = Masker(bert(), RULE, 1)
    two = nn.ModuleDict({"student": bert(), "teacher": bert()})
    before = count(two)
    with pytest.raises(TargetError, match=r"must stand for one parameter of the model \(ModuleDict\), got 2 of that"):
        masker.apply(two)
    assert count(two) == before


def sparse() -> tuple[nn.Module, dict[str, Tensor]]:
    model = two_layers()
    masker = Masker(model, Pruning(0.5, "unstructured", "magnitude", Schedule("one_shot", Span(0))), 1)
    return model, masker.masks


CONVERTED: dict[str, Callable[[Tensor], Any]] = {
    "uint8": lambda mask: mask.to(torch.uint8),
    "int64": lambda mask: mask.long(),
    "float32": lambda mask: mask.float(),
    "float16": lambda mask: mask.half(),
    "bfloat16": lambda mask: mask.bfloat16(),
    "float8": lambda mask: mask.to(torch.float8_e4m3fn),
    "parameter": lambda mask: nn.Parameter(mask.float()),
    "sparse": lambda mask: mask.float().to_sparse(),
    "numpy bool": lambda mask: mask.numpy(),
    "numpy float64": lambda mask: mask.double().numpy(),
    "numpy uint16": lambda mask: mask.numpy().astype(np.uint16),
    "numpy, big endian": lambda mask: mask.numpy().astype(">f4"),
    "numpy, transposed": lambda mask: np.asfortranarray(mask.numpy()),
    "numpy, read only": lambda mask: np.broadcast_to(mask.numpy(), mask.shape),
}


@pytest.mark.parametrize("kind", CONVERTED)
def test_masks_of_zeros_and_ones_are_taken_whatever_their_type(kind: str) -> None:
    model, masks = sparse()
    model.get_parameter("0.weight").data[~masks["0.weight"]] = 0
    converted = {name: CONVERTED[kind](mask) for name, mask in masks.items()}
    held = prunus.lock(model, masks=converted)
    assert all(torch.equal(held.masker.masks[name], mask) for name, mask in masks.items())
    rule = Pruning(lock=True, pattern="unstructured")
    started = Masker(model, rule, 4, saved=converted)
    assert all(torch.equal(started.masks[name], mask) for name, mask in masks.items())


REFUSED: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "scores": (lambda mask: mask.float() * 0.3, r"must be a torch tensor or NumPy array of bool.* numbers other than"),
    "counts": (lambda mask: mask.long() * 2, "numbers other than 0 and 1"),
    "nan": (lambda mask: torch.where(mask, 1.0, torch.nan), "numbers other than 0 and 1"),
    "numpy scores": (lambda mask: mask.numpy() * 0.5, "numbers other than 0 and 1"),
    "objects": (lambda mask: mask.numpy().astype(object), "got a ndarray|NumPy array of bool"),
    "text": (lambda mask: "0.5", "got a str|got 'a str'"),
    "nothing": (lambda mask: None, "NoneType"),
    "list": (lambda mask: mask.tolist(), "list"),
    "meta": (lambda mask: mask.to("meta"), "meta device"),
    "transposed": (lambda mask: mask.T, r"have the shape \[64, 32\] of the weight, got \[32, 64\]"),
    "flat": (lambda mask: mask.flatten(), "have the shape"),
    "one number": (lambda mask: torch.tensor(True), "have the shape"),
    "broadcast": (lambda mask: mask[:1], "have the shape"),
    "inverted": (lambda mask: ~mask, "that its mask locks are not zero"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_masks_are_refused(kind: str) -> None:
    model, masks = sparse()
    make, told = REFUSED[kind]
    with pytest.raises(TargetError, match=told) as error:
        prunus.lock(model, masks=masks | {"0.weight": make(masks["0.weight"])})
    assert "0.weight" in str(error.value)
    with pytest.raises(TargetError, match=told):
        Masker(model, Pruning(lock=True, pattern="unstructured"), 4, saved={"0.weight": make(masks["0.weight"])})


def test_unknown_names_are_named() -> None:
    model, masks = sparse()
    with pytest.raises(
        TargetError, match=r"lock\.masks must name weights of the model, got unknown names: 0\.wieght\n"
    ):
        prunus.lock(model, masks=masks | {"0.wieght": masks["0.weight"]})
    others = {f"layer.{i}.weight": masks["0.weight"] for i in range(5)}
    with pytest.raises(TargetError, match=r"layer\.0\.weight, layer\.1\.weight, layer\.2\.weight and 2 more"):
        prunus.lock(model, masks=others)
    with pytest.raises(TargetError, match=r"lock\.masks must hold at least one mask, got \{\}"):
        prunus.lock(model, masks={})
    with pytest.raises(TargetError, match=r"be the only mask of 0\.weight"):
        prunus.lock(model, masks=masks | {"module.0.weight": masks["0.weight"]})


@pytest.mark.parametrize("masks", [[torch.ones(64, 32)], "0.weight", 3, {1: torch.ones(64, 32)}])
def test_other_things_than_masks_by_name_are_refused(masks: Any) -> None:
    model, _ = sparse()
    with pytest.raises(TargetError, match=r"lock\.masks must be a dictionary of masks by name"):
        prunus.lock(model, masks=masks)


def test_a_model_without_numbers_is_refused() -> None:
    with pytest.raises(TargetError, match=r"0\.weight must hold numbers"):
        prunus.lock(two_layers().to("meta"))


def test_masks_of_weights_that_would_not_be_locked_are_told() -> None:
    model = bert("ForSequenceClassification")
    masks = Masker(model, RULE, 1).masks
    head = {"classifier.weight": torch.ones(2, 16, dtype=torch.bool)}
    with pytest.raises(
        TargetError, match=r"lock\.masks\['classifier\.weight'\] must belong to a weight of the targets"
    ):
        prunus.lock(model, masks=masks | head)
    few = Targets(include=(r"layer\.0\.",))
    assert len(prunus.lock(model, masks=masks, targets=few).masker.masks) == 6  # the user says which are locked


def test_saved_masks_of_parts_that_a_model_lacks_are_left_out() -> None:
    """A language model's masks, with its head, beside a classifier."""
    model = bert("ForSequenceClassification")
    masks = Masker(model, RULE, 1).masks | {"cls.predictions.transform.dense.weight": torch.ones(16, 16) == 1}
    masker = Masker(model, Pruning(lock=True, pattern="4x1"), 4, saved=masks)
    assert len(masker.masks) == 12


def test_plain_names_of_shared_and_unknown_weights() -> None:
    model = lora(bert())
    names = plain_names(model, ["base_model.model.encoder.layer.0.attention.self.query.base_layer.weight", "no.weight"])
    assert list(names.values()) == ["encoder.layer.0.attention.self.query.weight", None]
    assert parameter(model, "encoder.layer.0.attention.self.query.weight") is not None
