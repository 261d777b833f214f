"""Compiled code of these tests has a directory of its own, and the paths of instructions are chosen by each test."""

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNUS_CACHE", str(tmp_path_factory.mktemp("kernels")))
        for name in ("PRUNUS_ISA", "PRUNUS_THREADS"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture
def shared_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoders of all tests share their kernels: each is compiled once."""
    from harness import compiled

    monkeypatch.setattr("prunus.runtime.encoder.compile_kernels", compiled)
