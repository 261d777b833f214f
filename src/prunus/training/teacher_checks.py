"""What keeps a model from teaching another, as far as it can be known before the first step.

    modules     a teacher that shares weights with its student would be frozen, and trained, with it
    labels      as many, and in the same order
    rows        as long as the teacher reads, of tokens that it has embeddings for

Shapes that only a batch shows are compared in each one (``distillation``).
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import suppress
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from prunus.errors import Problem, first_line
from prunus.models.predict import LABEL_KEYS
from prunus.sparsity.wrappers import unwrapped

__all__ = ["embeddings_of", "row_problems", "teacher_problems"]

_PADDING: Final = 128
"""Tables of embeddings are often rounded up to a multiple of this; a larger difference is that of another vocabulary."""
_LOAD_AGAIN: Final = "a model that is loaded again with from_pretrained, or copy.deepcopy(model)"


def teacher_problems(student: nn.Module, teacher: nn.Module, key: str, logits: bool) -> list[Problem]:
    """Why ``teacher`` cannot teach ``student``; ``logits`` says that those count, and not layers alone."""
    return _shared(student, teacher, key) + (_labels(student, teacher, key) if logits else [])


def _shared(student: nn.Module, teacher: nn.Module, key: str) -> list[Problem]:
    """Whether the teacher holds modules or weights of the student."""
    if unwrapped(teacher) is unwrapped(student):
        return [Problem(key, "the model that is trained", "be another model, which does not change", _LOAD_AGAIN)]
    student_marks = {mark for _, module in student.named_modules() for _, mark in _marks(module)}
    marks = (each for path, module in teacher.named_modules() for each in _marks(module, path))
    names = list(dict.fromkeys(name for name, mark in marks if mark in student_marks))
    if not names:
        return []
    rule = f"share nothing with the model that is trained, whose weights change: {names[0]} is the same in both"
    value = f"{len(names)} that both have"
    return [Problem(key, value, rule, _LOAD_AGAIN)]


def _marks(module: nn.Module, path: str = "") -> Iterator[tuple[str, tuple[str, int]]]:
    """Names of what a module holds itself, with what makes it the same as another's: its identity, or its memory."""
    dot = f"{path}." if path else ""
    tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    if isinstance(module, nn.Dropout):  # which is in training or in evaluation mode
        yield path or "the model", ("module", id(module))
    for name, tensor in tensors:
        yield dot + name, ("tensor", id(tensor))
        if isinstance(tensor, nn.Parameter) and not tensor.is_meta:
            with suppress(RuntimeError, NotImplementedError):  # sharded tensors have no memory of their own
                if tensor.untyped_storage().data_ptr():
                    yield dot + name, ("memory", tensor.untyped_storage().data_ptr())


def _labels(student: nn.Module, teacher: nn.Module, key: str) -> list[Problem]:
    """Whether both classify, and their labels differ in number or order."""
    student_labels, teacher_labels = _labels_of(student), _labels_of(teacher)
    if student_labels is None or teacher_labels is None:
        return []
    if len(student_labels) != len(teacher_labels):
        rule = f"have the {len(student_labels)} labels of the model that is trained ({', '.join(student_labels[:8])})"
        shown = f"{len(teacher_labels)} labels ({', '.join(teacher_labels[:8])})"
        fix = "a teacher that was fine-tuned for the same task; weight=0.0 with hidden=... compares layers alone"
        return [Problem(key, shown, rule, fix)]
    left, right = (
        ({_plain(label): i for i, label in enumerate(labels)}) for labels in (student_labels, teacher_labels)
    )
    moved = [name for name in left if right.get(name, left[name]) != left[name]]
    if moved:
        place = left[moved[0]]
        rule = (
            f"have its labels in the order of the model that is trained: {student_labels[place]} is its output {place}"
        )
        fix = (
            "a teacher that was fine-tuned with that order; where its config.id2label is wrong and its outputs are not, "
            "teacher.config.id2label = model.config.id2label"
        )
        return [Problem(key, f"{teacher_labels[right[moved[0]]]} as output {right[moved[0]]}", rule, fix)]
    return []


def _labels_of(model: nn.Module) -> list[str] | None:
    """Names of a classifier's outputs, in their order; None for another kind of model."""
    plain = unwrapped(model)
    kind, names = type(plain).__name__, getattr(getattr(plain, "config", None), "id2label", None)
    # Language models and heads for answers have configurations with labels, too, and outputs that are none.
    other_head = ("For" in kind and not kind.endswith("Classification")) or "LMHead" in kind
    if not isinstance(names, Mapping) or not names or other_head:
        return None
    if not kind.endswith("Classification") and all(str(name).startswith("LABEL_") for name in names.values()):
        return None  # those that every configuration begins with
    try:
        return [str(names[index]) for index in sorted(names, key=int)]
    except (TypeError, ValueError):  # which says nothing about an order
        return None


def _plain(label: str) -> str:
    return label.strip().casefold().replace("-", "_").replace(" ", "_")


def embeddings_of(model: nn.Module) -> int | None:
    """How many tokens a model has embeddings for; None for one that reads no tokens."""
    plain: Any = unwrapped(model)
    try:
        return int(plain.get_input_embeddings().num_embeddings)
    except (AttributeError, NotImplementedError, TypeError):
        return None


def _positions_of(model: nn.Module) -> int | None:
    config: Any = getattr(unwrapped(model), "config", None)
    try:
        return int(config.get_text_config().max_position_embeddings)
    except (AttributeError, TypeError, ValueError):
        return None


def row_problems(
    student: nn.Module,
    teacher: nn.Module,
    key: str,
    rows: Any,
    collate: Callable[[list[Any]], Mapping[str, Any]],
    columns: frozenset[str] | None,
) -> list[Problem]:
    """Whether the teacher reads all ``rows``; they are looked through only where it has fewer tokens or positions.

    ``columns`` are those that the collator is given, None for all. Warns of a teacher with another vocabulary.
    """
    tokens, student_tokens = embeddings_of(teacher), embeddings_of(student)
    reads, mine = _positions_of(teacher), _positions_of(student)
    few = tokens is not None and student_tokens is not None and tokens < student_tokens
    short = reads is not None and mine is not None and reads < mine
    problems: list[Problem] = []
    if (few or short) and isinstance(rows, Sized) and hasattr(rows, "__getitem__"):
        highest, longest, where = _extremes(rows)
        if few and tokens is not None and highest >= tokens:
            rule = f"have an embedding for token {highest} of the data, as the model that is trained has ({student_tokens})"
            problems.append(Problem(key, f"{tokens} embeddings", rule, "a teacher with the same tokenizer"))
        elif short and reads is not None and longest > reads:
            error = _fails(teacher, rows[where], collate, columns)
            if error is not None:
                rule = (
                    f"read the longest row of the data, {longest} tokens, as the model that is trained does ({error})"
                )
                fix = f"rows of at most {reads} tokens, or a teacher with as many positions"
                problems.append(Problem(key, f"{reads} positions", rule, fix))
    if not problems and student_tokens is not None and tokens is not None and abs(student_tokens - tokens) >= _PADDING:
        text = (
            f"the teacher has embeddings for {tokens} tokens and the model that is trained for {student_tokens}: both are "
            "given the same token numbers, so both have to be made for the same tokenizer"
        )
        warnings.warn(text, UserWarning, stacklevel=2)
    return problems


def _extremes(rows: Any) -> tuple[int, int, int]:
    """The highest token, the length of the longest row, and which one that is."""
    highest = longest = where = 0
    for index in range(len(rows)):
        row = rows[index]
        ids = row.get("input_ids") if isinstance(row, Mapping) else None
        if ids is None:
            continue
        for part in ids if len(ids) and np.ndim(ids[0]) else [ids]:  # of several choices, each
            numbers = np.asarray(part)
            if numbers.size:
                highest = max(highest, int(numbers.max()))
            if numbers.size > longest:
                longest, where = int(numbers.size), index
    return highest, longest, where


@torch.no_grad()
def _fails(
    teacher: nn.Module,
    row: Mapping[str, Any],
    collate: Callable[[list[Any]], Mapping[str, Any]],
    columns: frozenset[str] | None,
) -> str | None:
    """What a teacher in evaluation mode says to a batch of one row, None where it takes it."""
    device = next(teacher.parameters()).device
    with torch.random.fork_rng(devices=[]):  # of collators that mask tokens
        try:
            batch = collate([{name: value for name, value in row.items() if columns is None or name in columns}])
        except Exception:  # what is wrong with the data, the training itself tells
            return None
    inputs = {k: v.to(device) for k, v in batch.items() if isinstance(v, Tensor) and k not in LABEL_KEYS}
    try:
        teacher(**inputs)
    except Exception as error:  # each architecture has its own way to fail
        return f"{type(error).__name__}: {first_line(error)}"
    return None
