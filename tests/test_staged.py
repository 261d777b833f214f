"""A directory is filled whole, or left as it was."""

from pathlib import Path

import pytest

from prunus.checkpoint.staged import is_new, staged
from prunus.errors import CheckpointError


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


def test_a_file_that_another_process_wrote_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with staged(tmp_path / "out", new="b") as partial:
        (partial / "b").write_text("first")
    with pytest.raises(CheckpointError, match="output must not hold b yet"), staged(tmp_path / "out", new="b"):
        pass
    assert (tmp_path / "out" / "b").read_text() == "first"


def test_what_a_killed_command_left_is_not_in_the_way(tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert is_new(output)
    (output / ".partial").mkdir(parents=True)
    (output / ".partial" / "half").touch()
    assert is_new(output)
    with staged(output, new="b") as partial:
        (partial / "b").touch()
    assert [path.name for path in output.iterdir()] == ["b"]
    assert not is_new(output)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    assert [is_new(tmp_path / name) for name in ("link", "file", "empty")] == [False, False, False]
