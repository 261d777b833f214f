"""The command line: facts on standard output, mistakes on standard error with exit code 2 and nothing trained."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from prunus import __version__
from prunus.checkpoint.tensor_io import read_masks
from prunus.cli import app
from prunus.plan_view import plan_lines
from prunus.recipe import SHIPPED, load_recipe, shipped_recipes
from prunus.training import fit as fit_module
from small import QA_FILE, TEXT_FILE, same, small_recipe, tiny_model, tiny_tokenizer


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


def prunus(*arguments: object) -> Ran:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ran(result.exit_code, result.stdout, result.stderr)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("PRUNUS_CACHE", str(folder))
        patch.delenv("PRUNUS_DATA", raising=False)
        yield folder


@pytest.fixture
def recipe(tiny_bert: Path, small_data: Path, tmp_path: Path) -> Path:
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(small_recipe(tiny_bert, small_data)))
    return path


@pytest.fixture(scope="module")
def done(tiny_bert: Path, small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ran]:
    folder = tmp_path_factory.mktemp("done")
    (folder / "own.yaml").write_text(yaml.safe_dump(small_recipe(tiny_bert, small_data)))
    return folder / "out", prunus("run", folder / "own.yaml", "-o", folder / "out", "--json")


# What goes where


def test_run_prints_its_facts_as_json_alone(done: tuple[Path, Ran]) -> None:
    output, ran = done
    assert ran.code == 0, ran.err
    facts = json.loads(ran.out)
    assert facts["status"] == "finished"
    assert facts["sparse"]["sparsity"] == 0.5
    assert facts["sparse"] == json.loads((output / "prunus.json").read_text())["sparse"]
    assert "dense model: kept for the next run" in ran.err


def test_plan_and_run_agree(done: tuple[Path, Ran], recipe: Path, tmp_path: Path) -> None:
    plan = json.loads(prunus("plan", recipe, "--json").out)
    facts = json.loads(done[1].out)
    (rule,) = plan["rules"]
    assert rule["zeros"] == sum(tensor["zeros"] for tensor in facts["tensors"]) == 2048
    assert [tensor["name"] for tensor in rule["tensors"]] == [tensor["name"] for tensor in facts["tensors"]]
    assert [entry["name"] for entry in rule["skipped"]] == [entry["name"] for entry in facts["skipped"]]
    assert plan["model"]["parameters"] == facts["model"]["parameters"]
    assert plan["steps"] == {"per_epoch": 8, "total": 24, "dense": 8}
    assert (rule["schedule"]["first"], rule["schedule"]["last"], rule["schedule"]["updates"]) == (2, 18, 17)
    assert rule["bytes"] == {"masks": 4096, "scores": 4 * 1024, "dense_weights": 0}
    text = prunus("plan", recipe)
    assert text.code == 0
    assert "12 tensors, 4,096 weights: 4x1 by snip_momentum, global scope, to 0.5 (2,048 zeros)" in text.out
    assert "linear: 17 mask updates from step 2 to 18 every 1" in text.out
    assert text.out.endswith("ok: nothing was trained\n")
    verbose = prunus("plan", recipe, "-v").out
    assert "step      10  sparsity 0.2500" in verbose
    assert "bert.encoder.layer.1.output.dense.weight [16, 32]" in verbose
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own.yaml"]


def test_plan_lines_of_a_dense_recipe_and_of_regrown_weights(recipe: Path) -> None:
    plan = json.loads(prunus("plan", recipe, "--set", "prune.revive=true", "--set", "train.freeze=embed", "--json").out)
    assert plan["bytes"]["dense_weights"] == 4 * 4096
    assert plan["model"]["trainable"] < plan["model"]["parameters"]
    assert any("of them trained, the others frozen" in line for line in plan_lines(plan))
    dense = prunus("plan", recipe, "--set", "prune=[]").out
    assert "prune    nothing: this recipe trains a dense model" in dense


def test_flags_win_over_settings_and_the_recipe(recipe: Path) -> None:
    plan = json.loads(
        prunus(
            "plan", recipe, "--set", "prune.sparsity=0.3", "--sparsity", "0.25", "--set", "prune.pattern=2:4", "--json"
        ).out
    )
    assert plan["rules"][0]["pattern"] == "2:4"
    assert plan["rules"][0]["zeros"] == 1024
    ran = prunus("plan", recipe, "--batch-size", "10", "--epochs", "4", "--json")
    assert json.loads(ran.out)["steps"] == {"per_epoch": 6, "total": 24, "dense": 6}


def test_eval_counts_again(done: tuple[Path, Ran], small_data: Path) -> None:
    facts = json.loads(done[1].out)
    again = prunus("eval", done[0], "--json")
    assert again.code == 0, again.err
    found = json.loads(again.out)
    assert found["metrics"] == pytest.approx(facts["sparse"]["metrics"], abs=1e-6)
    assert found["sparsity"] == 0.5
    text = prunus("eval", done[0], "--validation-file", small_data / TEXT_FILE)
    assert f"{'sparsity of targets':<22} 0.500000\n" in text.out
    assert f"{'accuracy':<22} {facts['sparse']['metrics']['accuracy']:.4f}\n" in text.out


def test_report_rewrites_the_page(done: tuple[Path, Ran], tmp_path: Path) -> None:
    page = done[0] / "report.html"
    before = page.read_text()
    page.write_text("gone")
    ran = prunus("report", done[0])
    assert ran.code == 0
    assert "accuracy" in ran.out
    assert page.read_text() == before
    assert json.loads(prunus("report", done[0], "--json").out)["status"] == "finished"
    assert prunus("report", done[0], "--html", tmp_path / "page.html").code == 0
    assert (tmp_path / "page.html").read_text() == before
    assert prunus("report", done[0], "--html", tmp_path / "no" / "page.html").code == 2
    assert prunus("report", tmp_path).code == 2


def test_paths_with_brackets_are_printed_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "y[").mkdir()
    for place in (tmp_path / "z[b] [red] x.yaml", tmp_path / "y[" / "b].yaml"):  # the second one closes a tag
        ran = prunus("recipes", "cp", "quickstart", place)
        assert ran.code == 0
        assert place.is_file()
        assert str(place) in (ran.out + ran.err).replace("\n", "")


def test_env_and_version() -> None:
    facts = json.loads(prunus("env", "--json").out)
    assert facts["prunus"] == __version__
    assert facts["torch"] == torch.__version__
    assert f"{'torch':<14} {torch.__version__}" in prunus("env").out
    assert prunus("--version").out.strip() == __version__


def test_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = json.loads(prunus("recipes", "ls", "--json").out)
    assert list(listed) == shipped_recipes()
    assert all(len(line) > 20 for line in listed.values())
    assert [line.split()[0] for line in prunus("recipes", "ls").out.splitlines()] == shipped_recipes()
    for name in shipped_recipes():
        text = (SHIPPED / f"{name}.yaml").read_text()
        assert prunus("recipes", "show", name).out == text
        shown = json.loads(prunus("recipes", "show", name, "--json").out)
        given = shown.get("prune", [])
        patterns = [rule["pattern"] for rule in (given if isinstance(given, list) else [given])]
        assert patterns == [rule.pattern for rule in load_recipe(name).prune]
    monkeypatch.chdir(tmp_path)
    assert prunus("recipes", "cp", "sst2-dense").code == 0
    assert (tmp_path / "sst2-dense.yaml").read_text() == (SHIPPED / "sst2-dense.yaml").read_text()
    assert prunus("recipes", "cp", "sst2-dense", tmp_path / "mine.yaml").code == 0
    (tmp_path / "mine.yaml").write_text("mine")
    for target in ("mine.yaml", ".", "no/where.yaml"):
        ran = prunus("recipes", "cp", "sst2-dense", target)
        assert (ran.code, ran.out) == (2, "")
    assert (tmp_path / "mine.yaml").read_text() == "mine"
    for command in ("show", "cp"):
        ran = prunus("recipes", command, "sst2-dens")
        assert ran.code == 2
        assert "recipe must be a shipped recipe, got 'sst2-dens'\n    try sst2-dense" in ran.err


def test_numbers_that_json_lacks_become_null(monkeypatch: pytest.MonkeyPatch) -> None:
    from prunus import environment as module

    monkeypatch.setattr(module, "environment", lambda: {"a": float("nan"), "b": [float("inf")], "c": 1.5})
    assert json.loads(prunus("env", "--json").out) == {"a": None, "b": [None], "c": 1.5}


# What cannot run

Make = Callable[[Path], list[object]]


def setting(*values: str) -> Make:
    return lambda _: [part for value in values for part in ("--set", value)]


def with_file(text: str, option: str = "--train-file", name: str = "bad.tsv") -> Make:
    def make(folder: Path) -> list[object]:
        (folder / name).write_text(text)
        return [option, folder / name]

    return make


def with_model(change: Callable[[Path], None], key: str = "model.name") -> Make:
    """Arguments that name a copy of a good, fine-tuned model after a change."""

    def make(folder: Path) -> list[object]:
        model = tiny_model(labels=2)
        model.config.id2label, model.config.label2id = {0: "negative", 1: "positive"}, {"negative": 0, "positive": 1}
        model.save_pretrained(folder / "m")
        tiny_tokenizer().save_pretrained(folder / "m")
        change(folder / "m")
        return ["--set", f"{key}={folder / 'm'}"]

    return make


def without(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def configured(**entries: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | entries))

    return change


def containing(text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "config.json").write_text(text)

    return change


def nothing(folder: Path) -> None:
    pass


ROW = "text\tlabel\n"
GOOD = ROW + "good film\tpositive\nbad film\tnegative\n"
BAD: dict[str, tuple[Make, tuple[str, ...]]] = {
    "2:4 at 0.8": (
        setting("prune.pattern=2:4", "prune.sparsity=0.8"),
        ("RecipeError: prune[0].sparsity must be at most 0.5", "got 0.8", "try 0.5"),
    ),
    "per cent": (
        setting("prune.sparsity=80"),
        ("prune[0].sparsity must be a fraction in [0, 1), got 80", "try 0.8 (fractions, not per cent)"),
    ),
    "no tensor divides": (
        setting("prune.pattern=7x1"),
        ("prune[0].pattern must divide at least one of the 12 tensors", "16 % 7 = 2), got '7x1'"),
    ),
    "nothing matches": (
        setting("prune.targets.include=[qeury]"),
        ("prune[0].targets.include must match at least one Linear weight", "got ['qeury']", "try query"),
    ),
    "a bad expression": (
        setting("prune.targets.include=['(']"),
        ("prune[0].targets.include must be a regular expression",),
    ),
    "a late schedule": (
        setting("prune.schedule.end=99"),
        (
            "prune[0].schedule.end must be at or before the last optimizer step 24 (3 epochs x 8), got 99",
            "try 18 (75 %)",
        ),
    ),
    "a short training": (
        setting("train.max_steps=10"),
        ("prune[0].schedule.end must be at or before the last optimizer step 10",),
    ),
    "an exclusion that excludes nothing": (
        setting("prune.targets.exclude=[poolr]"),
        ("prune[0].targets.exclude must match at least one parameter of the model, got 'poolr'", "try pooler"),
    ),
    "a layer to keep in float that is not there": (
        setting("quantize={exclude: [clasifier]}"),
        ("quantize.exclude must match at least one Linear or Embedding layer, got 'clasifier'", "try classifier"),
    ),
    "other data": (
        setting("train.steps_per_epoch=2105"),
        (
            "train.steps_per_epoch must be the 8 optimizer steps that",
            "in batches of 8 make, got 2105",
            "try 8, leaving",
        ),
    ),
    "no gradient yet": (
        setting("prune.schedule={kind: one_shot, start: 0}"),
        ("prune[0].schedule.start must be at least 1 with criterion snip_momentum", "got 0", "criterion: magnitude"),
    ),
    "two rules, one tensor": (
        setting("prune=[{sparsity: 0.5}, {sparsity: 0.5}]"),
        ("prune[1].targets must not match a tensor that prune[0] prunes already",),
    ),
    "two at once": (
        setting("prune.schedule.end=99", "prune.targets.include=[qeury]"),
        ("2 problems", "prune[0].schedule.end", "prune[0].targets.include"),
    ),
    "no file": (
        lambda folder: ["--train-file", folder / "no.tsv"],
        ("task.train must be an existing file, got", "no.tsv"),
    ),
    "no directory": (
        setting("task.train=null", "task.data=nowhere"),
        ("task.data must be an existing directory, got 'nowhere'",),
    ),
    "an empty file": (with_file(""), ("bad.tsv",)),
    "no rows": (with_file(ROW), ("bad.tsv must hold at least one row, got",)),
    "no column": (with_file("txt\tlabel\na\tb\n"), ("bad.tsv", "text")),
    "a short row": (with_file(GOOD + "good\n"), ("bad.tsv line 4",)),
    "one class": (
        with_file(ROW + "a\tpositive\nb\tpositive\n"),
        ("the training labels must be at least two classes, got 'positive'",),
    ),
    "an unknown label": (
        with_file(GOOD + "good\tpostive\n", "--validation-file"),
        ("bad.tsv line 4 must have one of the 2 labels of the training split, got 'postive'", "try positive"),
    ),
    "bad json": (with_file('[{"text": "a", "label": "x"},\n{"text" 3}]', name="bad.json"), ("bad.json", "2")),
    "bad jsonl": (with_file('{"text": "a", "label": "x"}\n{"text": \n', name="bad.jsonl"), ("bad.jsonl line 2",)),
    "an unknown task": (setting("task.name=sst3"), ("task.name must be a task, got 'sst3'", "try sst2")),
    "no model": (
        setting("model.name=./nowhere"),
        ("model.name must be an existing directory or a Hub id, got './nowhere'",),
    ),
    "no config": (with_model(without("config.json")), ("model.name must be a directory with a config.json",)),
    "no weights": (with_model(without("model.safetensors")), ("model.name must be a directory with weights",)),
    "a config of no type": (with_model(containing("{}")), ("model.name must be a model that can be read",)),
    "a config that is no JSON": (with_model(containing("{")), ("model.name must be a model that can be read",)),
    "a config of wrong types": (
        with_model(configured(hidden_size="wide")),
        ("model.name must be a model that can be read",),
    ),
    "an unknown architecture": (
        with_model(configured(model_type="zzz")),
        ("model.name must be a model that can be read",),
    ),
    "no head of this kind": (
        with_model(configured(model_type="clip", architectures=None)),
        ("model.name must be of an architecture with a head for classification", "got 'clip'"),
    ),
    "not a tokenizer": (
        with_model(without("tokenizer.json", "tokenizer_config.json")),
        ("model.name must have a tokenizer beside it that knows words",),
    ),
    "other labels": (
        with_model(configured(id2label={"0": "no", "1": "yes"}, label2id={"no": 0, "yes": 1})),
        ("labels of model.name must have the task's labels: negative, positive, got no, yes",),
    ),
    "labels in another order": (
        with_model(configured(id2label={"0": "positive", "1": "negative"}, label2id={"positive": 0, "negative": 1})),
        ("labels of model.name must have the same labels in the same order: negative, positive",),
    ),
    "no teacher": (
        setting("distill.teacher=./nowhere"),
        ("distill.teacher must be an existing directory or a Hub id, got './nowhere'",),
    ),
    "an untrained teacher": (
        with_model(configured(architectures=["BertModel"]), "distill.teacher"),
        ("distill.teacher must be a model that is fine-tuned for classification", "try dense"),
    ),
    "a teacher of other tokens": (
        with_model(configured(vocab_size=10), "distill.teacher"),
        ("distill.teacher must know the 24 tokens of the model's tokenizer, got 10 tokens",),
    ),
    "a teacher of other labels": (
        with_model(configured(id2label={"0": "no", "1": "yes"}, label2id={"no": 0, "yes": 1}), "distill.teacher"),
        ("labels of distill.teacher must have the task's labels",),
    ),
    "a frozen target": (
        setting("train.freeze=['layer.0']"),
        (
            "train.freeze[0] must leave bert.encoder.layer.0.attention.self.query.weight trainable",
            "got 'layer.0'",
            "try criterion: magnitude",
        ),
    ),
    "nothing frozen": (
        setting("train.freeze=[zzz]"),
        ("train.freeze[0] must match at least one parameter, got 'zzz'",),
    ),
    "a bad freeze": (setting("train.freeze=['(']"), ("train.freeze[0] must be a regular expression",)),
    "a bad seed": (lambda _: ["--seed", -1], ("train.seed must be in [0, 2**32), got -1",)),
    "a flag out of range": (lambda _: ["--epochs", 0], ("train.epochs must be above 0, got 0.0",)),
    "an unknown key": (
        setting("prune.sparsty=0.5"),
        ("prune[0].sparsty must be a known key, got 0.5", "try prune[0].sparsity"),
    ),
}


@pytest.mark.parametrize(("make", "said"), BAD.values(), ids=list(BAD))
def test_mistakes_are_named_and_nothing_is_trained(
    make: Make, said: tuple[str, ...], recipe: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("something was trained")

    monkeypatch.setattr(fit_module, "PrunusTrainer", refuse)
    kept = sorted(cache.rglob("*"))
    ran = prunus("run", recipe, "-o", tmp_path / "out", *make(tmp_path))
    assert ran.code == 2, ran.err
    assert ran.out == ""
    for part in said:
        assert part in ran.err
    assert " must " in ran.err
    assert "Traceback" not in ran.err
    assert not (tmp_path / "out").exists()
    assert sorted(cache.rglob("*")) == kept


def test_a_model_of_its_own_labels_is_good(recipe: Path, tmp_path: Path) -> None:
    # The counterpart of the table: the copy that its rows change can run as it is, as model and as teacher.
    for key in ("model.name", "distill.teacher"):
        folder = tmp_path / key
        folder.mkdir()
        assert prunus("plan", recipe, *with_model(nothing, key)(folder)).code == 0


def damaged(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x00" * 100)


def of_another_shape(folder: Path) -> None:
    held = load_file(folder / "model.safetensors")
    name = "bert.encoder.layer.0.output.dense.weight"
    save_file(held | {name: torch.zeros(16, 8)}, folder / "model.safetensors", {"format": "pt"})


def with_nan(folder: Path) -> None:
    held = load_file(folder / "model.safetensors")
    held["bert.encoder.layer.0.output.dense.weight"][0, 0] = float("nan")
    save_file(held, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (damaged, "model.name must hold whole files of weights (model.safetensors: "),
        (of_another_shape, "must have the shape [16, 32] that its config.json describes, got [16, 8]"),
        (with_nan, "must be finite, got NaN or infinity in 1 of them"),
    ],
)
def test_weights_that_cannot_be(change: Callable[[Path], None], said: str, recipe: Path, tmp_path: Path) -> None:
    more = ["--set", "distill=null", "--set", "evaluate_dense=false"]
    model = with_model(change)(tmp_path)
    ran = prunus("run", recipe, "-o", tmp_path / "out", *model, *more)
    assert ran.code == 2, ran.err
    assert said in ran.err
    assert "Traceback" not in ran.err
    assert said in prunus("plan", recipe, *model, *more).err


def test_an_existing_output_is_kept(done: tuple[Path, Ran], recipe: Path) -> None:
    before = (done[0] / "prunus.json").read_bytes()
    ran = prunus("run", recipe, "-o", done[0])
    assert ran.code == 2
    assert "output must be empty or new, so that nothing is lost" in ran.err
    assert "--overwrite" in ran.err
    assert (done[0] / "prunus.json").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("prunus.json"), "be a readable file"),
        (without("model.safetensors"), "must be there: model.safetensors or pytorch_model.bin"),
        (lambda p: (p / "prunus.json").write_text('{"prunus": "1", "recipe": {"train": {"epochs": -1}}}'), "above 0"),
        (lambda p: (p / "masks.safetensors").write_bytes(b"x"), "be a whole safetensors file"),
    ],
)
def test_eval_of_a_directory_that_is_not_whole(
    change: Callable[[Path], object], said: str, done: tuple[Path, Ran], tmp_path: Path
) -> None:
    shutil.copytree(done[0], tmp_path / "copy")
    change(tmp_path / "copy")
    ran = prunus("eval", tmp_path / "copy")
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err


# Ctrl-C


def test_sigint_leaves_a_whole_checkpoint_and_resume_ends_as_if_never_stopped(
    tiny_bert: Path, small_data: Path, tmp_path: Path
) -> None:
    raw = small_recipe(tiny_bert, small_data)
    raw["train"] |= {"epochs": 20, "evaluate_every": None}  # 160 steps: time enough to be stopped in
    raw["prune"]["schedule"] = {"kind": "linear", "start": 2, "end": 120, "every": 1}
    path = tmp_path / "long.yaml"
    path.write_text(yaml.safe_dump(raw))
    output = tmp_path / "stopped"
    source = Path(__file__).parents[1] / "src"
    command = [sys.executable, "-m", "prunus", "run", str(path), "-o", str(output)]
    env = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 120
        while not (output / "checkpoints" / "checkpoint-10").exists() and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert out == ""
    assert "stopped: the last checkpoint is whole; go on with --resume" in err
    assert "Traceback" not in err
    assert json.loads((output / "prunus.json").read_text())["status"] == "interrupted"
    last = fit_module.last_checkpoint(output / "checkpoints")
    assert last is not None
    assert int(last.name.removeprefix("checkpoint-")) < 160

    resumed = prunus("run", path, "-o", output, "--resume", "--json")
    whole = prunus("run", path, "-o", tmp_path / "whole", "--json")
    assert (resumed.code, whole.code) == (0, 0), resumed.err + whole.err
    first, second = json.loads(whole.out), json.loads(resumed.out)
    assert first["sparse"]["metrics"] == second["sparse"]["metrics"]
    assert first["tensors"] == second["tensors"]
    assert same(load_file(tmp_path / "whole" / "model.safetensors"), load_file(output / "model.safetensors"))
    assert same(read_masks(tmp_path / "whole" / "masks.safetensors"), read_masks(output / "masks.safetensors"))


def test_ctrl_c_before_any_checkpoint_begins_again(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("prunus.training.run.dense_model", stop)
        ran = prunus("run", recipe, "-o", tmp_path / "out")
    assert (ran.code, ran.out) == (130, "")
    assert ran.err.strip().endswith("stopped: go on with --resume")
    assert prunus("run", recipe, "-o", tmp_path / "out", "--resume").code == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_the_files_of_the_table_are_there(small_data: Path) -> None:
    assert {path.name for path in small_data.iterdir()} == {TEXT_FILE, QA_FILE}


# terminals


@pytest.mark.parametrize(
    ("shell", "code", "first"),
    [
        ("prunus recipes show quickstart >&-", 0, ""),
        ("prunus recipes show nothing 2>&-", 2, ""),
        ("COLUMNS=0 prunus recipes ls", 0, "cap-4x1-80 "),
        ("prunus recipes show quickstart >/dev/full", 2, "OSError"),
    ],
)
def test_terminals_of_every_kind(shell: str, code: int, first: str) -> None:
    command = shell.replace("prunus", f"{shlex.quote(sys.executable)} -m prunus")
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    ran = subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout + ran.stderr if not first else "") == (code, "")
    assert (ran.stdout + ran.stderr).startswith(first)
