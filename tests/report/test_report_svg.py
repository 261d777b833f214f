import math
import random
from xml.etree import ElementTree as ET

import pytest

from prunus.report.style import CSS, HEAT, INK, contrast, heat_step
from prunus.report.svg import Bar, HeatCell, HeatRow, Line, Scale, bars, escape, heat_grid, line_chart, thin


@pytest.mark.parametrize("count", [0, 1, 2, 399, 400, 401, 402, 801, 5000])
@pytest.mark.parametrize("limit", [4, 51, 400])
def test_thinning_keeps_ends_order_and_extremes(count: int, limit: int) -> None:
    rnd = random.Random(count)
    points = [(float(i), rnd.gauss(0, 1)) for i in range(count)]
    if count > 2:
        points[count // 2] = (float(count // 2), 99.0)
        points[count // 3] = (float(count // 3), -99.0)
    kept = thin(points, limit)
    assert len(kept) <= limit
    assert set(kept) <= set(points)
    assert kept == sorted(kept)
    if count <= limit:
        assert kept == points
    else:
        assert (kept[0], kept[-1]) == (points[0], points[-1])
        assert {min(y for _, y in points), max(y for _, y in points)} <= {y for _, y in kept}
        assert len(kept) > limit * 0.7 - 2


@pytest.mark.parametrize(
    ("values", "intervals", "ceiling", "ticks"),
    [
        ([0.0, 1.0], 5, math.inf, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        ([0.8, 0.9106], 5, math.inf, [0.8, 0.825, 0.85, 0.875, 0.9, 0.925]),
        ([0.7, 0.99], 5, 1.0, [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),
        ([0.0, 5e-5], 5, math.inf, [0, 1e-5, 2e-5, 3e-5, 4e-5, 5e-5]),
        ([-1.0, 7.0], 4, math.inf, [-2.5, 0, 2.5, 5, 7.5]),
        ([0.0], 5, math.inf, [0, 0.1, 0.2, 0.3, 0.4, 0.5]),
        ([0.5], 5, 1.0, [0.5, 0.6, 0.7, 0.8, 0.9, 1]),
        ([], 5, math.inf, [0, 0.2, 0.4, 0.6, 0.8, 1]),
    ],
)
def test_scales_are_round(values: list[float], intervals: int, ceiling: float, ticks: list[float]) -> None:
    assert Scale.around(values, intervals, ceiling).ticks == ticks


def test_scales_hold_their_values() -> None:
    rnd = random.Random(1)
    for _ in range(2000):
        base, span = rnd.gauss(0, 1) * 10 ** rnd.uniform(-6, 6), 10 ** rnd.uniform(-6, 6)
        values = [base, base + rnd.random() * span]
        scale = Scale.around(values, rnd.randint(2, 8))
        slack = 1e-6 * scale.step
        assert scale.low <= values[0] + slack
        assert scale.high >= values[1] - slack
        # Round steps of a fixed number of intervals waste at most this much.
        assert scale.step <= 5 * max(span, abs(base), 1e-12)


@pytest.mark.parametrize(
    "points",
    [
        [(5.0, 0.5)],
        [(0.0, 1e29), (1.0, -1e29)],
        [(0.0, 1e-29), (1e14, 0.0)],
        [(3.0, 1.0), (3.0, 2.0)],
        [(1e14, 0.9), (1e14 + 1, 0.9 + 1e-15)],
    ],
)
@pytest.mark.parametrize("width", [350, 780])
def test_charts_are_well_formed_and_stay_inside(points: list[tuple[float, float]], width: int) -> None:
    lines = [Line("a <b> & \x00", points), Line("r", points, 1, "right", "dashed", True), Line("none", [])]
    root = ET.fromstring(line_chart('t"<', lines, width, 300, left="x", right="y"))
    assert root.get("role") == "img"
    assert [child.text for child in root if child.tag == "title"] == ['t"<']
    drawn = [p for p in root.iter("path") if (p.get("class") or "").startswith("line")]
    numbers = [float(n) for p in drawn for pair in p.get("d", "")[1:].split("L") for n in pair.split()]
    numbers += [float(c.get("cx", "nan")) for c in root.iter("circle")]
    assert numbers
    assert all(0 <= n <= width for n in numbers)


def test_a_line_is_where_its_numbers_are() -> None:
    scale = Scale(0.0, 0.2, 5)
    root = ET.fromstring(
        line_chart("t", [Line("", [(0.0, 0.0), (10.0, 0.5), (20.0, 1.0)])], 500, 300, left="l", scales={"left": scale})
    )
    path = next(p for p in root.iter("path") if "line" in (p.get("class") or ""))
    (x0, y0), (x1, y1), (x2, y2) = [tuple(map(float, pair.split())) for pair in path.get("d", "")[1:].split("L")]
    assert (x1, y1) == pytest.approx(((x0 + x2) / 2, (y0 + y2) / 2), abs=0.11)
    grid = sorted(float(p.get("d", "").split("H")[0].split()[1]) for p in root.iter("path") if p.get("class") == "grid")
    assert [grid[0], grid[-1]] == [y2, y0]


def test_no_line_draws_more_than_400_points() -> None:
    points = [(float(i), math.sin(i)) for i in range(5000)]
    root = ET.fromstring(line_chart("t", [Line("s", points)], 780, 300, left="l"))
    path = next(p for p in root.iter("path") if "line" in (p.get("class") or ""))
    assert 300 < len(path.get("d", "").split("L")) <= 400


def test_labels_of_lines_do_not_overlap() -> None:
    lines = [Line(f"line {i}", [(0.0, 0.5), (10.0, 0.5 + i * 0.01)], i) for i in range(4)]
    root = ET.fromstring(line_chart("t", lines, 350, 290, left="l"))
    spots = [
        (float(t.get("x", "")), float(t.get("y", ""))) for t in root.iter("text") if "label" in (t.get("class") or "")
    ]
    assert len(spots) == 4
    for i, (x, y) in enumerate(spots):
        for a, b in spots[:i]:
            assert abs(x - a) > 40 or abs(y - b) >= 14


def test_bars_are_as_long_as_their_values() -> None:
    rows = [Bar("a", 1.0, 4.0, "x"), Bar("<b>", 4.0, 4.0, "y"), Bar("c", 9.0, 4.0, "z"), Bar("d", 1.0, 0.0, "w")]
    root = ET.fromstring(bars("t", rows, 350))
    track, *_ = [float(r.get("width", "")) for r in root.iter("rect") if r.get("class") == "track"]
    shares = [float(r.get("width", "")) / track for r in root.iter("rect") if r.get("class") == "f0"]
    assert shares == pytest.approx([0.25, 1.0, 1.0, 0.0], abs=1e-3)


def test_the_grid_shows_each_number_on_its_shade() -> None:
    cells = [
        HeatCell(0.0, "n0"),
        HeatCell(0.5, "n1"),
        HeatCell(0.8123, "n2"),
        None,
        HeatCell(None, "n4"),
        HeatCell(7.0, "n5"),
    ]
    root = ET.fromstring(heat_grid("t", list("abcdef"), [HeatRow("layer 0", cells, 0.25)], 780))
    found = [(g[0].text, g[1].get("class"), g[2].text, (g[2].get("class") or "").split()[-1]) for g in root.iter("g")]
    assert found == [
        ("n0", "h0", "0.000", "t0"),
        ("n1", "h10", "0.500", "t10"),
        ("n2", "h16", "0.812", "t16"),
        ("n4", "track", "?", "middle"),
        ("n5", "h20", "7.000", "t20"),
    ]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_number_on_the_heat_scale_can_be_read(theme: str) -> None:
    assert min(contrast(*heat_step(theme, step)) for step in range(21)) >= 4.5
    assert heat_step(theme, 0)[0] == HEAT[theme][0]
    assert heat_step(theme, 20)[0] == HEAT[theme][1]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("role", ["ink", "soft", "c0", "c1", "c2", "c3", "c4", "c5"])
@pytest.mark.parametrize("ground", ["paper", "note"])
def test_every_text_colour_can_be_read(theme: str, role: str, ground: str) -> None:
    one, other = (tuple(bytes.fromhex(INK[theme][name][1:])) for name in (role, ground))
    assert contrast((one[0], one[1], one[2]), (other[0], other[1], other[2])) >= 4.5


def test_contrast_is_that_of_the_standard() -> None:
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21.0)
    assert contrast((0x76, 0x76, 0x76), (255, 255, 255)) == pytest.approx(4.54, abs=0.005)


def test_the_style_sheet_asks_for_nothing() -> None:
    assert "url(" not in CSS
    assert "@import" not in CSS
    assert CSS.count("{") == CSS.count("}")


def test_escape() -> None:
    assert escape("<a href=\"x\" b='y'>&\x00") == "&lt;a href=&quot;x&quot; b=&#x27;y&#x27;&gt;&amp;\ufffd"
