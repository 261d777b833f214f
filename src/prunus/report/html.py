"""HTML: facts -> one self-contained page that explains a run, on a desk, on a phone and on paper.

The page holds its style and its drawings and asks for nothing else: no script, font or picture from elsewhere, and a
Content-Security-Policy that forbids them. All text from the facts is escaped. What was not measured says so.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from prunus.errors import CheckpointError, Problem
from prunus.report.charts import loss_figures, progress_figure, size_figure, speed_figures, tensor_figures
from prunus.report.facts import FACTS_FILE, History, ModelResults, Row, RunFacts, read_facts, write_facts
from prunus.report.facts_file import clean, number, numbers, section, text
from prunus.report.layers import fraction_of_zeros
from prunus.report.style import CSS
from prunus.report.svg import escape
from prunus.report.wording import (
    DEFINITIONS,
    NOT_MEASURED,
    SummaryRow,
    count,
    fraction,
    metric_names,
    only_dense,
    recipe_text,
    signed,
    summary_rows,
)

__all__ = ["add_speed", "render_html"]

_STATES = {
    "running": "This run has not finished: the figures are those written last.",
    "interrupted": "This run was interrupted: the figures are those written last.",
    "failed": "This run ended with an error: the figures are those written last.",
}


def render_html(facts: RunFacts) -> str:
    """The report, a whole HTML document as text (UTF-8 when written).

    ``facts`` may lack anything but ``prunus``; a missing fact reads "not measured".
    """
    parts = [
        _header(facts),
        _callout("Not finished", [_STATES[facts.status]] if facts.status in _STATES else []),
        _callout("Warnings", facts.notices),
        _headline(facts),
        _tensors(facts),
        _training(facts),
        _losses(facts),
        _sizes(facts),
        _speed(facts),
        _missing(facts),
        _origin(facts),
    ]
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><meta name="color-scheme" content="light dark">'
        f"<title>{escape(_title(facts))}</title><style>{CSS}</style>"
    )
    footer = f"<footer>Written by prunus {escape(facts.prunus)} from prunus.json in this directory.</footer>"
    body = "\n".join(filter(None, parts))
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><main>\n{body}\n{footer}\n</main></body></html>\n'
    )


def add_speed(directory: Path, speed: Row) -> None:
    """Writes what ``prunus bench`` measured into the facts of a finished run, and its page anew.

    Raises:
        CheckpointError: facts that cannot be read, or files that cannot be written.

    """
    facts = replace(read_facts(directory), speed=dict(speed))
    write_facts(directory / FACTS_FILE, facts)
    try:
        (directory / "report.html").write_text(render_html(facts), encoding="utf-8")
    except OSError as error:
        raise CheckpointError(Problem(str(directory / "report.html"), str(error), "be writable")) from None


def _title(facts: RunFacts) -> str:
    name = facts.model.name or facts.model.architecture or "model not recorded"
    return f"{name} on {facts.task.name}" if facts.task.name else name


def _header(facts: RunFacts) -> str:
    state = facts.status or "status not recorded"
    kind = "state" if state == "finished" else "state open"
    parameters, examples = facts.model.parameters, facts.task.train_examples
    details = [
        facts.model.architecture,
        f"{count(parameters)} parameters" if parameters is not None else "",
        f"{count(examples)} training examples" if examples else "",
    ]
    notes = [escape(note) for note in facts.task.notes]
    return (
        f'<header><p>prunus {escape(facts.prunus)}<span class="{kind}">{escape(state)}</span></p>'
        f"<h1>{escape(_title(facts))}</h1><p>{escape(' · '.join(filter(None, details)))}</p>"
        f'<p class="lede">{_lede(facts)}</p></header>'
        + (f'<ul class="plain none">{"".join(f"<li>{note}</li>" for note in notes)}</ul>' if notes else "")
    )


def _lede(facts: RunFacts) -> str:
    """The result in one or two sentences."""
    dense, sparse = facts.dense or ModelResults(), facts.sparse or ModelResults()
    tensors, history, sentences = facts.tensors, facts.history or History(), []
    sparsity, overall = sparse.sparsity, sparse.sparsity_all
    last = [row for row in history.sparsity if number(row, "measured") is not None]
    if sparsity is not None:
        where = f"the {len(tensors):,} pruned tensors" if tensors else "the pruned tensors"
        of_all = f", and <b>{fraction(overall)}</b> of all weights" if overall is not None else ""
        sentences.append(f"<b>{fraction(sparsity)}</b> of the weights in {where} are zero{of_all}.")
    elif last:
        step, measured = number(last[-1], "step"), number(last[-1], "measured")
        sentences.append(f"Sparsity of the targets at step {count(step)}: <b>{fraction(measured)}</b>.")
    elif only_dense(facts):
        sentences.append("A dense run: nothing was pruned.")
    name = next(iter(metric_names(facts)), "")
    seen = [row for row in history.metrics if name in numbers(row, "metrics")]
    if seen and not sparse.metrics and facts.status != "finished":
        now = fraction(numbers(seen[-1], "metrics")[name])
        sentences.append(f"{_capital(name)} at step {count(number(seen[-1], 'step'))}: <b>{now}</b>.")
    before, after = dense.metrics.get(name), sparse.metrics.get(name)
    if before is not None and after is not None:
        change = signed(after - before)
        sentences.append(f"{_capital(name)} <b>{fraction(after)}</b>, against {fraction(before)} dense ({change}).")
    elif (value := after if after is not None else before) is not None:
        sentences.append(
            f"{_capital(name)} of the {'sparse' if after is not None else 'dense'} model: <b>{fraction(value)}</b>."
        )
    return " ".join(sentences) or "No result was recorded yet."


def _capital(name: str) -> str:
    return escape(name[:1].upper() + name[1:].replace("_", " "))


def _callout(title: str, lines: Sequence[str]) -> str:
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<div class="note" role="note"><p>{escape(title)}</p><ul>{items}</ul></div>'


def _headline(facts: RunFacts) -> str:
    dense_only = only_dense(facts)
    lines = summary_rows(facts)
    shown = [line for line in lines if not (dense_only and line.kind in {"target", "sparsity"})]
    changed = not dense_only and any(line.change for line in lines)
    heads = ["", "dense", *([] if dense_only else ["sparse"]), *(["change"] if changed else [])]
    body = "".join(_line(line, i == 0 and line.kind == "metric", dense_only, changed) for i, line in enumerate(shown))
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    seen = facts.task.validation_examples
    note = f"Metrics on {count(seen)} validation examples. " if seen is not None else ""
    return (
        f"<section><h2>Result</h2><p>{note}A name opens its definition.</p>"
        f'<table class="headline"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></section>'
    )


def _line(line: SummaryRow, main: bool, dense_only: bool, changed: bool) -> str:
    name = (
        f'<th scope="row"><details class="def"><summary>{escape(line.label)}</summary>'
        f"<p>{escape(DEFINITIONS[line.kind])}</p></details></th>"
    )
    if line.kind == "baseline" and not dense_only:
        values = f'<td colspan="2" class="mid">{escape(line.dense)}</td>'
    else:
        values = _value(line.dense, line.dense_note)
        values += "" if dense_only else _value(line.sparse, line.sparse_note)
    change = f"<td>{escape(line.change)}</td>" if changed else ""
    kind = ' class="main"' if main else (' class="baseline"' if line.kind == "baseline" else "")
    return f"<tr{kind}>{name}{values}{change}</tr>"


def _value(shown: str, note: str) -> str:
    small = f"<small>{escape(note)}</small>" if note else ""
    return f"<td{' class=none' if shown == NOT_MEASURED else ''}>{escape(shown)}{small}</td>"


def _tensors(facts: RunFacts) -> str:
    if only_dense(facts):
        return ""
    tensors, skipped = facts.tensors, _skipped(facts.skipped)
    if not tensors:
        return f"<section><h2>Sparsity by tensor</h2><p>{NOT_MEASURED.capitalize()}.</p>{skipped}</section>"
    weights, zeros = (sum(number(tensor, key) or 0 for tensor in tensors) for key in ("weights", "zeros"))
    patterns = sorted({text(tensor, "pattern") or "pattern not recorded" for tensor in tensors})
    sentence = (
        f"{count(zeros)} of {count(weights)} weights in {len(tensors):,} tensors are zero "
        f"({fraction(fraction_of_zeros(tensors))}). Pattern: {', '.join(patterns)}."
    )
    heads = ("tensor", "shape", "pattern", "weights", "zeros", "sparsity", "planned", "units", "zero units")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    body = "".join(_tensor(tensor) for tensor in tensors)
    return (
        f"<section><h2>Sparsity by tensor</h2><p>{escape(sentence)}</p>{tensor_figures(tensors)}"
        f'<details class="more"><summary>All {len(tensors):,} tensors as a table</summary>'
        "<p class=none>A unit is what a pruning step takes or keeps as a whole: one weight, or one block. "
        'Sparsity = zeros / weights.</p><div class="scroll" tabindex="0" role="region" aria-label="All tensors">'
        f'<table class="small"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></details>'
        f"{skipped}</section>"
    )


def _tensor(tensor: Row) -> str:
    values = [
        _shape(tensor),
        text(tensor, "pattern"),
        *(count(number(tensor, key)) for key in ("weights", "zeros")),
        *(fraction(number(tensor, key)) for key in ("sparsity", "planned")),
        *(count(number(tensor, key)) for key in ("units", "zero_units")),
    ]
    cells = "".join(f"<td>{escape('–' if value in ('', NOT_MEASURED) else value)}</td>" for value in values)
    return f'<tr><td class="name">{escape(text(tensor, "name") or "unnamed")}</td>{cells}</tr>'


def _shape(tensor: Row) -> str:
    shape = tensor.get("shape")
    return " × ".join(clean(size) for size in shape) if isinstance(shape, list | tuple) else ""


def _skipped(skipped: Sequence[Row]) -> str:
    if not skipped:
        return ""
    body = "".join(
        f'<tr><td class="name">{escape(text(row, "name") or "unnamed")}</td><td>{escape(_shape(row) or "–")}</td>'
        f'<td class="name">{escape(text(row, "reason") or "no reason recorded")}</td></tr>'
        for row in skipped
    )
    columns = (("tensor", ""), ("shape", ""), ("reason", ' class="name"'))
    head = "".join(f'<th scope="col"{kind}>{name}</th>' for name, kind in columns)
    return (
        f'<details class="more"><summary>{len(skipped):,} tensors were left dense, and why</summary>'
        '<div class="scroll" tabindex="0" role="region" aria-label="Tensors left dense">'
        f'<table class="small"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></details>'
    )


def _training(facts: RunFacts) -> str:
    figure = progress_figure(facts)
    if not figure:
        return f"<section><h2>Over training</h2><p>{NOT_MEASURED.capitalize()}.</p></section>"
    sentence = (
        "The metric at each evaluation."
        if only_dense(facts)
        else "The sparsity that was due at each step (broad line), the one counted in the weights (thin line), and the "
        "metric at each evaluation. The right axis does not start at zero where the metric stays away from it."
    )
    return f"<section><h2>Over training</h2><p>{sentence}</p>{figure}</section>"


def _losses(facts: RunFacts) -> str:
    figures = loss_figures(facts)
    sentence = "The loss that was minimised, with its parts where it has several." if figures else "Not measured."
    return f"<section><h2>Loss and learning rate</h2><p>{sentence}</p>{figures}</section>"


def _sizes(facts: RunFacts) -> str:
    figure = size_figure(facts)
    return f"<section><h2>Size on disk</h2><p>{escape(DEFINITIONS['bytes'])}</p>{figure}</section>" if figure else ""


def _speed(facts: RunFacts) -> str:
    """What ``prunus bench`` measured, if it was asked."""
    speed = facts.speed
    figures = speed_figures(speed)
    if not figures:
        return ""
    versions = ", ".join(f"{clean(name)} {clean(version)}" for name, version in section(speed, "versions").items())
    sentence = (
        f"Time of one call of the encoder on every engine, sequences x tokens, {count(number(speed, 'threads'))} threads, "
        f"medians of {count(number(speed, 'rounds'))} interleaved rounds, measured by prunus bench on "
        f"{text(speed, 'processor') or 'a processor that was not recorded'} ({text(speed, 'isa')}). {versions}."
    )
    return f"<section><h2>Speed</h2><p>{escape(sentence)}</p>{figures}</section>"


def _missing(facts: RunFacts) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in facts.missing)
    body = f'<ul class="plain">{items}</ul>' if items else "<p>Nothing is listed.</p>"
    return f"<section><h2>What was not measured</h2>{body}</section>"


def _origin(facts: RunFacts) -> str:
    """How to run it again: command, seed, environment, recipe."""
    pairs = [("command", facts.command), ("seed", "" if facts.seed is None else str(facts.seed))]
    pairs += [(clean(key), "" if value is None else clean(value)) for key, value in facts.environment.items()]
    terms = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value or 'not recorded')}</dd>" for key, value in pairs)
    recipe = facts.recipe
    shown = f"<pre>{escape(recipe_text(recipe))}</pre>" if recipe else "<p class=none>not recorded</p>"
    return f"<section><h2>How it was run</h2><dl>{terms}</dl><h3>Recipe, as it ran</h3>{shown}</section>"
