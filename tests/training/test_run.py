"""``run``: a recipe in, a directory out; loaded elsewhere, counted again, stopped and resumed."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, BertConfig, BertModel

from prunus import CheckpointError, TrainingError
from prunus.checkpoint.tensor_io import MASKS_FILE, read_masks
from prunus.models.loading import load_model
from prunus.recipe import Recipe, read_recipe
from prunus.report.facts import read_facts
from prunus.training import dense as dense_module
from prunus.training import run as run_module
from prunus.training.callback import STATE_FILE, PruneCallback
from prunus.training.fit import Interrupted, last_checkpoint
from prunus.training.inputs import input_digests
from prunus.training.prepare import prepare
from prunus.training.rescore import rescore
from prunus.training.run import run
from prunus.training.trainer import PrunusTrainer
from small import (
    HEADS,
    QA_FILE,
    TEXT_FILE,
    block_zeros,
    encoder_linears,
    interrupt_at,
    no_space,
    same,
    save_tiny_bert,
    small_recipe,
    write_texts,
)

UNITS = 1024  # of 4 weights: 2 layers x (4 x 16 x 16 + 2 x 16 x 32) / 4


@dataclass(frozen=True)
class Done:
    """A finished run."""

    task: str
    recipe: Recipe
    output: Path
    facts: dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("PRUNUS_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def finished(tiny_bert: Path, small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Done]:
    done = {}
    for task in ("classification", "question-answering"):
        recipe = read_recipe(small_recipe(tiny_bert, small_data, task))
        output = tmp_path_factory.mktemp("runs") / task
        done[task] = Done(task, recipe, output, run(recipe, output, command="prunus run x"))
    return done


both = pytest.mark.parametrize("task", ["classification", "question-answering"])


def linears(output: Path, task: str) -> dict[str, Tensor]:
    return encoder_linears(HEADS[task].from_pretrained(output))


# What a run leaves


@both
def test_the_directory_is_complete(task: str, finished: dict[str, Done]) -> None:
    names = {path.name for path in finished[task].output.iterdir()}
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    assert names == tokenizer | {
        "model.safetensors",
        "config.json",
        "prunus.json",
        MASKS_FILE,
        "report.html",
        "log.jsonl",
        "README.md",
    }
    assert (finished[task].output / "report.html").read_text().startswith("<!")
    assert "50" in (finished[task].output / "README.md").read_text()


@both
def test_the_facts_are_what_is_counted_again(task: str, finished: dict[str, Done]) -> None:
    done = finished[task]
    facts = read_facts(done.output)
    counted = {name: block_zeros(weight) for name, weight in linears(done.output, task).items()}
    assert sum(blocks for _, blocks in counted.values()) == UNITS // 2
    assert {t["name"]: (t["zeros"], t["zero_units"]) for t in facts.tensors} == counted
    assert {t["name"]: t["sparsity"] for t in facts.tensors} == {
        t["name"]: counted[t["name"]][0] / t["weights"] for t in facts.tensors
    }
    assert facts.status == "finished"
    assert facts.sparse.sparsity == facts.target_sparsity == 0.5
    assert facts.dense.sparsity == 0.0
    stored = load_file(done.output / "model.safetensors")
    zeros, total = (sum(int(x) for x in xs) for xs in ((int((t == 0).sum()) for t in stored.values()), (t.numel() for t in stored.values())))  # noqa: E501  # fmt: skip
    assert facts.sparse.sparsity_all == pytest.approx(zeros / total, abs=1e-12)
    assert facts.sparse.bytes == (done.output / "model.safetensors").stat().st_size
    assert facts.model.parameters == total
    assert facts.environment["threads"] == 1
    assert facts.task.train_examples == (60 if task == "classification" else 20)
    assert facts.command == "prunus run x"
    assert read_recipe(facts.recipe).prune == done.recipe.prune


def test_activations_computed_again_leave_the_same_weights(finished: dict[str, Done], tmp_path: Path) -> None:
    done = finished["classification"]
    again = replace(done.recipe, train=replace(done.recipe.train, gradient_checkpointing=True))
    run(again, tmp_path / "again")
    left, right = (load_file(place / "model.safetensors") for place in (done.output, tmp_path / "again"))
    for name, value in left.items():
        torch.testing.assert_close(right[name], value, rtol=1e-5, atol=1e-6)


@both
def test_the_history_follows_the_schedule(task: str, finished: dict[str, Done]) -> None:
    history = finished[task].facts.history
    total = 24 if task == "classification" else history.sparsity[-1]["step"]
    due = {step: 0.5 * min(max(step - 2, 0), 16) / 16 for step in range(total + 1)}
    assert [point["step"] for point in history.sparsity][:12] == list(range(2, min(total, 24) + 1, 2))
    for point in history.sparsity:
        assert point["due"] == pytest.approx(due[point["step"]])
        assert point["measured"] == int(due[point["step"]] * UNITS + 1e-6) / UNITS
    for point in history.loss:
        assert point["loss"] == pytest.approx(0.5 * point["hard_loss"] + point["distill_loss"], rel=1e-3)
    evaluated = {point["step"]: point["sparsity"] for point in history.metrics}
    assert evaluated[12] == int(due[12] * UNITS + 1e-6) / UNITS


@both
def test_masks_are_where_the_weights_are_not_zero(task: str, finished: dict[str, Done]) -> None:
    masks, weights = read_masks(finished[task].output / MASKS_FILE), linears(finished[task].output, task)
    assert masks.keys() == weights.keys()
    assert all(torch.equal(masks[name], weight != 0) for name, weight in weights.items())


LOAD = """
import json, sys
import torch
from transformers import {cls}
model = {cls}.from_pretrained(sys.argv[1]).eval()
ids = torch.arange(3, 15).view(2, 6)
with torch.no_grad():
    out = model(input_ids=ids, attention_mask=torch.ones_like(ids))
zeros = {{n: int((p == 0).sum()) for n, p in model.named_parameters()}}
known = [name for name in sys.modules if name.split(".")[0] == "prunus"]
logits = [v.double().tolist() for v in out.values()]
print(json.dumps({{"zeros": zeros, "logits": logits, "prunus": known}}))
"""


def test_a_process_without_prunus_loads_it(finished: dict[str, Done]) -> None:
    done = finished["classification"]
    code = LOAD.format(cls=HEADS["classification"].__name__)
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", code, str(done.output)], env=env, capture_output=True, text=True, check=True
    )
    found = json.loads(ran.stdout)
    assert found["prunus"] == []
    assert {name: found["zeros"][name] for name in (t["name"] for t in done.facts.tensors)} == {
        t["name"]: t["zeros"] for t in done.facts.tensors
    }
    model = HEADS["classification"].from_pretrained(done.output).eval()
    ids = torch.arange(3, 15).view(2, 6)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    np.testing.assert_allclose(found["logits"][0], logits.double().numpy(), rtol=1e-5, atol=1e-6)


@both
def test_measured_again_from_the_files(task: str, finished: dict[str, Done]) -> None:
    done = finished[task]
    again = rescore(done.output, {})
    assert again["metrics"] == pytest.approx(done.facts.sparse.metrics, abs=1e-6)
    assert again["sparsity"] == 0.5
    assert again["sparsity_all"] == done.facts.sparse.sparsity_all
    assert again["tensors"] == 12


def test_accuracy_is_that_of_the_saved_model(finished: dict[str, Done], small_data: Path) -> None:
    done = finished["classification"]
    model = HEADS["classification"].from_pretrained(done.output).eval()
    tokenizer = AutoTokenizer.from_pretrained(done.output)
    lines = [line.split("\t") for line in (small_data / TEXT_FILE).read_text().splitlines()[1:]]
    right = 0
    for text, label in lines:
        with torch.no_grad():
            logits = model(**tokenizer(text, return_tensors="pt")).logits
        right += model.config.id2label[int(logits.argmax())] == label
    assert done.facts.sparse.metrics["accuracy"] == right / 60
    assert right > 30


def test_weights_that_are_not_where_the_masks_say_are_refused(finished: dict[str, Done], tmp_path: Path) -> None:
    shutil.copytree(finished["classification"].output, tmp_path / "copy")
    model = HEADS["classification"].from_pretrained(tmp_path / "copy")
    weight = next(iter(encoder_linears(model).values()))
    with torch.no_grad():
        weight[weight == 0] = 1.0
    model.save_pretrained(tmp_path / "copy")
    with pytest.raises(CheckpointError, match="must be zero wherever its mask says so"):
        rescore(tmp_path / "copy", {})


# The dense model


@pytest.mark.parametrize("form", ["one file", "shards", "torch", "torch shards"])
def test_other_weights_in_the_same_directory_train_another_dense_model(
    form: str, small_data: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    """The digest covers whatever form the weights are saved in."""
    recipe = read_recipe(small_recipe(tmp_path / "model", small_data))
    shutil.copytree(tiny_bert, tmp_path / "model")
    digests = []
    for seed in (0, 1, 1):
        torch.manual_seed(seed)
        model = BertModel(BertConfig.from_pretrained(tiny_bert))
        for path in (tmp_path / "model").glob("*model*"):
            path.unlink()
        if form.startswith("torch"):
            state, shards = model.state_dict(), 2 if "shards" in form else 1
            names = list(state)
            parts = [{name: state[name] for name in names[index::shards]} for index in range(shards)]
            for index, part in enumerate(parts):
                name = f"pytorch_model-{index}.bin" if shards > 1 else "pytorch_model.bin"
                torch.save(part, tmp_path / "model" / name)
            if shards > 1:
                places = {name: f"pytorch_model-{index}.bin" for index, part in enumerate(parts) for name in part}
                (tmp_path / "model" / "pytorch_model.bin.index.json").write_text(
                    json.dumps({"metadata": {}, "weight_map": places})
                )
        else:
            model.save_pretrained(tmp_path / "model", max_shard_size="20KB" if form == "shards" else "1GB")
        plan = prepare(recipe)
        digests.append(dense_module._digest(plan, input_digests(plan)))
    assert digests[0] != digests[1]
    assert digests[1] == digests[2]


def test_the_dense_model_is_kept_for_the_next_run(
    finished: dict[str, Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = finished["classification"]
    assert done.facts.dense.cached is False

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a dense model was trained again")

    monkeypatch.setattr(dense_module, "fit", refuse)
    again = run(done.recipe, tmp_path / "again")
    assert again.dense.cached is True
    assert again.dense.seconds == done.facts.dense.seconds
    first, second = (load_file(path / "model.safetensors") for path in (done.output, tmp_path / "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "change",
    [
        {"dense": replace(read_recipe({}).train, epochs=1, batch_size=4, threads=1)},
        {"task": {"max_length": 16}},
        {"model": {"seed": 5}},
        {"model": {"hidden_dropout_prob": 0.0}},
    ],
    ids=["training", "task", "weights", "configuration"],
)
def test_another_recipe_trains_another_dense_model(
    change: dict[str, Any], finished: dict[str, Done], cache: Path, tmp_path: Path
) -> None:
    before = {path.name for path in (cache / "dense").iterdir()}
    recipe = replace(finished["classification"].recipe, prune=(), distill=None)
    recipe = replace(recipe, model=replace(recipe.model, start="dense"), evaluate_dense=False)
    if "dense" in change:
        recipe = replace(recipe, dense=change["dense"])
    if "task" in change:
        recipe = replace(recipe, task=replace(recipe.task, **change["task"]))
    if "model" in change:
        other = save_tiny_bert(tmp_path / "bert", **change["model"])
        recipe = replace(recipe, model=replace(recipe.model, name=str(other)))
    recipe = replace(recipe, train=replace(recipe.train, max_steps=1, evaluate_every=None))
    run(recipe, tmp_path / "out")
    after = {path.name for path in (cache / "dense").iterdir()}
    assert len(after - before) == 1
    assert not any("partial" in name for name in after)


def test_other_labels_train_another_dense_model(tiny_bert: Path, cache: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    path = write_texts(data / TEXT_FILE, 60)
    raw = small_recipe(tiny_bert, data)
    raw["train"] |= {"max_steps": 1, "evaluate_every": None}
    recipe = read_recipe(raw | {"prune": [], "evaluate_dense": False, "dense": {"max_steps": 1}})
    run(recipe, tmp_path / "one")
    before = len(list((cache / "dense").iterdir()))
    lines = path.read_text().splitlines()
    lines[-1] = lines[-1].replace("negative", "positive")
    path.write_text("\n".join(lines) + "\n")
    run(recipe, tmp_path / "two")
    assert len(list((cache / "dense").iterdir())) == before + 1


def test_a_teacher_of_another_size(finished: dict[str, Done], tmp_path: Path) -> None:
    teacher, base = finished["classification"].output, finished["classification"].recipe
    student = save_tiny_bert(tmp_path / "student", seed=3, hidden_size=32)
    distill = replace(base.distill, teacher=str(teacher)) if base.distill is not None else None
    recipe = replace(base, model=replace(base.model, name=str(student)), distill=distill)
    recipe = replace(recipe, train=replace(recipe.train, evaluate_every=None, epochs=3))
    facts = run(recipe, tmp_path / "out")
    assert facts.dense is None
    assert facts.sparse.sparsity == 0.5
    assert all(point["distill_loss"] > 0 for point in facts.history.loss)


# Stopped and resumed


@pytest.mark.parametrize("partial", [False, True], ids=["whole", "a partial checkpoint is passed over"])
def test_stopped_by_ctrl_c_and_resumed(
    partial: bool, finished: dict[str, Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, output = finished["classification"], tmp_path / "out"
    with monkeypatch.context() as patch:
        interrupt_at(13, patch)
        with pytest.raises(Interrupted, match="the last checkpoint is whole; go on with --resume"):
            run(done.recipe, output)
    assert read_facts(output).status == "interrupted"
    checkpoints = output / "checkpoints"
    assert last_checkpoint(checkpoints) == checkpoints / "checkpoint-13"
    if partial:
        (checkpoints / "checkpoint-13" / "trainer_state.json").unlink()
        assert last_checkpoint(checkpoints) == checkpoints / "checkpoint-10"
        (checkpoints / "checkpoint-99").mkdir()
        (checkpoints / "checkpoint-x").mkdir()
        assert last_checkpoint(checkpoints) == checkpoints / "checkpoint-10"
    clock = checkpoints / f"checkpoint-{10 if partial else 13}" / STATE_FILE
    state = load_file(clock)
    before = float(state["clock.seconds"])
    assert before > 0
    save_file(state | {"clock.seconds": torch.tensor(before + 1000.0, dtype=torch.float64)}, clock)
    facts = run(done.recipe, output, resume=True)
    assert 1000 < facts.sparse.seconds < 1100
    first, second = (load_file(path / "model.safetensors") for path in (done.output, output))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert same(read_masks(output / MASKS_FILE), read_masks(done.output / MASKS_FILE))
    assert facts.tensors == done.facts.tensors
    assert not checkpoints.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_leave_a_checkpoint_too(
    number: int, finished: dict[str, Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        interrupt_at(7, patch, number)
        with pytest.raises(Interrupted, match="the last checkpoint is whole; go on with --resume") as caught:
            run(finished["classification"].recipe, tmp_path / "out")
    assert caught.value.number == number
    assert signal.getsignal(number) is before
    assert last_checkpoint(tmp_path / "out" / "checkpoints") == tmp_path / "out" / "checkpoints" / "checkpoint-7"
    assert read_facts(tmp_path / "out").status == "interrupted"


def _less(path: Path, key: str) -> None:
    """One tensor less in a file."""
    held = load_file(path)
    del held[next(name for name in held if key in name)]
    save_file(held, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: torch.save({}, c / "scheduler.pt"), r"checkpoint-7 must hold what was saved there, unchanged \(KeyError"),
        (lambda c: torch.save({"cpu": 1}, c / "rng_state.pth"), r"must hold what was saved there, unchanged \(KeyError"),
        (lambda c: (c / "rng_state.pth").rename(c / "rng_state_0.pth") and shutil.copy(c / "rng_state_0.pth", c / "rng_state_1.pth"), "processes must be the 2 that wrote"),  # noqa: E501
        (lambda c: _less(c / STATE_FILE, ".score."), r"must hold the \d+ tensors that were written into it"),
        (lambda c: _less(c / "model.safetensors", "LayerNorm.weight"), "weights of the checkpoint must be those of the model"),
    ],
    ids=["schedule", "random numbers", "processes", "state", "weights"],
)  # fmt: skip
def test_a_checkpoint_with_other_contents_is_refused(
    change: Any, said: str, stopped: Path, finished: dict[str, Done], tmp_path: Path
) -> None:
    shutil.copytree(stopped, tmp_path / "out")
    change(tmp_path / "out" / "checkpoints" / "checkpoint-7")
    with pytest.raises(CheckpointError, match=said):
        run(finished["classification"].recipe, tmp_path / "out", resume=True)


@pytest.fixture(scope="module")
def stopped(finished: dict[str, Done], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after 7 of its 24 steps."""
    output = tmp_path_factory.mktemp("stopped") / "out"
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(7, patch)
        with pytest.raises(Interrupted):
            run(finished["classification"].recipe, output)
    return output


@pytest.mark.parametrize(
    ("absent", "start"),
    [
        ([], "goes on from checkpoint-7"),
        (["7/optimizer.pt"], "goes on from checkpoint-5; checkpoint-7 cannot be used: files are missing or cut short"),
        (
            ["7/rng_state.pth", "5/scheduler.pt"],
            "goes on from the beginning: checkpoint-5, checkpoint-7 cannot be used",
        ),
        (["7", "5"], "goes on: it has no checkpoint yet"),
    ],
)
def test_where_a_run_goes_on_from_is_said(absent: list[str], start: str, stopped: Path, tmp_path: Path) -> None:
    shutil.copytree(stopped, tmp_path / "out")
    for name in absent:
        path = tmp_path / "out" / "checkpoints" / f"checkpoint-{name}"
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert run_module._start_of(tmp_path / "out").startswith(start)


@pytest.mark.parametrize("where", ["a checkpoint", "the end"])
def test_a_full_disk_leaves_the_last_checkpoint(
    where: str, finished: dict[str, Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, output = finished["classification"], tmp_path / "out"

    def full(self: Any, *args: Any, **kwargs: Any) -> None:
        if where == "a checkpoint" and self.state.global_step == 10:
            raise RuntimeError(
                "[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"
            )  # what torch.save says
        whole(self, *args, **kwargs)

    whole = PrunusTrainer._save_optimizer_and_scheduler
    with monkeypatch.context() as patch:
        patch.setattr(PrunusTrainer, "_save_optimizer_and_scheduler", full)
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
        if where == "the end":
            patch.setattr(run_module, "write_masks", no_space)
        error = TrainingError if where == "a checkpoint" else CheckpointError
        with pytest.raises(error, match=r"must be written whole, got [\s\S]*[Nn]o space left on"):
            run(done.recipe, output)
    left = last_checkpoint(output / "checkpoints")
    assert left is not None
    assert left.name == ("checkpoint-5" if where == "a checkpoint" else "checkpoint-24")
    assert not (output / "checkpoints" / "checkpoint-10").exists() or where == "the end"
    run(done.recipe, output, resume=True)
    first, second = (load_file(path / "model.safetensors") for path in (done.output, output))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_without_its_state_a_checkpoint_is_passed_over(tmp_path: Path) -> None:
    for step in (5, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(f'{{"global_step": {step}}}')
        save_file({"w": torch.ones(1)}, tmp_path / f"checkpoint-{step}" / "model.safetensors")
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            torch.save({}, tmp_path / f"checkpoint-{step}" / name)
    save_file({"steps": torch.tensor(5)}, tmp_path / "checkpoint-5" / STATE_FILE)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-5"
    assert last_checkpoint(tmp_path / "nowhere") is None


def test_a_second_ctrl_c_ends_at_once(
    finished: dict[str, Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = finished["classification"]

    def twice(self: PruneCallback, *args: Any, **kwargs: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(PruneCallback, "on_pre_optimizer_step", twice)
        with pytest.raises(KeyboardInterrupt) as caught:
            run(done.recipe, tmp_path / "out")
    assert not isinstance(caught.value, Interrupted)
    assert signal.getsignal(signal.SIGINT) is handler
    assert read_facts(tmp_path / "out").status == "interrupted"
    run(done.recipe, tmp_path / "out", resume=True)  # there is no checkpoint yet: from the beginning
    first, second = (load_file(path / "model.safetensors") for path in (done.output, tmp_path / "out"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_loss_that_is_not_finite_fails_the_run(
    tiny_bert: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = small_recipe(tiny_bert, small_data)
    del raw["distill"]
    recipe = read_recipe(raw)

    def with_nan(*args: Any, **kwargs: Any) -> Any:
        model = load_model(*args, **kwargs)
        model.classifier.bias.data[0] = float("nan")
        return model

    monkeypatch.setattr(run_module, "load_model", with_nan)
    with pytest.raises(TrainingError, match="loss at step 0 must be finite, got nan"):
        run(recipe, tmp_path / "out")
    assert read_facts(tmp_path / "out").status == "failed"


# What is never overwritten


def test_an_existing_output_is_kept_without_overwrite(finished: dict[str, Done]) -> None:
    done = finished["classification"]
    before = {path.name: path.stat().st_mtime_ns for path in done.output.iterdir()}
    with pytest.raises(CheckpointError, match="must be empty or new, so that nothing is lost"):
        run(done.recipe, done.output)
    assert {path.name: path.stat().st_mtime_ns for path in done.output.iterdir()} == before


def test_overwrite_replaces_a_run_alone(finished: dict[str, Done], tiny_bert: Path, tmp_path: Path) -> None:
    done = finished["classification"]
    recipe = replace(done.recipe, train=replace(done.recipe.train, evaluate_every=None))
    other = tmp_path / "letters"
    other.mkdir()
    (other / "letter.txt").write_text("dear")
    with pytest.raises(CheckpointError, match=r"must hold the prunus\.json of an earlier run"):
        run(recipe, other, overwrite=True)
    assert (other / "letter.txt").read_text() == "dear"

    output = tmp_path / "out"
    shutil.copytree(done.output, output)
    (output / "old.txt").touch()
    inside = shutil.copytree(tiny_bert, output / "model")
    with pytest.raises(CheckpointError, match=r"output must not hold .*model, which the run reads"):
        run(replace(recipe, model=replace(recipe.model, name=str(inside))), output, overwrite=True)
    data = write_texts(output / TEXT_FILE, 60)
    with pytest.raises(CheckpointError, match=r"output must not hold .*texts\.tsv, which the run reads"):
        run(replace(recipe, task=replace(recipe.task, train=str(data))), output, overwrite=True)
    assert inside.is_dir()
    assert data.is_file()
    facts = run(recipe, output, overwrite=True)
    assert facts.status == "finished"
    assert not (output / "old.txt").exists()


def test_nothing_to_resume(finished: dict[str, Done], tmp_path: Path) -> None:
    done = finished["classification"]
    with pytest.raises(CheckpointError, match="must exist to be resumed"):
        run(done.recipe, tmp_path / "nowhere", resume=True)
    before = {path.name: path.stat().st_mtime_ns for path in done.output.iterdir()}
    assert run(done.recipe, done.output, resume=True) == read_facts(done.output)  # finished
    assert {path.name: path.stat().st_mtime_ns for path in done.output.iterdir()} == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    with pytest.raises(CheckpointError, match=r"must hold the prunus\.json of the run that is to go on"):
        run(done.recipe, tmp_path / "other", resume=True)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="must be a directory"):
        run(done.recipe, tmp_path / "file")
    with pytest.raises(CheckpointError, match="--resume must not come with --overwrite"):
        run(done.recipe, done.output, resume=True, overwrite=True)
    assert not (tmp_path / "nowhere").exists()


def test_regression(tiny_bert: Path, tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text("text,rating\n" + "".join(f"{('good', 'bad')[i % 2]} film,{0.5 + i % 2}\n" for i in range(48)))
    raw = small_recipe(tiny_bert, tmp_path)
    raw["task"] = {
        "name": "classification",
        "train": str(path),
        "validation": str(path),
        "columns": {"score": "rating"},
    }
    del raw["dense"]
    facts = run(read_recipe(raw), tmp_path / "out")
    assert facts.task.head == "regression"
    assert facts.sparse.sparsity == 0.5


@pytest.mark.parametrize("old", [False, True])
def test_the_output_of_a_sentence_transformers_model_is_one_too(
    old: bool, tiny_bert: Path, small_data: Path, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    source = tmp_path / "st"
    SentenceTransformer(modules=[Transformer(str(tiny_bert)), Pooling(16, "cls"), Dense(16, 4)]).save(str(source))
    if old:  # the transformer in a folder of its own
        inside = source / "0_Transformer"
        inside.mkdir()
        for path in source.iterdir():
            if path.is_file() and path.name not in ("modules.json", "config_sentence_transformers.json"):
                path.rename(inside / path.name)
        modules = json.loads((source / "modules.json").read_text())
        modules[0]["path"] = "0_Transformer"
        (source / "modules.json").write_text(json.dumps(modules))
    raw = small_recipe(source, small_data)
    raw["train"] |= {"epochs": 1}
    raw["prune"] |= {"criterion": "magnitude", "schedule": {"kind": "one_shot", "start": 0}}
    del raw["dense"], raw["distill"]
    run(read_recipe(raw), tmp_path / "out")
    model = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    with torch.no_grad():
        first = model[0].model(**model[0].tokenizer("good film", return_tensors="pt")).last_hidden_state[:, 0]
        expected = model[2].linear(first).tanh()[0]
    assert torch.allclose(torch.from_numpy(model.encode("good film")), expected, atol=1e-5)


def test_the_small_files_are_as_the_tests_take_them(small_data: Path) -> None:
    assert len((small_data / TEXT_FILE).read_text().splitlines()) == 61
    assert (small_data / QA_FILE).read_text().count('"question"') == 20
