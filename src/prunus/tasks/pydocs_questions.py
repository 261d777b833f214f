"""Questions about the Python standard library whose answers are spans of its documentation strings.

Documentation strings are written in a few set phrases, and a rule reads each of them backwards: from "Raise KeyError
if the map is empty" comes "When does `f` raise KeyError?" with the answer "if the map is empty", or, by a coin that
falls the same way on every machine, "Which exception does `f` raise if the map is empty?" with the answer "KeyError".
``RULES`` lists the phrases. A sentence gives one question at most, and an answer has at most ``LONGEST_ANSWER`` words.

The context holds the documented thing's signature and sentences among those of its neighbours in the same package and
the same split, in the order of the source, so that finding the place is part of the task. Nothing is paraphrased: each
sentence of the context stands in the library's source (white space and mark-up as ``pydocs_text`` leaves them).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from prunus.tasks.examples import QAExample
from prunus.tasks.pydocs_text import DocEntry, hash_fraction, without_leaks

__all__ = ["RULES", "Question", "questions", "questions_and_contexts"]

LONGEST_ANSWER: Final = 14
TARGET_WORDS: Final = 45
NEIGHBOUR_WORDS: Final = 22
CONTEXT_WORDS: Final = 90

# First words of sentences such as "Remove all listeners", also with a final s: what a thing does.
VERBS: Final = frozenset(
    """abort accept acquire activate adapt add adjust allow analyze append apply arrange assert attach authenticate
    average begin bind block broadcast build calculate call cancel change check choose clean clear close collapse
    collect combine compare compile complete compress compute configure connect construct control convert convolve copy
    count create deal decide decode decompress decorate decrement define delegate delete deliver describe deserialize
    detach detect determine disable disassemble discard dispatch display divide download drop dump emit enable
    encapsulate encode end enqueue ensure enter enumerate erase escape establish evaluate examine exchange execute exit
    expand export extend extract feed fetch fill filter find finish flush fold force format forward generate get give
    group guess handle hash identify ignore implement import incorporate increase increment indent indicate initialise
    initialize insert inspect install instantiate interpret interrupt invoke issue iterate join keep kill launch leave
    limit list listen load locate lock log look lookup make manage map mark match merge mix modify monitor mount move
    normalize notify obtain open output override overwrite pack parse partition pass pause perform pick place poll pop
    populate post prepare prepend preprocess prevent print process produce prompt protect provide publish push put
    query queue quit quote raise read rebuild receive record recursively reduce refresh register reinitialize release
    reload remove rename render replace report represent request require reset resize resolve restart restore resume
    retrieve reverse rewind rewrite rotate round run save scale scan schedule search select send separate serialize
    serve set setup show shuffle shut shutdown signal skip sleep sort spawn split start stat stop store strip subscribe
    subtract suspend swap switch take tear tell terminate test tokenize transfer transform translate transmit traverse
    truncate try turn undo unescape uninstall unlink unlock unmap unpack unquote unregister unsubscribe update upgrade
    upload use validate verify visit wait wake walk wrap write zero""".split()
)
_EXCEPTION = r"(?P<error>(?:\w+\.)*(?:[A-Z]\w*(?:Error|Exception|Warning|Iteration|Exit|Interrupt)|Empty|Full))"
_ARTICLE = r"(?:an? |the )?`?"
_CLAUSE = r"(?P<clause>(?:if|when|unless|in case) .+)"
_VAGUE = re.compile(r"(?i)^(?:if|when|unless) (?:it|they|this|that|these|so|not|true|false|none|given|set|one|any|the latter|present|omitted|specified|empty)\b(?: ?\w*){0,2}$")
_STOPS = re.compile(r"; |\. | -- | - | \(|, (?:which|where|with|but|so|as|unless|otherwise|else|and then|False|True|or (?:None|False)|and (?:False|True|None|raise|return))\b")


@dataclass(frozen=True)
class Question:
    """A question about one entry; the answer is ``sentences[sentence][start:end]`` (-1: the signature)."""

    kind: str
    text: str
    sentence: int
    start: int
    end: int


def _answer(sentence: str, start: int, end: int | None = None) -> tuple[int, int] | None:
    """The span from ``start``, without closing punctuation, cut at a clause if it is long; None if it makes no answer."""
    text = sentence[start:end].rstrip(" .,;:!?")
    stop = _STOPS.search(text, 1)
    if len(text.split()) > LONGEST_ANSWER or (stop and (stop[0] in ("; ", ". ", " -- ", " - ") or stop[0][0] == ",")):
        text = text[: stop.start()] if stop else ""
    if not text or len(text.split()) > LONGEST_ANSWER or text.count("(") != text.count(")") or text.count("`") % 2:
        return None
    return start, start + len(text)


def _lower(text: str) -> str:
    return text[0].lower() + text[1:]


# --- one function per set phrase: (entry, its name in the question, sentence, is it the first) -> (question, start, end)

_Found = tuple[str, int, int | None] | None


def _returns(entry: DocEntry, name: str, sentence: str, first: bool) -> _Found:
    match = re.match(r"(?:This (?:function|method) )?(Return|Yield)s? (?=\S)", sentence, re.IGNORECASE)
    if match is None or entry.kind == "class":
        return None
    condition = re.match(r"(?:a )?[*`]?(True|False|None|true|false|1|0)[*`]? (?=(?:if|when|iff|unless) )", sentence[match.end() :])
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
    if span is None:
        return None
    clause = sentence[slice(*span)]
    if _VAGUE.match(clause) or hash_fraction(entry.full_name + clause) < 0.5:
        return f"When does {name} raise {match['error']}?", *span
    return f"Which exception does {name} raise {_lower(clause)}?", *match.span("error")


def _happens(entry: DocEntry, name: str, sentence: str, first: bool) -> _Found:
    match = re.match(r"(?P<clause>(?:If|When|Unless) [^,;]{8,90}), (?:then )?(?P<rest>.+)", sentence)
    if match is None or _VAGUE.match(match["clause"]) or re.match(r"(and|or|but|e\.g|i\.e|for example)\b", match["rest"]):
        return None
    clause = _lower(match["clause"])
    result = re.match(r"(?:it |this (?:method |function )?)?returns? (?=\S)", match["rest"])
    if result:
        return f"What does {name} return {clause}?", match.start("rest") + result.end(), None
    return f"What happens in {name} {clause}?", match.start("rest"), None


def _occasion(entry: DocEntry, name: str, sentence: str, first: bool) -> _Found:
    match = re.match(r"(?:This (?:method|exception) is )?(called|raised|invoked) (?=(?:when|after|before|once|if|on|just) )", _lower(sentence))
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
    named = entry.kind != "function" and noun and len(sentence.split()) >= 3
    return (f"What is {name}?", 0, None) if first and named else None


def _argument(entry: DocEntry, name: str, sentence: str, first: bool) -> _Found:
    match = re.match(
        r"(?P<item>[-*•] |:param )?(?:The )?(?:(?:optional|required) )?(?:argument |parameter )?[`'*\"]?(?P<name>[a-z]\w+)[`'*\"]?"
        r"(?: (?:keyword )?(?:argument|parameter|option))?(?P<verb> --? |: | is | specifies | determines | controls | indicates | must be "
        r"| should be | can be | may be )(?!not\b|also\b|used to\b)",
        sentence,
    )
    known = {argument.strip("*") for argument, _ in entry.arguments}
    if match is None or first or not (match["name"] in known or (match["item"] and entry.kind == "class")):
        return None
    verb = match["verb"].strip(" -:")
    what = f"the argument `{match['name']}`" if entry.kind != "class" else f"`{match['name']}`"
    if verb.endswith(" be"):
        return f"What {verb.split()[0]} {what} of {name} be?", match.end(), None
    if verb in ("", "is"):
        return f"What is {what} of {name}?", match.end(), None
    return f"What does {what} of {name} {verb.removesuffix('s').removesuffix('e') if False else verb.removesuffix('s')}?", match.end(), None


RULES: Final[dict[str, Callable[[DocEntry, str, str, bool], _Found]]] = {
    "returns": _returns,
    "raises": _raises,
    "happens": _happens,
    "occasion": _occasion,
    "is": _is,
    "argument": _argument,
    "does": _does,
}
