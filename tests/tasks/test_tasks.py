"""``load_task`` and ``check_task``: settings, places, subsets, the Hub; the collator."""

import sys
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from prunus.errors import DataError, MissingExtra, RecipeError
from prunus.tasks import TASKS, Collate, TaskSpec, check_task, load_task
from prunus.tasks.classification import ClassificationTask
from prunus.tasks.collate import TokenizedRows
from prunus.tasks.question_answering import QuestionAnsweringTask

pytestmark = pytest.mark.usefixtures("no_environment")

SST2 = "sentence\tlabel\n" + "".join(f"text {i}\t{i % 2}\n" for i in range(100))


@pytest.fixture
def sst2(tmp_path: Path) -> TaskSpec:
    for name in ("train", "dev"):
        (tmp_path / f"{name}.tsv").write_text(SST2, encoding="utf-8")
    return TaskSpec("sst2", data=str(tmp_path))


def test_names() -> None:
    glue = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "mnli-mm", "qnli", "rte", "wnli")
    assert set(TASKS) == {"mlm", "squad", *glue, "classification", "qa", "pydocs-qa", "pydocs-topic"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "sst-2"}, "task.name must be a task, got 'sst-2'\n    try sst2"),
        ({"max_train_samples": 0}, "task.max_train_samples must be at least 1, got 0"),
        ({"max_validation_samples": -1}, "task.max_validation_samples must be at least 1, got -1"),
        ({"subset_seed": -1}, "task.subset_seed must be at least 0, got -1"),
        ({"max_length": 4}, "task.max_length must be at least 8, got 4"),
        ({"columns": {"text": "x"}}, "task.columns must be left out, which is for own files"),
        ({"name": "squad", "max_length": 16}, "task.max_length must be at least 32, got 16"),
        ({"name": "squad", "doc_stride": 200}, "task.doc_stride must be at most half of max_length, 192, got 200"),
        ({"name": "squad", "max_length": 128, "doc_stride": 65}, "at most half of max_length, 64, got 65"),
        ({"name": "squad", "doc_stride": -1}, "task.doc_stride must be at least 0, got -1"),
        ({"name": "squad", "n_best": 0}, "task.n_best must be at least 1, got 0"),
        ({"name": "squad", "max_answer_length": 0}, "task.max_answer_length must be at least 1, got 0"),
        ({"name": "qa", "columns": {"quesion": "x"}}, "task.columns must map roles of the task to column names, got"),
        ({"name": "qa", "columns": {"quesion": "x"}}, "try question"),
        ({"name": "classification", "columns": {"label": "x", "score": "y"}}, "must name one of the two"),
        ({"name": "pydocs-qa", "max_train_samples": 0}, "task.max_train_samples must be at least 1"),
    ],
)
def test_settings(sst2: TaskSpec, change: dict[str, object], words: str) -> None:
    spec = replace(sst2, **change)  # type: ignore[arg-type]
    assert words in "\n".join(map(str, check_task(spec)))
    with pytest.raises(RecipeError) as caught:
        load_task(spec)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": None}, "task.train must name a file, got None\n"),
        ({"data": None}, "task.hub: nyu-mll/glue:sst2"),
        ({"data": "TMP/nowhere"}, "task.data must be an existing directory"),
        ({"name": "squad"}, "hold the train file (train-v1.1 or train, ending in"),
        ({"train": "TMP/trian.tsv"}, "task.train must be an existing file, got "),
        ({"train": "TMP/trian.tsv"}, "try train.tsv"),
        ({"train": "TMP/no/train.tsv"}, "there is no directory"),
        ({"train": "TMP/other.parquet"}, "task.train must end in .tsv, .json, .jsonl, .csv"),
        ({"data": None, "hub": "a/b/c"}, "task.hub must be owner/name or owner/name:configuration, got 'a/b/c'"),
        ({"name": "mrpc"}, "have a column sentence1 or #1 String"),
        ({"name": "mnli", "validation": "TMP/dev.tsv"}, "have a column premise or sentence1"),
    ],
)
def test_places(sst2: TaskSpec, tmp_path: Path, change: dict[str, object], words: str) -> None:
    (tmp_path / "other.parquet").write_bytes(b"PAR1")
    paths = {
        key: value.replace("TMP", str(tmp_path)) if isinstance(value, str) else value for key, value in change.items()
    }
    spec = replace(sst2, **paths)  # type: ignore[arg-type]
    if change.get("name") == "squad":
        for name in ("train", "dev"):
            (tmp_path / f"{name}.tsv").unlink()
    assert words in "\n".join(map(str, check_task(spec)))
    with pytest.raises(DataError) as caught:
        load_task(spec)
    assert words in str(caught.value)


def test_check_task_is_silent_on_good_data(sst2: TaskSpec) -> None:
    assert check_task(sst2) == []
    assert check_task(TaskSpec("pydocs-qa")) == []


def test_all_problems_at_once(tmp_path: Path) -> None:
    spec = TaskSpec("squad", data=str(tmp_path), n_best=0, doc_stride=300, max_train_samples=0)
    assert [problem.key for problem in check_task(spec)] == [
        "task.max_train_samples",
        "task.n_best",
        "task.doc_stride",
        "task.data",
        "task.data",
    ]


@pytest.mark.parametrize("folder", ["", "SST-2", "glue/SST-2", "glue/sst2"])
@pytest.mark.parametrize("dev", ["dev.tsv", "validation.tsv"])
def test_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, dev: str) -> None:
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    for name in ("train.tsv", dev):
        (tmp_path / folder / name).write_text(SST2, encoding="utf-8")
    monkeypatch.setenv("PRUNUS_DATA", str(tmp_path))
    assert check_task(TaskSpec("sst2")) == []
    assert load_task(TaskSpec("sst2")).size("train") == 100


def test_order_of_places(sst2: TaskSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A named file comes before the directory, and the directory before the environment."""
    other = tmp_path / "other"
    other.mkdir()
    for name in ("train.tsv", "dev.tsv"):
        (other / name).write_text("sentence\tlabel\nx\t1\n", encoding="utf-8")
    monkeypatch.setenv("PRUNUS_DATA", str(other))
    assert load_task(sst2).size("train") == 100
    task = load_task(replace(sst2, train=str(other / "train.tsv")))
    assert (task.size("train"), task.size("validation")) == (1, 100)
    assert load_task(replace(sst2, data=None, hub="some/thing")).size("train") == 1


@pytest.mark.parametrize(("count", "seed"), [(10, 0), (10, 1), (99, 7), (100, 0), (1000, 0), (None, 0)])
def test_subsets(sst2: TaskSpec, count: int | None, seed: int) -> None:
    task = load_task(replace(sst2, max_train_samples=count, max_validation_samples=count, subset_seed=seed))
    assert isinstance(task, ClassificationTask)
    wanted = list(range(100))
    notes: tuple[str, ...] = ()
    if count is not None and count < 100:
        wanted = sorted(np.random.Generator(np.random.PCG64(seed)).permutation(100)[:count].tolist())
        notes = (
            f"{count} of 100 training examples (seed {seed})",
            f"{count} of 100 validation examples (seed {seed}); the metrics are not official",
        )
    assert [example.text for example in task.train] == [f"text {i}" for i in wanted]
    assert [example.text for example in task.validation] == [f"text {i}" for i in wanted]
    assert task.notes == notes


def hub(
    monkeypatch: pytest.MonkeyPatch, columns: dict[str, list[object]], features: datasets.Features | None
) -> list[object]:
    calls: list[object] = []

    def load_dataset(name: str, configuration: str | None, *, split: str) -> datasets.Dataset:
        calls.append((name, configuration, split))
        return datasets.Dataset.from_dict(columns, features=features)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def test_hub_glue(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["entailment", "neutral", "contradiction"]
    text = datasets.Value("string")
    features = datasets.Features({"premise": text, "hypothesis": text, "label": datasets.ClassLabel(names=names)})
    columns = {"premise": ["a", "c"], "hypothesis": ["b", "d"], "label": [2, 0]}
    calls = hub(monkeypatch, columns, features)
    spec = TaskSpec("mnli-mm", hub="nyu-mll/glue:mnli")
    assert check_task(spec) == []
    task = load_task(spec)
    assert isinstance(task, ClassificationTask)
    assert calls == [("nyu-mll/glue", "mnli", "train"), ("nyu-mll/glue", "mnli", "validation_mismatched")]
    assert [(row.text, row.text_pair, row.label) for row in task.train] == [("a", "b", 2), ("c", "d", 0)]


def test_hub_own_class_names(monkeypatch: pytest.MonkeyPatch) -> None:
    features = datasets.Features(
        {"body": datasets.Value("string"), "label": datasets.ClassLabel(names=["spam", "ham"])}
    )
    hub(monkeypatch, {"body": ["a", "b"], "label": [0, 1]}, features)
    task = load_task(TaskSpec("classification", hub="some/mail", columns={"text": "body"}))
    assert task.labels == ("ham", "spam")
    assert isinstance(task, ClassificationTask)
    assert [row.label for row in task.train] == [1, 0]


def test_hub_squad(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [{"text": ["River"], "answer_start": [4]}]
    hub(monkeypatch, {"id": ["q"], "question": ["what?"], "context": ["The River"], "answers": answers}, None)
    task = load_task(TaskSpec("squad", hub="rajpurkar/squad"))
    assert isinstance(task, QuestionAnsweringTask)
    assert (task.train[0].answers, task.train[0].answer_start) == (("River",), (4,))


def test_hub_mistakes_name_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, {"sentence": ["a", "b"], "label": [1, -1]}, None)
    with pytest.raises(DataError, match="nyu-mll/glue train row 2 must have one of the 2 labels"):
        load_task(TaskSpec("sst2", hub="nyu-mll/glue:sst2"))


def test_hub_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach the Hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"nyu-mll/glue:sst2 \(Couldn't reach the Hub\)\n    try a network"):
        load_task(TaskSpec("sst2", hub="nyu-mll/glue:sst2"))


def test_hub_needs_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r'pip install "prunus\[hub\]"'):
        load_task(TaskSpec("sst2", hub="nyu-mll/glue:sst2"))


ROWS = [
    {"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1], "token_type_ids": [0, 1, 1], "labels": 1, "example": 0},
    {"input_ids": [8], "attention_mask": [1], "token_type_ids": [0], "labels": 0, "example": 4},
]


@pytest.mark.parametrize(("multiple", "width"), [(None, 3), (1, 3), (2, 4), (8, 8)])
def test_collate(tokenizer: PreTrainedTokenizerBase, multiple: int | None, width: int) -> None:
    batch = Collate(tokenizer, multiple)(ROWS)
    pad = tokenizer.pad_token_id
    assert set(batch) == {"input_ids", "attention_mask", "token_type_ids", "labels"}
    assert batch["input_ids"].tolist() == [[5, 6, 7] + [pad] * (width - 3), [8] + [pad] * (width - 1)]
    assert batch["attention_mask"].tolist() == [[1, 1, 1] + [0] * (width - 3), [1] + [0] * (width - 1)]
    assert batch["token_type_ids"].sum() == 2
    assert batch["labels"].tolist() == [1, 0]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_collate_numbers_and_positions(tokenizer: PreTrainedTokenizerBase) -> None:
    batch = Collate(tokenizer)([{"input_ids": [5], "labels": 0.25}, {"input_ids": [6, 7], "labels": 2.0}])
    assert batch["labels"].dtype == torch.float32
    assert batch["labels"].tolist() == [0.25, 2.0]
    positions = {"start_positions": 3, "end_positions": 4, "offsets": [None]}
    batch = Collate(tokenizer)([{"input_ids": [5], **positions}])
    assert {key: value.tolist() for key, value in batch.items()} == {
        "input_ids": [[5]],
        "start_positions": [3],
        "end_positions": [4],
    }


@pytest.mark.parametrize(("eos", "pad"), [("[SEP]", 102), (None, 0)])
def test_collate_without_padding_token(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch, eos: str | None, pad: int
) -> None:
    for name, value in (("pad_token_id", None), ("eos_token_id", None if eos is None else 102)):
        monkeypatch.setattr(type(tokenizer), name, value, raising=False)
    assert Collate(tokenizer)(ROWS)["input_ids"][1].tolist() == [8, pad, pad]


def test_rows_give_back_what_they_got() -> None:
    rows = TokenizedRows()
    features = [
        {**ROWS[0], "offsets": [None, (0, 4), (5, 9)], "score": 0.5},
        {**ROWS[1], "offsets": [None], "score": 1.5},
    ]
    for feature in features:
        rows.append(feature)
    assert len(rows) == 2
    assert list(rows) == features
    assert rows[-1] == features[1]
    assert rows[0:2] == features
    assert rows[::-1] == features[::-1]
    assert rows.lengths() == [3, 1]
    with pytest.raises(IndexError):
        rows[2]


@pytest.mark.parametrize(
    "feature",
    [
        {"input_ids": [1], "attention_mask": [1], "token_type_ids": [1], "labels": 1},
        {**ROWS[0], "attention_mask": [1]},
        {**ROWS[0], "more": 1},
    ],
)
def test_rows_are_all_alike(feature: dict[str, object]) -> None:
    rows = TokenizedRows()
    rows.append(ROWS[0])
    with pytest.raises(ValueError, match=r"keys|entries"):
        rows.append(feature)
    assert len(rows) == 1
