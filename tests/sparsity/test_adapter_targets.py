"""Adapters of PEFT, of every kind: the model's own weights are the targets, what a tuner adds is not."""

from typing import Any

import peft
import pytest
import torch
import transformers as tf
from torch import nn

import prunus
from prunus import Masker, Pruning, Schedule
from prunus.sparsity import Span, Targets, Unstructured, select
from prunus.sparsity.wrappers import places
from small import SIZES

# PEFT asks models for a property that transformers renames in its next major version, and says what it does.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

ONCE = Schedule("one_shot", Span(0))
TWO = {"target_modules": ["query", "value"]}
TUNERS: dict[str, dict[str, Any]] = {
    "LoraConfig": {"r": 2, **TWO},
    "AdaLoraConfig": {"init_r": 3, "target_r": 2, "total_step": 100, **TWO},
    "IA3Config": {"feedforward_modules": [], **TWO},
    "LoHaConfig": {"r": 2, **TWO},
    "LoKrConfig": {"r": 2, **TWO},
    "OFTConfig": {"oft_block_size": 4, **TWO},
    "BOFTConfig": {"boft_block_size": 4, **TWO},
    "HRAConfig": {"r": 2, **TWO},
    "VeraConfig": {"r": 2, **TWO},
    "PolyConfig": {"r": 2, "n_tasks": 2, **TWO},
    "LNTuningConfig": {"target_modules": ["LayerNorm"]},
    "TrainableTokensConfig": {"target_modules": ["word_embeddings"], "token_indices": [1, 2]},
    "PrefixTuningConfig": {"num_virtual_tokens": 2, "prefix_projection": True, "encoder_hidden_size": 8},
    "PromptEncoderConfig": {"num_virtual_tokens": 2, "encoder_hidden_size": 8},
}


def bert() -> Any:
    torch.manual_seed(0)
    return tf.BertForSequenceClassification(tf.BertConfig(**SIZES)).eval()


def llama() -> Any:
    torch.manual_seed(0)
    return tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES, num_key_value_heads=2)).eval()


def same_targets(model: Any, adapted: Any) -> None:
    plain = select(model, Targets(), Unstructured())
    assert dict(select(adapted, Targets(), Unstructured()).taken) == dict(plain.taken)
    named = Targets(include=("",), exclude=())  # matches adapters, and the layers beside which they stand
    every = select(model, named, Unstructured()).taken
    assert dict(select(adapted, named, Unstructured()).taken) == dict(every)
    masker = Masker(model, Pruning(0.5, "4x1", "magnitude", ONCE), 1)
    masker.apply(adapted)
    assert len(masker.finish(adapted)) == len(plain.taken)
    prunus.lock(adapted, pattern="4x1", masks=masker.masks).remove_pruning()


@pytest.mark.parametrize("name", TUNERS)
def test_targets_of_an_adapted_model_are_those_of_the_model(name: str) -> None:
    same_targets(bert(), peft.get_peft_model(bert(), getattr(peft, name)(task_type="SEQ_CLS", **TUNERS[name])))


def test_attentions_that_peft_replaces_are_those_of_the_model() -> None:
    choice = peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=4, adapter_layers=1)
    same_targets(llama(), peft.get_peft_model(llama(), choice))


def test_adapters_that_a_model_adds_to_itself() -> None:
    model = bert()
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["query"]))
    same_targets(bert(), model)
    mixed = peft.PeftMixedModel(bert(), peft.LoraConfig(r=2, target_modules=["query"]), "first")
    mixed.add_adapter("second", peft.LoHaConfig(r=2, target_modules=["value"]))
    same_targets(bert(), mixed)


class Residual(nn.Module):
    """Names its layers as PEFT does."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer, self.original_module, self.model = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.modules_to_save = nn.ModuleDict({"default": nn.Linear(8, 8)})


class Own(nn.Module):
    """A body that has nothing to do with PEFT."""

    base_model_prefix = ""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Residual(), Residual()])
        self.base_model = nn.Linear(8, 8)


def test_modules_of_ones_own_may_have_the_names_that_peft_uses() -> None:
    model = Own()
    assert [place.name for place in places(model)] == [name for name, _ in model.named_modules()]
    assert not any(place.adapter for place in places(model))
    taken = select(model, Targets(), Unstructured()).taken
    parts = ["base_layer", "original_module", "model", "modules_to_save.default"]
    assert list(taken) == [f"layers.{i}.{part}.weight" for i in range(2) for part in parts]
    masker = Masker(model, Pruning(0.5, "unstructured", "magnitude", ONCE), 1)
    assert len(masker.finish(model)) == 8
    prunus.lock(model).remove_pruning()
