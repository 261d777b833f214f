"""``PrunusTrainer``: teacher, logs, files, resuming within an epoch; and loops without any Trainer."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainerCallback

from prunus import CheckpointError, Distillation, Masker, PrunusTrainer, Schedule, Span, TrainingError
from prunus.distillation.hidden import Inside
from prunus.tasks.collate import Collate, TokenizedRows
from prunus.training.callback import STATE_FILE
from small import (
    arguments,
    batch,
    block_zeros,
    encoder_linears,
    four_by_one,
    rows,
    same,
    teacher_of,
    tiny_model,
    tiny_tokenizer,
    weights,
    without_dropout,
)


def prunus_trainer(model: nn.Module, directory: Path, features: list[dict[str, Any]], **more: Any) -> PrunusTrainer:
    settings = {key: more.pop(key) for key in list(more) if key in _SETTINGS}
    trainer = PrunusTrainer(model=model, args=arguments(directory, **settings), train_dataset=features, **more)
    trainer.remove_callback(PrinterCallback)
    return trainer


_SETTINGS = frozenset(
    [
        "max_steps",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "learning_rate",
        "weight_decay",
        "optim",
        "save_strategy",
        "save_steps",
        "eval_strategy",
        "eval_steps",
        "train_sampling_strategy",
        "logging_steps",
        "lr_scheduler_type",
        "max_grad_norm",
        "bf16",
    ]
)


# The loss

SGD = {"optim": "sgd", "learning_rate": 0.5, "lr_scheduler_type": "constant", "weight_decay": 0.0, "max_grad_norm": 0.0}


@pytest.mark.parametrize("split", [(4, 1), (2, 2), (1, 4)], ids="{0[0]} rows x {0[1]}".format)
@pytest.mark.parametrize(("weight", "hard_weight"), [(1.0, 1.0), (4.5, 0.0), (0.0, 1.0), (0.3, 2.0)])
def test_a_step_is_that_of_the_weighted_loss_over_the_whole_batch(
    weight: float, hard_weight: float, split: tuple[int, int], tmp_path: Path
) -> None:
    features, temperature = rows(4), 3.0
    student, teacher, reference = (without_dropout(tiny_model(seed=seed)) for seed in (0, 1, 0))
    size, parts = split
    prunus_trainer(
        student,
        tmp_path,
        features,
        teacher=teacher,
        distillation=Distillation(weight, hard_weight, temperature),
        max_steps=1,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=parts,
        **SGD,
    ).train()

    inputs = batch(features)
    labels = inputs.pop("labels")
    logits = reference(**inputs).logits
    taught = teacher(**inputs).logits.detach()
    log_p, log_q = (functional.log_softmax(x / temperature, dim=1) for x in (taught, logits))
    soft = (log_p.exp() * (log_p - log_q)).sum(1).mean() * temperature**2
    loss = hard_weight * functional.cross_entropy(logits, labels) + weight * soft
    loss.backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for parameter in reference.parameters():
            if parameter.grad is not None:
                parameter.sub_(0.5 * parameter.grad)
    moved, start = 0.0, weights(tiny_model())
    for name, value in weights(student).items():
        torch.testing.assert_close(value, reference.get_parameter(name).detach(), rtol=1e-4, atol=1e-6)
        moved = max(moved, float((value - start[name]).abs().max()))
    assert moved > 1e-3


def test_the_teacher_stays_as_it_is_and_evaluation_does_not_ask_it(tmp_path: Path) -> None:
    student, teacher = tiny_model(), tiny_model(seed=1).train()
    before, modes = weights(teacher), []
    teacher.register_forward_hook(lambda *_: modes.append((teacher.training, torch.is_grad_enabled())))
    trainer = prunus_trainer(
        student, tmp_path, rows(32), teacher=teacher, pruning=four_by_one(), max_steps=6, eval_dataset=rows(8)
    )
    trainer.train()
    assert modes == [(False, False)] * 6
    trainer.evaluate()
    assert len(modes) == 6
    assert same(before, weights(teacher))
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in student.parameters())


@pytest.mark.parametrize("half", [False, True])
def test_the_teacher_runs_in_the_precision_of_the_training(half: bool, tmp_path: Path) -> None:
    teacher, kinds = tiny_model(seed=1), set[torch.dtype]()
    teacher.classifier.register_forward_hook(lambda module, inputs, output: kinds.add(output.dtype))
    prunus_trainer(tiny_model(), tmp_path, rows(8), teacher=teacher, max_steps=1, bf16=half).train()
    assert kinds == {torch.bfloat16 if half else torch.float32}


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path: Path) -> None:
    model = tiny_model()
    model.classifier.bias.data[0] = float("nan")
    with pytest.raises(TrainingError, match=r"loss at step 0 must be finite, got nan\s+try a lower learning rate"):
        prunus_trainer(model, tmp_path, rows(8)).train()


# Logs


def test_logs_reach_other_callbacks_and_the_history(tmp_path: Path) -> None:
    seen: list[dict[str, float]] = []

    class Reporter(TrainerCallback):  # type: ignore[misc]
        def on_log(self, *args: Any, logs: dict[str, float], **kwargs: Any) -> None:
            seen.append(dict(logs))

    distillation = Distillation(4.5, 0.5, 2.0)
    trainer = prunus_trainer(
        tiny_model(),
        tmp_path,
        rows(32),
        pruning=four_by_one(0.5),
        teacher=tiny_model(seed=1),
        distillation=distillation,
        gradient_accumulation_steps=2,
        callbacks=[Reporter()],
    )
    trainer.train()
    for logs in (seen, trainer.state.log_history):
        steps = [log for log in logs if "loss" in log]
        # Linear, updates after steps 1 to 5, and 1,024 units of 4 weights.
        due = [0.0, 0.125, 0.25, 0.375, 0.5, 0.5, 0.5, 0.5]
        assert [log["sparsity_due"] for log in steps] == pytest.approx(due)
        assert [log["sparsity"] for log in steps] == due
        for log in steps:
            assert log["hard_loss"] > 0.1
            assert log["distill_loss"] > 0
            assert log["loss"] == pytest.approx(0.5 * log["hard_loss"] + 4.5 * log["distill_loss"], rel=1e-4)


def test_score_replaces_evaluation(tmp_path: Path) -> None:
    trainer = prunus_trainer(
        tiny_model(),
        tmp_path,
        rows(32),
        score=lambda model: {"zeros": float(sum(block_zeros(w)[0] for w in encoder_linears(model).values()))},
        pruning=four_by_one(0.5),
        eval_dataset=rows(1),
        eval_strategy="steps",
        eval_steps=2,
    )
    trainer.train()
    found = {log["step"]: log["eval_zeros"] for log in trainer.state.log_history if "eval_zeros" in log}
    assert found == {2: 512.0, 4: 1536.0, 6: 2048.0, 8: 2048.0}
    assert trainer.evaluate(metric_key_prefix="test") == {"test_zeros": 2048.0}


# Files


def test_masks_are_on_disk_before_on_save(tmp_path: Path) -> None:
    seen: list[bool] = []

    class Pusher(PrunusTrainer):
        def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
            seen.append((Path(output_dir) / STATE_FILE).is_file())
            super()._save_optimizer_and_scheduler(output_dir)

    args = arguments(tmp_path, save_strategy="steps", save_steps=4)
    trainer = Pusher(model=tiny_model(), args=args, train_dataset=rows(32), pruning=four_by_one())
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    assert seen == [True, True]
    trainer.save_model(str(tmp_path / "saved"))
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {
        "config.json",
        "model.safetensors",
        "training_args.bin",
        STATE_FILE,
    }


# Resuming


def ragged(count: int) -> list[dict[str, Any]]:
    """TokenizedRows of 5 to 12 tokens."""
    return [
        {
            "input_ids": row["input_ids"][: 5 + index % 8],
            "attention_mask": [1] * (5 + index % 8),
            "labels": row["labels"],
        }
        for index, row in enumerate(rows(count))
    ]


def distilled(
    directory: Path, revive: bool, sampling: str, resume: bool | str = False, **more: Any
) -> tuple[Any, PrunusTrainer]:
    """14 steps in epochs of 5, with checkpoints after 3, 5, 7 and 12; new objects at each call."""
    model, teacher = tiny_model(), more.pop("teacher", None) or tiny_model(seed=1)
    schedule = Schedule("exponential", Span(2), end=Span(11), every=Span(1))

    class SaveThen(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            args[2].should_save = args[1].global_step in (3, 5, 7, 12)

    trainer = prunus_trainer(
        model,
        directory,
        ragged(20),
        pruning=four_by_one(0.7, schedule=schedule, revive=revive),
        teacher=teacher,
        data_collator=Collate(tiny_tokenizer()),
        callbacks=[SaveThen()],
        max_steps=14,
        train_sampling_strategy=sampling,
        **more,
    )
    trainer.train(resume_from_checkpoint=resume or None)
    return model, trainer


@pytest.mark.parametrize("revive", [False, True])
@pytest.mark.parametrize("sampling", ["random", "group_by_length"])
def test_resuming_ends_bit_for_bit_as_if_never_stopped(sampling: str, revive: bool, tmp_path: Path) -> None:
    whole, first = distilled(tmp_path / "whole", revive, sampling)
    assert first.prune_callback is not None
    assert first.prune_callback.masker is not None
    for step in (3, 5, 7, 12):  # within the first epoch, between two, within the second, within the third
        directory = tmp_path / str(step)
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", directory / f"checkpoint-{step}")
        resumed, second = distilled(directory, revive, sampling, resume=True)
        assert same(weights(whole), weights(resumed)), step
        assert second.prune_callback is not None
        assert second.prune_callback.masker is not None
        assert same(first.prune_callback.masker.masks, second.prune_callback.masker.masks), step


# Loops of one's own


def plain_loop(model: Any, steps: int) -> Masker:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    features = rows(4 * steps)
    masker = Masker(model, four_by_one(0.6), total_steps=steps)
    for step in range(steps):
        model(**batch(features[4 * step : 4 * step + 4])).loss.backward()
        masker.observe(model)
        optimizer.step()
        masker.step(model)
        optimizer.zero_grad()
    masker.finish(model)
    return masker


def accelerate_loop(model: Any, steps: int, parts: int = 1) -> Masker:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=parts)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    size = 4 // parts
    loader: Any = DataLoader(rows(4 * steps), batch_size=size, collate_fn=batch)  # type: ignore[arg-type]
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    masker = Masker(accelerator.unwrap_model(model), four_by_one(0.6), total_steps=steps)
    for inputs in loader:
        with accelerator.accumulate(model):
            accelerator.backward(model(**inputs).loss)
            if accelerator.sync_gradients:
                masker.observe(accelerator.unwrap_model(model))
            optimizer.step()
            if accelerator.sync_gradients:
                masker.step(accelerator.unwrap_model(model))
            optimizer.zero_grad()
    masker.finish(accelerator.unwrap_model(model))
    return masker


def test_loops_with_and_without_accelerate_end_alike() -> None:
    one, two, three = (without_dropout(tiny_model()) for _ in range(3))
    first, second, third = plain_loop(one, 6), accelerate_loop(two, 6), accelerate_loop(three, 6, parts=2)
    assert same(weights(one), weights(two))
    assert same(first.masks, second.masks)
    for model, masker in ((one, first), (two, second), (three, third)):
        assert sum(block_zeros(w)[0] for w in encoder_linears(model).values()) == 4 * int(0.6 * 1024)
        assert masker.steps == 6


def test_a_loop_in_four_lines(tmp_path: Path) -> None:
    def plain(model: Any) -> Tensor:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        masker = Masker(model, four_by_one(0.6), total_steps=6)  # 1
        for step in range(6):
            loss: Tensor = model(**batch(rows(4, seed=step))).loss
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            masker.observe(model)  # 2
            optimizer.step()
            masker.step(model)  # 3
        masker.finish(model)  # 4
        return loss

    model = tiny_model()
    assert torch.isfinite(plain(model))
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert sum(block_zeros(w)[0] for w in encoder_linears(again).values()) == 4 * int(0.6 * 1024)


INSIDE = Distillation(1.0, hidden=Inside(weight=1.0, layers="uniform"))


def test_projectors_and_the_order_of_rows_come_from_the_checkpoint_that_was_named(tmp_path: Path) -> None:
    more: dict[str, Any] = {"distillation": INSIDE, "sampling": "group_by_length", "revive": False}
    whole, _ = distilled(tmp_path / "whole", teacher=teacher_of(), **more)
    place = shutil.copytree(tmp_path / "whole" / "checkpoint-7", tmp_path / "downloaded" / "best")
    resumed, _ = distilled(tmp_path / "new", teacher=teacher_of(), resume=str(place), **more)
    assert same(weights(whole), weights(resumed))


@pytest.mark.parametrize("part", ["projectors", "rows", "clock", "masker", ""])
def test_state_that_is_missing_in_the_checkpoint_is_an_error(part: str, tmp_path: Path) -> None:
    more: dict[str, Any] = {"distillation": INSIDE, "sampling": "random", "revive": False}
    distilled(tmp_path, teacher=teacher_of(), **more)
    place = tmp_path / "checkpoint-7"
    kept = {name: value for name, value in load_file(place / STATE_FILE).items() if not name.startswith(f"{part}.")}
    assert kept
    (place / STATE_FILE).unlink()
    if part:
        save_file(kept, place / STATE_FILE)
    name = f"{part} of {STATE_FILE}" if part else STATE_FILE
    with pytest.raises(CheckpointError, match=f"{name} must be in the checkpoint that training resumes from"):
        distilled(tmp_path, teacher=teacher_of(), resume=str(place), **more)


def test_projectors_of_other_teachers_are_an_error(tmp_path: Path) -> None:
    more: dict[str, Any] = {"distillation": INSIDE, "sampling": "random", "revive": False}
    distilled(tmp_path, teacher=teacher_of(), **more)
    with pytest.raises(CheckpointError, match="hold the projectors of these teachers"):
        distilled(tmp_path, teacher=teacher_of(48), resume=True, **more)


def test_processes_that_resume_within_an_epoch_see_its_rows(tmp_path: Path) -> None:
    """accelerate's loaders do not tell the epoch to a sampler below a share of the batches with some of them skipped."""
    from accelerate.data_loader import BatchSamplerShard, DataLoaderShard, skip_first_batches
    from torch.utils.data import BatchSampler

    features = TokenizedRows()
    for row in rows(32):
        features.append(row)
    trainer = PrunusTrainer(tiny_model(), arguments(tmp_path), train_dataset=features, data_collator=list)
    sampler = trainer._get_train_sampler()
    share = BatchSamplerShard(BatchSampler(sampler, 4, False), num_processes=2, process_index=1)
    loader = DataLoaderShard(features, batch_sampler=share, collate_fn=list)
    state = trainer.state
    state.epoch = 2.625
    trainer.callback_handler.on_epoch_begin(trainer.args, state, trainer.control)
    expected = [features[i]["input_ids"] for i in list(sampler)]
    for skipped in (0, 2):
        again = skip_first_batches(loader, skipped)
        again.set_epoch(2)
        trainer.callback_handler.on_epoch_begin(trainer.args, state, trainer.control)
        seen = [row["input_ids"] for batch in again for row in batch]
        assert seen == [row for i in range(skipped, 4) for row in expected[8 * i + 4 : 8 * i + 8]]
    other = trainer._get_train_sampler()
    assert [features[i]["input_ids"] for i in list(other)] != expected  # of the epoch before any was told
