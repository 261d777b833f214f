"""A lock lasts as long as the weights that it was made for, whatever object leads to them, and no longer."""

import copy
import gc
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import ref

import peft
import pytest
import torch
import transformers as tf
from tiny import two_layers
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import prunus
from prunus import Masker, Pruning, Schedule, TargetError, TrainingError
from prunus.quantization import Quantization, quantize
from prunus.sparsity import Span, Targets, locking
from prunus.sparsity.wrappers import names_of, parameter
from small import SIZES

# PEFT asks models for a property that transformers renames in its next major version.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

ONCE = Schedule("one_shot", Span(0))
INPUTS = {"input_ids": torch.arange(5, 13)[None]}


def sparse_bert(layers: int = 2) -> Any:
    torch.manual_seed(0)
    model = tf.BertForSequenceClassification(tf.BertConfig(**SIZES | {"num_hidden_layers": layers})).eval()
    Masker(model, Pruning(0.5, "4x1", "magnitude", ONCE), 1)
    return model


def zeros(body: Any) -> dict[str, Tensor]:
    """Of the encoder's weights, by the names that they have in the body."""
    return {
        name: parameter.detach() == 0
        for name, parameter in body.named_parameters()
        if parameter.dim() == 2 and name.startswith("encoder.")
    }


def train(module: nn.Module, loss: Callable[[], Tensor], steps: int = 2) -> None:
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=0.01)
    for _ in range(steps):
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()


def train_body(body: Any) -> None:
    train(body, lambda: body(**INPUTS).last_hidden_state.square().mean())


def layer_loss(layer: ref[nn.Module]) -> Tensor:
    module = layer()
    assert module is not None
    given: Tensor = module(torch.ones(1, 3, 16))
    return given.square().mean()


def stays(before: dict[str, Tensor], body: Any) -> bool:
    after = zeros(body)
    return all(torch.equal(zero, after[name]) for name, zero in before.items())


class Wrapper(nn.Module):
    """A module of one's own around a model."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner = model

    def forward(self, **inputs: Any) -> Any:
        return self.inner(**inputs)


def lora(model: Any) -> Any:
    choice = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"], modules_to_save=[])
    return peft.get_peft_model(model, choice)


WRAPPERS: dict[str, Callable[[Any], nn.Module]] = {
    "the model": lambda model: model,
    "own module": Wrapper,
    "own module in another": lambda model: Wrapper(Wrapper(model)),
    "list": lambda model: nn.ModuleList([nn.Dropout(), model]),
    "DataParallel": nn.DataParallel,
    "compiled": lambda model: torch.compile(model, backend="eager"),  # type: ignore[dict-item, return-value]
    "own module, compiled": lambda model: torch.compile(Wrapper(model), backend="eager"),  # type: ignore[dict-item, return-value]
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_body_stays_locked_when_everything_around_it_is_dropped(name: str) -> None:
    model = sparse_bert()
    body, before, locks = model.bert, zeros(model.bert), len(locking._LOCKS)
    wrapper = WRAPPERS[name](model)
    prunus.lock(wrapper, pattern="4x1")
    del model, wrapper
    gc.collect()
    train_body(body)
    assert stays(before, body)
    layer = body.encoder.layer[1]
    before = {key: value.detach() == 0 for key, value in layer.named_parameters() if value.dim() == 2}
    del body
    gc.collect()
    assert len(locking._LOCKS) == locks + 1
    train(layer, partial(layer_loss, ref(layer)))
    assert all(torch.equal(value == 0, before[key]) for key, value in layer.named_parameters() if key in before)
    del layer
    gc.collect()
    assert len(locking._LOCKS) == locks


def test_a_lock_through_an_adapted_model_outlives_it() -> None:
    model = sparse_bert()
    before = zeros(model.bert)
    adapted = lora(model)
    prunus.lock(adapted, pattern="4x1")
    model = adapted.unload()
    del adapted
    gc.collect()
    for weight in model.parameters():
        weight.requires_grad_(True)
    train_body(model.bert)
    assert stays(before, model.bert)


def test_layers_that_move_within_the_model_keep_their_own_zeros() -> None:
    """By name, the last layer would get the zeros of the one that was taken out."""
    model = sparse_bert(layers=3)
    last = {key: value.detach().clone() for key, value in model.bert.encoder.layer[2].named_parameters()}
    scheduler = prunus.lock(model, pattern="4x1")
    del model.bert.encoder.layer[1]
    scheduler.apply()
    moved = model.bert.encoder.layer[1]
    assert all(torch.equal(value, last[key]) for key, value in moved.named_parameters())
    before = zeros(model.bert)
    train_body(model.bert)
    assert stays(before, model.bert)
    assert len(scheduler.remove_pruning()) == 12


def test_another_body_in_the_place_of_the_locked_one_is_not_touched() -> None:
    model = sparse_bert()
    body, before = model.bert, zeros(model.bert)
    prunus.lock(model, pattern="4x1")
    torch.manual_seed(1)
    model.bert = tf.BertModel(tf.BertConfig(**SIZES)).eval()
    train_body(model.bert)
    assert not any(bool(zero.any()) for zero in zeros(model.bert).values())
    train_body(body)
    assert stays(before, body)


def test_layers_that_are_quantized_stay_locked() -> None:
    model = sparse_bert()
    before = zeros(model.bert)
    scheduler = prunus.lock(model, pattern="4x1")
    body = model.bert
    quantize(model, Quantization(), [INPUTS])
    del model
    gc.collect()
    train_body(body)
    assert stays(before, body)
    assert len(scheduler.remove_pruning()) == 12


@pytest.mark.parametrize("copied", ["layer.1.intermediate.dense", "layer.1"])
def test_copies_that_peft_trains_are_locked(copied: str) -> None:
    model = sparse_bert()
    before = zeros(model.bert)
    prunus.lock(model, pattern="4x1")
    choice = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["layer.0.attention.self.query"])
    choice.modules_to_save = [copied]
    adapted = peft.get_peft_model(model, choice)
    train(adapted, lambda: adapted(**INPUTS).logits.square().mean())
    for name, zero in before.items():
        assert torch.equal(parameter(adapted, f"bert.{name}") == 0, zero)
    original = {name for name, _ in adapted.named_parameters() if "original_module" in name}
    assert original


def test_copies_are_not_locked() -> None:
    model = sparse_bert()
    prunus.lock(model, pattern="4x1")
    other = copy.deepcopy(model)
    before = zeros(other.bert)
    train_body(other.bert)
    assert not stays(before, other.bert)
    averaged = AveragedModel(model)
    prunus.lock(averaged, pattern="4x1")
    averaged.update_parameters(model)
    assert stays(before, averaged.module.bert)


def test_merging_an_adapter_is_told_and_changes_no_weight() -> None:
    model = sparse_bert()
    scheduler = prunus.lock(model, pattern="4x1")
    adapted = lora(model)
    for name, value in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.ones_(value)
    merged = adapted.merge_and_unload()
    values = {name: value.detach().clone() for name, value in merged.named_parameters()}
    with pytest.raises(TrainingError) as told:
        scheduler.remove_pruning()
    assert [problem.key for problem in told.value.problems] == [
        f"bert.encoder.layer.{i}.attention.self.query.weight" for i in range(2)
    ]
    assert all(torch.equal(value, values[name]) for name, value in merged.named_parameters())
    for value in merged.parameters():
        value.requires_grad_(True)
    train_body(merged.bert)  # the lock is gone
    assert int((merged.bert.encoder.layer[0].attention.self.key.weight == 0).sum()) == 0


def test_zeros_stay_where_gradients_are_not_finite() -> None:
    model = two_layers()
    Masker(model, Pruning(0.5, "unstructured", "magnitude", ONCE), 1)
    before = model[0].weight.detach() == 0
    prunus.lock(model)
    model[0].weight.grad = torch.full_like(model[0].weight, torch.inf)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert torch.equal(model[0].weight == 0, before)


def test_a_weight_that_has_another_shape_is_told_and_the_lock_can_be_dropped() -> None:
    model = two_layers()
    Masker(model, Pruning(0.5, "unstructured", "magnitude", ONCE), 1)
    scheduler = prunus.lock(model)
    model[0].weight = nn.Parameter(model[0].weight.detach()[:, :16])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TrainingError, match=r"0\.weight must have the shape \[64, 32\] that it had when its mask"):
        optimizer.step()
    with pytest.raises(TrainingError, match="have the shape"):
        scheduler.remove_pruning()
    optimizer.step()


def test_a_weight_that_is_no_parameter_any_more_is_told() -> None:
    """Its zeros would be lost without a word: weight normalization computes the weight from two others."""
    model = sparse_bert()
    scheduler = prunus.lock(model, pattern="4x1")
    nn.utils.parametrizations.weight_norm(model.bert.encoder.layer[0].output.dense)
    name = r"bert\.encoder\.layer\.0\.output\.dense\.weight must stay a parameter of its layer"
    with pytest.raises(TrainingError, match=name):
        train_body(model.bert)
    other = two_layers()
    torch.optim.SGD(other.parameters(), lr=0.1).step()  # has nothing to do with it
    with pytest.raises(TrainingError, match=name):
        scheduler.remove_pruning()


WAYS: dict[str, Callable[[Any], Any]] = {
    "assigned": lambda model: model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True),
    "double": lambda model: model.double(),
    "in another model": lambda model: setattr(
        tf.BertForTokenClassification(tf.BertConfig(**SIZES)), "bert", model.bert
    ),
}


@pytest.mark.parametrize("name", WAYS)
def test_parameters_that_are_replaced_stay_locked(name: str) -> None:
    model = sparse_bert()
    before = zeros(model.bert)
    prunus.lock(model, pattern="4x1")
    WAYS[name](model)
    train_body(model.bert)
    assert stays(before, model.bert)


class Replaced(nn.Module):
    """Does what a layer of BERT does, with layers of its own that have taken the parameters over."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.dense, self.norm = nn.Linear(32, 16), output.LayerNorm
        self.dense.weight, self.dense.bias = output.dense.weight, output.dense.bias

    def forward(self, states: Tensor, given: Tensor) -> Tensor:
        added: Tensor = self.norm(self.dense(states) + given)
        return added


def test_parameters_that_other_modules_have_taken_over_stay_locked() -> None:
    model, locks = sparse_bert(), len(locking._LOCKS)
    scheduler = prunus.lock(model, pattern="4x1")
    before = {id(value): value.detach() == 0 for value in model.bert.encoder.parameters() if value.dim() == 2}
    for layer in model.bert.encoder.layer:
        layer.output = Replaced(layer.output)
    gc.collect()
    train_body(model.bert)
    assert all(torch.equal(value == 0, before[id(value)]) for value in model.parameters() if id(value) in before)
    assert len(scheduler.remove_pruning()) == 12
    prunus.lock(model, targets=Targets(include=("query",)))
    del scheduler
    values = [value for name, value in model.named_parameters() if "query.weight" in name]
    del model, layer
    gc.collect()
    assert len(locking._LOCKS) == locks + 1
    for value in values:
        value.grad = torch.ones_like(value)
    torch.optim.SGD(values, lr=0.1).step()
    assert all(torch.equal(value == 0, before[id(value)]) for value in values)
    del values, value
    gc.collect()
    assert len(locking._LOCKS) == locks


def test_an_optimizer_for_each_parameter_keeps_its_zeros() -> None:
    model = sparse_bert()
    before = zeros(model.bert)
    prunus.lock(model, pattern="4x1")
    model(**INPUTS).logits.square().sum().backward()
    for value in model.parameters():
        torch.optim.AdamW([value], lr=0.1).step()
    assert stays(before, model.bert)


def test_locks_that_are_alive_when_python_ends_say_nothing() -> None:
    code = (
        "import torch, prunus\n"
        "model = torch.nn.Sequential(torch.nn.Linear(4, 4))\n"
        "model[0].weight.data[0] = 0\n"
        "lock = prunus.lock(model, targets=prunus.Targets(include=('0',)))\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stderr == ""


def test_a_masker_refuses_weights_of_another_shape() -> None:
    masker = Masker(two_layers(), Pruning(0.5, "unstructured", "magnitude", ONCE), 1)
    with pytest.raises(TrainingError, match=r"must have the shape \[\d+, \d+\] that it had when its mask was made"):
        masker.apply(two_layers(width=16, hidden=64))
    with pytest.raises(TargetError):
        masker.apply(nn.Sequential(nn.Linear(8, 8)))


def test_threads_lock_and_train_models_of_their_own() -> None:
    """A search over settings in threads: locks come and go in one while another takes steps."""
    failures: list[BaseException] = []
    start = threading.Barrier(4)

    def search(seed: int) -> None:
        try:
            start.wait()
            for _ in range(10):
                model = two_layers(seed, 8, 8)
                Masker(model, Pruning(0.5, "unstructured", "magnitude", ONCE), 1)
                before = model[0].weight.detach() == 0
                prunus.lock(model, targets=Targets(include=(r"^0\.",)))
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
                for _ in range(4):
                    model(torch.ones(2, 8)).square().sum().backward()
                    optimizer.step()
                assert torch.equal(model[0].weight == 0, before)
        except BaseException as error:
            failures.append(error)

    locks = len(locking._LOCKS)
    threads = [threading.Thread(target=search, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    gc.collect()
    assert len(locking._LOCKS) == locks


def test_a_lock_made_while_another_optimizer_goes_through_the_locks() -> None:
    """Not left to chance: the other lock appears between two locks that a step looks at."""
    models = [two_layers(seed, 8, 8) for seed in range(3)]
    for model in models:
        Masker(model, Pruning(0.5, "unstructured", "magnitude", ONCE), 1)
    first = prunus.lock(models[0])
    prunus.lock(models[1])
    weights = first._lines["0.weight"].weights

    def watched() -> Any:
        if len(late) == 0:
            late.append(prunus.lock(models[2]))
        return weights()

    late: list[Any] = []
    first._lines["0.weight"].weights = watched  # type: ignore[method-assign]
    models[1](torch.ones(2, 8)).sum().backward()
    torch.optim.SGD(models[1].parameters(), lr=0.1).step()
    assert late


def copied(model: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def copy_of(weight: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(weight.detach().clone())


def untie_first(model: Any) -> None:
    dense = model.bert.encoder.layer[0].output.dense
    dense.weight = copy_of(dense.weight)


def untie_second(model: Any) -> None:
    dense = model.bert.encoder.layer[1].output.dense
    dense.weight = copy_of(dense.weight)


def replace_first(model: Any) -> None:
    model.bert.encoder.layer[0].output.dense = nn.Linear(32, 16)


def replace_second(model: Any) -> None:
    model.bert.encoder.layer[1].output.dense = copy.deepcopy(model.bert.encoder.layer[1].output.dense)


def assign(model: Any) -> None:
    model.load_state_dict(copied(model), assign=True)


def tie_weight(model: Any) -> None:
    model.bert.encoder.layer[1].output.dense.weight = model.bert.encoder.layer[0].output.dense.weight


def tie_module(model: Any) -> None:
    model.bert.encoder.layer[1].output.dense = model.bert.encoder.layer[0].output.dense


UNTIED = [assign, untie_first, untie_second, replace_first, replace_second]


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("untie", UNTIED)
@pytest.mark.parametrize("tie", [tie_weight, tie_module])
def test_tied_weights_that_are_untied_stay_locked(
    tie: Callable[[Any], None], untie: Callable[[Any], None], wrapped: bool
) -> None:
    model = sparse_bert()
    tie(model)
    before = zeros(model.bert)
    scheduler = prunus.lock(nn.DataParallel(model) if wrapped else model)
    untie(model)
    gc.collect()
    train_body(model.bert)
    weights = [layer.output.dense.weight for layer in model.bert.encoder.layer]
    zero = before["encoder.layer.0.output.dense.weight"]
    assert all(bool((weight[zero] == 0).all()) for weight in weights)
    assert len(scheduler.remove_pruning()) == 11


def test_a_layer_that_is_shared_no_longer_stays_locked_in_both_places() -> None:
    model = sparse_bert()
    model.bert.encoder.layer[1] = model.bert.encoder.layer[0]
    before = zeros(model.bert)
    scheduler = prunus.lock(model, pattern="4x1")
    model.bert.encoder.layer[1] = copy.deepcopy(model.bert.encoder.layer[0])
    train_body(model.bert)
    after = zeros(model.bert)
    assert len(after) == 2 * len(before) == 12
    for name, zero in before.items():
        assert torch.equal(after[name], zero)
        assert torch.equal(after[name.replace("layer.0", "layer.1")], zero)
    assert len(scheduler.remove_pruning()) == 6


def test_an_untied_weight_whose_zeros_are_lost_is_told_by_its_own_name() -> None:
    model = sparse_bert()
    tie_weight(model)
    scheduler = prunus.lock(model)
    untie_second(model)
    nn.init.ones_(model.bert.encoder.layer[1].output.dense.weight)
    with pytest.raises(TrainingError) as told:
        scheduler.remove_pruning()
    assert [problem.key for problem in told.value.problems] == ["bert.encoder.layer.1.output.dense.weight"]


@pytest.mark.parametrize("revive", [False, True])
@pytest.mark.parametrize("untie", UNTIED)
@pytest.mark.parametrize("tie", [tie_weight, tie_module])
def test_a_masker_prunes_weights_that_were_untied_as_well(
    tie: Callable[[Any], None], untie: Callable[[Any], None], revive: bool
) -> None:
    torch.manual_seed(0)
    model = tf.BertForSequenceClassification(tf.BertConfig(**SIZES)).eval()
    tie(model)
    masker = Masker(model, Pruning(0.5, "4x1", "magnitude", Schedule("inc_cube", Span(1), Span(4)), revive=revive), 6)
    optimizer: torch.optim.Optimizer | None = None
    for step in range(6):
        if step in (0, 2):
            untie(model) if step else None
            optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        assert optimizer is not None
        model(**INPUTS).logits.square().sum().backward()
        masker.observe(model)
        optimizer.step()
        masker.step(model)
        optimizer.zero_grad()
    assert len(masker.finish(model)) == 11
    mask = masker.masks["bert.encoder.layer.0.output.dense.weight"]
    for layer in model.bert.encoder.layer:
        weight = layer.output.dense.weight
        assert bool((weight[~mask] == 0).all())
        assert int((weight == 0).sum()) == int((~mask).sum())


def test_all_names_of_a_tied_weight_are_plain_names() -> None:
    model = sparse_bert()
    tie_weight(model)
    model.bert.encoder.layer[1].intermediate = model.bert.encoder.layer[0].intermediate
    model.twin = model.bert
    expected = [f"{body}.encoder.layer.{i}.output.dense.weight" for body in ("bert", "twin") for i in range(2)]
    for wrapper in (lambda each: each, nn.DataParallel, lora):
        wrapped = wrapper(model)
        assert names_of(wrapped, expected[:1]) == {expected[0]: expected}
        inner = "bert.encoder.layer.0.intermediate.dense.weight"
        assert len(names_of(wrapped, [inner])[inner]) == 4
