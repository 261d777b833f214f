"""Charts: facts -> figures. Each function answers with HTML, or with nothing where there is nothing to draw.

Every figure is drawn twice, for a desk and for a phone, and the style sheet shows one: text that shrinks with a drawing
cannot be read on a phone.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from prunus.report.facts import History, RunFacts
from prunus.report.facts_file import clean, number, numbers, section, text
from prunus.report.layers import fraction_of_zeros, layer_grid
from prunus.report.svg import Bar, HeatCell, HeatRow, Line, Scale, bars, escape, heat_grid, line_chart
from prunus.report.wording import NOT_MEASURED, count, fraction, megabytes, metric_names, only_dense

__all__ = ["loss_figures", "progress_figure", "size_figure", "speed_figures", "tensor_figures"]

Tensors = Sequence[Mapping[str, Any]]
Point = tuple[float, float]

WIDE: Final = 780
NARROW: Final = 350
MOST_BARS: Final = 60
MOST_LAYERS: Final = 100
SMOOTH_FROM: Final = 100
LOSS_LINES: Final = 5


def tensor_figures(tensors: Tensors) -> str:
    """The grid layer x part, then bars for tensors that are in no layer."""
    columns, layers, others = layer_grid(tensors)
    if len(layers) > MOST_LAYERS or len(layers) < 2:
        layers, others = [], list(tensors)
    parts = []
    if layers:
        grid = [
            HeatRow(
                layer.label,
                [_cell(layer.cells[name]) if name in layer.cells else None for name in columns],
                fraction_of_zeros(list(layer.cells.values())),
            )
            for layer in layers
        ]
        title = f"Fraction of zeros in each of {len(tensors) - len(others)} tensors, {len(grid)} layers by part"
        parts.append(_figure(lambda width: heat_grid(title, columns, grid, width)))
    if others:
        chosen = [_bar(tensor) for tensor in others[:MOST_BARS]]
        title = f"Fraction of zeros in {len(chosen)} tensors"
        caption = (
            f"The first {len(chosen)} of {len(others)} tensors; the table has all." if len(others) > MOST_BARS else ""
        )
        heading = "<h3>Other tensors</h3>" if layers else ""
        parts.append(heading + _figure(lambda width: bars(title, chosen, width), caption))
    return "".join(parts)


def progress_figure(facts: RunFacts) -> str:
    """Sparsity, due and measured, on the left axis; the main metric on the right (alone: on the left)."""
    history = facts.history or History()
    measured, due = _points(history.sparsity, "measured"), _points(history.sparsity, "due")
    evaluations = [{**numbers(row, "metrics"), "step": number(row, "step")} for row in history.metrics]
    name = next(iter(metric_names(facts)), "")
    name = name or next((key for row in evaluations for key in row if key != "step"), "")
    scores = _points(evaluations, name)
    lines = [
        Line("sparsity due", due, 5, style="band"),
        Line("sparsity measured", measured, 0),
        Line(clean(name), scores, 1, "right" if measured or due else "left", marks=True),
    ]
    steps = [x for line in lines for x, _ in line.points]
    dense = facts.dense.metrics.get(name) if facts.dense is not None else None
    if scores and dense is not None and not only_dense(facts) and max(steps) > min(steps):
        ends = [(min(steps), dense), (max(steps), dense)]
        lines.append(Line(f"dense {fraction(dense)}", ends, 1, lines[2].side, "dashed"))
    if not steps:
        return ""
    # Both axes take five steps, so that one set of grid lines serves both.
    values = [y for line in lines if line.side == "right" for _, y in line.points]
    scales = {"left": Scale(0.0, 0.2, 5), "right": Scale.around(values, ceiling=1.0)}
    left, right = ("sparsity of the targets", clean(name)) if measured or due else (clean(name), "")
    if not measured and not due:
        scales = {"left": Scale.around([y for line in lines for _, y in line.points], ceiling=1.0)}
    caption = _thinned(max(len(measured), len(due), len(scores)))
    return _figure(
        lambda width: line_chart(
            f"Over training: {left}{' and ' + right if right else ''}",
            lines,
            width,
            _tall(width),
            left=left,
            right=right,
            scales=scales,
        ),
        caption,
    )


def loss_figures(facts: RunFacts) -> str:
    """The loss and its parts; below it the learning rate."""
    history = facts.history.loss if facts.history is not None else ()
    names = list(dict.fromkeys(key for row in history for key in row if key == "loss" or key.endswith("_loss")))
    series = [(name, _points(history, name)) for name in names]
    series = [(name, points) for name, points in series if points]
    lines: list[Line] = []
    longest = max((len(points) for _, points in series), default=0)
    smooth = max(longest // 40, 5) if longest >= SMOOTH_FROM else 0
    for (name, points), tone in zip(series, (0, 1, 2, 3, 4), strict=False):
        label = clean(name.replace("_", " "))
        if smooth:
            lines.append(Line("", points, tone, style="faint"))
        drawn = _running_mean(points, smooth) if smooth else points
        lines.append(Line(label, drawn, tone, style="dashed" if tone % 2 else "solid"))
    captions = [f"Thick: the mean of {smooth} neighbouring points. Thin: the points."] if smooth else []
    captions.append(_thinned(longest))
    if len(series) > LOSS_LINES:
        captions.append(clean(f"Not drawn: {', '.join(name for name, _ in series[LOSS_LINES:])}."))
    missing = len(history) - longest
    if missing > 0 and series:
        captions.append(f"{missing:,} of {len(history):,} points hold no number (NaN or missing) and are not drawn.")
    parts = []
    if lines:
        title = "Loss over training: " + ", ".join(name for name, _ in series[:LOSS_LINES])
        caption = " ".join(filter(None, captions))
        parts.append(_figure(lambda width: line_chart(title, lines, width, _tall(width), left="loss"), caption))
    rate = [Line("", _points(history, "learning_rate"), 5)]
    if rate[0].points:
        title = "Learning rate over training"
        parts.append(_figure(lambda width: line_chart(title, rate, width, 170, left="learning rate")))
    return "".join(parts)


def size_figure(facts: RunFacts) -> str:
    """Bars of the weight files, dense and sparse."""
    columns = (("dense", facts.dense, 5), ("sparse", facts.sparse, 0))
    sizes = [(name, None if column is None else column.bytes, tone) for name, column, tone in columns]
    known = [(name, float(size), tone) for name, size, tone in sizes if size is not None and size > 0]
    if len(known) < 2:
        return ""
    limit = max(size for _, size, _ in known)
    drawn = [Bar(name, size, limit, f"{megabytes(size)} MB", tone) for name, size, tone in known]
    return _figure(lambda width: bars("Size of the weight files on disk", drawn, width))


def speed_figures(speed: Mapping[str, Any]) -> str:
    """For each case, bars of the time of one call on every engine, the fastest first."""
    parts = []
    cases = section(speed, "cases")
    for label in cases:
        engines = section(cases, label)
        times = [(clean(name), number(section(engines, name), "ms")) for name in engines]
        known = sorted(((ms, name) for name, ms in times if ms is not None and ms > 0))
        if not known:
            continue
        limit = known[-1][0]
        drawn = [
            Bar(name, ms, limit, f"{ms:.3g} ms", 0 if name.startswith("prunus") else 5)
            for ms, name in known[:MOST_BARS]
        ]
        title = f"Milliseconds of one call, {clean(label)}"
        parts.append(f"<h3>{escape(clean(label))}</h3>" + _figure(partial(bars, title, drawn)))
    return "".join(parts)


def _figure(draw: Callable[[int], str], caption: str = "") -> str:
    figcaption = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><div class="wide">{draw(WIDE)}</div><div class="narrow">{draw(NARROW)}</div>{figcaption}</figure>'


def _tall(width: int) -> int:
    return 340 if width == WIDE else 290


def _points(history: Sequence[Mapping[str, Any]], key: str) -> list[Point]:
    """(step, value) of the rows that hold both, by step; values no axis can hold are left out."""
    points = [(number(row, "step"), number(row, key)) for row in history]
    usable = [(x, y) for x, y in points if x is not None and y is not None and abs(x) < 1e15 and abs(y) < 1e30]
    return sorted(((x, y if abs(y) > 1e-30 else 0.0) for x, y in usable), key=lambda point: point[0])


def _running_mean(points: Sequence[Point], window: int) -> list[Point]:
    """Centred mean over ``window`` neighbours, fewer at the ends."""
    half, sums = window // 2, [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    spans = [(max(i - half, 0), min(i + half + 1, len(points))) for i in range(len(points))]
    return [(points[i][0], (sums[b] - sums[a]) / (b - a)) for i, (a, b) in enumerate(spans)]


def _thinned(points: int) -> str:
    if points <= 400:
        return ""
    return f"{points:,} points, drawn as at most 400: of each stretch, the lowest and the highest."


def _note(tensor: Mapping[str, Any]) -> str:
    zeros, weights = number(tensor, "zeros"), number(tensor, "weights")
    counted = f"{count(zeros)} of {count(weights)} weights are zero" if None not in (zeros, weights) else NOT_MEASURED
    return f"{text(tensor, 'name') or 'unnamed'}: sparsity {fraction(number(tensor, 'sparsity'))}, {counted}"


def _cell(tensor: Mapping[str, Any]) -> HeatCell:
    return HeatCell(fraction_of_zeros([tensor]), _note(tensor))


def _bar(tensor: Mapping[str, Any]) -> Bar:
    value = fraction_of_zeros([tensor])
    return Bar(text(tensor, "name") or "unnamed", value or 0.0, 1.0, fraction(value))
