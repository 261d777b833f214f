"""The embedded tasks ``pydocs-qa`` and ``pydocs-topic``, read from the Python installation; here the questions.

A question is about the standard library, its answer a span of a documentation string. Documentation strings are written
in a few set phrases, and a rule reads each of them backwards: from "Raise KeyError if the map is empty" comes "When
does `f` raise KeyError?" with the answer "if the map is empty", or, by a coin that falls the same way on every machine,
"Which exception does `f` raise if the map is empty?" with the answer "KeyError". ``RULES`` lists the phrases. A
sentence gives one question at most, and an answer has at most ``LONGEST_ANSWER`` words.

The context holds the documented thing's signature and sentences among those of its neighbours in the same package and
the same split, in the order of the source, so that finding the place is part of the task. Nothing is paraphrased: each
sentence of the context stands in the library's source (white space and mark-up as ``pydocs_text`` leaves them).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from prunus.tasks.base import Metrics, Split, Task
from prunus.tasks.classification import ClassificationTask
from prunus.tasks.examples import QAExample
from prunus.tasks.metrics import exact_match, squad_f1
from prunus.tasks.pydocs_text import (
    LABELS,
    DocEntry,
    hash_fraction,
    in_validation,
    python_name,
    read_library,
    topic_baseline,
    topic_examples,
    without_leaks,
)
from prunus.tasks.question_answering import QuestionAnsweringTask
from prunus.tasks.sources import subset, subset_notes
from prunus.tasks.spec import TaskSpec

__all__ = ["RULES", "Question", "load_pydocs", "qa_baselines", "qa_examples", "questions"]

LONGEST_ANSWER: Final = 14
LONGEST_CHARACTERS: Final = 110
TARGET_WORDS: Final = 36
NEIGHBOUR_WORDS: Final = 16
CONTEXT_WORDS: Final = 64

# First words of sentences such as "Remove all listeners", also with a final s: what a thing does.
_VERBS: Final = """
    abort accept acquire adapt add allow append apply arrange assert attach authenticate begin block calculate call
    cancel change check choose clean clear close collapse collect combine compare compile complete compress compute
    configure connect construct control convert copy create decide decode decompress decrement define delegate
    delete describe deserialize detach detect determine disable disassemble discard dispatch display divide dump
    emit enable encapsulate encode end enqueue ensure enter escape evaluate execute exit expand extend extract feed
    fetch fill filter find finish flush fold force format generate get group guess handle hash identify ignore
    implement import increment indent indicate initialise initialize insert install instantiate interpret invoke
    issue iterate join kill list load locate lock log look lookup make manage map mark merge mix modify move
    normalize obtain open override parse pass pause perform place poll pop prepare print process produce prompt
    protect provide push put query quit quote raise read receive record recursively reduce register release reload
    remove rename render replace report represent request reset resolve restore resume retrieve round run save scan
    schedule search select send separate serialize serve set setup show shuffle shutdown signal skip sort spawn
    split start stop store subscribe subtract swap switch take tell terminate test tokenize transform translate
    transmit truncate try turn unescape unlock unpack unquote unregister unsubscribe update upgrade use validate
    verify visit wait wake walk wrap write
"""
VERBS: Final = frozenset(_VERBS.split())
_EXCEPTION = r"(?P<error>(?:\w+\.)*(?:[A-Z]\w*(?:Error|Exception|Warning|Iteration|Exit|Interrupt)|Empty|Full))"
_ARTICLE = r"(?:an? |the )?`?"
_CLAUSE = r"(?P<clause>(?:if|when|unless|in case) .+)"
# Clauses that say nothing by themselves: "if it is", "when not given".
_VAGUE = re.compile(
    r"(?i)^(?:if|when|unless) (?:(?:it|its|they|this|that|these|those|so|any|one|both|either|neither|he|she)\b.*"
    r"|(?:not|true|false|none|given|set|present|omitted|specified|empty|possible|successful|provided|\S+)(?: \S+)?"
    r"|omitted .*)$"
)
_STOPS = re.compile(
    r"; |\. | -- | \(|, (?:which|where|with|but|so|as|unless|otherwise|else|and then|False|True|or (?:None|False)|[*`]"
    r"|and (?:False|True|None|raise|return))\b"
)

# "- width -- the widest line", "The optional argument 'width' is the widest line", "*width* must be positive".
_ITEM = re.compile(
    r"(?P<item>[-*•] |:param )?(?:The )?(?:(?:optional|required) )?(?:argument |parameter )?"
    r"[`'*\"]?(?P<name>[a-z]\w+)[`'*\"]?(?: (?:keyword )?(?:argument|parameter|option))?"
    r"(?P<verb> --? |: | is | specifies | determines | controls | indicates | must be | should be | can be | may be )"
    r"(?!not\b|also\b|\w+ed\b)"
)


@dataclass(frozen=True)
class Question:
    """A question about one entry; the answer is ``sentences[sentence][start:end]`` (-1: the signature)."""

    kind: str
    text: str
    sentence: int
    start: int
    end: int


def _answer(sentence: str, start: int, end: int | None = None) -> tuple[int, int] | None:
    """The span from ``start`` without closing punctuation, cut at a clause if it is long; None if it is no answer."""
    text = sentence[start:end].rstrip(" .,;:!?")
    stop = _STOPS.search(text, 1)
    if len(text.split()) > LONGEST_ANSWER or (stop and (stop[0] in ("; ", ". ", " -- ") or stop[0][0] == ",")):
        text = text[: stop.start()].rstrip(" .,;:!?") if stop else ""
        # What is left of a long sentence must still say something: no stub, no "either" without its "or".
        stub = stop is not None and stop[0] == " (" and len(text.split()) < 3
        if stub or ("either" in text and " or " not in text):
            return None
    long = len(text.split()) > LONGEST_ANSWER or len(text) > LONGEST_CHARACTERS
    if (
        not text
        or long
        or sentence[start + len(text) :] == ":"
        or text.count("(") != text.count(")")
        or text.count("`") % 2
    ):
        return None
    return start, start + len(text)


def _lower(text: str) -> str:
    return text[0].lower() + text[1:]


# --- one function per set phrase: (entry, its name in the question, sentence, is it the first) -> _Found ---

_Found = tuple[str, int, int | None] | None  # the question, and where its answer starts and ends


def _returns(entry: DocEntry, name: str, sentence: str, first: bool) -> _Found:
    match = re.match(r"(?:This (?:function|method) )?(Return|Yield)s? (?=\S)", sentence, re.IGNORECASE)
    if match is None or entry.kind == "class":
        return None
    truth = r"[*`]?(True|False|None|true|false|1|0)[*`]? (?=(?:if|when|iff|unless) )"
    condition = re.match(truth, sentence[match.end() :])
    if condition:
        return f"When does {name} return {condition[1]}?", match.end() + condition.end(), None
    return f"What does {name} {match[1].lower()}?", match.end(), None


def _raises(entry: DocEntry, name: str, sentence: str, first: bool) -> _Found:
    match = (
        re.search(rf"(?i:\braises?) {_ARTICLE}{_EXCEPTION}`?(?: exception)?,? {_CLAUSE}", sentence)
        or re.search(rf"\b{_EXCEPTION}`? (?:is|will be) raised,? {_CLAUSE}", sentence)
        or re.match(rf"(?P<clause>(?:If|When) [^,]+),.*? {_ARTICLE}{_EXCEPTION}`? (?:is|will be|gets) raised", sentence)
        or re.match(rf"(?P<clause>(?:If|When) [^,]+),.*?\braises? {_ARTICLE}{_EXCEPTION}", sentence)
    )
    if match is None:
        return None
    span = _answer(sentence, *match.span("clause"))
    clause = sentence[slice(*span)] if span else ""
    if span is None or re.fullmatch(r"(?i)if (?:true|false|set|given|not|it is|so)", clause):
        return None
    if _VAGUE.match(clause) or hash_fraction(entry.full_name + clause) < 0.5:
        return f"When does {name} raise {match['error']}?", *span
    return f"Which exception does {name} raise {_lower(clause)}?", *match.span("error")


def _happens(entry: DocEntry, name: str, sentence: str, first: bool) -> _Found:
    match = re.match(r"(?P<clause>(?:If|When|Unless) [^,;]{8,90}), (?:then )?(?P<rest>.+)", sentence)
    if match is None or _VAGUE.match(match["clause"]) or re.match(r"(and|or|but|e\.g|i\.e)\b", match["rest"]):
        return None
    clause = _lower(match["clause"])
    result = re.match(r"(?:it |this (?:method |function )?)?returns? (?=\S)", match["rest"])
    if result:
        return f"What does {name} return {clause}?", match.start("rest") + result.end(), None
    return f"What happens in {name} {clause}?", match.start("rest"), None


def _occasion(entry: DocEntry, name: str, sentence: str, first: bool) -> _Found:
    match = re.match(r"(?:this method is )?(called|raised) (?=(?:when|after|before|once|if|just) )", sentence.lower())
    return (f"When is {name} {match[1]}?", match.end(), None) if match and first else None


def _does(entry: DocEntry, name: str, sentence: str, first: bool) -> _Found:
    word = re.match(r"[A-Za-z]+", sentence)
    if word is None or not first or len(sentence.split()) < 3:
        return None
    verb = word[0].lower()
    stems = {verb, verb.removesuffix("s"), verb.removesuffix("es"), verb.removesuffix("ies") + "y"}
    return (f"What does {name} do?", 0, None) if stems & VERBS else None


def _is(entry: DocEntry, name: str, sentence: str, first: bool) -> _Found:
    noun = re.match(r"(?:An?|The|Base class|Abstract|Context manager|Decorator|Exception|Generic) ", sentence)
    verb = re.search(r" (?:has|have|is|are|was|were|can|will) ", re.split(" (?:that|which) ", sentence, maxsplit=1)[0])
    named = entry.kind != "function" and noun and not verb and len(sentence.split()) >= 3
    return (f"What is {name}?", 0, None) if first and named else None


def _argument(entry: DocEntry, name: str, sentence: str, first: bool) -> _Found:
    match = _ITEM.match(sentence)
    known = {argument.strip("*") for argument, _ in entry.arguments}
    if match is None or first or not (match["name"] in known or (match["item"] and entry.kind == "class")):
        return None
    verb = match["verb"].strip(" -:")
    what = f"the argument `{match['name']}`" if entry.kind != "class" else f"`{match['name']}`"
    if verb.endswith(" be"):
        return f"What {verb.split()[0]} {what} of {name} be?", match.end(), None
    plain = "specify" if verb == "specifies" else verb[:-1]
    question = f"What is {what} of {name}?" if verb in ("", "is") else f"What does {what} of {name} {plain}?"
    return question, match.end(), None


RULES: Final[dict[str, Callable[[DocEntry, str, str, bool], _Found]]] = {
    "returns": _returns,
    "raises": _raises,
    "happens": _happens,
    "occasion": _occasion,
    "is": _is,
    "argument": _argument,
    "does": _does,
}


def _shown(entry: DocEntry) -> str:
    """The signature as the context shows it: methods carry the name of their class."""
    owner = entry.name.rpartition(".")[0]
    prefix = "class " if entry.kind == "class" else ""
    return f"{prefix}{owner + '.' if owner else ''}{entry.signature.removeprefix('class ')}"


def questions(entry: DocEntry) -> list[Question]:
    """All questions that the rules draw from one entry, each text once, in the order of its sentences."""
    name = f"`{entry.name}`" if "." in entry.name or "._" in entry.module else f"`{entry.module}.{entry.name}`"
    by_context: dict[str, Question] = {}
    for index, sentence in enumerate(entry.sentences):
        for kind, rule in RULES.items():
            hit = rule(entry, name, sentence, index == 0)
            span = _answer(sentence, *hit[1:]) if hit else None
            # Plain descriptions are the most frequent by far: half of them are enough.
            if hit and span and (kind != "does" or hash_fraction(hit[0]) < 0.5):
                by_context.setdefault(hit[0], Question(kind, hit[0], index, *span))
            if hit:
                break
    plain = [pair for pair in entry.arguments if re.fullmatch(r"-?\d[\d.]*|True|False|'[^']+'", pair[1])]
    if plain:
        argument, default = plain[int(hash_fraction(entry.full_name) * len(plain))]
        start = re.search(rf"\b{argument}=(?={re.escape(default)})", _shown(entry))
        if start:
            text = f"What is the default of `{argument}` in {name}?"
            by_context.setdefault(text, Question("default", text, -1, start.end(), start.end() + len(default)))
    return list(by_context.values())


def _paragraph(entry: DocEntry, must: int, limit: int) -> tuple[str, dict[int, int]]:
    """The signature and an excerpt, and at which character each sentence starts (-1: the signature).

    The excerpt is the first sentence, number ``must``, and as many others from the top as fit into ``limit`` words.
    """
    chosen = {0, max(must, 0)}
    used = sum(len(entry.sentences[index].split()) for index in chosen)
    for index, sentence in enumerate(entry.sentences):
        used += 0 if index in chosen else len(sentence.split())
        if used > limit:
            break
        chosen.add(index)
    text, starts = _shown(entry), {-1: 0}
    for index in sorted(chosen):
        text += "\n" if len(starts) == 1 else " "
        starts[index] = len(text)
        text += entry.sentences[index]
    return text, starts


def _example(question: Question, place: int, group: Sequence[DocEntry]) -> QAExample | None:
    """The question with its context: the entry at ``place``, up to two neighbours before it, and others after it.

    None where the entry alone would fill the context.
    """
    target, starts = _paragraph(group[place], question.sentence, TARGET_WORDS)
    room = CONTEXT_WORDS - len(target.split())
    if room < 0:
        return None
    count = int(hash_fraction(question.text) * 3)
    before = range(place - 1, max(place - count, 0) - 1, -1)
    after = range(place + 1, min(place + 5, len(group)))
    around: dict[int, str] = {}
    for other in (*before, *after):
        text = _paragraph(group[other], 0, NEIGHBOUR_WORDS)[0]
        if len(text.split()) <= min(room, 2 * NEIGHBOUR_WORDS):
            around[other] = text
            room -= len(text.split())
    head = "".join(around[other] + "\n" for other in sorted(around) if other < place)
    tail = "".join("\n" + around[other] for other in sorted(around) if other > place)
    start = len(head) + starts[question.sentence] + question.start
    context = head + target + tail
    answer = context[start : start + question.end - question.start]
    identity = f"{group[place].full_name}/{question.kind}/{question.sentence}"
    return QAExample(identity, question.text, context, (answer,), (start,))


def qa_examples(entries: Sequence[DocEntry]) -> dict[Split, list[QAExample]]:
    """All questions by split; a question that two modules would share is asked once, of the first."""
    split = without_leaks((entry.full_name, in_validation(entry.full_name), entry.sentences) for entry in entries)
    examples: dict[Split, list[QAExample]] = {"train": [], "validation": []}
    groups: dict[tuple[bool, str], list[DocEntry]] = {}
    for entry in entries:
        if entry.full_name in split:
            groups.setdefault((split[entry.full_name], entry.module.split(".")[0]), []).append(entry)
    used: set[str] = set()
    for (validation, _), group in groups.items():
        for place, entry in enumerate(group):
            for question in questions(entry):
                example = None if question.text in used else _example(question, place, group)
                if example is not None:
                    used.add(question.text)
                    examples["validation" if validation else "train"].append(example)
    return examples


# --- trivial answers ---

_PART = re.compile(r"(?<=[.!?]) ")


def _of_context(example: QAExample) -> str:
    return _PART.split(example.context.split("\n")[1])[0]


def _of_named(example: QAExample) -> str:
    """First sentence of the entry whose signature the question names."""
    names = re.findall(r"`([\w.]+)`", example.question)
    lines = example.context.split("\n")
    for signature, text in zip(lines[::2], lines[1::2], strict=True):
        head = signature.removeprefix("class ").split("(")[0]
        if any(f".{name}".endswith(f".{head}") for name in names):
            return _PART.split(text)[0]
    return ""


def _of_overlap(example: QAExample) -> str:
    """The sentence that shares the most words with the question, the first among equals."""
    question_words = set(re.findall(r"[a-z0-9]+", example.question.lower()))
    parts = [part for text in example.context.split("\n")[1::2] for part in _PART.split(text)]
    return max(parts, key=lambda part: len(question_words & set(re.findall(r"[a-z0-9]+", part.lower()))))


_TRIVIAL: Final[Mapping[str, Callable[[QAExample], str]]] = {
    "first sentence": _of_context,
    "sentence with most words of the question": _of_overlap,
    "first sentence of what the question names": _of_named,
}


def qa_baselines(examples: Sequence[QAExample]) -> dict[str, Metrics]:
    """SQuAD's ``f1`` and ``exact_match``, fractions in [0, 1], of three lexical rules on ``examples``."""
    baselines: dict[str, Metrics] = {}
    for name, rule in _TRIVIAL.items():
        answers = [(rule(example), example.answers) for example in examples]
        total = max(len(answers), 1)
        baselines[name] = {
            "f1": sum(squad_f1(*pair) for pair in answers) / total,
            "exact_match": sum(exact_match(*pair) for pair in answers) / total,
        }
    return baselines


# --- the tasks ---


def load_pydocs(spec: TaskSpec, progress: Callable[[int, int], None] | None = None) -> Task:
    """The task ``pydocs-qa`` or ``pydocs-topic`` from the running Python; ``progress`` counts source files.

    Raises ``DataError`` where the standard library has no sources.
    """
    entries = read_library(progress=progress)
    if spec.name == "pydocs-topic":
        texts = topic_examples(entries)
        shown = subset(texts["train"], spec.max_train_samples, spec.subset_seed)
        hidden = subset(texts["validation"], spec.max_validation_samples, spec.subset_seed)
        return ClassificationTask(
            spec.name,
            shown,
            hidden,
            labels=LABELS,
            metrics=("accuracy", "macro_f1"),
            max_length=spec.max_length or 128,
            notes=_notes(spec, len(texts["train"]), len(texts["validation"]), "passages"),
            more_baselines={"naive Bayes on words": topic_baseline(shown, hidden)},
        )
    examples = qa_examples(entries)
    validation = subset(examples["validation"], spec.max_validation_samples, spec.subset_seed)
    return QuestionAnsweringTask(
        spec.name,
        subset(examples["train"], spec.max_train_samples, spec.subset_seed),
        validation,
        max_length=spec.max_length or 384,
        doc_stride=spec.doc_stride,
        n_best=spec.n_best,
        max_answer_length=spec.max_answer_length,
        notes=_notes(spec, len(examples["train"]), len(examples["validation"]), "questions"),
        more_baselines=qa_baselines(validation),
    )


def _notes(spec: TaskSpec, train: int, validation: int, unit: str) -> tuple[str, ...]:
    counts = f"{train:,} training and {validation:,} validation {unit}"
    source = f"documentation strings of {python_name()}: {counts}; another Python version gives slightly different data"
    return (source, *subset_notes(spec, train, validation))
