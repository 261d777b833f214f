"""A directory is filled whole, or left as it was."""

from pathlib import Path

import pytest

from prunus.checkpoint.staged import staged


def names(place: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in place.iterdir()}


def test_files_replace_those_of_their_name(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    (tmp_path / "b").write_text("old")
    with staged(tmp_path, "a") as partial:
        (partial / "a").write_text("new")
        assert names(partial) == {"a": "new"}
        assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == {"a": "new", "b": "old"}


def test_folders_replace_those_of_their_name(tmp_path: Path) -> None:
    (tmp_path / "out" / "folder").mkdir(parents=True)
    (tmp_path / "out" / "folder" / "old").touch()
    with staged(tmp_path / "out") as partial:
        (partial / "folder").mkdir()
        (partial / "folder" / "new").touch()
    assert [path.name for path in (tmp_path / "out" / "folder").iterdir()] == ["new"]


def stop_halfway(place: Path, error: type[BaseException]) -> None:
    with staged(place) as partial:
        (partial / "a").write_text("new")
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_what_was_there(error: type[BaseException], tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    for place in (tmp_path, tmp_path / "new" / "deep"):
        with pytest.raises(error):
            stop_halfway(place, error)
    assert (tmp_path / "a").read_text() == "old"
    assert not (tmp_path / ".partial").exists()
    assert not (tmp_path / "new" / "deep").exists()


def test_what_an_earlier_one_left_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / ".partial").mkdir()
    (tmp_path / ".partial" / "stale").write_text("half")
    with staged(tmp_path) as partial:
        (partial / "a").write_text("new")
    assert names(tmp_path) == {"a": "new"}
