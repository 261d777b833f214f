"""The documentation strings of the running Python's standard library, as sentences, read without importing anything.

Every ``.py`` file of the standard library is parsed with ``ast``; nothing in it is executed. A documentation string
becomes blocks (paragraphs and list items), a block becomes sentences, and white space runs become one space. Examples
(``>>>``), tables, literal blocks and section titles are left out, and the mark-up of roles and literals is reduced to
back-quotes, so that a sentence here is the author's sentence, in one line.

``pydocs-topic`` asks of a passage (one or a few sentences of one documentation string) which part of the library it is
from. The names of the modules would give the answer away, and ``___`` stands for them in every passage.

The same interpreter gives the same list on every machine: modules that distributions package separately (tkinter, ...)
or that newer versions removed are never read, and everything is sorted by name, not by the file system.

Splits are by a SHA-256 of names, of functions and classes for the questions and of whole modules for the topics. A
text that occurs twice is kept once, and no sentence of the validation part is in the training part.
"""

import ast
import hashlib
import platform
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from prunus.errors import DataError, Problem
from prunus.tasks.base import Metrics, Split
from prunus.tasks.examples import TextExample
from prunus.tasks.metrics import accuracy, macro_f1

__all__ = [
    "LABELS",
    "TOPICS",
    "DocEntry",
    "hash_fraction",
    "in_validation",
    "masked",
    "normalised",
    "python_name",
    "read_library",
    "sentences",
    "topic_baseline",
    "topic_examples",
    "without_leaks",
]

VALIDATION_SHARE: Final = 0.2

# Not read: tests and tools, what distributions package separately, what Python 3.12 and 3.13 removed, data in disguise.
_SKIPPED: Final = """
    __phello__ _aix_support _osx_support _pyrepl _sysconfigdata aifc antigravity asynchat asyncore audioop cgi cgitb
    chunk crypt distutils ensurepip idlelib imghdr imp lib2to3 mailcap msilib nntplib nturl2path ossaudiodev pipes
    pydoc_data smtpd sndhdr spwd sunau telnetlib test this tkinter turtle turtledemo uu xdrlib
"""
SKIPPED: Final = frozenset(_SKIPPED.split())
SKIPPED_FOLDERS: Final = frozenset({"__pycache__", "dist-packages", "idle_test", "site-packages", "test", "tests"})

# Pure-Python twins of public modules, and the name people know them by.
PUBLIC_NAMES: Final = {
    "_collections_abc": "collections.abc",
    "_pydatetime": "datetime",
    "_pydecimal": "decimal",
    "_pyio": "io",
    "_strptime": "time",
}


@dataclass(frozen=True)
class DocEntry:
    """One documented function, method, property or class."""

    module: str
    """Dotted, by its public name: ``email.message``."""
    name: str
    """Within the module: ``Message.get_payload``."""
    kind: str
    """``function`` (methods too), ``property`` or ``class``."""
    signature: str
    """One line, without the first argument of a method: ``get_payload(i=None, decode=False)``."""
    arguments: tuple[tuple[str, str], ...]
    """Name of each argument and the source text of its default, empty where it has none."""
    sentences: tuple[str, ...]
    """The documentation string, in order, with the closing full stops."""

    @property
    def full_name(self) -> str:
        """Unique among the entries that ``read_library`` returns."""
        return f"{self.module}.{self.name}"


def python_name() -> str:
    """Which data this is: ``CPython 3.11.7``."""
    return f"{platform.python_implementation()} {platform.python_version()}"


def hash_fraction(text: str) -> float:
    """A number in [0, 1) that depends on ``text`` alone: the first 48 bits of its SHA-256."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def in_validation(name: str) -> bool:
    """Whether the questions about this qualified name are for validation (one name in five)."""
    return hash_fraction(name) < VALIDATION_SHARE


def normalised(text: str) -> str:
    """Lower-case letters and single spaces only: two texts that differ in digits or punctuation are one."""
    return " ".join(re.findall(r"[a-z]+", text.lower()))


def without_leaks(entries: Iterable[tuple[str, bool, Sequence[str]]]) -> dict[str, bool]:
    """Key -> whether it is for validation, for the entries that may be used; the others are absent.

    Each entry is ``(key, whether it is for validation, texts)``. An entry whose texts, joined and normalised, occurred
    before is left out, and so is a training entry that shares a sentence of four words or more with a validation entry.
    """
    rows: list[tuple[str, bool, set[str]]] = []
    seen: set[str] = set()
    for key, validation, texts in entries:
        all_text = normalised(" ".join(texts))
        if all_text not in seen:
            seen.add(all_text)
            # Cut finer than ``sentences`` does: also before a small letter.
            parts = {normalised(part) for text in texts for part in re.split(r"[.!?][\"')`]*\s", text)}
            rows.append((key, validation, {part for part in parts if part.count(" ") >= 3}))
    held_out = {text for _, validation, texts in rows if validation for text in texts}
    return {key: validation for key, validation, texts in rows if validation or not texts & held_out}


# --- from a documentation string to sentences ---

_TITLE = re.compile(r"(?i)^(args|arguments|parameters|returns?|raises|yields|notes?|examples?|usage|see also)\s*:?$")
_ITEM = re.compile(r"^\s*(?:[-*+•]\s+|:\w+(?: \w+)*:|\d+[.)]\s+|[`*']?\w+[`*']?(?:, ?\w+)* +--? +|\w+: +)")
_ABBREVIATION = re.compile(r"(?i)(?:\b(?:e\.g|i\.e|etc|vs|cf|approx|no|incl|resp|[a-z])\.|\.\.)$")
_END = re.compile(r"[.!?][\"')`]*\s+(?=[\"'`(*]*[A-Z])")


def _blocks(text: str) -> Iterator[str]:
    """Paragraphs and list items in one line each; examples, tables, literal blocks and titles are left out."""
    literal = False
    for paragraph in re.split(r"\n\s*\n", text.expandtabs()):
        lines = paragraph.split("\n")
        indented = all(line.startswith((" ", "\t")) for line in lines)
        # "::" opens an indented literal block; any block with a prompt or a ruled line is an example or a table.
        code = (literal and indented) or ">>>" in paragraph or re.search(r"[-=~+|]{4,}", paragraph)
        literal = paragraph.rstrip().endswith("::") or (literal and indented)
        symbols = re.search(r"\w\(.*\)|[={}<>;]|%", paragraph)
        if code or (indented and symbols and not _ITEM.match(lines[0])):
            continue
        items: list[list[str]] = []
        depth = len(lines[0]) - len(lines[0].lstrip())
        for line in lines:
            if not items and _TITLE.match(line.strip()):
                continue
            opens = not items or _ITEM.match(line) or len(line) - len(line.lstrip()) < depth
            items.append([line]) if opens else items[-1].append(line)
            depth = min(depth, len(line) - len(line.lstrip())) if len(items) == 1 else 0
        for item in items:
            yield " ".join(" ".join(item).split())


def _plain(text: str) -> str:
    """Roles and literals reduced to back-quotes: ``:class:`Foo` `` and double back-quotes to single ones."""
    text = re.sub(r":\w+(?::\w+)?:`~?([^`]*)`", r"`\1`", text)
    text = text.replace("``", "`").replace("::", ":")
    return re.sub(r"`([^`' ]+)'", r"`\1`", text)


def sentences(text: str) -> tuple[str, ...]:
    """The sentences of a cleaned documentation string (``ast.get_docstring``), each in one line."""
    result: list[str] = []
    for block in _blocks(text):
        plain = _plain(block)
        start = 0
        for match in _END.finditer(plain):
            head = plain[start : match.start() + 1]
            if not _ABBREVIATION.search(head):
                result.append(plain[start : match.end()].strip())
                start = match.end()
        result.append(plain[start:].strip())
    return tuple(sentence for sentence in result if re.search(r"[A-Za-z]{2}", sentence))


# --- from files to entries ---


def _members(nodes: Iterable[ast.stmt]) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Definitions among ``nodes``, also those below ``if`` and ``try``."""
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node
        elif isinstance(node, ast.If):
            yield from _members([*node.body, *node.orelse])
        elif isinstance(node, ast.Try):
            yield from _members([*node.body, *(s for h in node.handlers for s in h.body), *node.orelse])


def _arguments(node: ast.FunctionDef | ast.AsyncFunctionDef, method: bool) -> tuple[tuple[str, str], ...]:
    spec = node.args
    positional = [*spec.posonlyargs, *spec.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(spec.defaults)) + list(spec.defaults)
    pairs = list(zip(positional, defaults, strict=True))
    if method and pairs and pairs[0][0].arg in ("self", "cls", "klass", "mcls", "metacls"):
        pairs = pairs[1:]
    named = [(arg.arg, ast.unparse(default) if default else "") for arg, default in pairs]
    named += [("*" + spec.vararg.arg, "")] if spec.vararg else []
    pairs = list(zip(spec.kwonlyargs, spec.kw_defaults, strict=True))
    named += [(arg.arg, ast.unparse(default) if default else "") for arg, default in pairs]
    return tuple(named + ([("**" + spec.kwarg.arg, "")] if spec.kwarg else []))


def _entries(module: str, nodes: Iterable[ast.stmt], scope: str = "") -> Iterator[DocEntry]:
    for node in _members(nodes):
        kind, arguments = "class", tuple[tuple[str, str], ...]()
        if not isinstance(node, ast.ClassDef):
            decorators = " ".join(ast.unparse(decorator) for decorator in node.decorator_list)
            kind = "property" if "property" in decorators else "function"
            arguments = _arguments(node, method=bool(scope) and "staticmethod" not in decorators)
        text = ast.get_docstring(node) or ""
        private = any(part.startswith("_") and not part.endswith("__") for part in (scope + node.name).split("."))
        texts = () if private else sentences(text)
        if texts:
            listed = ", ".join(name + (f"={default}" if default else "") for name, default in arguments)
            listed = listed if len(listed) <= 60 else listed[:60].rsplit(",", 1)[0] + ", ..."
            before, after = ("class ", "") if kind == "class" else ("", f"({listed})" if kind == "function" else "")
            yield DocEntry(module, scope + node.name, kind, f"{before}{node.name}{after}", arguments, texts)
        if isinstance(node, ast.ClassDef):
            yield from _entries(module, node.body, f"{scope}{node.name}.")


def _module_name(path: Path) -> str:
    first, *rest = path.with_suffix("").parts
    return ".".join([PUBLIC_NAMES.get(first, first), *(part for part in rest if part != "__init__")])


def _files(root: Path) -> list[Path]:
    """Sources below ``root`` that are read, relative to it, in order of their names."""
    tops = sorted(name for name in sys.stdlib_module_names if name not in SKIPPED)
    files = [Path(f"{name}.py") for name in tops if (root / f"{name}.py").is_file()]
    for name in tops:
        for path in (root / name).rglob("*.py"):
            relative = path.relative_to(root)
            if not SKIPPED_FOLDERS & set(relative.parts):
                files.append(relative)
    return sorted(files, key=lambda path: path.parts)


def read_library(root: Path | None = None, progress: Callable[[int, int], None] | None = None) -> tuple[DocEntry, ...]:
    """All public documented functions, methods, properties and classes, sorted by module and place in the file.

    ``root`` is the folder of the standard library, the running interpreter's by default; ``progress(done, total)``
    counts files. Files that cannot be read or parsed are passed over. Takes about two seconds.

    Raises ``DataError`` if the folder holds no sources at all (a Python that ships compiled files only).
    """
    folder = Path(sysconfig.get_paths()["stdlib"]) if root is None else root
    files = _files(folder)
    entries: dict[str, DocEntry] = {}
    for done, path in enumerate(files, start=1):
        if progress is not None and (done % 20 == 0 or done == len(files)):
            progress(done, len(files))
        try:
            tree = ast.parse((folder / path).read_bytes())
        except (OSError, SyntaxError, ValueError, RecursionError):
            continue
        for entry in _entries(_module_name(path), tree.body):
            entries.setdefault(entry.full_name, entry)
    if not entries:
        rule = "hold the sources of the standard library, which the pydocs tasks read"
        raise DataError(Problem("standard library", str(folder), rule, "a Python with .py files, or another task"))
    return tuple(entries.values())


# --- the topics ---

# What a module is about; only modules that every CPython since 3.11 has, whatever is installed beside it.
# fmt: off
TOPICS: Final[Mapping[str, str]] = {
    "concurrency": "asyncio concurrent multiprocessing queue sched selectors subprocess threading",
    "debugging": "bdb cProfile code codeop dis faulthandler pdb profile pstats timeit trace traceback tracemalloc",
    "files": "bz2 filecmp fileinput fnmatch genericpath glob gzip io lzma ntpath os pathlib posixpath shutil stat "
             "tarfile tempfile zipfile",
    "imports": "compileall importlib modulefinder pkgutil py_compile runpy site sysconfig venv zipapp zipimport",
    "internet": "base64 email ftplib http imaplib ipaddress mailbox mimetypes netrc poplib quopri smtplib socket "
                "socketserver ssl urllib webbrowser wsgiref xmlrpc",
    "logging": "logging",
    "numbers": "decimal fractions numbers random statistics",
    "testing": "doctest unittest",
    "types": "abc ast dataclasses enum inspect pydoc symtable types typing",
    "xml": "html xml",
}
# fmt: on
LABELS: Final = tuple(TOPICS)
PASSAGE_WORDS: Final = 30
PASSAGE_CHARACTERS: Final = 240
MOST_ROWS: Final[Mapping[Split, int]] = {"train": 420, "validation": 90}

_LABEL_OF: Final = {module: label for label, modules in enumerate(TOPICS.values()) for module in modules.split()}
_NAMES: Final = frozenset(module.lower() for module in _LABEL_OF)
# Names that classes and functions of the module carry inside theirs: XMLReader, HTTPHandler.
_INSIDE = re.compile(
    "(?i)asyncio|decimal|doctest|email|http|importlib|logging|multiprocessing|unittest|urllib|wsgi|xml"
)
_WORDS = re.compile(r"[a-z]{2,}|___")


def masked(text: str) -> str:
    """``text`` with ``___`` for each identifier that is, or shows, the name of a module in ``TOPICS``."""

    def replaced(match: re.Match[str]) -> str:
        return "___" if match[0].lower() in _NAMES or _INSIDE.search(match[0]) else match[0]

    return re.sub(r"[A-Za-z_]\w*", replaced, text)


def _passages(entry: DocEntry) -> Iterator[list[str]]:
    """Neighbouring sentences of up to ``PASSAGE_WORDS`` words together; one sentence may have ten words more."""
    passage: list[str] = []
    words = 0
    for sentence in entry.sentences:
        count = len(sentence.split())
        if passage and words + count > PASSAGE_WORDS:
            yield passage
            passage, words = [], 0
        if count <= PASSAGE_WORDS + 10 and not sentence.endswith(":"):
            passage.append(masked(sentence))
            words += count
    yield passage


def _validation_modules(rows: Iterable[tuple[str, int]]) -> set[str]:
    """Modules for validation, by hash, until a fifth of a label's rows is reached; never more than two fifths."""
    sizes: dict[int, Counter[str]] = {}
    for module, label in rows:
        sizes.setdefault(label, Counter())[module] += 1
    chosen: set[str] = set()
    for modules in sizes.values():
        total, taken = modules.total(), 0
        for module in sorted(modules, key=hash_fraction):
            if taken < VALIDATION_SHARE * total and taken + modules[module] <= 2 * VALIDATION_SHARE * total:
                chosen.add(module)
                taken += modules[module]
    return chosen


def topic_examples(entries: Iterable[DocEntry]) -> dict[Split, list[TextExample]]:
    """Passages by split, at most ``MOST_ROWS`` of each label, in an order that mixes the labels.

    A module is in one split with all it documents: a topic is to be recognised in modules that training never showed.
    Passages of fewer than six plain words say too little and are left out.
    """
    rows: dict[str, tuple[str, list[str], int]] = {}
    for entry in entries:
        label = _LABEL_OF.get(entry.module.split(".")[0])
        for number, passage in enumerate(_passages(entry) if label is not None else ()):
            text = " ".join(passage)
            plain = sum(word.isalpha() for word in text.split()) >= 6 and len(text) <= PASSAGE_CHARACTERS
            if label is not None and plain:
                rows[f"{entry.full_name}/{number}"] = (entry.module, passage, label)
    held_out = _validation_modules((module, label) for module, _, label in rows.values())
    split = without_leaks((key, module in held_out, passage) for key, (module, passage, _) in rows.items())
    examples: dict[Split, list[TextExample]] = {"train": [], "validation": []}
    counts: Counter[tuple[Split, int]] = Counter()
    for key in sorted(split, key=hash_fraction):
        part: Split = "validation" if split[key] else "train"
        _, passage, label = rows[key]
        counts[part, label] += 1
        if counts[part, label] <= MOST_ROWS[part]:
            examples[part].append(TextExample(" ".join(passage), None, label))
    return examples


def topic_baseline(train: Sequence[TextExample], validation: Sequence[TextExample]) -> Metrics:
    """``accuracy`` and ``macro_f1`` on ``validation`` of naive Bayes on the words of ``train``.

    The label c with the greatest log n_c + sum over words w of log p(w | c) wins; c has n_c rows, p(w | c) is (times of
    w in c + 1) / (words in c + different words in all), and words that ``train`` does not have are passed over.
    """
    vocabulary = {
        word: i for i, word in enumerate(sorted({w for row in train for w in _WORDS.findall(row.text.lower())}))
    }
    counts = np.ones((len(LABELS), len(vocabulary)))
    rows = np.ones(len(LABELS)) * 1e-300  # a label without a row in train must never win, and log(0) would warn
    for row in train:
        rows[int(row.label)] += 1.0
        np.add.at(counts[int(row.label)], [vocabulary[word] for word in _WORDS.findall(row.text.lower())], 1.0)
    prior, given = np.log(rows), np.log(counts / counts.sum(1, keepdims=True))
    predictions = []
    for row in validation:
        known = [vocabulary[word] for word in _WORDS.findall(row.text.lower()) if word in vocabulary]
        predictions.append(int((prior + given[:, known].sum(1)).argmax()))
    wanted = [int(row.label) for row in validation]
    return {"accuracy": accuracy(predictions, wanted), "macro_f1": macro_f1(predictions, wanted)}
