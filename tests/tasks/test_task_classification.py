"""Classification and regression: GLUE's layouts, own files, features, scores."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as reference
from transformers import PreTrainedTokenizerBase

from prunus.errors import DataError, TrainingError
from prunus.tasks import TaskSpec, load_task
from prunus.tasks.classification import GLUE, ClassificationTask, class_name
from prunus.tasks.examples import TextExample

pytestmark = pytest.mark.usefixtures("no_environment")

MNLI_HEADER = "index\tpromptID\tpairID\tgenre\tsentence1\tsentence2\tlabel1\tgold_label\n"


def write(folder: Path, train: str, validation: str, ending: str = "tsv", dev: str = "dev") -> TaskSpec:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"train.{ending}").write_text(train, encoding="utf-8")
    (folder / f"{dev}.{ending}").write_text(validation, encoding="utf-8")
    return TaskSpec(data=str(folder))


def own(
    folder: Path, train: str, validation: str, columns: dict[str, str] | None = None, ending: str = "csv"
) -> TaskSpec:
    write(folder, train, validation, ending)
    files = {"train": str(folder / f"train.{ending}"), "validation": str(folder / f"dev.{ending}")}
    return TaskSpec("classification", **files, columns=columns or {})


def load(spec: TaskSpec) -> ClassificationTask:
    task = load_task(spec)
    assert isinstance(task, ClassificationTask)
    return task


@pytest.mark.parametrize(
    ("name", "folder", "dev", "train", "examples"),
    [
        ("cola", "CoLA", "dev", 'gj\t1\t\tA "b.\ngj\t0\t*\tB.\n', [('A "b.', None, 1), ("B.", None, 0)]),
        ("cola", "CoLA", "dev", "sentence\tlabel\nA.\t1\nB.\t0\n", [("A.", None, 1), ("B.", None, 0)]),
        ("sst2", "SST-2", "dev", "sentence\tlabel\nbad \t0\ngood\t1\n", [("bad ", None, 0), ("good", None, 1)]),
        (
            "mrpc",
            "MRPC",
            "dev",
            "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\ta\tb\n0\t7\t8\tc\td\n",
            [("a", "b", 1), ("c", "d", 0)],
        ),
        (
            "stsb",
            "glue/STS-B",
            "dev",
            "index\tgenre\tsentence1\tsentence2\tscore\n0\tnews\ta\tb\t4.750\n1\tnews\tc\td\t0\n",
            [("a", "b", 4.75), ("c", "d", 0.0)],
        ),
        (
            "qqp",
            "QQP",
            "dev",
            "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\ta\tb\t1\ncut in\n1\t2\t3\t\td\t0\n",
            [("a", "b", 1), ("", "d", 0)],
        ),
        ("mnli", "MNLI", "dev_matched", MNLI_HEADER + "0\t1\t2\tx\ta\tb\tneutral\tcontradiction\n", [("a", "b", 2)]),
        ("mnli-mm", "MNLI", "dev_mismatched", MNLI_HEADER + "0\t1\t2\tx\ta\tb\tneutral\tentailment\n", [("a", "b", 0)]),
        ("qnli", "qnli", "validation", "index\tquestion\tsentence\tlabel\n0\ta\tb\tnot_entailment\n", [("a", "b", 1)]),
        ("rte", "RTE", "dev", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n", [("a", "b", 0)]),
        ("wnli", "glue/wnli", "dev", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\t1\n", [("a", "b", 1)]),
    ],
)
def test_glue_files(
    tmp_path: Path, name: str, folder: str, dev: str, train: str, examples: list[tuple[str, str | None, float]]
) -> None:
    write(tmp_path / folder, train, train, dev=dev)
    task = load(TaskSpec(name, data=str(tmp_path)))
    wanted = [TextExample(*example) for example in examples]
    assert list(task.train) == wanted
    assert list(task.validation) == wanted
    assert task.labels == GLUE[name].labels
    assert task.metric == GLUE[name].metrics[0]
    assert task.head == ("regression" if name == "stsb" else "classification")
    assert all(isinstance(example.label, float if name == "stsb" else int) for example in task.train)
    assert task.notes == (
        (
            "1 incomplete rows of the training file were left out",
            "1 incomplete rows of the validation file were left out",
        )
        if name == "qqp"
        else ()
    )


@pytest.mark.parametrize(
    ("name", "metrics"),
    [
        ("cola", ("matthews",)),
        ("sst2", ("accuracy",)),
        ("mrpc", ("f1", "accuracy")),
        ("stsb", ("pearson", "spearman")),
        ("qqp", ("accuracy", "f1")),
        ("mnli", ("accuracy",)),
        ("mnli-mm", ("accuracy",)),
        ("qnli", ("accuracy",)),
        ("rte", ("accuracy",)),
        ("wnli", ("accuracy",)),
    ],
)
def test_glue_metrics(name: str, metrics: tuple[str, ...]) -> None:
    assert GLUE[name].metrics == metrics


@pytest.mark.parametrize(
    ("labels", "names", "ids"),
    [
        (["ham", "spam", "ham"], ("ham", "spam"), [0, 1, 0]),
        (["10", "9", "-1"], ("-1", "9", "10"), [2, 1, 0]),
        (["1", "two", "1"], ("1", "two"), [0, 1, 0]),
        ([True, False, True], ("false", "true"), [1, 0, 1]),
        ([3, 1, 3.0], ("1", "3"), [1, 0, 1]),
        ([1, "1", "0"], ("0", "1"), [1, 1, 0]),
    ],
)
def test_own_labels(tmp_path: Path, labels: list[object], names: tuple[str, ...], ids: list[int]) -> None:
    rows = "".join(json.dumps({"text": "x", "label": label}) + "\n" for label in labels)
    task = load(own(tmp_path, rows, rows, ending="jsonl"))
    assert task.labels == names
    assert [example.label for example in task.train] == ids
    assert [example.label for example in task.validation] == ids
    assert task.metrics == ("accuracy", "macro_f1")


def test_own_columns_and_pairs(tmp_path: Path) -> None:
    text = "left,right,class\na,b,x\nc,d,y\n"
    task = load(own(tmp_path, text, text, {"text": "left", "text_pair": "right", "label": "class"}))
    assert list(task.train) == [TextExample("a", "b", 0), TextExample("c", "d", 1)]


def test_own_regression(tmp_path: Path) -> None:
    text = "text,rating\na,-1.5\nb,2\n"
    task = load(own(tmp_path, text, text, {"score": "rating"}))
    assert task.labels == ()
    assert task.head == "regression"
    assert task.metric == "pearson"
    assert [example.label for example in task.train] == [-1.5, 2.0]


GOOD = "text,label\na,x\nb,y\n"


@pytest.mark.parametrize(
    ("train", "validation", "columns", "file", "line", "words"),
    [
        (GOOD, "text,label\na,x\nb,z\n", {}, "dev", 3, "have one of the 2 labels of the training split, got 'z'"),
        (GOOD, "text,label\na,1\n", {}, "dev", 2, "got '1'"),
        ("text,label\na,x\nb,\n", GOOD, {}, "train", 3, "hold a class as label"),
        ("text,label\na,0.5\nb,1.5\n", GOOD, {}, "train", 2, "columns: {score: NAME}"),
        (
            "text,score\na,x\n",
            "text,score\na,1\n",
            {"score": "score"},
            "train",
            2,
            "have a finite number as score, got 'x'",
        ),
        ("text,score\na,nan\n", "text,score\na,1\n", {"score": "score"}, "train", 2, "finite number"),
        ("text,label,text_pair\na,x,b\nb,y,c\n", GOOD, {}, "dev", 2, "have a text_pair, as the other split has"),
        ("txt,label\na,x\n", GOOD, {}, "train", 1, "try txt (columns: {text: NAME}"),
        (GOOD, "text,label\n", {}, "dev", 0, "hold at least one row"),
    ],
)
def test_own_mistakes(
    tmp_path: Path, train: str, validation: str, columns: dict[str, str], file: str, line: int, words: str
) -> None:
    with pytest.raises(DataError) as caught:
        load(own(tmp_path, train, validation, columns))
    where = f"{tmp_path / file}.csv" + (f" line {line}" if line else "")
    assert caught.value.problems[0].key.removesuffix(" (columns)") == where
    assert words in str(caught.value)


def test_one_class_is_not_enough(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must be at least two classes"):
        load(own(tmp_path, "text,label\na,x\n", "text,label\na,x\n"))


@pytest.mark.parametrize(
    ("name", "train", "line", "words"),
    [
        ("sst2", "sentence\tlabel\na\t0\nb\t2\n", 3, "have one of the 2 labels of the task, or its number, got '2'"),
        ("sst2", "sentence\tlabel\na\t-1\n", 2, "got '-1'"),
        ("rte", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailmnet\n", 2, "try entailment"),
        ("stsb", "sentence1\tsentence2\tscore\na\tb\t5.1\n", 2, "have a score from 0 to 5"),
        ("stsb", "sentence1\tsentence2\tscore\na\tb\thigh\n", 2, "have a score from 0 to 5, got 'high'"),
    ],
)
def test_glue_mistakes(tmp_path: Path, name: str, train: str, line: int, words: str) -> None:
    write(tmp_path, train, train)
    with pytest.raises(DataError) as caught:
        load(TaskSpec(name, data=str(tmp_path)))
    assert caught.value.problems[0].key == f"{tmp_path / 'train.tsv'} line {line}"
    assert words in str(caught.value)


def test_mistakes_of_both_files_come_together(tmp_path: Path) -> None:
    write(tmp_path, "sentence\tlabel\na\t7\n", "sentence\tlabel\nb\t8\n")
    with pytest.raises(DataError) as caught:
        load(TaskSpec("sst2", data=str(tmp_path)))
    assert [Path(problem.key.split(" ")[0]).name for problem in caught.value.problems] == ["train.tsv", "dev.tsv"]


def example_task(
    metrics: tuple[str, ...] = ("accuracy", "macro_f1"), labels: tuple[str, ...] = ("a", "b", "c")
) -> ClassificationTask:
    rows = [
        TextExample(f"text number {i}", "its pair" * (i + 1), i % len(labels) if labels else i / 7) for i in range(50)
    ]
    return ClassificationTask("classification", rows, rows[:30], labels, metrics, max_length=16)


def test_features(tokenizer: PreTrainedTokenizerBase) -> None:
    task = example_task()
    calls: list[tuple[int, int]] = []
    rows = task.features("train", tokenizer, lambda done, total: calls.append((done, total)))
    assert len(rows) == task.size("train") == 50
    assert calls == [(50, 50)]
    for i in (0, 1, 49):
        example = task.train[i]
        wanted = tokenizer(example.text, example.text_pair, truncation=True, max_length=16)
        assert rows[i] == {**{key: list(wanted[key]) for key in wanted}, "labels": example.label}
    assert max(rows.lengths()) == 16
    assert sum(rows[3]["token_type_ids"]) > 0


def test_single_texts_have_no_second_segment(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [TextExample("one text", None, 0), TextExample("another", None, 1)]
    task = ClassificationTask("classification", rows, rows, ("a", "b"))
    first = task.features("validation", tokenizer)[0]
    assert tokenizer.convert_ids_to_tokens(first["input_ids"]) == ["[CLS]", "one", "text", "[SEP]"]


def test_score_of_classes(tokenizer: PreTrainedTokenizerBase) -> None:
    task = example_task()
    rows = task.features("validation", tokenizer)
    logits = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
    labels = [example.label for example in task.validation]
    score = task.score([logits], rows)
    assert score["accuracy"] == pytest.approx(reference.accuracy_score(labels, logits.argmax(1)))
    assert score["macro_f1"] == pytest.approx(reference.f1_score(labels, logits.argmax(1), average="macro"))
    assert next(iter(score)) == task.metric


@pytest.mark.parametrize("shape", [(30,), (30, 1)])
def test_score_of_numbers(tokenizer: PreTrainedTokenizerBase, shape: tuple[int, ...]) -> None:
    task = example_task(("pearson", "spearman"), ())
    rows = task.features("validation", tokenizer)
    found = np.random.default_rng(0).normal(size=30)
    labels = [example.label for example in task.validation]
    score = task.score([found.reshape(shape)], rows)
    assert score["pearson"] == pytest.approx(stats.pearsonr(found, labels).statistic)
    assert score["spearman"] == pytest.approx(stats.spearmanr(found, labels).statistic)


@pytest.mark.parametrize(
    ("logits", "words"),
    [
        (np.zeros((29, 3)), r"have the shape \(30, 3\)"),
        (np.zeros((30, 2)), r"have the shape \(30, 3\)"),
        (np.full((30, 3), np.nan), "be numbers, got 'NaN'"),
    ],
)
def test_score_refuses(tokenizer: PreTrainedTokenizerBase, logits: np.ndarray, words: str) -> None:
    task = example_task()
    with pytest.raises(TrainingError, match=words):
        task.score([logits], task.features("validation", tokenizer))


def test_baselines() -> None:
    train = [TextExample("x", None, label) for label in (0, 1, 1)]
    validation = [TextExample("x", None, label) for label in (0, 1, 1, 1)]
    more = {"lexical": {"accuracy": 0.9}}
    task = ClassificationTask(
        "cola", train, validation, ("a", "b"), ("accuracy", "f1", "matthews"), more_baselines=more
    )
    majority = {"accuracy": 0.75, "f1": pytest.approx(6 / 7), "matthews": 0.0}
    assert task.baselines() == {"majority class": majority, **more}
    numbers = [TextExample("x", None, label) for label in (0.5, 1.5)]
    task = ClassificationTask("stsb", numbers, numbers, (), ("pearson", "spearman"))
    assert task.baselines() == {"mean score": {"pearson": 0.0, "spearman": 0.0}}


@pytest.mark.parametrize(
    ("name", "folder", "train", "validation", "first"),
    [
        ("sst2", "SST-2", 67_349, 872, "hide new secretions from the parental units "),
        ("mrpc", "MRPC", 3_668, 408, "Amrozi accused his brother, whom he called"),
        ("cola", "CoLA", 8_551, 1_043, "Our friends won't buy this analysis, let alone the next one we propose."),
        ("stsb", "STS-B", 5_749, 1_500, "A plane is taking off."),
    ],
)
def test_real_glue(real_data: Path, name: str, folder: str, train: int, validation: int, first: str) -> None:
    if not (real_data / "glue" / folder).is_dir():
        pytest.skip(f"no {folder} in {real_data}")
    task = load(TaskSpec(name, data=str(real_data)))
    assert (task.size("train"), task.size("validation")) == (train, validation)
    assert task.train[0].text.startswith(first)
    if name == "sst2":
        assert task.baselines()["majority class"]["accuracy"] == pytest.approx(444 / 872)
    if name == "mrpc":
        assert task.baselines()["majority class"]["accuracy"] == pytest.approx(279 / 408)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (1, "1"),
        (1.0, "1"),
        ("1", "1"),
        ("1.0", "1"),
        (" 1. ", "1"),
        ("-2.00", "-2"),
        (True, "true"),
        ("True", "true"),
        ("TRUE", "true"),
        ("false", "false"),
        ("07", "07"),
        ("1.5", "1.5"),
        ("v1.0", "v1.0"),
        ("1.0.0", "1.0.0"),
        ("Trueish", "Trueish"),
        (1.5, None),
        (None, None),
        ("", None),
        ([1], None),
    ],
)
def test_the_same_class_has_one_name(value: object, name: str | None) -> None:
    assert class_name(value) == name


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["0.0", "10.0", "2.0"], [0, 10, 2]),
        (["0", "10", "2"], [0.0, 10.0, 2.0]),
        (["True", "False"], [True, False]),
        (["TRUE", "FALSE"], ["true", "false"]),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_classes_of_two_files_meet(first: list[str], second: list[object], turned: bool, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"x,{label}\n" for label in first))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": "x", "label": label}) + "\n" for label in second))
    names = [str(tmp_path / "a.csv"), str(tmp_path / "b.jsonl")]
    train, validation = names[::-1] if turned else names
    task = load_task(TaskSpec("classification", train=train, validation=validation))
    assert task.labels == (("0", "2", "10") if len(first) == 3 else ("false", "true"))
    assert [e.label for e in task.train] == [e.label for e in task.validation]


def test_half_a_character_as_label_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": "x", "label": label}) + "\n" for label in ("a", "b", "\udc00")))
    with pytest.raises(DataError, match=r"line 3 must hold whole characters as label, got half a character, U\+DC00"):
        load_task(TaskSpec("classification", train=str(path), validation=str(path)))
