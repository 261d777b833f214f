"""Words: how a fact is written for people; one spelling for the HTML report, the terminal and the model card.

Fractions stay fractions (0.8000, never 80 %), with four decimals; sizes are in MB of 10^6 bytes.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from prunus.report.facts import ModelResults, RunFacts
from prunus.report.facts_file import clean, number, numbers, section

__all__ = [
    "DEFINITIONS",
    "NOT_MEASURED",
    "SummaryRow",
    "count",
    "duration",
    "fraction",
    "megabytes",
    "metric_names",
    "only_dense",
    "recipe_text",
    "short",
    "signed",
    "summary_rows",
]

NOT_MEASURED: Final = "not measured"

DEFINITIONS: Final[dict[str, str]] = {
    "metric": "A fraction in [0, 1] (a correlation: in [-1, 1]) on the validation examples, of the weights the run "
    "ended with; higher is better. On n examples, a difference below 1/n is less than one example.",
    "target": "The fraction of zeros that the recipe asks for, over the tensors it prunes.",
    "sparsity": "Zeros / weights of the tensors that this recipe prunes, counted in the weights it ended with.",
    "sparsity_all": "Zeros / all parameters of the model, with embeddings, biases, normalisation and head.",
    "precision": "int8: weights and inputs of these layers were rounded to 8 bits in training, with learned ranges, and so "
    "were they when the metrics were measured. The weight file holds the rounded weights as float32.",
    "bytes": "Bytes of the weight file on disk, in MB of 1,000,000 bytes. Zeros are stored like any other number, so "
    "they alone make no file smaller.",
    "banks": "Passes of a model over all training examples for the contrastive terms, the time they took within the "
    "training, and the memory of what they made.",
    "seconds": "Wall-clock time of the training, evaluations included, on the machine below.",
    "time": "One text of that many tokens through the model in torch, float32, on the machine below, the fastest of 40; "
    "sparse: without the heads and neurons that do nothing, as prunus compact leaves it. The two took turns.",
    "baseline": "What a trivial answer scores on the same validation examples. A model has to beat it to have learned.",
}

_PLAIN: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_RESERVED: Final = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n"})
_MAX_DEPTH: Final = 64


@dataclass(frozen=True)
class SummaryRow:
    """One line of the headline table, as text."""

    kind: str
    """A key of ``DEFINITIONS``."""
    label: str
    dense: str
    sparse: str
    change: str = ""
    """Sparse minus dense, with its sign; empty where it says nothing."""
    dense_note: str = ""
    sparse_note: str = ""


def fraction(value: float | None) -> str:
    """A fraction or metric with four decimals."""
    return NOT_MEASURED if value is None else f"{value:.4f}".replace("-", "\N{MINUS SIGN}")


def signed(value: float) -> str:
    """A difference with its sign and four decimals."""
    return f"{value:+.4f}".replace("-", "\N{MINUS SIGN}")


def count(value: float | None) -> str:
    """A whole number with thousands separated."""
    return NOT_MEASURED if value is None else f"{value:,.0f}"


def megabytes(value: float | None) -> str:
    """Bytes as MB (10^6 bytes), without the unit."""
    if value is None:
        return NOT_MEASURED
    size = value / 1e6
    return f"{size:,.1f}" if size >= 10 else f"{size:.3g}"


def duration(seconds: float | None) -> str:
    """Seconds as "42.3 s", "5 min 12 s" or "2 h 05 min"."""
    if seconds is None:
        return NOT_MEASURED
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    rounded = round(seconds)
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def short(value: float) -> str:
    """A tick or a learning rate, with at most six digits and no trailing zeros: "0.25", "2,000", "5e-5"."""
    if value and not 1e-3 <= abs(value) < 1e7:
        mantissa, _, exponent = f"{value:.6g}".partition("e")
        if exponent or abs(value) < 1e-3:
            mantissa, _, exponent = f"{value:.5e}".partition("e")
            return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.6g}"


def metric_names(facts: RunFacts) -> list[str]:
    """Names of all metrics in the facts, the main one first."""
    names = [name for column in (facts.dense, facts.sparse) if column is not None for name in column.metrics]
    main = facts.task.metric
    return list(dict.fromkeys([main, *names] if main else names))


def only_dense(facts: RunFacts) -> bool:
    """True where the run made a dense model, pruned nothing and was not asked to."""
    pruned = facts.sparse is not None or bool(facts.tensors or facts.target_sparsity)
    return facts.dense is not None and not pruned


def summary_rows(facts: RunFacts) -> list[SummaryRow]:
    """The headline table: metrics (main first), sparsities, size, time; then the baselines (value in both columns)."""
    dense, sparse = facts.dense or ModelResults(), facts.sparse or ModelResults()
    before, after = dense.metrics, sparse.metrics
    lines = []
    for name in metric_names(facts):
        first, last = before.get(name), after.get(name)
        change = signed(last - first) if first is not None and last is not None else ""
        lines.append(SummaryRow("metric", clean(name), fraction(first), fraction(last), change))
    if facts.target_sparsity is not None:
        lines.append(SummaryRow("target", "target sparsity", "", fraction(facts.target_sparsity)))
    of_targets, of_all = "sparsity of the targets", "sparsity of all weights"
    lines.append(SummaryRow("sparsity", of_targets, fraction(dense.sparsity), fraction(sparse.sparsity)))
    lines.append(SummaryRow("sparsity_all", of_all, fraction(dense.sparsity_all), fraction(sparse.sparsity_all)))
    layers = facts.quantization.get("layers")
    if isinstance(layers, list):
        lines.append(SummaryRow("precision", "precision", "float32", f"int8, {len(layers)} layers"))
    sizes = dense.bytes, sparse.bytes
    lines.append(SummaryRow("bytes", "size on disk (MB)", megabytes(sizes[0]), megabytes(sizes[1]), _times(*sizes)))
    times = [duration(column.seconds) for column in (dense, sparse)]
    cached = ["from cache" if column.cached else "" for column in (dense, sparse)]
    lines.append(SummaryRow("seconds", "training time", times[0], times[1], "", cached[0], cached[1]))
    budget = facts.budget
    timed = section(budget, "result")
    if timed:
        took = number(timed, "dense_seconds"), number(timed, "seconds")
        tokens = count(number(budget, "tokens"))
        label = f"time of {tokens} tokens, compacted (ms)"
        lines.append(SummaryRow("time", label, _milliseconds(took[0]), _milliseconds(took[1]), _times(*took)))
    banks = facts.banks
    if banks:
        taken = f"{duration(number(banks, 'seconds'))}, {megabytes(number(banks, 'bytes'))} MB"
        lines.append(SummaryRow("banks", f"contrastive banks, {_whole(number(banks, 'passes'))} passes", "", taken))
    baselines = facts.task.baselines
    for who in baselines:
        for name, value in numbers(baselines, who).items():
            label = f"baseline: {clean(who)} ({clean(name)})"
            lines.append(SummaryRow("baseline", label, fraction(value), fraction(value)))
    return lines


def recipe_text(recipe: object) -> str:
    """``recipe`` as YAML 1.1 that reads back to the same value (control characters apart)."""
    return "\n".join(_yaml(recipe, 0))


def _milliseconds(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{1e3 * value:.3g}"


def _whole(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def _times(dense: float | None, sparse: float | None) -> str:
    if not dense or sparse is None:
        return ""
    return "same" if dense == sparse else f"\N{MULTIPLICATION SIGN} {sparse / dense:.3g}"


def _yaml(value: object, depth: int) -> Iterator[str]:
    pad = "  " * depth
    if depth > _MAX_DEPTH:
        yield f"{pad}..."
    elif isinstance(value, Mapping) and value:
        for key, item in value.items():
            if _nested(item):
                yield f"{pad}{_scalar(key)}:"
                yield from _yaml(item, depth + 1)
            else:
                yield f"{pad}{_scalar(key)}: {_scalar(item)}"
    elif isinstance(value, list | tuple) and _nested(value):
        for item in value:
            item_lines = list(_yaml(item, depth + 1))
            yield f"{pad}- {item_lines[0].lstrip()}"
            yield from item_lines[1:]
    else:
        yield f"{pad}{_scalar(value)}"


def _nested(value: object) -> bool:
    """True where ``value`` needs lines of its own: a filled mapping, or a list that holds a container."""
    if isinstance(value, list | tuple):
        return any(isinstance(item, Mapping | list | tuple) for item in value)
    return isinstance(value, Mapping) and bool(value)


def _scalar(value: object) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_scalar(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{}"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        # YAML 1.1 reads 5e-05 as text: its floats have a point.
        mantissa, mark, exponent = repr(value).partition("e")
        return mantissa + ".0" + mark + exponent if mark and "." not in mantissa else mantissa + mark + exponent
    plain = clean(value)
    return (
        plain if _PLAIN.fullmatch(plain) and plain.lower() not in _RESERVED else json.dumps(plain, ensure_ascii=False)
    )
