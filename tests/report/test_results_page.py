"""What the pages say of measurements stands in the committed result files."""

import importlib
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
README_ROWS = {
    "PyTorch float32": "torch float32",
    "ONNX Runtime int8": "onnxruntime int8",
    "OpenVINO int8": "openvino int8",
    "DeepSparse int8, 80 % zeros": "deepsparse int8 80 %",
    "prunus int8, no zeros": "prunus int8 dense",
    "**prunus int8, 80 % zeros in blocks of 4x1**": "prunus int8 80 %",
}


def test_the_page_of_results_is_made_of_the_result_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    assert importlib.import_module("table").page() == (ROOT / "docs" / "results.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("row", README_ROWS)
def test_times_in_the_readme_are_those_of_the_page(row: str) -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    table = page[page.index("### minilm, 2 threads") :]
    name = re.escape(README_ROWS[row])
    ratio, milliseconds = map(float, re.search(rf"\| {name} \| ([\d.]+) \(([\d.]+)\)", table).groups())
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    said = re.search(rf"\| {re.escape(row)} \| \**([\d.]+)\** \| \**([\d.]+)\** \|", readme).groups()
    for word, value in zip(said, (milliseconds, ratio), strict=True):
        assert abs(float(word) - value) <= 0.5 * 10.0 ** -len(word.partition(".")[2]) + 1e-9


@pytest.mark.parametrize("path", sorted((BENCHMARKS / "results").glob("*.json")), ids=lambda path: path.stem)
def test_a_result_file_says_how_it_was_made(path: Path) -> None:
    held = json.loads(path.read_text(encoding="utf-8"))
    commands = [held["command"] or "", held.get("benchmark", "")]
    assert any(re.match(r"(PRUNUS_KILLS=\d+ )?(python |prunus |make |benchmarks/)", command) for command in commands)
    assert held["date"].startswith("20")
    assert held.get("versions") or held["environment"]
    assert not re.search(r"(^|[ \"=])/(work|tmp|home|root)/", path.read_text(encoding="utf-8"))
