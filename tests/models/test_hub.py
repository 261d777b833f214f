"""Models of the Hub, out of a cache that is laid out as huggingface_hub lays it out; there is no network."""

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules as parts_of
from typer.testing import CliRunner

from prunus.cli import app
from prunus.errors import RecipeError
from prunus.models.hub import cached_snapshot, name_of, snapshot
from prunus.models.loading import model_source
from prunus.recipe import read_recipe
from prunus.sparsity import Masker, Pruning, Schedule, Span
from prunus.training.run import run
from small import save_tiny_bert, small_recipe

pytestmark = pytest.mark.usefixtures("offline")
NAME, COMMIT = "org/tiny-sentences", "0123456789abcdef0123456789abcdef01234567"
TEXTS = ["a good film", "very long book"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the cache."""
    place = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(place))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(place))
    return place


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def sentence_model(place: Path) -> Path:
    """CLS pooling and a Dense layer: without its modules the embeddings are others."""
    save_tiny_bert(place / "bert")
    transformer = parts_of.Transformer(str(place / "bert"))
    with torch.no_grad():  # neurons to take out
        Masker(transformer.auto_model, Pruning(0.5, "ffn", "magnitude", Schedule("one_shot", Span(0))), 1)
    torch.manual_seed(0)
    parts = [transformer, parts_of.Pooling(16, "cls"), parts_of.Dense(16, 8)]
    SentenceTransformer(modules=parts, device="cpu").save_pretrained(str(place / "st"))
    return place / "st"


def into_cache(directory: Path, hub: Path, name: str, commit: str = COMMIT) -> Path:
    """Blobs, and a snapshot of links to them, as a download leaves them."""
    repository = hub / f"models--{name.replace('/', '--')}"
    for index, path in enumerate(sorted(p for p in directory.rglob("*") if p.is_file())):
        blob, link = repository / "blobs" / f"{index}", repository / "snapshots" / commit / path.relative_to(directory)
        blob.parent.mkdir(parents=True, exist_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, blob)
        link.symlink_to(blob)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    return repository / "snapshots" / commit


def expected(directory: Path) -> Any:
    return SentenceTransformer(str(directory), device="cpu").encode(TEXTS)


def test_a_model_of_the_hub_is_its_snapshot(tmp_path: Path, hub: Path) -> None:
    place = into_cache(sentence_model(tmp_path), hub, NAME)
    assert Path(model_source(NAME)) == place == snapshot(NAME, "model.name") == cached_snapshot(NAME)
    assert snapshot(NAME, "model.name", COMMIT) == place
    assert name_of(place) == NAME
    assert name_of(tmp_path / "st") == "st"
    assert cached_snapshot("org/another") is None
    for wrong in ("org/another", "nobodys"):
        with pytest.raises(
            RecipeError, match=r"(?s)must be a model that can be read .*try a directory, minilm, or a network"
        ):
            model_source(wrong)
    with pytest.raises(RecipeError, match="must be a model that can be read"):
        model_source(NAME, revision="another-branch")
    (place / "model.safetensors").unlink()
    with pytest.raises(RecipeError, match="be a directory with weights"):
        model_source(NAME)


def test_a_run_from_the_hub_is_one_from_a_directory(
    tmp_path: Path, hub: Path, small_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    directory = sentence_model(tmp_path)
    into_cache(directory, hub, NAME)
    found = {}
    for name in (NAME, str(directory)):
        raw = small_recipe(Path("x"), small_data) | {"distill": None, "evaluate_dense": False}
        raw["model"]["name"] = name
        raw["train"] |= {"epochs": 1, "checkpoint_every": None, "evaluate_every": None}
        raw["prune"]["schedule"] = {"kind": "one_shot", "start": 1}
        out = tmp_path / f"out-{len(found)}"
        facts = run(read_recipe(raw), out)
        assert facts.model.name == name
        found[name] = sorted(str(path.relative_to(out)) for path in out.rglob("*"))
    assert found[NAME] == found[str(directory)]
    assert "modules.json" in found[NAME]
    assert any("Dense" in path for path in found[NAME])
    one, other = (SentenceTransformer(str(tmp_path / f"out-{i}"), device="cpu").encode(TEXTS) for i in range(2))
    assert np.array_equal(one, other)


def test_commands_take_a_name_that_is_in_the_cache(tmp_path: Path, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prunus.runtime import load

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    directory = sentence_model(tmp_path)
    into_cache(directory, hub, NAME)
    for command in (
        ["export", NAME, "--precision", "float32", "--threads", "1"],
        ["compact", NAME],
        ["export", NAME, "--to", "archive"],
        ["export", "tiny-sentences-archive", "--to", "transformers", "-o", "restored"],
    ):
        ran = CliRunner().invoke(app, command)
        assert ran.exit_code == 0, ran.output
    with load("tiny-sentences-packed", threads=1) as engine:
        assert np.abs(engine.encode(TEXTS) - expected(directory)).max() < 1e-5
    for made in ("tiny-sentences-compact", "restored"):
        assert np.abs(expected(tmp_path / made) - expected(directory)).max() < 1e-5
    facts = json.loads((tmp_path / "tiny-sentences-compact" / "prunus.json").read_text())
    assert facts["compacted"]["source"] == NAME
    ran = CliRunner().invoke(app, ["compact", "org/another"])
    assert ran.exit_code == 2
