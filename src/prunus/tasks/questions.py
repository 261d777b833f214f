"""Questions out of rows: SQuAD v1.1, its copy on the Hub, and own files.

The roles are ``question``, ``context``, ``answer``, ``answer_start`` and ``id``; the last two may be absent. An answer
is a string, a list of strings (all of them accepted), SQuAD's list of ``{"text": ..., "answer_start": ...}`` or the
Hub's ``{"text": [...], "answer_start": [...]}``. Without a start the first occurrence in the context is taken; an
answer that does not stand in the context, or not where the file says, is an error.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from prunus.tasks.base import Split
from prunus.tasks.examples import QAExample
from prunus.tasks.files import ColumnLayout, FileProblems, Row, text_of
from prunus.tasks.question_answering import QuestionAnsweringTask
from prunus.tasks.sources import Origin, Places, open_rows, subset, subset_notes
from prunus.tasks.spec import TaskSpec

__all__ = ["layout_of", "load_questions", "places_of"]

OWN_ROLES: Final = ("question", "context", "answer", "answer_start", "id")

REBUILT: Final = (
    "SQuAD v1.1 train reconstructed from the official explorer pages; 0.27 % of the answer offsets heuristic"
)


def places_of(spec: TaskSpec) -> Places:
    """The usual folders, files and Hub id of the task's data."""
    hub_splits: Mapping[Split, str] = {"train": "train", "validation": "validation"}
    if spec.name == "squad":
        stems: Mapping[Split, tuple[str, ...]] = {
            "train": ("train-v1.1", "train"),
            "validation": ("dev-v1.1", "dev", "validation"),
        }
        return Places((".", "squad", "SQuAD"), stems, hub_splits, "rajpurkar/squad")
    return Places((".",), {"train": ("train",), "validation": ("validation", "dev")}, hub_splits)


def layout_of(spec: TaskSpec) -> ColumnLayout:
    """The columns of the task's files; ``columns`` of the recipe name those of own files."""
    usual = {role: ("answer", "answers") if role == "answer" else (role,) for role in OWN_ROLES}
    named = {role: (column,) for role, column in spec.columns.items()}
    required = {role: named.get(role, usual[role]) for role in ("question", "context", "answer")}
    required |= {role: names for role, names in named.items() if role in ("answer_start", "id")}
    return ColumnLayout(required, {role: usual[role] for role in ("answer_start", "id") if role not in required})


def load_questions(spec: TaskSpec, origins: Mapping[Split, Origin]) -> QuestionAnsweringTask:
    """The task with the splits of ``origins`` read. Raises DataError with the line of each mistake in either file."""
    file_problems, layout = FileProblems(), layout_of(spec)
    train = _examples(origins["train"], "train", layout, file_problems) if "train" in origins else []
    validation = (
        _examples(origins["validation"], "validation", layout, file_problems) if "validation" in origins else []
    )
    file_problems.close()
    notes = (REBUILT,) if spec.name == "squad" and train and train[0].id.startswith("tr") else ()
    return QuestionAnsweringTask(
        name=spec.name,
        train=subset(train, spec.max_train_samples, spec.subset_seed),
        validation=subset(validation, spec.max_validation_samples, spec.subset_seed),
        max_length=spec.max_length or 384,
        doc_stride=spec.doc_stride,
        n_best=spec.n_best,
        max_answer_length=spec.max_answer_length,
        notes=notes + subset_notes(spec, len(train), len(validation)),
    )


def _examples(origin: Origin, split: Split, layout: ColumnLayout, file_problems: FileProblems) -> list[QAExample]:
    examples: list[QAExample] = []
    places: dict[str, str] = {}
    for index, row in enumerate(open_rows(origin, layout, file_problems)):
        name = _id(row, f"{split}-{index}", file_problems)
        if name in places:
            file_problems.add(row.where, name, f"have an id of its own, not that of {places[name]}")
        places[name] = row.where
        question, context = text_of(row, "question", file_problems), text_of(row, "context", file_problems)
        answers = _answers(row, file_problems)
        if question is None or context is None or answers is None:
            continue
        spans = [_located(row, context, text, start, file_problems) for text, start in answers]
        good = [span for span in spans if span is not None]
        if len(good) == len(spans):
            examples.append(QAExample(name, question, context, tuple(t for t, _ in good), tuple(s for _, s in good)))
    return examples


def _id(row: Row, default: str, file_problems: FileProblems) -> str:
    value = row.values.get("id", default)
    if not isinstance(value, str | int) or value == "":
        file_problems.add(row.where, value, "hold a string as id")
    return str(value)


def _answers(row: Row, file_problems: FileProblems) -> list[tuple[str, int | None]] | None:
    """Text and start (None: to be found) of each answer; None after a complaint."""
    value, starts = row.values.get("answer"), row.values.get("answer_start")
    if isinstance(value, dict):
        columns: dict[str, object] = value
        value, starts = columns.get("text"), columns.get("answer_start")
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        items: list[dict[str, object]] = value
        value, starts = [item.get("text") for item in items], [item.get("answer_start") for item in items]
    texts: Sequence[object] = value if isinstance(value, list) else [value]
    if not isinstance(starts, list):
        starts = [starts] + [None] * (len(texts) - 1)
    if not texts:
        file_problems.add(
            row.where, "no answer", "have an answer", "SQuAD v1.1, version 2.0 has questions without answers"
        )
        return None
    if len(starts) != len(texts):
        file_problems.add(row.where, f"{len(starts)} starts, {len(texts)} answers", "have one answer_start an answer")
        return None
    pairs: list[tuple[str, int | None]] = []
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(text, str) or not text.strip():
            file_problems.add(row.where, text, "hold a string as answer")
            return None
        if start is None or start == "":
            pairs.append((text, None))
        elif not isinstance(start, bool) and str(start).isascii() and str(start).isdecimal() and len(str(start)) < 10:
            pairs.append((text, int(str(start))))
        else:
            file_problems.add(row.where, start, "hold a count of characters as answer_start")
            return None
    return pairs


def _located(
    row: Row, context: str, answer: str, start: int | None, file_problems: FileProblems
) -> tuple[str, int] | None:
    """The answer without outer white space, and where it starts."""
    text = answer.strip()
    if start is None:
        at = context.find(text)
        if at < 0:
            file_problems.add(row.where, text, "have an answer that stands in the context, letter by letter")
            return None
        return text, at
    if context[start : start + len(answer)] != answer:
        there = context[start : start + len(answer)]
        fix = f"a file without answer_start, which takes the first occurrence; at {start} stands {there[:40]!r}"
        file_problems.add(row.where, answer, f"have its answer at character {start} of the context", fix)
        return None
    return text, start + len(answer) - len(answer.lstrip())
