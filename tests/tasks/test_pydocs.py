"""The embedded tasks: reading, questions, topics, splits, trivial answers."""

import hashlib
import importlib
import inspect
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.metrics import f1_score
from sklearn.naive_bayes import MultinomialNB
from transformers import PreTrainedTokenizerBase

from prunus.errors import DataError
from prunus.tasks import pydocs_text
from prunus.tasks.base import Split, Task
from prunus.tasks.examples import QAExample, TextExample
from prunus.tasks.pydocs import load_pydocs, qa_baselines, qa_examples, questions
from prunus.tasks.pydocs_text import DocEntry, hash_fraction, masked, normalised, read_library, topic_examples
from prunus.tasks.spec import TaskSpec

Pair = tuple[float, float]
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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Close\n  the   file. It is gone.", ["Close the file.", "It is gone."]),
        ("Use a suffix, e.g. Zip files. Then stop.", ["Use a suffix, e.g. Zip files.", "Then stop."]),
        ("Return x.\n\n>>> f(1)\n2\n\nRaise E.", ["Return x.", "Raise E."]),
        ("See this::\n\n    run(me)\n\nDone now.", ["See this:", "Done now."]),
        ("Args:\n    width: the width\n    fill: the fill", ["width: the width", "fill: the fill"]),
        ("- a -- one\n- b -- two\n  more", ["- a -- one", "- b -- two more"]),
        ("Call :meth:`run` or ``stop`` or `go'.", ["Call `run` or `stop` or `go`."]),
        ("Name   Size\n----   ----\nfoo    10", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert list(pydocs_text.sentences(text)) == expected


@pytest.mark.parametrize(
    ("function", "text", "expected"),
    [
        (normalised, "Return 3 items.", "return items"),
        (normalised, "  A-b, `C`_1!  ", "a b c"),
        (masked, "Use the email package.", "Use the ___ package."),
        (masked, "An XMLReader of http.client.", "An ___ of ___.client."),
        (masked, "The OS, an os call, those costs.", "The ___, an ___ call, those costs."),
        (masked, "asyncio.run() and getLoggingClass", "___.run() and ___"),
    ],
)
def test_reduced_texts(function: Callable[[str], str], text: str, expected: str) -> None:
    assert function(text) == expected


SOURCE = """
raise SystemExit('imported')
def fill(text, width=70, *rest, sep=' ', **more): 'Fill a paragraph.'
def bare(): pass
def _private(): 'Hidden.'
class Wrapper:
    'A wrapper.'
    def wrap(self, text): 'Wrap it. Well.'
    @property
    def width(self): 'The width.'
    @staticmethod
    def make(self): 'Make one.'
try: import nothing
except ImportError:
    def late(a): 'Late one.'
"""
LIBRARY = {
    "textwrap.py": SOURCE,
    "_pydecimal.py": "def sqrt(x): 'Take a root.'\n",
    "json/__init__.py": "def load(f): 'Load it now.'\n",
    "json/decoder.py": "def scan(f): 'Scan it now.'\n",
    "json/tests/deep.py": "def never(f): 'Not read.'\n",
    "shlex.py": "def broken(:\n",
    "tkinter/__init__.py": "def window(): 'Open one.'\n",
    "site-packages/foo.py": "def foreign(): 'Not ours.'\n",
    "mine.py": "def foreign(): 'Not ours.'\n",
}


def test_read_library_of_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"standard library must hold the sources .* got .*\n    try a Python with"):
        read_library(tmp_path)
    for name, text in LIBRARY.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    calls: list[tuple[int, int]] = []
    found = {e.full_name: e for e in read_library(tmp_path, lambda done, total: calls.append((done, total)))}
    assert [f"{e.kind} {name}: {e.signature}: {' '.join(e.sentences)}" for name, e in found.items()] == [
        "function decimal.sqrt: sqrt(x): Take a root.",
        "function json.load: load(f): Load it now.",
        "function json.decoder.scan: scan(f): Scan it now.",
        "function textwrap.fill: fill(text, width=70, *rest, sep=' ', **more): Fill a paragraph.",
        "class textwrap.Wrapper: class Wrapper: A wrapper.",
        "function textwrap.Wrapper.wrap: wrap(text): Wrap it. Well.",
        "property textwrap.Wrapper.width: width: The width.",
        "function textwrap.Wrapper.make: make(self): Make one.",
        "function textwrap.late: late(a): Late one.",
    ]
    wanted = (("text", ""), ("width", "70"), ("*rest", ""), ("sep", "' '"), ("**more", ""))
    assert found["textwrap.fill"].arguments == wanted
    assert calls == [(5, 5)]


@pytest.mark.parametrize("module", ["textwrap", "shutil", "json", "tempfile", "email.utils", "graphlib"])
def test_sentences_stand_in_the_documentation(module: str, library: tuple[DocEntry, ...]) -> None:
    """Against ``inspect``, which imports the module: no word is made up, and the order is kept."""
    imported = importlib.import_module(module)
    checked = 0
    for entry in library:
        if entry.module != module or "." in entry.name:
            continue
        wanted = re.findall(r"[a-z]+", (inspect.getdoc(vars(imported)[entry.name]) or "").lower())
        place = 0
        for word in re.findall(r"[a-z]+", " ".join(entry.sentences).lower()):
            assert word in wanted[place:], (entry.full_name, word)
            place = wanted.index(word, place) + 1
        checked += 1
    assert checked >= 1


def test_one_in_five_is_for_validation() -> None:
    names = [f"näme{i}" for i in range(10_000)]
    for name in names[:5]:
        assert hash_fraction(name) == int(hashlib.sha256(name.encode()).hexdigest()[:12], 16) / 16**12
    # Four standard deviations of a mean of 10,000 draws.
    assert np.mean([pydocs_text.in_validation(name) for name in names]) == pytest.approx(0.2, abs=4 * 0.004)


def test_without_leaks() -> None:
    entries = [
        ("a", False, ["Open the old file.", "Only here."]),
        ("b", True, ["Close it.", "Read all of 3 lines."]),
        ("c", False, ["Something new.", "read all of 4 lines"]),  # shares a sentence of four words with b
        ("d", False, ["Close it.", "And more words here."]),  # shares two words only
        ("e", True, ["Open the OLD file; only here"]),  # the same text as a
        ("f", True, ["Close it."]),
    ]
    assert pydocs_text.without_leaks(entries) == {"a": False, "b": True, "d": False, "f": True}


def entry_of(sentence: str, name: str = "f", kind: str = "function", args: str = "xx, yy") -> DocEntry:
    """The entry ``m.f``; a sentence that starts with + is its second, after one that no rule reads."""
    arguments = tuple((arg.partition("=")[0], arg.partition("=")[2]) for arg in args.split(", "))
    signature = f"class {name}" if kind == "class" else f"{name}({args})"
    found = ("Note that.", sentence[1:]) if sentence.startswith("+") else (sentence,)
    return DocEntry("m", name, kind, signature, arguments, found)


def asked_of(entry: DocEntry) -> dict[str, str]:
    spans = {q.text: (entry.sentences[q.sentence] if q.sentence >= 0 else entry.signature, q) for q in questions(entry)}
    return {text: place[q.start : q.end] for text, (place, q) in spans.items()}


@pytest.mark.parametrize(
    ("sentence", "question", "answer"),
    [
        ("Return the sum of x and y.", "What does `m.f` return?", "the sum of x and y"),
        ("Returns a list; it is sorted.", "What does `m.f` return?", "a list"),
        ("Yield each line.", "What does `m.f` yield?", "each line"),
        ("Return True if x is empty, False otherwise.", "When does `m.f` return True?", "if x is empty"),
        ("If x is negative, return the mirror image.", "What does `m.f` return if x is negative?", "the mirror image"),
        ("If x is negative, the sign is kept.", "What happens in `m.f` if x is negative?", "the sign is kept"),
        ("Called when the connection is lost.", "When is `m.f` called?", "when the connection is lost"),
        ("Raises ValueError if not given.", "When does `m.f` raise ValueError?", "if not given"),
        ("+xx is the left operand.", "What is the argument `xx` of `m.f`?", "the left operand"),
        ("+- yy -- the right operand", "What is the argument `yy` of `m.f`?", "the right operand"),
        ("+:param xx: the left one", "What is the argument `xx` of `m.f`?", "the left one"),
        ("+The *yy* argument must be positive.", "What must the argument `yy` of `m.f` be?", "positive"),
        ("+'xx' specifies the mode.", "What does the argument `xx` of `m.f` specify?", "the mode"),
    ],
)
def test_question(sentence: str, question: str, answer: str) -> None:
    assert asked_of(entry_of(sentence)) == {question: answer}


@pytest.mark.parametrize(("kind", "sentence"), [("class", "A queue that forgets."), ("property", "The name of it.")])
def test_question_about_a_thing(kind: str, sentence: str) -> None:
    assert asked_of(entry_of(sentence, kind=kind)) == {"What is `m.f`?": sentence[:-1]}


KEY_ERRORS = """+Raise KeyError if the map is empty.
+A KeyError is raised if the map is empty.
+If the map is empty, a KeyError is raised.
+If the map is empty, this raises `KeyError`."""


@pytest.mark.parametrize("sentence", KEY_ERRORS.split("\n"))
def test_exceptions_are_asked_in_both_directions(sentence: str) -> None:
    seen = set()
    for number in range(20):
        ((question, answer),) = asked_of(entry_of(sentence, f"f{number}")).items()
        seen.add((question.replace(str(number), ""), answer.lower()))
    assert seen == {
        ("When does `m.f` raise KeyError?", "if the map is empty"),
        ("Which exception does `m.f` raise if the map is empty?", "keyerror"),
    }


def test_every_second_description_is_asked() -> None:
    found = [asked_of(entry_of("Removes all listeners.", f"f{number}")) for number in range(400)]
    assert sum(map(len, found)) == pytest.approx(200, abs=40)
    answers = {(re.sub(r"\d", "", text), answer) for asked in found for text, answer in asked.items()}
    assert answers == {("What does `m.f` do?", "Removes all listeners")}


def test_default_is_a_span_of_the_signature() -> None:
    entry = entry_of("Note that.", args="text, mode='r', size=-1, other=None, flag=True")
    ((question, answer),) = asked_of(entry).items()
    defaults = {"mode": "'r'", "size": "-1", "flag": "True"}
    assert (question, answer) in [(f"What is the default of `{key}` in `m.f`?", defaults[key]) for key in defaults]


NOTHING_TO_ASK = f"""Note that this is old.
If so, the end.
If it is empty, the default is used.
Return one of the following:
Return {"very " * 15}much.
Return (the thing.
Frobnicate all listeners."""


@pytest.mark.parametrize("sentence", NOTHING_TO_ASK.split("\n"))
def test_no_question(sentence: str) -> None:
    assert questions(entry_of(sentence)) == []


def test_answers_are_spans_of_short_contexts(asked: dict[Split, list[QAExample]]) -> None:
    for example in asked["train"] + asked["validation"]:
        (answer,), (start,) = example.answers, example.answer_start
        assert example.context[start : start + len(answer)] == answer, example.id
        assert answer == answer.rstrip(" .,;:")
        assert 1 <= len(answer.split()) <= 14
        assert len(example.context.split()) <= 64
        heads = {line.removeprefix("class ").split("(")[0] for line in example.context.split("\n")[::2]}
        names = re.findall(r"`([\w.]+)`", example.question)
        assert any(name == head or name.endswith("." + head) for name in names for head in heads), example.question


def test_sizes_and_kinds_of_questions(asked: dict[Split, list[QAExample]]) -> None:
    assert (len(asked["train"]) >= 2000, len(asked["validation"]) >= 400) == (True, True)
    for split in SPLITS:
        kinds = Counter(example.id.split("/")[1] for example in asked[split])
        assert set(kinds) == {"returns", "raises", "happens", "occasion", "is", "argument", "does", "default"}
        assert max(kinds.values()) < 0.4 * len(asked[split])
        assert len({example.context for example in asked[split]}) > 0.7 * len(asked[split])
    for values in ([e.id for s in SPLITS for e in asked[s]], [e.question for s in SPLITS for e in asked[s]]):
        assert len(set(values)) == len(values)


def parts(texts: Sequence[str]) -> set[str]:
    """Sentences of four words or more, cut naively."""
    found = {normalised(part) for text in texts for part in re.split(r"\n|(?<=[.!?]) ", text)}
    return {part for part in found if part.count(" ") >= 3}


def test_no_sentence_is_in_both_splits(
    asked: dict[Split, list[QAExample]], texts: dict[Split, list[TextExample]]
) -> None:
    bodies = {s: ["\n".join(example.context.split("\n")[1::2]) for example in asked[s]] for s in SPLITS}
    assert not parts(bodies["train"]) & parts(bodies["validation"])
    owners = {s: {example.id.split("/")[0] for example in asked[s]} for s in SPLITS}
    assert not owners["train"] & owners["validation"]
    assert not parts([row.text for row in texts["train"]]) & parts([row.text for row in texts["validation"]])
    whole = [normalised(row.text) for split in SPLITS for row in texts[split]]
    assert len(set(whole)) == len(whole)


def test_sizes_and_labels_of_topics(texts: dict[Split, list[TextExample]]) -> None:
    assert (len(texts["train"]) >= 3000, len(texts["validation"]) >= 700) == (True, True)
    for split in SPLITS:
        counts = Counter(row.label for row in texts[split])
        assert set(counts) == set(range(len(pydocs_text.LABELS)))
        assert max(counts.values()) <= pydocs_text.MOST_ROWS[split]
        assert all(len(row.text) <= 240 and row.text_pair is None for row in texts[split])
    assert min(Counter(row.label for row in texts["train"]).values()) >= 150
    names = {name.lower() for modules in pydocs_text.TOPICS.values() for name in modules.split()}
    words = {word.lower() for s in SPLITS for row in texts[s] for word in re.findall(r"[A-Za-z_]\w*", row.text)}
    assert not words & names


def test_validation_modules() -> None:
    rows = [(f"m{i}", i % 2) for i in range(40) for _ in range(3)] + [("large", 0)] * 400 + [("alone", 2)] * 9
    held_out = pydocs_text._validation_modules(rows)
    assert not held_out & {"large", "alone"}  # neither may take more than two fifths of its label
    # Label 0: its small modules are 60 rows, less than a fifth of 460. Label 1: four modules are 12 rows of 60.
    even, odd = ([f"m{i}" for i in range(40) if i % 2 == parity] for parity in (0, 1))
    assert held_out == {*even, *sorted(odd, key=hash_fraction)[:4]}


@pytest.mark.parametrize("count", [50, 1000])
def test_naive_bayes_is_sklearns(count: int, texts: dict[Split, list[TextExample]]) -> None:
    train, validation = texts["train"][:count], texts["validation"][:200]
    words = CountVectorizer(token_pattern=r"[a-z]{2,}|___")
    model = MultinomialNB().fit(words.fit_transform([row.text for row in train]), [row.label for row in train])
    found = model.predict(words.transform([row.text for row in validation]))
    wanted = [row.label for row in validation]
    ours = pydocs_text.topic_baseline(train, validation)
    assert ours["accuracy"] == pytest.approx(np.mean(found == wanted), abs=1e-12)
    assert ours["macro_f1"] == pytest.approx(f1_score(wanted, found, average="macro"), abs=1e-12)


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


@pytest.fixture
def once(library: tuple[DocEntry, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are read once for all tests but the last."""
    monkeypatch.setattr("prunus.tasks.pydocs.read_library", lambda progress: library)


@pytest.mark.usefixtures("once")
@pytest.mark.parametrize(
    ("name", "head", "metric", "tokens", "bounds"),
    [
        ("pydocs-qa", "question-answering", "f1", (150, 384), (0.3, 0.65)),
        ("pydocs-topic", "classification", "accuracy", (40, 128), (0.05, 0.65)),
    ],
)
def test_tasks(
    tokenizer: PreTrainedTokenizerBase, name: str, head: str, metric: str, tokens: Pair, bounds: Pair
) -> None:
    task: Task = load_pydocs(TaskSpec(name))
    assert (task.name, task.head, task.metric) == (name, head, metric)
    counts = f"{task.size('train'):,} training and {task.size('validation'):,} validation "
    assert task.notes[0].startswith(f"documentation strings of {pydocs_text.python_name()}: {counts}")
    lengths = np.array([len(row["input_ids"]) for row in task.features("validation", tokenizer)])
    assert len(lengths) == task.size("validation")  # one window each
    assert lengths.mean() < tokens[0]
    assert lengths.max() < tokens[1]
    baselines = [metrics[metric] for metrics in task.baselines().values()]
    assert len(baselines) >= 2
    assert bounds[0] <= min(baselines) <= max(baselines) <= bounds[1]


@pytest.mark.usefixtures("once")
def test_subsets_are_seeded(tokenizer: PreTrainedTokenizerBase) -> None:
    found = []
    for seed in (0, 0, 1):
        spec = TaskSpec("pydocs-topic", max_train_samples=300, max_validation_samples=50, subset_seed=seed)
        task = load_pydocs(spec)
        assert (task.size("train"), task.size("validation"), len(task.notes)) == (300, 50, 3)
        found.append([list(row["input_ids"]) for row in task.features("train", tokenizer)])
    assert found[0] == found[1] != found[2]


def test_the_data_does_not_depend_on_the_hash_seed(
    asked: dict[Split, list[QAExample]], texts: dict[Split, list[TextExample]]
) -> None:
    code = """import hashlib
from prunus.tasks.pydocs import qa_examples, read_library, topic_examples
x = read_library()
print(hashlib.sha256(repr((qa_examples(x), topic_examples(x))).encode()).hexdigest())"""
    source = str(Path(inspect.getfile(read_library)).parents[2])
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": source}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert run.stdout.strip() == hashlib.sha256(repr((asked, texts)).encode()).hexdigest()
