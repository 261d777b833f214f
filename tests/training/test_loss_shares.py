"""What a micro-batch counts in a step: as Trainer has it without a teacher, and a teacher's logits as the task loss."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn
from torch.nn import functional
from transformers import PrinterCallback, Trainer

from prunus import Distillation, Pruning, PrunusTrainer, Schedule, Span
from prunus.errors import TrainingError
from small import TOKENS, arguments, rows, tiny_model, weights, without_dropout

NONE = Pruning(0.0, "4x1", "magnitude", Schedule("one_shot", Span(1)))
SIZES: dict[str, Any] = {
    "vocab_size": TOKENS,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 64,
}


class Averaging(Trainer):  # type: ignore[misc]
    """Trainer, told that the model's loss is a mean over its micro-batch: left to itself it adds those of a step up."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False


def next_tokens(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES, num_key_value_heads=2, pad_token_id=0))


def token_classes(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return without_dropout(tf.BertForTokenClassification(tf.BertConfig(**SIZES, num_labels=4)))


def sequences(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
    return tf.T5ForConditionalGeneration(tf.T5Config(vocab_size=TOKENS, decoder_start_token_id=0, **sizes))


def classes(seed: int = 0) -> Any:
    return without_dropout(tiny_model(seed=seed))


def summed(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
    """Normalised over all micro-batches of a step, as Trainer's documentation has it."""
    logits = outputs["logits"].flatten(0, -2)
    return functional.cross_entropy(logits, labels.flatten(), reduction="sum") / num_items_in_batch


# a model, whether its loss counts the items of a step, what a training is given beside it
CASES: dict[str, tuple[Any, bool, dict[str, Any]]] = {
    "next tokens": (next_tokens, True, {}),
    "sequences": (sequences, False, {}),
    "classes of tokens": (token_classes, False, {}),
    "classes": (classes, False, {}),
    "next tokens, smoothed": (next_tokens, True, {"label_smoothing_factor": 0.1}),
    "classes of tokens, smoothed": (token_classes, True, {"label_smoothing_factor": 0.1}),
    "classes of tokens, a loss of one's own": (token_classes, True, {"compute_loss_func": summed}),
    "classes, a loss of one's own": (classes, True, {"compute_loss_func": summed}),
}


def features(name: str, empty: int = 0) -> list[dict[str, Any]]:
    """20 rows with labels of different length; the first ``empty`` have none."""
    made = []
    for index, row in enumerate(rows(20)):
        labels: Any = row["labels"]
        if not name.startswith("classes") or name.startswith("classes of tokens"):
            kept = 0 if index < empty else 3 + index % 8
            high = 4 if "classes" in name else TOKENS
            labels = [token % high if place < kept else -100 for place, token in enumerate(row["input_ids"])]
        made.append({**row, "labels": labels})
    return made


def train(kind: Any, name: str, place: Path, empty: int = 0, **more: Any) -> Any:
    """Two steps of three micro-batches of four rows, of which the second step has two."""
    make, _, given = CASES[name]
    own = {"compute_loss_func": given["compute_loss_func"]} if "compute_loss_func" in given else {}
    args = arguments(
        place,
        max_steps=2,
        num_train_epochs=1,
        gradient_accumulation_steps=3,
        train_sampling_strategy="sequential",
        optim="sgd",
        learning_rate=0.5,
        weight_decay=0.0,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        **{key: value for key, value in given.items() if key not in own},
    )
    trainer = kind(make(), args, train_dataset=features(name, empty), **own, **more)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer


def first_loss(trainer: Any) -> dict[str, float]:
    found: dict[str, float] = next(log for log in trainer.state.log_history if "loss" in log)
    return found


def reference(name: str) -> Any:
    return Trainer if CASES[name][1] else Averaging


@pytest.mark.parametrize("name", CASES)
def test_without_a_teacher_it_is_trainers(name: str, tmp_path: Path) -> None:
    theirs = train(reference(name), name, tmp_path)
    ours = train(PrunusTrainer, name, tmp_path, pruning=NONE)
    for key, value in weights(theirs.model).items():
        assert torch.equal(value, weights(ours.model)[key]), key
    assert first_loss(ours)["loss"] == first_loss(theirs)["loss"]


@pytest.mark.parametrize("empty", [4, 8, 12])
@pytest.mark.parametrize("name", ["next tokens", "classes of tokens", "sequences"])
def test_micro_batches_without_labels_decide_nothing(name: str, empty: int, tmp_path: Path) -> None:
    """The first micro-batch, two of them, a whole step."""
    theirs = train(reference(name), name, tmp_path, empty)
    ours = train(PrunusTrainer, name, tmp_path, empty, pruning=NONE)
    assert ours.model_accepts_loss_kwargs == CASES[name][1]
    for key, value in weights(theirs.model).items():
        torch.testing.assert_close(value, weights(ours.model)[key], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_a_teachers_logits_are_normalised_as_the_task_loss(name: str, tmp_path: Path) -> None:
    """The reference: the gradient of both losses over the rows of the first step, at once."""
    make, counts, _ = CASES[name]
    teacher = make(1).eval().requires_grad_(False)
    ours = train(PrunusTrainer, name, tmp_path, teacher=teacher, distillation=Distillation(1.0, 1.0, 2.0))
    plain = train(reference(name), name, tmp_path)
    first = first_loss(ours)
    assert first["hard_loss"] == pytest.approx(first_loss(plain)["loss"], rel=1e-4)
    student = make()
    batch = {key: torch.tensor([row[key] for row in features(name)[:12]]) for key in features(name)[0]}
    given = dict(batch)
    if name == "sequences":
        given["decoder_input_ids"] = student.prepare_decoder_input_ids_from_labels(given["labels"])
    labels = given.pop("labels")
    with torch.no_grad():
        s, t = (model(**given).logits.double() / 2 for model in (student.eval(), teacher))
    p, q = t.log_softmax(-1), s.log_softmax(-1)
    apart = 4 * (p.exp() * (p - q)).sum(-1)
    if labels.dim() == 1:
        expected = apart.mean()
    else:
        kept = labels != -100
        if name.startswith("next tokens"):
            kept = functional.pad(kept[:, 1:], (0, 1))
        by_batch = [(apart[i : i + 4][kept[i : i + 4]]) for i in (0, 4, 8)]
        expected = torch.cat(by_batch).mean() if counts else torch.stack([each.mean() for each in by_batch]).mean()
    assert first["distill_loss"] == pytest.approx(float(expected), rel=1e-4)
    assert first["loss"] == pytest.approx(first["hard_loss"] + first["distill_loss"], rel=1e-5)


def test_tokens_count_alike_where_trainer_does_not_know_that_labels_are_shifted(tmp_path: Path) -> None:
    """Trainer finds out by the name of a class, and GPT2LMHeadModel is none of its names."""

    def gpt(seed: int) -> Any:
        torch.manual_seed(seed)
        sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64, "vocab_size": TOKENS}
        return without_dropout(tf.GPT2LMHeadModel(tf.GPT2Config(**sizes)))

    ends = []
    for size, accumulated in ((12, 1), (2, 6)):
        more = {"max_grad_norm": 0.0, "optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "constant"}
        args = arguments(
            tmp_path,
            max_steps=1,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulated,
            train_sampling_strategy="sequential",
            **more,
        )
        choice = Distillation(weight=10.0, hard_weight=0.0)
        trainer = PrunusTrainer(gpt(0), args, train_dataset=features("next"), teacher=gpt(1), distillation=choice)
        trainer.train()
        ends.append(weights(trainer.model))
    for key, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][key], rtol=1e-5, atol=1e-6)


# A compute_loss of one's own


class Doubled(Trainer):  # type: ignore[misc]
    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(**inputs)
        return (2 * outputs.loss, outputs) if return_outputs else 2 * outputs.loss


class Both(PrunusTrainer, Doubled):
    """The task loss of one parent beside the teachers of the other."""


class Around(PrunusTrainer):
    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        found = super().compute_loss(*args, **kwargs)
        return (found[0] * 1.0, found[1]) if isinstance(found, tuple) else found * 1.0


class Instead(PrunusTrainer):
    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(**inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss


def test_the_task_loss_of_a_parent_stands(tmp_path: Path) -> None:
    class Reference(Doubled, Averaging):
        pass

    theirs, ours = train(Reference, "classes", tmp_path), train(Both, "classes", tmp_path, pruning=NONE)
    for key, value in weights(theirs.model).items():
        torch.testing.assert_close(value, weights(ours.model)[key], rtol=1e-6, atol=1e-8)
    taught = first_loss(train(Both, "classes", tmp_path, teacher=classes(1)))
    assert taught["hard_loss"] == pytest.approx(2 * first_loss(train(Averaging, "classes", tmp_path))["loss"], rel=1e-5)
    assert taught["distill_loss"] > 0


def test_a_compute_loss_that_leaves_teachers_out_is_told(tmp_path: Path) -> None:
    assert first_loss(train(Around, "classes", tmp_path, teacher=classes(1)))["distill_loss"] > 0
    assert "distill_loss" not in first_loss(train(Instead, "classes", tmp_path, pruning=NONE))
    with pytest.raises(TrainingError, match=r"compute_loss must call super\(\)\.compute_loss.*\s.*, got 'Instead'"):
        train(Instead, "classes", tmp_path, teacher=classes(1))


# Several GPUs


class OfTwoDevices(nn.Module):
    """What ``DataParallel`` gives: a loss of each device."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, input_ids: Any, attention_mask: Any = None, labels: Any = None) -> Any:
        half = len(input_ids) // 2
        found = [
            self.model(input_ids=input_ids[part], attention_mask=attention_mask[part], labels=labels[part])
            for part in (slice(half), slice(half, None))
        ]
        return {
            "loss": torch.stack([each.loss for each in found]),
            "logits": torch.cat([each.logits for each in found]),
        }


def test_losses_of_several_devices_are_averaged(tmp_path: Path) -> None:
    args = arguments(tmp_path, max_steps=2)
    parts: list[dict[str, float]] = []
    for wrap in (OfTwoDevices, lambda model: model):
        trainer = PrunusTrainer(wrap(classes()), args, train_dataset=rows(8), teacher=classes(1))
        trainer.remove_callback(PrinterCallback)
        loss: Any = trainer.compute_loss(trainer.model.train(), features_of(rows(4)))
        parts.append({"loss": float(loss.detach()), **{name: float(value) for name, value in trainer._parts.items()}})
    assert parts[0] == pytest.approx(parts[1], rel=1e-6, abs=1e-6)


def features_of(given: list[dict[str, Any]]) -> dict[str, Tensor]:
    return {key: torch.tensor([row[key] for row in given]) for key in given[0]}
