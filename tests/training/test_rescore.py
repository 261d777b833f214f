"""``prunus eval`` of a run that was moved: it asks for the validation file alone, and flags take the place of the recipe's."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from prunus import CheckpointError
from prunus.errors import PrunusError
from prunus.export.compare import compare
from prunus.export.packed import Calibration, export_packed
from prunus.recipe import load_recipe, read_recipe
from prunus.tasks import TaskSpec, check_task, load_task, with_data
from prunus.training.rescore import rescore
from prunus.training.run import run
from small import QA_FILE, TEXT_FILE, save_tiny_bert, small_recipe, write_questions, write_texts


def own_files(place: Path, task: str) -> dict[str, Any]:
    """A recipe with two files of its own, without pruning or a teacher."""
    name, write = (TEXT_FILE, write_texts) if task == "classification" else (QA_FILE, write_questions)
    write(place / name, 16)
    shutil.copy(place / name, place / f"dev-{name}")
    raw = small_recipe(save_tiny_bert(place / "bert"), place, task, distill=None, dense=None, prune=[])
    raw["task"]["validation"] = str(place / f"dev-{name}")
    raw["train"] |= {"epochs": 1, "evaluate_every": None, "checkpoint_every": None}
    return {key: value for key, value in raw.items() if value is not None}


@pytest.mark.parametrize("task", ["classification", "question-answering"])
def test_a_run_without_its_training_file(task: str, tmp_path: Path) -> None:
    raw = own_files(tmp_path, task)
    facts = run(read_recipe(raw), tmp_path / "out")
    Path(raw["task"]["train"]).unlink()
    again = rescore(tmp_path / "out", {})
    assert again["metrics"] == pytest.approx(facts.dense.metrics)
    same = compare(tmp_path / "out", ["torch"], {})
    assert same["backends"]["torch"]["metrics"] == pytest.approx(facts.dense.metrics)
    packed = export_packed(tmp_path / "out", tmp_path / "packed", "float32")
    assert packed["metrics"]["float32"] == pytest.approx(facts.dense.metrics, abs=1e-6)


@pytest.mark.parametrize("how", ["data", "validation"])
def test_data_elsewhere_takes_the_place_of_the_recipes_files(how: str, tmp_path: Path) -> None:
    raw = own_files(tmp_path, "classification")
    facts = run(read_recipe(raw), tmp_path / "out")
    (tmp_path / "new").mkdir()
    shutil.move(raw["task"]["validation"], tmp_path / "new" / "validation.tsv")
    Path(raw["task"]["train"]).unlink()
    with pytest.raises(CheckpointError, match=r"task.validation must be an existing file"):
        rescore(tmp_path / "out", {})
    given = tmp_path / "new" if how == "data" else tmp_path / "new" / "validation.tsv"
    assert rescore(tmp_path / "out", {how: str(given)})["metrics"] == pytest.approx(facts.dense.metrics)
    calibration = Calibration(data={how: str(given)})
    packed = export_packed(tmp_path / "out", tmp_path / "packed", "float32", calibration)
    assert packed["metrics"]["examples"] == 16


def test_calibration_without_its_training_file_is_told(tmp_path: Path) -> None:
    raw = own_files(tmp_path, "classification")
    run(read_recipe(raw), tmp_path / "out")
    Path(raw["task"]["train"]).unlink()
    with pytest.raises(PrunusError, match="name texts to calibrate int8 with"):
        export_packed(tmp_path / "out", tmp_path / "packed", "int8")
    (tmp_path / "texts.txt").write_text("good film\nbad book\n")
    facts = export_packed(tmp_path / "out", tmp_path / "packed", "int8", Calibration(tmp_path / "texts.txt"))
    assert facts["metrics"]["examples"] == 16


@pytest.mark.parametrize(
    ("settings", "flags", "expected"),
    [
        ([], {}, ("t.tsv", "v.tsv", None)),
        ([], {"task.data": "d"}, (None, None, "d")),
        (["task.data=d"], {}, (None, None, "d")),
        ([], {"task.data": "d", "task.validation": "w.tsv"}, (None, "w.tsv", "d")),
        (["task.train=u.tsv"], {"task.data": "d"}, ("u.tsv", None, "d")),
    ],
)
def test_a_directory_over_the_files_of_a_recipe(
    settings: list[str], flags: dict[str, str], expected: tuple[str | None, ...], tmp_path: Path
) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({"task": {"name": "classification", "train": "t.tsv", "validation": "v.tsv"}}))
    task = load_recipe(str(path), settings, flags).task
    assert (task.train, task.validation, task.data) == expected


def text_file(place: Path) -> TaskSpec:
    (place / "dev.txt").write_text("good film\n\n" * 40)
    return TaskSpec("mlm", train=str(place / "gone.txt"), validation=str(place / "dev.txt"), max_length=8)


def class_file(place: Path) -> TaskSpec:
    (place / "dev.csv").write_text("text,label\na,x\nb,y\n")
    return TaskSpec("classification", train=str(place / "gone.csv"), validation=str(place / "dev.csv"))


@pytest.mark.parametrize("make", [text_file, class_file])
def test_the_validation_split_alone(make: Callable[[Path], TaskSpec], tmp_path: Path) -> None:
    spec = make(tmp_path)
    assert [problem.key for problem in check_task(spec)] == ["task.train"]
    assert not check_task(spec, ("validation",))
    task = load_task(spec, None, ("validation",), ("y", "x"))
    if spec.name == "classification":
        assert task.labels == ("y", "x")  # the model's, in its order
        assert (task.size("train"), task.size("validation")) == (0, 2)
    assert with_data(spec, {"data": "d"}).train is None
