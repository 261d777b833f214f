"""``model_init``: each training, and each trial of a search, has a model of its own; its teachers and files are those."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PrinterCallback, Trainer

from prunus import Distillation, PruneCallback, PrunusTrainer, RecipeError
from prunus.distillation.contrastive import Contrast, Contrastive
from prunus.distillation.hidden import Inside
from prunus.training.callback import STATE_FILE
from small import (
    arguments,
    batch,
    block_zeros,
    encoder_linears,
    four_by_one,
    locked_bert,
    plain_trainer,
    rows,
    same,
    teacher_of,
    tiny_model,
    weights,
    without_dropout,
)

DEEP = Distillation(0.5, hidden=Inside(1.0, "uniform"), attention=Inside(1.0))


def new() -> Any:
    """What ``model_init`` makes: without arguments, which may say that it wants the trial."""
    return without_dropout(tiny_model())


def zeros(model: Any) -> int:
    return sum(block_zeros(weight)[0] for weight in encoder_linears(model).values())


def trained(place: Path, given: str, teacher: Any, choice: Distillation, **more: Any) -> PrunusTrainer:
    model: dict[str, Any] = {"model_init": new} if given == "model_init" else {"model": new()}
    args = arguments(place, max_steps=more.pop("max_steps", 4))
    trainer = PrunusTrainer(
        args=args, train_dataset=rows(4), teacher=teacher, distillation=choice, data_collator=batch, **model, **more
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer


@pytest.mark.parametrize("kind", ["attention", "reuse"])
def test_the_model_that_trains_is_prepared(kind: str, tmp_path: Path) -> None:
    """The losses of the first step are those of a model that is given; the models before it are not touched."""
    teacher = teacher_of() if kind == "attention" else tiny_model(seed=5)
    choice = DEEP if kind == "attention" else Distillation(0.0, 0.0, reuse=1.0)
    found = [trained(tmp_path, given, teacher, choice) for given in ("model", "model_init")]
    first, second = (next(log for log in one.state.log_history if "loss" in log) for one in found)
    parts = [name for name in first if name.endswith("_loss")]
    assert parts
    for name in parts:
        assert second[name] == pytest.approx(first[name], rel=1e-4), name
    frozen = [{n for n, p in one.model.named_parameters() if not p.requires_grad} for one in found]
    head = {name for name in weights(teacher) if "classifier" in name or "pooler" in name}
    assert frozen[0] == frozen[1] == (head if kind == "reuse" else set())
    if kind == "reuse":
        assert found[1].teaching is not None
        reuse: Any = found[1].teaching.projectors[0].reuse
        inputs = {k: v for k, v in batch(rows(4)).items() if k != "labels"}
        with torch.no_grad():
            states = found[1].model.eval()(**inputs, output_hidden_states=True).hidden_states[-1]
            expected = teacher.classifier(teacher.bert.pooler(reuse.projector(states)))
        torch.testing.assert_close(found[1].model(**inputs).logits, expected, rtol=1e-4, atol=1e-5)


def test_a_second_training_begins_with_projectors_of_its_own(tmp_path: Path) -> None:
    trainer = trained(tmp_path, "model_init", teacher_of(), DEEP, pruning=four_by_one(), max_steps=8)
    first = weights(trainer.model)
    assert trainer.teaching is not None
    learned = trainer.teaching.projectors
    trainer.train()
    assert trainer.teaching.projectors is not learned
    assert same(first, weights(trainer.model))
    assert zeros(trainer.model) == 2048


def test_another_model_in_the_place_of_the_first_is_taught(tmp_path: Path) -> None:
    trainer = trained(tmp_path, "model", tiny_model(seed=5), Distillation(0.0, 0.0, reuse=1.0))
    trainer.model = trainer.model_wrapped = tiny_model(seed=7)
    trainer.optimizer = trainer.lr_scheduler = None
    trainer.train()
    assert not any(p.requires_grad for n, p in trainer.model.named_parameters() if "classifier" in n)


def searching(kind: str, directory: Path) -> Trainer:
    """A Trainer with ``model_init`` whose checkpoints lie below directories of trials."""
    base: Any = Trainer if kind == "callback" else PrunusTrainer

    class Searching(base):  # type: ignore[misc]
        trial = 0

        def _get_output_dir(self, trial: Any) -> str:
            return (
                f"{super()._get_output_dir(trial)}/run-{self.trial}"
                if trial is None
                else super()._get_output_dir(trial)
            )

    args = arguments(directory, save_strategy="steps", save_steps=4)
    more: dict[str, Any] = {"args": args, "train_dataset": rows(32), "eval_dataset": rows(4), "model_init": new}
    if kind == "callback":
        more |= {"callbacks": [PruneCallback(four_by_one())]}
    else:
        contrast = Contrastive(prc=Contrast(0.1), negatives=4)
        choice = Distillation(0.5, hidden=Inside(1.0), contrast=contrast)
        more |= {"pruning": four_by_one(), "teacher": teacher_of(16), "distillation": choice}
    trainer: Trainer = Searching(**more)
    trainer.remove_callback(PrinterCallback)
    return trainer


@pytest.mark.parametrize("kind", ["callback", "PrunusTrainer"])
@pytest.mark.parametrize("search", ["by hand", "optuna"])
def test_each_trial_of_a_search_has_its_own_state(search: str, kind: str, tmp_path: Path) -> None:
    trainer: Any = searching(kind, tmp_path)
    if search == "optuna":
        optuna = pytest.importorskip("optuna")
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        trainer.args.eval_strategy = trainer.args.save_strategy
        trainer.args.eval_steps = 8
        trainer.hyperparameter_search(
            hp_space=lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-3, 1e-2)},
            n_trials=2,
            direction="minimize",
            backend="optuna",
        )
    else:
        for trainer.trial in (0, 1):
            trainer.train()
    for number in (0, 1):
        place = tmp_path / f"run-{number}"
        for step in (4, 8):
            assert (place / f"checkpoint-{step}" / STATE_FILE).is_file()
        assert (place / "banks").is_dir() == (kind != "callback")
        model = type(new()).from_pretrained(place / "checkpoint-8")
        assert zeros(model) == 2048
    assert not (tmp_path / "banks").exists()


# One state in a checkpoint


@pytest.mark.parametrize("kind", ["two", "the same twice", "beside a PrunusTrainer", "beside its own"])
def test_two_states_in_one_checkpoint_are_refused(kind: str, tmp_path: Path) -> None:
    callback = PruneCallback(four_by_one())
    said = r"callbacks must hold one that prunes: a checkpoint has one file for its state, got .*\s+try "
    if kind in ("two", "the same twice"):
        both = [callback, callback if kind == "the same twice" else PruneCallback(four_by_one(0.3))]
        trainer: Trainer = plain_trainer(tiny_model(), arguments(tmp_path), rows(32), callbacks=both)
        said += r"one PruneCallback\(\[rule, rule\]\)"
    else:
        more: dict[str, Any] = {"pruning": four_by_one()} if kind == "beside its own" else {}
        trainer = PrunusTrainer(tiny_model(), arguments(tmp_path), train_dataset=rows(32), callbacks=[callback], **more)
        said += "one PruneCallback" if more else r"PrunusTrainer\(pruning=\[\.\.\.\]\)"
    before = weights(trainer.model)
    with pytest.raises(RecipeError, match=said):
        trainer.train()
    assert same(before, weights(trainer.model))


def test_a_lock_beside_a_rule_keeps_no_state(tmp_path: Path) -> None:
    from prunus import Masker

    model = locked_bert()
    lock = PruneCallback(masker=Masker.lock(model))
    args = arguments(tmp_path, save_strategy="steps", save_steps=8)
    plain_trainer(model, args, rows(32), callbacks=[lock, PruneCallback(four_by_one(0.7))]).train()
    assert (tmp_path / "checkpoint-8" / STATE_FILE).is_file()
    assert zeros(model) == 4 * int(0.7 * 1024)
