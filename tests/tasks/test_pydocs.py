"""The embedded tasks: reading, questions, topics, splits, trivial answers."""

import hashlib
import importlib
import inspect
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.metrics import f1_score
from sklearn.naive_bayes import MultinomialNB
from transformers import PreTrainedTokenizerBase

from prunus.errors import DataError
from prunus.tasks.base import Split, Task
from prunus.tasks.examples import QAExample, TextExample
from prunus.tasks.pydocs import load_pydocs, qa_baselines, qa_examples, questions
from prunus.tasks.pydocs_text import (
    LABELS,
    MOST_ROWS,
    TOPICS,
    DocEntry,
    hash_fraction,
    in_validation,
    masked,
    normalised,
    python_name,
    read_library,
    sentences,
    topic_baseline,
    topic_examples,
    without_leaks,
)
from prunus.tasks.spec import TaskSpec

SPLITS: tuple[Split, ...] = ("train", "validation")


@pytest.fixture(scope="module")
def library() -> tuple[DocEntry, ...]:
    return read_library()


@pytest.fixture(scope="module")
def asked(library: tuple[DocEntry, ...]) -> dict[Split, list[QAExample]]:
    return qa_examples(library)


@pytest.fixture(scope="module")
def texts(library: tuple[DocEntry, ...]) -> dict[Split, list[TextExample]]:
    return topic_examples(library)


# --- reading ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Close the file.", ["Close the file."]),
        ("Close\n  the   file. It is gone.", ["Close the file.", "It is gone."]),
        ("Use a suffix, e.g. Zip files. Then stop.", ["Use a suffix, e.g. Zip files.", "Then stop."]),
        ("Return x.\n\n>>> f(1)\n2\n\nRaise E.", ["Return x.", "Raise E."]),
        ("See this::\n\n    run(me)\n\nDone now.", ["See this:", "Done now."]),
        ("Args:\n    width: the width\n    fill: the fill", ["width: the width", "fill: the fill"]),
        ("- a -- one\n- b -- two\n  more", ["- a -- one", "- b -- two more"]),
        ("Call :meth:`run` or ``stop`` or `go'.", ["Call `run` or `stop` or `go`."]),
        ("Name   Size\n----   ----\nfoo    10", []),
        ("42.", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert list(sentences(text)) == expected


LIBRARY = {
    "textwrap.py": (
        "raise SystemExit('imported')\n"
        "def fill(text, width=70, *rest, sep=' ', **more):\n    'Fill a paragraph.'\n"
        "def bare(): pass\n"
        "def _private():\n    'Hidden.'\n"
        "class Wrapper:\n    'A wrapper.'\n"
        "    def wrap(self, text):\n        'Wrap it. Well.'\n"
        "    @property\n    def width(self):\n        'The width.'\n"
        "    @staticmethod\n    def make(self):\n        'Make one.'\n"
        "try:\n    import nothing\nexcept ImportError:\n    def late(a):\n        'Late one.'\n"
        "else:\n    def late(b):\n        'Second one.'\n"
    ),
    "_pydecimal.py": "def sqrt(x):\n    'Take a root.'\n",
    "json/__init__.py": "def load(f):\n    'Load it now.'\n",
    "json/decoder.py": "def scan(f):\n    'Scan it now.'\n",
    "json/tests/deep.py": "def never(f):\n    'Not read.'\n",
    "shlex.py": "def broken(:\n",
    "tkinter/__init__.py": "def window():\n    'Open one.'\n",
    "site-packages/foo.py": "def foreign():\n    'Not ours.'\n",
    "mine.py": "def foreign():\n    'Not ours.'\n",
}


def test_read_library_of_files(tmp_path: Path) -> None:
    for name, text in LIBRARY.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    calls: list[tuple[int, int]] = []
    found = {e.full_name: e for e in read_library(tmp_path, lambda done, total: calls.append((done, total)))}
    assert list(found) == [
        "decimal.sqrt",
        "json.load",
        "json.decoder.scan",
        "textwrap.fill",
        "textwrap.Wrapper",
        "textwrap.Wrapper.wrap",
        "textwrap.Wrapper.width",
        "textwrap.Wrapper.make",
        "textwrap.late",
    ]
    fill = found["textwrap.fill"]
    assert fill.arguments == (("text", ""), ("width", "70"), ("*rest", ""), ("sep", "' '"), ("**more", ""))
    assert fill.signature == "fill(text, width=70, *rest, sep=' ', **more)"
    shown = [(e.kind, e.signature, e.sentences) for e in list(found.values())[4:]]
    assert shown == [
        ("class", "class Wrapper", ("A wrapper.",)),
        ("function", "wrap(text)", ("Wrap it.", "Well.")),
        ("property", "width", ("The width.",)),
        ("function", "make(self)", ("Make one.",)),
        ("function", "late(a)", ("Late one.",)),
    ]
    assert calls == [(5, 5)]


def test_library_without_sources(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"standard library must hold the sources .* got .*\n    try a Python with"):
        read_library(tmp_path)


@pytest.mark.parametrize("module", ["textwrap", "shutil", "json", "tempfile", "email.utils", "graphlib"])
def test_sentences_stand_in_the_documentation(module: str, library: tuple[DocEntry, ...]) -> None:
    """Against ``inspect``, which imports the module: no word is made up, and the order is kept."""
    imported = importlib.import_module(module)
    checked = 0
    for entry in library:
        if entry.module != module or "." in entry.name:
            continue
        wanted = re.findall(r"[a-z]+", (inspect.getdoc(vars(imported)[entry.name]) or "").lower())
        if not wanted:
            continue  # the C twin of a Python function has a documentation string of its own
        place = 0
        for word in (word for sentence in entry.sentences for word in re.findall(r"[a-z]+", sentence.lower())):
            while place < len(wanted) and wanted[place] != word:
                place += 1
            assert place < len(wanted), (entry.full_name, word)
            place += 1
        checked += 1
    assert checked >= 1


# --- splits ---


@pytest.mark.parametrize("text", ["", "textwrap.dedent", "ü"])
def test_hash_fraction(text: str) -> None:
    assert hash_fraction(text) == int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) / 16**12


def test_one_in_five_is_for_validation() -> None:
    share = np.mean([in_validation(f"name{i}") for i in range(10_000)])
    assert share == pytest.approx(0.2, abs=4 * 0.004)  # four standard deviations of a mean of 10,000 draws


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Return 3 items.", "return items"), ("  A-b, C!  ", "a b c"), ("`X`_1", "x"), ("123", "")],
)
def test_normalised(text: str, expected: str) -> None:
    assert normalised(text) == expected


def test_without_leaks() -> None:
    held = next(f"v{i}" for i in range(100) if in_validation(f"v{i}"))
    kept = next(f"t{i}" for i in range(100) if not in_validation(f"t{i}"))
    entries = [
        ("a", kept, ["Open the old file.", "Only here."]),
        ("b", held, ["Close it.", "Read all of 3 lines."]),
        ("c", kept, ["Something new.", "read all of 4 lines"]),  # shares a sentence of four words with b
        ("d", kept, ["Close it.", "And more words here."]),  # shares two words only
        ("e", held, ["Open the OLD file; only here"]),  # the same text as a
        ("f", held, ["Close it."]),
    ]
    assert without_leaks(entries) == {"a": False, "b": True, "d": False, "f": True}


# --- questions ---


def entry_of(
    sentence: str, *, name: str = "f", kind: str = "function", first: bool = True, args: str = "x,y"
) -> DocEntry:
    arguments = tuple((arg.partition("=")[0], arg.partition("=")[2]) for arg in args.split(",") if arg)
    signature = f"class {name}" if kind == "class" else f"{name}({args})"
    # "Note that ..." opens no rule, so what follows it is asked as a later sentence.
    return DocEntry("m", name, kind, signature, arguments, (sentence,) if first else ("Note that.", sentence))


RETURNS = "What does `m.f` return?"


@pytest.mark.parametrize(
    ("sentence", "question", "answer"),
    [
        ("Return the sum of x and y.", RETURNS, "the sum of x and y"),
        ("Returns a list; it is sorted.", RETURNS, "a list"),
        ("This function returns the name.", RETURNS, "the name"),
        ("Yield each line.", "What does `m.f` yield?", "each line"),
        ("Return True if x is empty, False otherwise.", "When does `m.f` return True?", "if x is empty"),
        ("Return `None` when y is gone.", "When does `m.f` return None?", "when y is gone"),
        ("If x is negative, return the mirror image.", "What does `m.f` return if x is negative?", "the mirror image"),
        ("If x is negative, the sign is kept.", "What happens in `m.f` if x is negative?", "the sign is kept"),
        ("Called when the connection is lost.", "When is `m.f` called?", "when the connection is lost"),
        ("Raises ValueError if not given.", "When does `m.f` raise ValueError?", "if not given"),
    ],
)
def test_question(sentence: str, question: str, answer: str) -> None:
    found = {q.text: sentence[q.start : q.end] for q in questions(entry_of(sentence))}
    assert found == {question: answer}


@pytest.mark.parametrize(
    "sentence",
    [
        "Raise KeyError if the map is empty.",
        "A KeyError is raised if the map is empty.",
        "If the map is empty, a KeyError is raised.",
        "If the map is empty, this raises `KeyError`.",
    ],
)
def test_exceptions_are_asked_in_both_directions(sentence: str) -> None:
    seen = set()
    for number in range(20):
        (question,) = questions(entry_of(sentence, name=f"f{number}", first=False))
        answer = sentence[question.start : question.end]
        name = f"`m.f{number}`"
        pairs = {
            f"When does {name} raise KeyError?": "if the map is empty",
            f"Which exception does {name} raise if the map is empty?": "KeyError",
        }
        assert pairs[question.text].lower() == answer.lower()
        seen.add(answer.lower())
    assert seen == {"if the map is empty", "keyerror"}


@pytest.mark.parametrize(
    ("sentence", "question", "answer"),
    [
        ("x is the left operand.", "What is the argument `x` of `m.f`?", "the left operand"),
        ("- y -- the right operand", "What is the argument `y` of `m.f`?", "the right operand"),
        (":param x: the left one", "What is the argument `x` of `m.f`?", "the left one"),
        ("The *y* argument must be positive.", "What must the argument `y` of `m.f` be?", "positive"),
        ("'x' specifies the mode.", "What does the argument `x` of `m.f` specify?", "the mode"),
    ],
)
def test_question_about_an_argument(sentence: str, question: str, answer: str) -> None:
    renamed = entry_of(re.sub(r"\bx\b", "xx", re.sub(r"\by\b", "yy", sentence)), args="xx,yy", first=False)
    double = {"x": "xx", "y": "yy"}
    wanted = re.sub(r"`([xy])`", lambda match: f"`{double[match[1]]}`", question)
    found = {q.text: renamed.sentences[1][q.start : q.end] for q in questions(renamed)}
    assert found == {wanted: answer}


@pytest.mark.parametrize(
    ("kind", "sentence", "question"),
    [
        ("class", "A queue that forgets.", "What is `m.f`?"),
        ("property", "The name of the thread.", "What is `m.f`?"),
    ],
)
def test_question_about_a_thing(kind: str, sentence: str, question: str) -> None:
    assert [(q.text, q.start, q.end) for q in questions(entry_of(sentence, kind=kind))] == [
        (question, 0, len(sentence) - 1)
    ]


def test_every_second_description_is_asked() -> None:
    sentence = "Removes all listeners."
    found = [questions(entry_of(sentence, name=f"f{number}")) for number in range(400)]
    assert sum(map(len, found)) == pytest.approx(200, abs=40)
    first = next(q for group in found for q in group)
    assert sentence[first.start : first.end] == "Removes all listeners"
    assert re.fullmatch(r"What does `m\.f\d+` do\?", first.text)


def test_default_is_a_span_of_the_signature() -> None:
    entry = entry_of("Note that.", args="text,mode='r',size=-1,other=None,flag=True")
    (question,) = questions(entry)
    argument = re.findall(r"`(\w+)`", question.text)[0]
    assert (question.kind, question.sentence) == ("default", -1)
    assert {"mode": "'r'", "size": "-1", "flag": "True"}[argument] == entry.signature[question.start : question.end]


@pytest.mark.parametrize(
    "sentence",
    [
        "Note that this is old.",
        "If so, the end.",
        "If it is empty, the default is used.",
        "Return one of the following:",
        "Return " + "very " * 15 + "much.",
        "Return (the thing.",
        "Frobnicate all listeners.",
    ],
)
def test_no_question(sentence: str) -> None:
    assert questions(entry_of(sentence)) == []


def test_answers_are_spans_of_short_contexts(asked: dict[Split, list[QAExample]]) -> None:
    for example in asked["train"] + asked["validation"]:
        (answer,), (start,) = example.answers, example.answer_start
        assert example.context[start : start + len(answer)] == answer, example.id
        assert answer == answer.rstrip(" .,;:")
        assert 1 <= len(answer.split()) <= 14
        assert len(example.context.split()) <= 64
        assert len(example.context.split("\n")) % 2 == 0


def test_questions_name_something_in_their_context(asked: dict[Split, list[QAExample]]) -> None:
    for example in asked["train"] + asked["validation"]:
        heads = {line.removeprefix("class ").split("(")[0] for line in example.context.split("\n")[::2]}
        names = re.findall(r"`([\w.]+)`", example.question)
        assert any(name == head or name.endswith("." + head) for name in names for head in heads), example.question


def test_sizes_and_kinds_of_questions(asked: dict[Split, list[QAExample]]) -> None:
    assert len(asked["train"]) >= 2000
    assert len(asked["validation"]) >= 400
    for split in SPLITS:
        kinds = Counter(example.id.split("/")[1] for example in asked[split])
        assert set(kinds) == {"returns", "raises", "happens", "occasion", "is", "argument", "does", "default"}
        assert max(kinds.values()) < 0.4 * len(asked[split])
        assert len({example.context for example in asked[split]}) > 0.7 * len(asked[split])
    ids = [example.id for split in SPLITS for example in asked[split]]
    assert len(set(ids)) == len(ids)
    shown = [example.question for split in SPLITS for example in asked[split]]
    assert len(set(shown)) == len(shown)


def parts(texts: Sequence[str]) -> set[str]:
    """Sentences of four words or more, cut naively."""
    found = {normalised(part) for text in texts for part in re.split(r"\n|(?<=[.!?]) ", text)}
    return {part for part in found if part.count(" ") >= 3}


def test_no_sentence_is_in_both_splits_of_the_questions(asked: dict[Split, list[QAExample]]) -> None:
    bodies = {s: ["\n".join(example.context.split("\n")[1::2]) for example in asked[s]] for s in SPLITS}
    assert not parts(bodies["train"]) & parts(bodies["validation"])
    owners = {s: {example.id.split("/")[0] for example in asked[s]} for s in SPLITS}
    assert not owners["train"] & owners["validation"]


# --- topics ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Use the email package.", "Use the ___ package."),
        ("An XMLReader of http.client.", "An ___ of ___.client."),
        ("The OS, an os call, those costs.", "The ___, an ___ call, those costs."),
        ("Decode the codec.", "Decode the codec."),
        ("asyncio.run() and getLoggingClass", "___.run() and ___"),
    ],
)
def test_masked(text: str, expected: str) -> None:
    assert masked(text) == expected


def test_no_name_of_a_module_is_left(texts: dict[Split, list[TextExample]]) -> None:
    names = {name.lower() for modules in TOPICS.values() for name in modules.split()}
    words = {word.lower() for s in SPLITS for row in texts[s] for word in re.findall(r"[A-Za-z_]\w*", row.text)}
    assert not words & names


def test_sizes_and_labels_of_topics(texts: dict[Split, list[TextExample]]) -> None:
    assert len(texts["train"]) >= 3000
    assert len(texts["validation"]) >= 650
    for split in SPLITS:
        counts = Counter(row.label for row in texts[split])
        assert set(counts) == set(range(len(LABELS)))
        assert max(counts.values()) <= MOST_ROWS[split]
        assert all(len(row.text) <= 240 and row.text_pair is None for row in texts[split])
    assert min(Counter(row.label for row in texts["train"]).values()) >= 150


def test_no_sentence_is_in_both_splits_of_the_topics(texts: dict[Split, list[TextExample]]) -> None:
    assert not parts([row.text for row in texts["train"]]) & parts([row.text for row in texts["validation"]])
    whole = [normalised(row.text) for split in SPLITS for row in texts[split]]
    assert len(set(whole)) == len(whole)


@pytest.mark.parametrize("count", [50, 1000])
def test_naive_bayes_is_sklearns(count: int, texts: dict[Split, list[TextExample]]) -> None:
    train, validation = texts["train"][:count], texts["validation"][:200]
    words = CountVectorizer(token_pattern=r"[a-z]{2,}|___")
    model = MultinomialNB(alpha=1.0)
    model.fit(words.fit_transform([row.text for row in train]), [row.label for row in train])
    found = model.predict(words.transform([row.text for row in validation]))
    wanted = [row.label for row in validation]
    ours = topic_baseline(train, validation)
    assert ours["accuracy"] == pytest.approx(np.mean(found == wanted), abs=1e-12)
    assert ours["macro_f1"] == pytest.approx(f1_score(wanted, found, average="macro"), abs=1e-12)


# --- trivial answers and the tasks ---

CONTEXT = "close()\nShut the door. It is cold.\nopen(x)\nPush the old door. Return a key."


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        # first sentence, sentence with most words of the question, first sentence of what it names: (F1, exact match)
        ("What does `m.open` return?", "a key", [(0, 0), (2 / 3, 0), (0, 0)]),
        ("What does `m.close` do?", "Shut the door", [(1, 1), (1, 1), (1, 1)]),
        ("What old thing does `m.open` push?", "the old door", [(0.5, 0), (0.8, 0), (0.8, 0)]),
    ],
)
def test_qa_baselines(question: str, answer: str, expected: list[tuple[float, float]]) -> None:
    example = QAExample("i", question, CONTEXT, (answer,), (CONTEXT.index(answer),))
    found = list(qa_baselines([example]).values())
    assert [(m["f1"], m["exact_match"]) for m in found] == [pytest.approx(pair, abs=1e-12) for pair in expected]


@pytest.mark.parametrize(
    ("name", "head", "metric", "longest", "typical", "bounds"),
    [
        ("pydocs-qa", "question-answering", "f1", 384, 150, (0.3, 0.65)),
        ("pydocs-topic", "classification", "accuracy", 128, 40, (0.05, 0.75)),
    ],
)
def test_tasks(
    tokenizer: PreTrainedTokenizerBase,
    library: tuple[DocEntry, ...],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    head: str,
    metric: str,
    longest: int,
    typical: int,
    bounds: tuple[float, float],
) -> None:
    # The files are read once for all tests; the hash-seed test reads them again.
    monkeypatch.setattr("prunus.tasks.pydocs.read_library", lambda progress: library)
    task: Task = load_pydocs(TaskSpec(name))
    assert (task.name, task.head, task.metric) == (name, head, metric)
    counts = f"{task.size('train'):,} training and {task.size('validation'):,} validation "
    assert task.notes[0].startswith(f"documentation strings of {python_name()}: {counts}")
    lengths = np.array([len(row["input_ids"]) for row in task.features("validation", tokenizer)])
    assert len(lengths) == task.size("validation")  # one window each
    assert lengths.max() < longest
    assert lengths.mean() < typical
    baselines = task.baselines()
    assert len(baselines) >= 2
    assert all(bounds[0] <= metrics[metric] <= bounds[1] for metrics in baselines.values())


def test_subsets_are_seeded(library: tuple[DocEntry, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunus.tasks.pydocs.read_library", lambda progress: library)

    def texts_of(seed: int) -> list[str]:
        spec = TaskSpec("pydocs-topic", max_train_samples=300, max_validation_samples=50, subset_seed=seed)
        task = load_pydocs(spec)
        assert (task.size("train"), task.size("validation")) == (300, 50)
        assert len(task.notes) == 3
        return [row.text for row in task.train]  # type: ignore[attr-defined]

    first = texts_of(0)
    assert texts_of(0) == first
    assert texts_of(1) != first


def test_the_data_does_not_depend_on_the_hash_seed(
    asked: dict[Split, list[QAExample]], texts: dict[Split, list[TextExample]]
) -> None:
    code = (
        "import hashlib\nfrom prunus.tasks.pydocs import *\nfrom prunus.tasks.pydocs_text import *\n"
        "library = read_library()\n"
        "print(hashlib.sha256(repr((qa_examples(library), topic_examples(library))).encode()).hexdigest())"
    )
    source = Path(inspect.getfile(read_library)).parents[2]
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(source)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert run.stdout.strip() == hashlib.sha256(repr((asked, texts)).encode()).hexdigest()
