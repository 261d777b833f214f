"""Question answering: windows, labels, spans, scores, and every layout of a file."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from prunus.errors import DataError, RecipeError, TrainingError
from prunus.tasks import TaskSpec, load_task
from prunus.tasks.base import Feature
from prunus.tasks.examples import QAExample
from prunus.tasks.question_answering import QuestionAnsweringTask, best_span

pytestmark = pytest.mark.usefixtures("no_environment")

WORDS = "river stone the Amazonian light 1889 café quick-witted over Zürich market unbelievably slow , \u200eplain"


def example(seed: int, words: int, name: str = "") -> QAExample:
    rng = np.random.default_rng(seed)
    context = " ".join(rng.choice(WORDS.split(" "), words)) + "  and the end. "
    first = int(rng.integers(0, len(context) - 30))
    answer = context[first : first + int(rng.integers(1, 30))]
    start = first + len(answer) - len(answer.lstrip())
    question = " ".join(rng.choice(WORDS.split(" "), 2)) + "?"
    return QAExample(name or f"q{seed}", question, context, (answer.strip(),), (start,))


EXAMPLES = [example(seed, 5 + 17 * seed) for seed in range(14)]


def task_of(examples: Sequence[QAExample], **settings: int) -> QuestionAnsweringTask:
    return QuestionAnsweringTask("qa", examples, examples, **{"max_length": 64, "doc_stride": 24} | settings)


def by_example(rows: Sequence[Feature]) -> dict[int, list[Feature]]:
    found: dict[int, list[Feature]] = {}
    for row in rows:
        found.setdefault(row["example"], []).append(row)
    return found


@pytest.mark.parametrize(("max_length", "doc_stride"), [(64, 24), (64, 32), (64, 0), (48, 5), (384, 128)])
def test_windows_cover_the_context(tokenizer: PreTrainedTokenizerBase, max_length: int, doc_stride: int) -> None:
    task = task_of(EXAMPLES, max_length=max_length, doc_stride=doc_stride)
    calls: list[tuple[int, int]] = []
    rows = task.features("validation", tokenizer, lambda done, total: calls.append((done, total)))
    assert calls == [(len(EXAMPLES), len(EXAMPLES))]
    assert max(rows.lengths()) <= max_length
    for index, windows in by_example(rows).items():
        context, question = EXAMPLES[index].context, EXAMPLES[index].question
        whole = tokenizer(context, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        asked = tokenizer(question, add_special_tokens=False)["input_ids"]
        spans = [[span for span in window["offsets"] if span is not None] for window in windows]
        ids = [
            [token for token, span in zip(window["input_ids"], window["offsets"], strict=True) if span is not None]
            for window in windows
        ]
        # Each window repeats exactly doc_stride tokens of the one before it; together they are the context.
        assert spans[0] + [s for later in spans[1:] for s in later[doc_stride:]] == whole["offset_mapping"]
        assert ids[0] + [t for later in ids[1:] for t in later[doc_stride:]] == whole["input_ids"]
        for before, after in pairwise(spans):
            assert before[len(before) - doc_stride :] == after[:doc_stride]
        for window in windows:
            cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
            assert window["input_ids"][: len(asked) + 2] == [cls, *asked, sep]
            assert window["input_ids"][-1] == sep


@pytest.mark.parametrize("max_length", [48, 64, 384])
def test_labels_decode_to_the_answer(tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    task = task_of(EXAMPLES, max_length=max_length)
    rows = task.features("train", tokenizer)
    places = task.features("validation", tokenizer)
    labelled = set()
    for row, place in zip(rows, places, strict=True):
        gold = EXAMPLES[row["example"]]
        first, last = gold.answer_start[0], gold.answer_start[0] + len(gold.answers[0])
        start, end = row["start_positions"], row["end_positions"]
        offsets = place["offsets"]
        touched = [i for i, span in enumerate(offsets) if span is not None and span[1] > first and span[0] < last]
        if start == end == 0:
            inside = [span for span in offsets if span is not None]
            missing = not touched or inside[0][0] > first or inside[-1][1] < last
            assert missing, "a window that holds the whole answer must be labelled with it"
            continue
        labelled.add(row["example"])
        assert (start, end) == (touched[0], touched[-1])
        text = gold.context[offsets[start][0] : offsets[end][1]]
        assert gold.answers[0].strip("\u200e ") in text
        assert len(text) <= len(gold.answers[0]) + 2 * max(map(len, WORDS.split(" ")))
    assert len(labelled) >= len(EXAMPLES) - 1


def test_label_of_an_answer_in_two_windows(tokenizer: PreTrainedTokenizerBase) -> None:
    context = " ".join("Paris" if i == 50 else "word" for i in range(120))
    gold = QAExample("q", "where?", context, (" Paris ",), (context.index(" Paris "),))
    rows = task_of([gold], max_length=64).features("train", tokenizer)
    found = [tokenizer.decode(row["input_ids"][row["start_positions"] : row["end_positions"] + 1]) for row in rows]
    # Windows of 64 - 3 - 2 = 59 tokens that share 24: tokens 0 to 58, 35 to 93, 70 to 119.
    assert found == ["paris", "paris", "[CLS]"]
    assert [row["start_positions"] for row in rows] == [4 + 50, 4 + 50 - 35, 0]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("1889", "1889"),
        ("(1889", "( 1889"),
        ("889", "1889"),
        ("1889)", "1889 )"),
        ("18", "1889"),
        ("built (", "built ("),
    ],
)
def test_answers_beside_and_inside_tokens(tokenizer: PreTrainedTokenizerBase, answer: str, words: str) -> None:
    """A neighbour that only borders on the answer stays out; a token that the answer cuts is taken whole."""
    context = "It was built (1889) in Paris."
    gold = QAExample("q", "when?", context, (answer,), (context.index(answer),))
    (row,) = task_of([gold]).features("train", tokenizer)
    ids = row["input_ids"][row["start_positions"] : row["end_positions"] + 1]
    assert tokenizer.convert_ids_to_tokens(ids) == words.split(" ")


def test_question_without_answer_is_labelled_cls(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = task_of([QAExample("q", "where?", "nowhere at all", (), ())]).features("train", tokenizer)
    assert [(row["start_positions"], row["end_positions"]) for row in rows] == [(0, 0)]


def test_long_questions_are_cut(tokenizer: PreTrainedTokenizerBase) -> None:
    gold = QAExample("q", "why " * 500, "because of the rain " * 30, ("rain",), (15,))
    rows = task_of([gold], max_length=64, doc_stride=32).features("validation", tokenizer)
    why = tokenizer.convert_tokens_to_ids("why")
    assert [row["input_ids"].count(why) for row in rows] == [16] * len(rows)
    assert len(rows) == 1 + -(-(120 - 45) // (45 - 32))


def test_context_comes_first_for_tokenizers_that_pad_on_the_left(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "padding_side", "left")
    task = task_of(EXAMPLES[:6])
    for row, place in zip(task.features("train", tokenizer), task.features("validation", tokenizer), strict=True):
        assert place["offsets"][0] is None
        assert place["offsets"][1] is not None
        gold, end = EXAMPLES[row["example"]], row["end_positions"]
        if end:
            text = gold.context[place["offsets"][row["start_positions"]][0] : place["offsets"][end][1]]
            assert gold.answers[0].strip("\u200e ") in text


def test_byte_level_tokens_without_special_ones() -> None:
    """Tokens that begin with the space before the word, several tokens for one character, no [CLS], no segments."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator([gold.context for gold in EXAMPLES], trainer)
    task, byte_level = task_of(EXAMPLES), PreTrainedTokenizerFast(tokenizer_object=inner)
    rows, places = task.features("train", byte_level), task.features("validation", byte_level)
    assert set(rows[0]) == {
        "input_ids",
        "attention_mask",
        "example",
        "start_positions",
        "end_positions",
    }
    found = task.predictions(oracle(task, places, 64), places)
    assert all(gold.answers[0] in found[gold.id] for gold in EXAMPLES)
    for row in rows:
        if row["end_positions"]:
            text = byte_level.decode(row["input_ids"][row["start_positions"] : row["end_positions"] + 1])
            assert EXAMPLES[row["example"]].answers[0] in text


def test_slow_tokenizers_are_refused(tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    with pytest.raises(RecipeError, match="tokenizer must be a fast one"):
        task_of(EXAMPLES).features("train", tokenizer)


def test_model_too_short(tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "model_max_length", 20)
    with pytest.raises(RecipeError, match=r"task\.max_length must be at least 32 tokens"):
        task_of(EXAMPLES).features("train", tokenizer)
    monkeypatch.setattr(tokenizer, "model_max_length", 40)
    assert max(task_of(EXAMPLES).features("train", tokenizer).lengths()) == 40


def naive_span(start: np.ndarray, end: np.ndarray, longest: int) -> tuple[float, int, int]:
    pairs = [(i, j) for i in range(len(start)) for j in range(i, min(i + longest, len(start)))]
    return max((float(start[i] + end[j]), -i, -j) for i, j in pairs)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("longest", [1, 4, 30])
def test_best_span_against_all_pairs(seed: int, longest: int) -> None:
    start, end = np.random.default_rng(seed).normal(size=(2, 25))
    score, i, j = best_span(start, end, 25, longest)
    assert (score, -i, -j) == naive_span(start, end, longest)


def test_best_span_takes_the_best_candidates_only() -> None:
    start, end = np.array([5.0, 4.0, 0.0]), np.array([0.0, 1.0, 9.0])
    assert best_span(start, end, 3, 2) == (13.0, 1, 2)
    assert best_span(start, end, 1, 3) == (14.0, 0, 2)
    # The only candidates, start 2 and end 0, are no span: all spans are compared instead.
    assert best_span(np.array([1.0, 0.0, 9.0]), np.array([9.0, 0.0, 1.0]), 1, 3) == (10.0, 0, 0)


def oracle(task: QuestionAnsweringTask, rows: Sequence[Feature], width: int) -> list[np.ndarray]:
    """Scores that point at the first answer wherever a window holds it."""
    start, end = np.zeros((2, len(rows), width), dtype=np.float32)
    for i, row in enumerate(rows):
        gold = task.validation[row["example"]]
        first, last = gold.answer_start[0], gold.answer_start[0] + len(gold.answers[0])
        spans = [(k, *span) for k, span in enumerate(row["offsets"]) if span is not None]
        touched = [(k, s, e) for k, s, e in spans if e > first and s < last]
        if touched and touched[0][1] <= first and touched[-1][2] >= last:
            start[i, touched[0][0]] = end[i, touched[-1][0]] = 10.0
    return [start, end]


def test_predictions_cut_the_original_context(tokenizer: PreTrainedTokenizerBase) -> None:
    task = task_of(EXAMPLES)
    rows = task.features("validation", tokenizer)
    outputs = oracle(task, rows, 64)
    found = task.predictions(outputs, rows)
    assert list(found) == [gold.id for gold in EXAMPLES]
    whole = 0
    for gold in EXAMPLES:
        assert found[gold.id] in gold.context
        whole += gold.answers[0].strip("\u200e ") in found[gold.id]
    assert whole >= len(EXAMPLES) - 1
    # The same, in plain Python: every window, every pair of context tokens.
    rng = np.random.default_rng(0)
    start, end = rng.normal(size=(2, len(rows), 70))
    naive: dict[int, tuple[float, str]] = {}
    for i, row in enumerate(rows):
        spans = [(k, span) for k, span in enumerate(row["offsets"]) if span is not None]
        for a, (s, left) in enumerate(spans):
            for e, right in spans[a : a + task.max_answer_length]:
                score = float(start[i, s] + end[i, e])
                if row["example"] not in naive or score > naive[row["example"]][0]:
                    text = EXAMPLES[row["example"]].context[left[0] : right[1]]
                    naive[row["example"]] = (score, text.strip())
    every = task_of(EXAMPLES, n_best=64).predictions([start, end], rows)
    assert every == {EXAMPLES[i].id: text for i, (_, text) in naive.items()}


def test_padding_and_question_never_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    gold = QAExample("q", "who went home?", "The River Stone", ("River",), (4,))
    task = task_of([gold])
    rows = task.features("validation", tokenizer)
    scores = np.full((1, 64), 100.0)
    inside = [i for i, span in enumerate(rows[0]["offsets"]) if span is not None]
    scores[0, inside] = [0.0, 1.0, 0.5]
    assert task.predictions([scores, scores], rows) == {"q": "River"}
    assert task.score([scores, scores], rows) == {"f1": 1.0, "exact_match": 1.0}
    minus = np.full((1, 64), -np.inf)
    assert task.predictions([minus, minus], rows) == {"q": "The"}


def test_question_without_window_scores_nothing(tokenizer: PreTrainedTokenizerBase) -> None:
    golds = [QAExample(name, "who?", "River", ("River",), (0,)) for name in ("a", "b")]
    task = task_of(golds)
    rows = task.features("validation", tokenizer)[:1]
    assert task.predictions([np.zeros((1, 64))] * 2, rows) == {"a": "River", "b": ""}
    assert task.score([np.zeros((1, 64))] * 2, rows) == {"f1": 0.5, "exact_match": 0.5}


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ([np.zeros((1, 64))], "outputs must be start and end scores, got 1 arrays"),
        ([np.zeros((2, 64)), np.zeros((1, 64))], r"start scores must have the shape"),
        ([np.zeros((1, 64)), np.zeros((1, 3))], r"end scores must have the shape"),
        ([np.full((1, 64), np.nan), np.zeros((1, 64))], "start scores must be numbers, got 'NaN'"),
    ],
)
def test_outputs_are_checked(tokenizer: PreTrainedTokenizerBase, outputs: list[np.ndarray], words: str) -> None:
    task = task_of([QAExample("q", "who?", "River", ("River",), (0,))])
    with pytest.raises(TrainingError, match=words):
        task.score(outputs, task.features("validation", tokenizer))


SPAN = {"text": "River", "answer_start": 4}
ROW = {"question": "what?", "context": "The River. A River?", "answer": "River"}


def squad(**change: object) -> dict[str, object]:
    question = {"id": "q", "question": "what?", "answers": [SPAN], **change}
    return {"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": ROW["context"], "qas": [question]}]}]}


def load_one(folder: Path, content: object, name: str = "a.json", **settings: object) -> QAExample:
    path = folder / name
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding="utf-8")
    task = load_task(TaskSpec("qa", train=str(path), validation=str(path), **settings))  # type: ignore[arg-type]
    assert isinstance(task, QuestionAnsweringTask)
    return task.validation[0]


@pytest.mark.parametrize(
    ("content", "name", "answers", "starts", "id_"),
    [
        (squad(), "a.json", ("River",), (4,), "q"),
        (squad(answers=[SPAN, {"text": "A River", "answer_start": 11}]), "a.json", ("River", "A River"), (4, 11), "q"),
        ([ROW], "a.json", ("River",), (4,), "validation-0"),
        ([{**ROW, "answer_start": 13}], "a.json", ("River",), (13,), "validation-0"),
        ([{**ROW, "answer": [" A River", "The"], "id": 7}], "a.json", ("A River", "The"), (11, 0), "7"),
        ([{**ROW, "answer": {"text": ["River"], "answer_start": [13]}}], "a.json", ("River",), (13,), "validation-0"),
        ("question,context,answer\nwhat?,The River. A River?,River\n", "a.csv", ("River",), (4,), "validation-0"),
        (
            "id\tquestion\tcontext\tanswer_start\tanswer\nx\twhat?\tThe River. A River?\t13\tRiver\n",
            "a.tsv",
            ("River",),
            (13,),
            "x",
        ),
        ("question,context,answer,answer_start\nwhat?,The River.,River,\n", "a.csv", ("River",), (4,), "validation-0"),
        ([{**ROW, "answer": "River ", "context": "The River "}], "a.json", ("River",), (4,), "validation-0"),
        ([{**ROW, "answer": " River", "answer_start": 3}], "a.json", ("River",), (4,), "validation-0"),
    ],
)
def test_layouts(
    tmp_path: Path, content: object, name: str, answers: tuple[str, ...], starts: tuple[int, ...], id_: str
) -> None:
    found = load_one(tmp_path, content, name)
    assert (found.answers, found.answer_start, found.id) == (answers, starts, id_)


def test_own_columns(tmp_path: Path) -> None:
    text = "q,passage,a,at\nwhat?,The River. A River?,River,13\n"
    columns = {"question": "q", "context": "passage", "answer": "a", "answer_start": "at"}
    assert load_one(tmp_path, text, "a.csv", columns=columns).answer_start == (13,)


@pytest.mark.parametrize(
    ("content", "where", "words"),
    [
        ([{**ROW, "answer": "Lake"}], " item 0", "have an answer that stands in the context, letter by letter"),
        ([{**ROW, "answer_start": 5}], " item 0", "have its answer at character 5 of the context, got 'River'"),
        ([{**ROW, "answer_start": -1}], " item 0", "hold a count of characters as answer_start, got -1"),
        ([{**ROW, "answer_start": "x"}], " item 0", "hold a count of characters as answer_start"),
        ([{**ROW, "answer": 3}], " item 0", "hold a string as answer"),
        ([{**ROW, "answer": " "}], " item 0", "hold a string as answer"),
        ([{**ROW, "answer": ["River", "A"], "answer_start": [1]}], " item 0", "have one answer_start an answer"),
        ([{**ROW, "context": None}], " item 0", "hold a string as context, got None"),
        ([{**ROW, "id": [1]}], " item 0", "hold a string as id"),
        ([{**ROW, "id": "a"}, {**ROW, "id": "a"}], " item 1", "have an id of its own"),
        ([{"question": "what?", "context": "x"}], " item 0", "have a column answer"),
        (squad(answers=[]), " data[0].paragraphs[0].qas[0]", "version 2.0 has questions without answers"),
        (squad(question=None), " data[0].paragraphs[0].qas[0]", "hold a string as question"),
    ],
)
def test_mistakes(tmp_path: Path, content: object, where: str, words: str) -> None:
    with pytest.raises(DataError) as caught:
        load_one(tmp_path, content)
    assert caught.value.problems[0].key == f"{tmp_path / 'a.json'} line 1{where}"
    assert words in str(caught.value)


def test_real_squad(real_data: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    if not (real_data / "squad" / "train-v1.1.json.gz").is_file():
        pytest.skip(f"no SQuAD in {real_data}")
    task = load_task(TaskSpec("squad", data=str(real_data)))
    assert isinstance(task, QuestionAnsweringTask)
    assert (task.size("train"), task.size("validation")) == (87_599, 10_570)
    assert all(
        gold.context[start : start + len(text)] == text
        for gold in task.validation
        for text, start in zip(gold.answers, gold.answer_start, strict=True)
    )
    assert len(task.notes) == int(task.train[0].id.startswith("tr"))
    some = QuestionAnsweringTask("squad", task.train[::200], task.validation[::10])
    rows = some.features("validation", tokenizer)
    score = some.score(oracle(some, rows, 384), rows)
    assert 0.99 < score["exact_match"] < score["f1"] <= 1.0
    trained = some.features("train", tokenizer)
    labelled = {row["example"] for row in trained if row["start_positions"]}
    assert len(labelled) == some.size("train")
