"""Packed models of each head, and engines of them with one thread."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving_tools import packed

from prunus.runtime import Engine, load


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("served")
    return {head: packed(place / head, head) for head in ("none", "sequence", "tokens", "span")}


@pytest.fixture(scope="session")
def engines(models: dict[str, Path]) -> Iterator[dict[str, Engine]]:
    loaded = {head: load(place, threads=1) for head, place in models.items()}
    yield loaded
    for engine in loaded.values():
        engine.close()
