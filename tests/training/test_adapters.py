"""Pruning below adapters of PEFT: Trainer saves those alone, and the pruned base is not lost."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from prunus import CheckpointError, PruneCallback, Pruning, PrunusTrainer, Schedule, Span
from small import arguments, batch, plain_trainer, rows, save_tiny_bert, tiny_model

pytestmark = [
    # PEFT asks models for a property that transformers renames in its next major version.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*below adapters, and Trainer saves the adapters alone"),
]
RULE = Pruning(0.5, "4x1", "magnitude", Schedule("linear", Span(1), end=Span(5), every=Span(1)))


def adapted(base: Any, kind: str = "LoRA") -> Any:
    if kind == "added to the model":
        base.add_adapter(peft.LoraConfig(r=2, target_modules=["query", "value"]))
        return base
    config: Any = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"])
    if kind == "IA3":
        names = ["key", "value", "output.dense"]
        config = peft.IA3Config(task_type="SEQ_CLS", target_modules=names, feedforward_modules=["output.dense"])
    return peft.get_peft_model(base, config)


def zeros(model: nn.Module) -> float:
    """Of the encoder's own layers."""
    held = [
        weight
        for name, weight in model.named_parameters()
        if ".encoder.layer." in name and name.endswith("weight") and weight.dim() == 2 and "lora" not in name
    ]
    return sum(int((weight == 0).sum()) for weight in held) / sum(weight.numel() for weight in held)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(**{k: v for k, v in batch(rows(4)).items() if k != "labels"}).logits
    return found


@pytest.mark.parametrize("kind", ["LoRA", "IA3", "added to the model"])
@pytest.mark.parametrize("trainer", ["callback", "PrunusTrainer"])
def test_base_and_adapters_on_disk_are_the_trained_model(kind: str, trainer: str, tmp_path: Path) -> None:
    model, args = adapted(tiny_model(), kind), arguments(tmp_path, save_strategy="steps", save_steps=8)
    if trainer == "callback":
        running: Any = plain_trainer(model, args, rows(32), callbacks=[PruneCallback(RULE)])
    else:
        running = PrunusTrainer(model, args, train_dataset=rows(32), pruning=RULE)
    running.train()
    assert zeros(model) == 0.5
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "pruned_base")
    assert zeros(base) == 0.5
    saved = tmp_path / "checkpoint-8"
    if kind == "added to the model":
        base.load_adapter(str(saved))
        again = base
    else:
        again = peft.PeftModel.from_pretrained(base, saved)
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=0)
    if trainer == "PrunusTrainer":
        running.save_model(str(tmp_path / "named"))
        assert (tmp_path / "named" / "pruned_base" / "model.safetensors").is_file()


@pytest.mark.parametrize("revive", [False, True])
def test_a_training_goes_on_from_adapters_and_masks(revive: bool, tmp_path: Path) -> None:
    def train(resume: bool = False) -> Any:
        model = adapted(tiny_model())
        rule = Pruning(0.5, "4x1", "magnitude", RULE.schedule, revive=revive)
        args = arguments(tmp_path, save_strategy="steps", save_steps=3)
        trainer = plain_trainer(model, args, rows(32), callbacks=[PruneCallback(rule)])
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3") if resume else None)
        return model

    whole = train()
    resumed = train(True)
    assert zeros(resumed) == 0.5
    for (name, left), right in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(left, right), name


def test_it_is_told_before_the_first_step(tmp_path: Path) -> None:
    model = adapted(tiny_model())
    with pytest.warns(UserWarning, match=r"12 of the pruned tensors are below adapters.*pruned_base"):
        plain_trainer(model, arguments(tmp_path), rows(32), callbacks=[PruneCallback(RULE)]).train()


def test_a_trained_base_cannot_go_on(tmp_path: Path) -> None:
    def trainer(resume: bool) -> None:
        model = adapted(tiny_model())
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("pooler" not in name)
        args = arguments(tmp_path, save_strategy="steps", save_steps=3)
        running = plain_trainer(model, args, rows(32), callbacks=[PruneCallback(RULE)])
        running.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3") if resume else None)

    trainer(False)
    with pytest.raises(CheckpointError, match="be frozen below adapters for a training to be resumed"):
        trainer(True)


@pytest.mark.parametrize("kind", ["no adapters", "zeros locked", "a copy of the pruned layer"])
def test_nothing_more_is_written_where_all_is_saved(
    kind: str, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    base, rule = tiny_model(), RULE
    if kind == "zeros locked":
        from prunus import Masker

        Masker(base, Pruning(0.5, "4x1", "magnitude", Schedule("one_shot", Span(0))), 1)
        rule = Pruning(0.5, "4x1", lock=True)
    model = base if kind == "no adapters" else adapted(base)
    if kind == "a copy of the pruned layer":
        from prunus import Targets

        config = peft.LoraConfig(
            task_type="SEQ_CLS", r=2, target_modules=["query"], modules_to_save=["layer.0.output.dense"]
        )
        model = peft.get_peft_model(tiny_model(), config)
        rule = Pruning(0.5, "4x1", "magnitude", RULE.schedule, targets=Targets(include=(r"layer\.0\.output\.dense",)))
    plain_trainer(model, arguments(tmp_path), rows(32), callbacks=[PruneCallback(rule)]).train()
    assert not (tmp_path / "pruned_base").exists()
    assert not any("below adapters" in str(each.message) for each in recwarn)


def test_a_base_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "pruned_base").write_text("a file")
    with pytest.raises(CheckpointError, match=r"pruned_base must be written, got .*exists"):
        plain_trainer(adapted(tiny_model()), arguments(tmp_path), rows(32), callbacks=[PruneCallback(RULE)]).train()


@pytest.mark.parametrize("kind", ["added", "wrapped"])
def test_the_encoder_of_a_sentence_transformer_is_written(kind: str, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import AutoModel

    from prunus import Masker
    from prunus.training.adapters import unsaved, write_base

    encoder = Transformer(str(save_tiny_bert(tmp_path / "tiny")))
    model = SentenceTransformer(modules=[encoder, Pooling(16)], device="cpu")
    config = peft.LoraConfig(r=2, target_modules=["query"])
    if kind == "added":
        model.add_adapter(config)
    else:
        model[0].auto_model = peft.get_peft_model(model[0].auto_model, config)
    rule = Pruning(0.5, "4x1", "magnitude", Schedule("one_shot", Span(0)))
    masker = Masker(model, rule, 1)
    assert len(unsaved(model, masker)) == len(masker.masks) == 12
    write_base(model, tmp_path / "base")
    base = AutoModel.from_pretrained(tmp_path / "base")
    inner = next(module for module in model.modules() if type(module).__name__ == "BertModel")
    for name, mask in masker.masks.items():
        weight = base.get_parameter(name.split("model.", 1)[-1])
        assert torch.equal(weight != 0, mask)
    assert type(base) is type(inner)
