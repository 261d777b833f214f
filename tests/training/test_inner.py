"""Hidden states and attention maps in a training: their share of the loss, and projectors that learn and are not saved."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification

from prunus import Distillation, PrunusTrainer, RecipeError, TargetError
from prunus.distillation.hidden import Inside
from prunus.recipe import read_recipe
from prunus.training.run import run
from small import arguments, batch, rows, small_recipe, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")
BOTH = Distillation(0.5, 0.25, 2.0, Inside(0.7, "uniform"), Inside(0.3, "last"))


def teacher_of(width: int = 32, layers: int = 4) -> BertForSequenceClassification:
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=40,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=16,
        max_position_embeddings=64,
        num_labels=3,
    )
    return BertForSequenceClassification(config)


def trainer_of(place: Path, distillation: Distillation, teacher: Any, **more: Any) -> PrunusTrainer:
    model = tiny_model("bert")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    features = rows(24)
    return PrunusTrainer(
        model,
        arguments(place, **more),
        train_dataset=features,
        data_collator=batch,
        teacher=teacher,
        distillation=distillation,
    )


def test_the_loss_is_the_weighted_sum_of_its_parts(tmp_path: Path) -> None:
    teacher = teacher_of()
    trainer = trainer_of(tmp_path, BOTH, teacher)
    student = trainer.model.train()
    inputs = batch(rows(6))
    got = float(trainer.compute_loss(student, dict(inputs)).detach())
    asked = {k: v for k, v in inputs.items() if k != "labels"}
    with torch.no_grad():
        s, t = (m.eval()(**asked, output_hidden_states=True, output_attentions=True) for m in (student, teacher))
    mask = inputs["attention_mask"].bool()
    hard = functional.cross_entropy(s.logits.double(), inputs["labels"])
    p, q = (t.logits.double() / 2).log_softmax(-1), (s.logits.double() / 2).log_softmax(-1)
    soft = 4 * (p.exp() * (p - q)).sum(-1).mean()
    hidden = []
    for i, j in ((0, 0), (1, 2), (2, 4)):
        wide = torch.zeros_like(t.hidden_states[j]).double()
        wide[..., :16] = s.hidden_states[i].double()  # how projectors begin
        hidden.append((wide - t.hidden_states[j].double())[mask].square().mean())
    maps = s.attentions[-1].double().mean(1) - t.attentions[-1].double().mean(1)
    pairs = mask[:, :, None] & mask[:, None, :]
    attention = maps[pairs].square().mean()
    expected = 0.25 * hard + 0.5 * soft + 0.7 * torch.stack(hidden).mean() + 0.3 * attention
    assert got == pytest.approx(float(expected), rel=1e-5)


def test_projectors_learn_and_are_not_saved(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, BOTH, teacher_of(), max_steps=4)
    assert trainer.inner is not None
    before = {name: value.clone() for name, value in trainer.inner.state_dict().items()}
    assert set(before) == {f"projectors.{pair}.weight" for pair in ("0-0", "1-2", "2-4")}
    trainer.train()
    assert all(not torch.equal(value, before[name]) for name, value in trainer.inner.state_dict().items())
    trainer.save_model(str(tmp_path / "saved"))
    assert not any("projector" in name for name in load_file(tmp_path / "saved" / "model.safetensors"))
    assert not (tmp_path / "saved" / "projectors.safetensors").exists()


def test_no_projectors_where_widths_agree(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, BOTH, tiny_model("bert", seed=3))
    assert trainer.inner is not None
    assert list(trainer.inner.parameters()) == []


def test_without_weights_nothing_more_is_asked_of_the_models(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, Distillation(), teacher_of())
    assert trainer.inner is None


def test_layers_that_are_not_there_are_told(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"distill\.hidden\.pairs"):
        trainer_of(tmp_path, Distillation(hidden=Inside(1.0, pairs=((3, 1),))), teacher_of())


def test_a_resumed_training_has_its_projectors(tmp_path: Path) -> None:
    more: dict[str, Any] = {"max_steps": 8, "save_strategy": "steps", "save_steps": 4}
    whole = trainer_of(tmp_path / "whole", BOTH, teacher_of(), **more)
    whole.train()
    again = trainer_of(tmp_path / "whole", BOTH, teacher_of(), **more)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert whole.inner is not None
    assert again.inner is not None
    for left, right in zip(whole.inner.parameters(), again.inner.parameters(), strict=True):
        assert torch.equal(left, right)
    for left, right in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(left, right)


def test_a_recipe_with_hidden_states(
    small_data: Path, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    hidden = {"weight": 1.0, "layers": "uniform", "loss": "cosine"}
    recipe = small_recipe(
        tiny_bert, small_data, distill={"teacher": "dense", "hidden": hidden, "attention": {"weight": 1}}
    )
    facts = run(read_recipe(recipe), tmp_path / "out")
    last = facts["history"]["loss"][-1]
    assert {"hard_loss", "distill_loss", "hidden_loss", "attention_loss"} <= set(last)
    parts = last["hard_loss"] * 0 + sum(
        last[name] for name in ("hard_loss", "distill_loss", "hidden_loss", "attention_loss")
    )
    assert last["loss"] == pytest.approx(parts, rel=1e-3)
    with pytest.raises(RecipeError, match=r"distill\.hidden\.lyers"):
        read_recipe(recipe | {"distill": {"hidden": {"lyers": "last"}}})
