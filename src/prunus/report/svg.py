"""SVG: line charts, bars and a heat grid as text, drawn here so that a report needs no script and no network.

A drawing is a string ``<svg viewBox="0 0 width height">`` that scales with its column. Colours, fonts and dark mode
come from classes in ``style.CSS``: ``s0``-``s5`` strokes, ``f0``-``f5`` fills, ``h0``-``h20`` steps of the heat scale.
Each drawing is an image with a title for screen readers; lines differ by dash and by a label on them, not by colour
alone.

y of a value v on a scale from low to high:  bottom - (v - low) / (high - low) * (bottom - top)
"""

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal

from prunus.report.facts_file import clean
from prunus.report.wording import short

__all__ = ["Bar", "HeatCell", "HeatRow", "Line", "Scale", "bars", "escape", "heat_grid", "line_chart", "thin"]

Point = tuple[float, float]

DRAWN_POINTS: Final = 400
HEAT_STEPS: Final = 20
_LETTER: Final = 6.9  # width of a letter at 12 px; the widest of the usual sans-serif fonts
_STEPS: Final = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Scale:
    """A linear axis of ``intervals`` equal steps, from ``low``."""

    low: float
    step: float
    intervals: int

    @property
    def high(self) -> float:
        """The upper end."""
        return self.low + self.step * self.intervals

    @property
    def ticks(self) -> list[float]:
        """The ends and the steps between them, free of rounding noise."""
        return [round(self.low + self.step * i, 12 - _exponent(self.step)) for i in range(self.intervals + 1)]

    @staticmethod
    def around(values: Sequence[float], intervals: int = 5, ceiling: float = math.inf) -> "Scale":
        """The finest scale of round steps (1, 2, 2.5 or 5 times a power of ten) that holds all ``values``.

        It is moved down by whole steps where it would pass ``ceiling`` although no value does.
        """
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        span = high - low
        if span <= 1e-9 * max(abs(low), abs(high)):
            span = abs(high) or 1.0
        exponent = _exponent(span / intervals)
        for power in (exponent, exponent + 1, exponent + 2):
            for factor in _STEPS[:-1]:
                step = factor * 10.0**power
                start = math.floor(low / step + 1e-9) * step
                above = start + step * intervals - ceiling
                if above > -math.inf and high <= ceiling:
                    start -= max(math.ceil(above / step - 1e-9), 0) * step
                if start + step * intervals >= high - 1e-9 * step:
                    return Scale(start, step, intervals)
        return Scale(low, span / intervals, intervals)


@dataclass(frozen=True)
class Line:
    """One line of a chart; ``points`` ascend in x."""

    label: str
    points: Sequence[Point]
    tone: int = 0
    side: Literal["left", "right"] = "left"
    style: Literal["solid", "dashed", "dotted", "band", "faint"] = "solid"
    marks: bool = False


@dataclass(frozen=True)
class Bar:
    """A horizontal bar: ``value`` / ``limit`` of the width, with the text printed beside it."""

    label: str
    value: float
    limit: float
    text: str
    tone: int = 0


@dataclass(frozen=True)
class HeatCell:
    """One cell of a heat grid: a fraction in [0, 1] and what a pointer shows."""

    value: float | None
    note: str


@dataclass(frozen=True)
class HeatRow:
    """One row: a cell for each column (None leaves a gap) and a bar for the row as a whole."""

    label: str
    cells: Sequence[HeatCell | None]
    total: float | None


def escape(text: object) -> str:
    """``text`` for HTML and SVG, inside elements and quoted attributes, without unsafe characters."""
    return html.escape(clean(text), quote=True)


def thin(points: Sequence[Point], limit: int = DRAWN_POINTS) -> list[Point]:
    """At most ``limit`` >= 4 of the points: the ends, and the lowest and highest of each equal stretch between them.

    Spikes survive, for the extremes of a stretch are its spikes; an average would hide them.
    """
    if len(points) <= limit:
        return list(points)
    middle = points[1:-1]
    stretches = (limit - 2) // 2
    kept = [points[0]]
    for i in range(stretches):
        start, stop = i * len(middle) // stretches, (i + 1) * len(middle) // stretches
        order = sorted(range(start, stop), key=lambda j: middle[j][1])
        kept += [middle[j] for j in sorted({order[0], order[-1]})]
    return [*kept, points[-1]]


def line_chart(
    title: str,
    lines: Sequence[Line],
    width: int,
    height: int,
    *,
    left: str,
    right: str = "",
    scales: Mapping[str, Scale] | None = None,
) -> str:
    """Lines over training steps.

    Args:
        title: what a screen reader says.
        lines: what to draw; each is thinned to 400 points. Lines without points are left out.
        width: units of the view box, pixels at scale 1.
        height: likewise.
        left: name of the left axis.
        right: name of the right axis, drawn where a line uses it.
        scales: the axes ``left`` and ``right``; one that is missing fits its values.

    """
    lines = [Line(a.label, thin(a.points), a.tone, a.side, a.style, a.marks) for a in lines if a.points]
    on_left = [y for a in lines if a.side == "left" for _, y in a.points]
    on_right = [y for a in lines if a.side == "right" for _, y in a.points]
    scales = {"left": Scale.around(on_left), "right": Scale.around(on_right)} | dict(scales or {})
    sides = ["left"] * bool(on_left) + ["right"] * bool(on_right)
    tick_texts = {side: _tick_texts(scales[side].ticks) for side in sides}
    wide = {side: max(map(len, tick_texts[side])) * _LETTER + 10 for side in sides}
    x0, x1 = wide.get("left", 10.0), width - wide.get("right", 8.0)
    top, bottom = 30.0, height - 40.0
    steps = [x for a in lines for x, _ in a.points]
    first, last = min(steps, default=0.0), max(steps, default=1.0)
    first = 0.0 if 0 < first < last / 5 else first  # so that the charts of one run start together
    spread = (last - first) or 1.0

    def x_of(step: float) -> float:
        return x0 + (step - first) / spread * (x1 - x0)

    def y_of(value: float, side: str) -> float:
        axis = scales[side]
        return bottom - (value - axis.low) / (axis.high - axis.low) * (bottom - top)

    parts = []
    for side, x, shift, anchor in (("left", x0, -8, "end"), ("right", x1, 8, "start")):
        for tick, word in zip(scales[side].ticks, tick_texts[side], strict=True) if side in sides else ():
            y = y_of(tick, side)
            if side == sides[0]:
                parts.append(f'<path class="grid" d="M{x0:.1f} {y:.1f}H{x1:.1f}"/>')
            parts.append(_text(x + shift, y + 4, word, f"tick {anchor}"))
    if "left" in sides:
        parts.append(_text(0, 12, left, "axis f0" if len(sides) > 1 else "axis"))
    if "right" in sides:
        parts.append(_text(width, 12, right, "axis end f1"))
    for tick in _x_ticks(first, last, int((x1 - x0) / 90)):
        parts.append(f'<path class="tickmark" d="M{x_of(tick):.1f} {bottom:.1f}v4"/>')
        # The outermost labels stay within the drawing.
        half = len(short(tick)) * _LETTER / 2
        parts.append(_text(min(max(x_of(tick), half), width - half), bottom + 18, short(tick), "tick middle"))
    parts.append(_text((x0 + x1) / 2, height - 4, "training step", "tick middle"))

    drawn = [[(x_of(x), y_of(y, a.side)) for x, y in a.points] for a in lines]
    for line, dots in zip(lines, drawn, strict=True):
        parts.append(_stroke(line, dots))
    taken: list[tuple[float, float, float, float]] = []
    samples = [list(_along(dots)) for line, dots in zip(lines, drawn, strict=True) if line.style != "faint"]
    for line, dots in zip(lines, drawn, strict=True):
        if line.label:
            x, y = _place(line.label, dots, samples, taken, (x0, top - 12, x1, bottom))
            parts.append(_text(x, y, line.label, f"label middle f{line.tone}"))
    return _svg(title, width, height, parts)


def bars(title: str, rows: Sequence[Bar], width: int) -> str:
    """Horizontal bars, each under its label, with its value printed at the right."""
    pitch = 40
    room = max((len(row.text) for row in rows), default=0) * _LETTER + 10
    parts = []
    for i, row in enumerate(rows):
        y = i * pitch
        full = width - room
        share = min(max(row.value / row.limit, 0.0), 1.0) * full if row.limit > 0 else 0.0
        letters = max(int(width / _LETTER), 8)
        parts.append(_text(0, y + 13, _shortened(row.label, letters), "name", row.label))
        parts.append(f'<rect class="track" x="0" y="{y + 20}" width="{full:.1f}" height="10" rx="2"/>')
        parts.append(f'<rect class="f{row.tone}" x="0" y="{y + 20}" width="{share:.1f}" height="10" rx="2"/>')
        parts.append(_text(width, y + 29, row.text, "value end"))
    return _svg(title, width, max(len(rows) * pitch, pitch), parts)


def heat_grid(title: str, columns: Sequence[str], rows: Sequence[HeatRow], width: int) -> str:
    """Rows x columns of cells whose shade and number are the same fraction, and a bar for each row if there is room."""
    stub = max((min(len(row.label), 14) for row in rows), default=0) * _LETTER + 8
    bar = 150.0 if width >= 600 else 0.0
    pitch_x = (width - stub - (bar + 24 if bar else 0)) / max(len(columns), 1)
    pitch_y, head, digits = 28, 24, 3 if pitch_x >= 44 else 2
    parts = [
        _text(stub + (j + 0.5) * pitch_x, 13, _shortened(name, int(pitch_x / 6)), "tick middle", name)
        for j, name in enumerate(columns)
    ]
    if bar:
        parts.append(_text(width - bar, 13, "layer as a whole", "tick"))
    for i, row in enumerate(rows):
        y = head + i * pitch_y
        parts.append(_text(0, y + 17, _shortened(row.label, 14), "name", row.label))
        for j, cell in enumerate(row.cells):
            if cell is not None:
                parts.append(_heat(cell, stub + j * pitch_x, y, width=pitch_x - 3, height=pitch_y - 3, digits=digits))
        if bar and row.total is not None:
            share = min(max(row.total, 0.0), 1.0) * (bar - 58)
            parts.append(f'<rect class="track" x="{width - bar:.1f}" y="{y + 8}" width="{bar - 58:.1f}" height="9"/>')
            parts.append(f'<rect class="f0" x="{width - bar:.1f}" y="{y + 8}" width="{share:.1f}" height="9"/>')
            parts.append(_text(width, y + 17, f"{row.total:.4f}", "value end"))
    y = head + len(rows) * pitch_y + 12
    parts.append(_text(stub, y + 11, "0", "tick"))
    pitch = 8 if bar else 5
    for i in range(HEAT_STEPS + 1):
        parts.append(f'<rect class="h{i}" x="{stub + 14 + i * pitch:.1f}" y="{y}" width="{pitch}" height="12"/>')
    parts.append(_text(stub + 20 + (HEAT_STEPS + 1) * pitch, y + 11, "1  fraction of zeros", "tick"))
    return _svg(title, width, y + 16, parts)


def _heat(cell: HeatCell, x: float, y: float, *, width: float, height: float, digits: int) -> str:
    box = f'x="{x:.1f}" y="{y}" width="{width:.1f}" height="{height}" rx="2"'
    note = f"<title>{escape(cell.note)}</title>"
    if cell.value is None:
        return f'<g>{note}<rect class="track" {box}/>{_text(x + width / 2, y + 17, "?", "tick middle")}</g>'
    step = round(min(max(cell.value, 0.0), 1.0) * HEAT_STEPS)
    shown = _text(x + width / 2, y + 17, f"{cell.value:.{digits}f}", f"cell middle t{step}")
    return f'<g>{note}<rect class="h{step}" {box}/>{shown}</g>'


def _svg(title: str, width: float, height: float, parts: Sequence[str]) -> str:
    box = f'viewBox="0 0 {width:g} {height:g}"'
    return f'<svg {box} role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>{"".join(parts)}</svg>'


def _text(x: float, y: float, text: str, kind: str, note: str = "") -> str:
    more = f"<title>{escape(note)}</title>" if note and note != text else ""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}{more}</text>'


def _stroke(line: Line, dots: Sequence[Point]) -> str:
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in dots)
    parts = [f'<path class="line {line.style} s{line.tone}" d="{path}"/>'] if len(dots) > 1 else []
    if len(dots) == 1 or (line.marks and len(dots) <= 40):
        parts += [f'<circle class="f{line.tone}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in dots]
    return "".join(parts)


def _place(
    label: str,
    dots: Sequence[Point],
    samples: Sequence[Sequence[Point]],
    taken: list[tuple[float, float, float, float]],
    frame: tuple[float, float, float, float],
) -> Point:
    """Where to print a line's label: close above or below the line, over as little ink as possible, late in x."""
    half = len(label) * _LETTER / 2 + 2
    x0, top, x1, bottom = frame
    best, where = math.inf, dots[-1]
    for i in range(24):
        x, y = dots[round((len(dots) - 1) * i / 23)]
        x = min(max(x, x0 + half), x1 - half)
        for base in (y - 8, y + 17, y - 22, y + 31):
            box = (x - half, base - 11, x + half, base + 4)
            if box[1] < top or box[3] > bottom:
                continue
            # A margin above and below: a label close to two lines names neither.
            hits = sum(box[0] < a < box[2] and box[1] - 3 < b < box[3] + 3 for line in samples for a, b in line)
            clashes = sum(box[0] < r and left < box[2] and box[1] < b and t < box[3] for left, t, r, b in taken)
            cost = hits + 1000.0 * clashes + (23 - i) * 0.1 + (8.0 if abs(base - y) > 20 else 0.0)
            if cost < best:
                best, where = cost, (x, base)
    taken.append((where[0] - half, where[1] - 11, where[0] + half, where[1] + 4))
    return where


def _along(dots: Sequence[Point]) -> Iterator[Point]:
    """Points about six units apart along a line, as ink that labels should miss."""
    yield from dots
    for (ax, ay), (bx, by) in pairwise(dots):
        for i in range(1, pieces := min(int(math.hypot(bx - ax, by - ay) / 6) + 1, 200)):
            yield ax + (bx - ax) * i / pieces, ay + (by - ay) * i / pieces


def _x_ticks(first: float, last: float, most: int) -> list[float]:
    if last <= first:
        return [first]
    scale = Scale.around([first, last], max(most, 2))
    return [tick for tick in scale.ticks if first <= tick <= last]


def _tick_texts(ticks: Sequence[float]) -> list[str]:
    """Ticks with as many decimals as the longest of them."""
    texts = [short(tick) for tick in ticks]
    decimals = max(len(text.partition(".")[2]) for text in texts)
    return texts if any("e" in text for text in texts) else [f"{tick:,.{decimals}f}" for tick in ticks]


def _exponent(value: float) -> int:
    return math.floor(math.log10(value)) if value > 0 else 0


def _shortened(text: str, letters: int) -> str:
    """The end of a long name, where names differ."""
    return text if len(text) <= letters else "…" + text[-max(letters - 1, 1) :]
