import copy
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_facts import example_facts, model_card, render_html, summary_table

VOID = {"meta", "br", "hr", "img", "link", "input"}
ALLOWED = set(
    re.findall(
        r"\w+",
        """html head meta title style body main header footer section h1 h2 h3 p b ul li div span small table thead
    tbody tr th td details summary figure figcaption dl dt dd pre svg path text rect circle g""",
    )
)


class Page(HTMLParser):
    """Checks that tags nest, and gathers tags, attributes and visible text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def check(page: str) -> Page:
    """What holds for every page: it nests, its drawings are XML, and it asks for nothing."""
    read = Page(page)
    assert read.tags <= ALLOWED, read.tags - ALLOWED
    for _, name, _ in read.attributes:
        assert not name.startswith("on")
        assert name not in {"href", "src", "srcset", "xlink:href", "style", "action", "data"}
    for drawing in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ET.fromstring(drawing)
    policy = [value for tag, _, value in read.attributes if tag == "meta" and "default-src" in value]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]
    page.encode("utf-8")
    return read


def cells(page: str) -> list[list[str]]:
    table = page.split('<table class="headline">')[1].split("</table>", maxsplit=1)[0]
    found = [re.findall(r"<(?:td|summary)[^>]*>(.*?)</(?:td|summary)>", row) for row in table.split("<tr")[1:]]
    return [row for row in found if row]


def test_the_headline_prints_the_facts() -> None:
    page = render_html(example_facts())
    assert cells(page) == [
        ["accuracy", "0.9106", "0.9014", "−0.0092"],
        ["f1", "0.9131", "0.9042", "−0.0089"],
        ["target sparsity", "", "0.8000", ""],
        ["sparsity of the targets", "0.0001", "0.8000", ""],
        ["sparsity of all weights", "0.0002", "0.3741", ""],
        ["size on disk (MB)", "90.9", "81.9", "× 0.901"],
        ["training time", "5 min 12 s<small>from cache</small>", "2 h 05 min", ""],
        ["baseline: majority class (accuracy)", "0.5092", ""],
    ]
    words = " ".join(check(page).words)
    for part in ("22,713,217 parameters", "16,001 training examples", "872 validation examples", "4242", "AMD EPYC"):
        assert part in words
    for part in ("the loss was scaled", "evaluate_dense is false", "not a linear layer", "prunus run quickstart"):
        assert part in words
    assert "learning_rate: 5.0e-05" in words


def test_speed_is_drawn_the_fastest_first() -> None:
    page = render_html(example_facts())
    words = " ".join(check(page).words)
    for part in ("1 x 128", "2 threads", "medians of 15 interleaved rounds", "AMD EPYC (avx2)", "torch 2.13"):
        assert part in words
    drawn = page.split("<h2>Speed</h2>")[1].split("</section>")[0]
    assert 0 < drawn.index("1.99 ms") < drawn.index("28.1 ms")


def test_every_tensor_is_in_the_table_and_the_grid() -> None:
    facts = example_facts(layers=3)
    page = render_html(facts)
    for tensor in facts["tensors"]:
        row = next(part for part in page.split("<tr>") if f">{tensor['name']}</td>" in part)
        shown = re.findall(r"<td[^>]*>(.*?)</td>", row)
        size = " × ".join(map(str, tensor["shape"]))
        counts = [f"{tensor[key]:,}" for key in ("weights", "zeros")]
        units = [f"{tensor[key]:,}" for key in ("units", "zero_units")]
        assert shown == [tensor["name"], size, "4x1", *counts, f"{tensor['sparsity']:.4f}", "0.8125", *units]
        # One cell in the drawing for a desk, one in that for a phone.
        assert page.count(f"<title>{tensor['name']}: sparsity {tensor['sparsity']:.4f}, ") == 2
    zeros, weights = (sum(tensor[key] for tensor in facts["tensors"]) for key in ("zeros", "weights"))
    assert f"{zeros:,} of {weights:,} weights in 18 tensors are zero ({zeros / weights:.4f})" in page


def places(facts: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every key and index in the facts (of a list, the first and the last)."""
    if path:
        yield path
    if isinstance(facts, dict):
        for key in facts:
            yield from places(facts[key], (*path, key))
    elif isinstance(facts, list) and facts:
        for index in {0, len(facts) - 1}:
            yield from places(facts[index], (*path, index))


def changed(path: tuple[Any, ...], value: Any, delete: bool = False) -> dict[str, Any]:
    facts = example_facts(points=12)
    holder: Any = facts
    for key in path[:-1]:
        holder = holder[key]
    if delete:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return facts


@pytest.mark.parametrize("path", list(places(example_facts(points=12))), ids=str)
def test_any_fact_may_be_missing(path: tuple[Any, ...]) -> None:
    for facts in (changed(path, None), changed(path, None, delete=True)):
        before = copy.deepcopy(facts)
        check(render_html(facts))
        summary_table(facts)
        model_card(facts)
        assert facts == before


EMPTY: list[Any] = [[], {}, [[]], [{}], [None], {"": None}, {"metrics": 3}, {"step": 1e300}]


@settings(max_examples=80, deadline=None, database=None)
@given(
    st.sampled_from(list(places(example_facts(points=12)))),
    st.sampled_from(
        ["<script>alert(1)</script>", "\x00\ud800]]>", -1, 1e300, 10**400, float("nan"), float("-inf"), True, *EMPTY]
    ),
)
def test_any_fact_may_be_anything(path: tuple[Any, ...], value: Any) -> None:
    facts = changed(path, value)
    check(render_html(facts))
    summary_table(facts)
    model_card(facts).encode("utf-8")


def test_nothing_but_the_version() -> None:
    words = " ".join(check(render_html({"prunus": "9.9"})).words)
    assert "prunus 9.9" in words
    assert words.count("not measured") >= 4
    assert "nothing was pruned" not in words


HOSTILE = (
    "</title></style></pre><script>alert(1)</script><img src=x onerror=alert(1)>\"' onload='x' &amp; \x1b[2J\u202e"
)


def poisoned(value: Any) -> Any:
    """The facts with every text, names of entries in free objects included, replaced by a hostile one."""
    if isinstance(value, str):
        return HOSTILE
    if isinstance(value, list):
        return [poisoned(item) for item in value]
    return {key: poisoned(item) for key, item in value.items()} if isinstance(value, dict) else value


def hostile_facts() -> dict[str, Any]:
    facts: dict[str, Any] = poisoned(example_facts())
    facts["task"]["baselines"] = {HOSTILE: {HOSTILE: 0.5}}
    facts["environment"] = {HOSTILE: HOSTILE}
    facts["recipe"] = {HOSTILE: [HOSTILE]}
    for part in ("dense", "sparse"):
        facts[part]["metrics"] = {HOSTILE: 0.9}
    facts["history"]["loss"] = [{"step": i, f"{HOSTILE}_loss": 0.5} for i in range(3)]
    facts["history"]["metrics"] = [{"step": i, "metrics": {HOSTILE: 0.5}} for i in range(3)]
    return facts


@pytest.mark.parametrize("name", ["<script>", "encoder.layer.0.<script>.query.weight", HOSTILE])
def test_a_name_is_inert(name: str) -> None:
    facts = example_facts()
    facts["tensors"][0]["name"] = facts["skipped"][0]["name"] = name
    page = check(render_html(facts))
    assert "script" not in page.tags


def test_every_text_is_inert() -> None:
    page = render_html(hostile_facts())
    read = check(page)
    assert "<script" not in page
    assert "<img" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert any("<script>alert(1)</script>" in word for word in read.words)


def test_the_page_loads_nothing() -> None:
    page = render_html(example_facts())
    for part in ("http:", "https:", "//", "url(", "@import", "<script", "<link", "<iframe", "javascript:"):
        assert part not in page


def test_a_dense_run_has_one_column() -> None:
    facts = example_facts()
    facts.update(sparse=None, target_sparsity=None, tensors=[], skipped=[])
    facts["history"]["sparsity"] = []
    page = render_html(facts)
    words = " ".join(check(page).words)
    assert "A dense run: nothing was pruned." in words
    assert "Sparsity by tensor" not in words
    assert cells(page)[0] == ["accuracy", "0.9106"]
    assert page.count("<svg") == 8
    assert words.count("not measured") == 1  # the heading of its list


@pytest.mark.parametrize(("status", "words"), [("running", "has not finished"), ("interrupted", "was interrupted")])
def test_a_run_that_is_not_done_says_so(status: str, words: str) -> None:
    facts = example_facts()
    facts.update(status=status, sparse=None)
    shown = "".join(check(render_html(facts)).words)
    assert words in shown
    assert "Sparsity of the targets at step 500: 0.7900." in shown
    assert "Accuracy at step 500: 0.8980." in shown
    assert "not measured" in shown


@pytest.mark.parametrize(("layers", "points"), [(33, 5000), (1, 1)])
def test_many_and_few(layers: int, points: int) -> None:
    page = render_html(example_facts(layers=layers, points=points))
    check(page)
    assert len(page) < 600_000
    for path in re.findall(r'<path class="line[^"]*" d="([^"]*)"', page):
        assert path.count("L") < 400
    assert ("5,000 points, drawn as at most 400" in page) == (points == 5000)


def test_points_without_a_number_are_counted() -> None:
    facts = example_facts()
    for row in facts["history"]["loss"][:3]:
        row.update(loss=None, hard_loss=None, distill_loss=None)
    assert "3 of 50 points hold no number" in render_html(facts)
