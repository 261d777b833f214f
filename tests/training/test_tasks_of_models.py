"""What a task is comes from the model: PrunusTrainer trains any model as transformers.Trainer does, and evaluates it so."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from torch import nn
from transformers import PrinterCallback, Trainer

from prunus import Distillation, Pruning, PrunusTrainer, Schedule, Span
from prunus.errors import TargetError
from small import LENGTH, TOKENS, arguments, weights, without_dropout

SIZES = {"vocab_size": TOKENS, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
FEED = {"intermediate_size": 32, "max_position_embeddings": 64}
NONE = Pruning(0.0, "4x1", "magnitude", Schedule("one_shot", Span(1)))


def bert(head: str, **more: Any) -> Any:
    torch.manual_seed(0)
    return without_dropout(getattr(tf, f"Bert{head}")(tf.BertConfig(**SIZES, **FEED, **more)))


def llama() -> Any:
    torch.manual_seed(0)
    return tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES, **FEED, num_key_value_heads=2, pad_token_id=0))


def draw(row: int) -> np.random.Generator:
    return np.random.default_rng(row)


# a model, the labels of a row, and the shape of the logits of eight rows
TASKS: dict[str, tuple[Callable[[], Any], Callable[[int], Any], tuple[int, ...]]] = {
    "classes": (lambda: bert("ForSequenceClassification", num_labels=3), lambda row: row % 3, (8, 3)),
    "labels": (
        lambda: bert("ForSequenceClassification", num_labels=5, problem_type="multi_label_classification"),
        lambda row: [float(value) for value in draw(row).integers(0, 2, 5)],
        (8, 5),
    ),
    "as many labels as tokens": (
        lambda: bert("ForSequenceClassification", num_labels=LENGTH, problem_type="multi_label_classification"),
        lambda row: [float(value) for value in draw(row).integers(0, 2, LENGTH)],
        (8, LENGTH),
    ),
    "numbers": (
        lambda: bert("ForSequenceClassification", num_labels=3, problem_type="regression"),
        lambda row: [float(value) for value in draw(row).normal(size=3)],
        (8, 3),
    ),
    "one number": (lambda: bert("ForSequenceClassification", num_labels=1), lambda row: row / 4, (8, 1)),
    "classes of tokens": (
        lambda: bert("ForTokenClassification", num_labels=4),
        lambda row: [-100, *(int(value) for value in draw(row).integers(0, 4, LENGTH - 2)), -100],
        (8, LENGTH, 4),
    ),
    "masked tokens": (
        lambda: bert("ForMaskedLM"),
        lambda row: [-100] * (LENGTH - 3) + [7, 8 + row % 4, -100],
        (8, LENGTH, TOKENS),
    ),
    "next tokens": (llama, lambda row: [-100, *range(5, 4 + LENGTH)], (8, LENGTH, TOKENS)),
    "choices": (lambda: bert("ForMultipleChoice"), lambda row: row % 2, (8, 2)),
}


COUNTS_TOKENS = {"next tokens"}
"""Tasks of these models whose losses are divided by the number of tokens in all micro-batches of a step."""


class Averaging(Trainer):  # type: ignore[misc]
    """Trainer, told that the model's loss is a mean over its micro-batch: left to itself it adds those of a step up."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False


def reference(name: str) -> type[Trainer]:
    return Trainer if name in COUNTS_TOKENS else Averaging


def features(name: str, count: int = 8) -> list[dict[str, Any]]:
    """Rows whose labels cover different numbers of tokens."""
    made = []
    for row in range(count):
        ids = draw(100 + row).integers(4, TOKENS, (2, LENGTH) if name == "choices" else LENGTH).tolist()
        mask = [[1] * LENGTH] * 2 if name == "choices" else [1] * LENGTH
        labels = TASKS[name][1](row)
        if name in ("classes of tokens", "next tokens") and row % 3 == 0:
            labels = [*labels[:4], *[-100] * (LENGTH - 4)]
        made.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return made


def train(kind: type[Trainer], name: str, directory: Path, micro: int = 1, **more: Any) -> Any:
    args = arguments(directory, max_steps=2, per_device_train_batch_size=4, gradient_accumulation_steps=micro)
    trainer = kind(TASKS[name][0](), args, train_dataset=features(name, 8 * micro), **more)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer


@pytest.mark.parametrize(("name", "micro"), [*((name, 3) for name in TASKS), ("next tokens", 1), ("labels", 1)])
def test_the_training_is_that_of_trainer(name: str, micro: int, tmp_path: Path) -> None:
    theirs = train(reference(name), name, tmp_path, micro)
    ours = train(PrunusTrainer, name, tmp_path, micro, pruning=NONE)
    for key, value in weights(theirs.model).items():
        assert torch.equal(value, weights(ours.model)[key]), key
    losses = [log["loss"] for log in theirs.state.log_history if "loss" in log]
    assert [log["loss"] for log in ours.state.log_history if "loss" in log] == losses


@pytest.mark.parametrize("name", TASKS)
def test_beside_a_teacher_the_task_loss_is_that_of_trainer(name: str, tmp_path: Path) -> None:
    micro = 3
    theirs = train(reference(name), name, tmp_path, micro)
    teacher = TASKS[name][0]()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(1.5)
    ours = train(PrunusTrainer, name, tmp_path, micro, teacher=teacher, distillation=Distillation(0.5, hard_weight=1.0))
    first = next(log for log in ours.state.log_history if "loss" in log)
    want = next(log["loss"] for log in theirs.state.log_history if "loss" in log)
    assert first["hard_loss"] == pytest.approx(want, rel=1e-5)
    assert first["distill_loss"] > 0
    assert first["loss"] == pytest.approx(first["hard_loss"] + 0.5 * first["distill_loss"], rel=1e-5)


@pytest.mark.parametrize("name", TASKS)
def test_predictions_have_the_shape_of_trainers(name: str, tmp_path: Path) -> None:
    def compute(prediction: Any) -> dict[str, float]:
        assert prediction.predictions.shape == TASKS[name][2]
        return {"mean": float(np.mean(prediction.predictions))}

    made = []
    for kind, more in ((Trainer, {}), (PrunusTrainer, {"pruning": NONE})):
        args = arguments(tmp_path, per_device_eval_batch_size=3)
        trainer = kind(TASKS[name][0](), args, eval_dataset=features(name), compute_metrics=compute, **more)
        trainer.remove_callback(PrinterCallback)
        made.append((trainer.evaluate(), trainer.predict(features(name)).predictions))
    assert made[0][0]["eval_mean"] == made[1][0]["eval_mean"]
    assert made[0][0]["eval_loss"] == pytest.approx(made[1][0]["eval_loss"], rel=1e-6)
    assert np.array_equal(made[0][1], made[1][1])


def test_a_loss_of_ones_own_stands_beside_a_teacher(tmp_path: Path) -> None:
    """One that is normalised over all micro-batches of a step, as Trainer's documentation has it."""

    def own(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        return nn.functional.cross_entropy(outputs["logits"], labels, reduction="sum") / num_items_in_batch

    theirs = train(Trainer, "classes", tmp_path, 3, compute_loss_func=own)
    teacher = TASKS["classes"][0]()  # the student as it begins
    ours = train(PrunusTrainer, "classes", tmp_path, 3, compute_loss_func=own, teacher=teacher)
    want = [log["loss"] for log in theirs.state.log_history if "loss" in log]
    got = [log["hard_loss"] for log in ours.state.log_history if "loss" in log]
    assert got[0] == pytest.approx(want[0], rel=1e-5)


def test_outputs_that_no_loss_fits_are_told(tmp_path: Path) -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = bert("ForSequenceClassification", num_labels=3)

        def forward(self, input_ids: Any, attention_mask: Any, labels: Any = None) -> Any:
            given = self.model(input_ids=input_ids, attention_mask=attention_mask, labels=labels)
            return {"loss": given.loss, "scores": given.logits}

    args = arguments(tmp_path, max_steps=1)
    trainer = PrunusTrainer(
        Other(), args, train_dataset=features("classes"), teacher=Other(), distillation=Distillation(1.0)
    )
    trainer.remove_callback(PrinterCallback)
    with pytest.raises(TargetError, match="give logits, or start_logits and end_logits"):
        trainer.train()
