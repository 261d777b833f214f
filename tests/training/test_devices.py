"""Everything follows the model to its device: masks, scores, dense weights, locks, teachers, banks, learned ranges."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

import prunus
from fake_device import DEVICE, fake_device
from prunus import Allocation, Distillation, Masker, Pruning, PrunusTrainer, Schedule, Span
from prunus.distillation.contrastive import Contrast, Contrastive, Snapshots
from prunus.distillation.hidden import Inside
from prunus.errors import TrainingError
from prunus.quantization import quantize, restore, to_float
from prunus.quantization.spec import Quantization
from prunus.sparsity.criteria import Scores
from small import TOKENS, arguments, batch, locked_bert, plain_trainer, rows, teacher_of, tiny_model, without_dropout

STEPS = 4
GRADUAL = Schedule("linear", Span(1), end=Span(3), every=Span(1))


def test_the_device_refuses_what_another_device_refuses() -> None:
    with fake_device() as device:
        there = torch.ones(3).to(device)
        assert there.device == device
        assert float((there * torch.tensor(2.0)).sum()) == 6.0
        with pytest.raises(RuntimeError, match="same device"):
            there.mul_(torch.ones(3))
        assert torch.equal(there.cpu(), torch.ones(3))


RULES = {
    "magnitude": Pruning(0.5, "4x1", "magnitude", GRADUAL),
    "snip_momentum": Pruning(0.5, "4x1", "snip_momentum", GRADUAL),
    "2:4": Pruning(None, "2:4", "snip_momentum", GRADUAL),
    "per tensor": Pruning(0.5, "4x1", "snip", GRADUAL, Allocation(scope="tensor")),
    "wanda": Pruning(0.5, "unstructured", "wanda", GRADUAL),
    "random": Pruning(0.5, "4x1", "random", GRADUAL),
    "heads": Pruning(0.5, "heads", "first_order", GRADUAL),
    "neurons": Pruning(0.5, "ffn", "first_order", GRADUAL),
    "revive": Pruning(0.5, "4x1", "snip_momentum", GRADUAL, revive=True),
    "movement": Pruning(0.5, "4x1", "movement", GRADUAL, revive=True, scores=Scores()),
    "soft movement": Pruning(
        None, "4x1", "movement", GRADUAL, revive=True, scores=Scores(threshold=0.1, regularization=10.0)
    ),
}


def one_layer() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 16}
    return without_dropout(
        BertForSequenceClassification(BertConfig(vocab_size=TOKENS, num_hidden_layers=1, num_labels=3, **sizes))
    )


def trained(rule: Pruning, moves: dict[int, Any]) -> dict[str, Tensor]:
    """Masks of a short training, in which the model (or parts of it) moves before some steps."""
    model = one_layer()
    masker = Masker(model, rule, STEPS)
    features = batch(rows(4))
    # Without a state, so that only the masker has something to move.
    optimizer: torch.optim.Optimizer | None = None
    for step in range(STEPS):
        if step in moves:
            moves[step](model)
        if optimizer is None or step in moves:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        device = model.device
        model(**{name: value.to(device) for name, value in features.items()}).loss.backward()
        masker.observe(model)
        optimizer.step()
        masker.step(model)
        optimizer.zero_grad()
    masker.finish(model)
    for name, mask in masker.masks.items():
        assert mask.device == model.get_parameter(name).device
    return {name: mask.cpu() for name, mask in masker.masks.items()}


@pytest.mark.parametrize("name", RULES)
def test_a_model_that_moves_within_its_training_gets_the_same_masks(name: str) -> None:
    stayed = trained(RULES[name], {})
    with fake_device() as device:
        moved = trained(RULES[name], {2: lambda model: model.to(device), 3: lambda model: model.to("cpu")})
    assert all(torch.equal(mask, moved[key]) for key, mask in stayed.items())


def test_a_state_is_loaded_onto_the_device_of_the_weights() -> None:
    model = tiny_model()
    masker = Masker(model, RULES["revive"], STEPS)
    for _ in range(3):
        batch_ = batch(rows(4))
        model(**batch_).loss.backward()
        masker.observe(model)
        masker.step(model)
    state = masker.state_dict()
    with fake_device() as device:
        model.to(device)
        again = Masker(model, RULES["revive"], STEPS, state=state)
        again.step(model)
        again.apply(model)
        kept = again.state_dict()
        assert {kept[key].device for key in kept if key.startswith(("mask.", "dense.", "score."))} == {device}


def test_layers_on_several_devices_share_one_threshold() -> None:
    whole, split = tiny_model(), tiny_model()
    rule = Pruning(0.5, "4x1", "magnitude", Schedule("one_shot", Span(0)), Allocation(scope="global"))
    masks = Masker(whole, rule, 1).masks
    with fake_device() as device:
        split.bert.encoder.layer[1].to(device)
        found = Masker(split, rule, 1).masks
        assert {mask.device.type for mask in found.values()} == {"cpu", device.type}
        assert all(torch.equal(masks[name], mask.cpu()) for name, mask in found.items())


def test_weights_without_numbers_are_told() -> None:
    model = tiny_model()
    masker = Masker(model, RULES["magnitude"], STEPS)
    model.to("meta")
    with pytest.raises(TrainingError, match="hold numbers when masks are updated"):
        masker.step(model)


@pytest.mark.parametrize("moves", ["by hand", "in Trainer"])
def test_lock_first_then_the_model_moves(moves: str, tmp_path: Path) -> None:
    model = locked_bert()
    zeros = {name: value.detach() == 0 for name, value in model.named_parameters() if value.dim() == 2}
    scheduler = prunus.lock(model, pattern="4x1")
    with fake_device() as device:
        if moves == "in Trainer":
            trainer = plain_trainer(model, arguments(tmp_path, optim="adamw_torch", max_steps=3), rows(12))
            trainer.train()
        else:
            model.to(device)
            optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
            inputs = {name: value.to(device) for name, value in batch(rows(4)).items()}
            for _ in range(3):
                model(**inputs).loss.backward()
                optimizer.step()
        assert model.device == device
        scheduler.remove_pruning()
        locked = scheduler.masker.masks
        assert locked
        for name in locked:
            assert torch.equal((model.get_parameter(name).detach() == 0).cpu(), zeros[name])


CONTRAST = Contrastive(
    prc=Contrast(weight=0.1), snc=Snapshots(weight=0.1), fic=Contrast(weight=0.1, supervised=0.1), negatives=8
)


@pytest.mark.parametrize(
    ("teacher", "distillation", "quantized"),
    [
        (teacher_of(), Distillation(hidden=Inside(weight=1.0, layers="uniform"), attention=Inside(weight=1.0)), True),
        (teacher_of(16), Distillation(contrast=CONTRAST), False),
        (tiny_model(seed=4), Distillation(reuse=1.0), False),
    ],
    ids=["projectors", "banks", "reused head"],
)
def test_a_training_with_teachers_on_the_device(
    teacher: Any, distillation: Distillation, quantized: bool, tmp_path: Path
) -> None:
    model, inputs = tiny_model(), {k: v for k, v in batch(rows(4)).items() if k != "labels"}
    if quantized:
        quantize(model, Quantization(embeddings=True), [inputs])
    rule = Pruning(0.5, "4x1", schedule=GRADUAL)
    with fake_device() as device:
        args = arguments(tmp_path, optim="adamw_torch", max_steps=3)
        trainer = PrunusTrainer(
            model, args, train_dataset=rows(12), pruning=rule, teacher=teacher, distillation=distillation
        )
        trainer.train()
        assert model.device == device
        assert trainer.prune_callback is not None
        assert sum(fact.zeros for fact in trainer.prune_callback.facts) > 0
        if quantized:
            ranges = to_float(model)
            restore(model, {name: value.cpu() for name, value in ranges.items()})
            model(**{name: value.to(DEVICE) for name, value in inputs.items()})
