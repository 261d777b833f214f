"""DeepSpeed: what it cannot do right is refused; under ZeRO-1 and 2 a magnitude run ends where DistributedDataParallel ends."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from launch import same_end
from transformers import TrainerControl, TrainerState

from prunus import PruneCallback, Pruning, RecipeError, Schedule, Span
from prunus.distributed.deepspeed import asked_stage, deepspeed_problems
from small import TEXT_FILE, arguments, save_tiny_bert, small_recipe, tiny_model, write_texts

GROWING = Schedule("linear", Span(1), end=Span(5), every=Span(1))
INSTALLED = pytest.mark.skipif(
    find_spec("deepspeed") is None or not os.environ.get("PRUNUS_DISTRIBUTED"),
    reason="make test-distributed, with deepspeed installed",
)


@pytest.mark.parametrize(
    ("stage", "pruning", "keys"),
    [
        (None, Pruning(0.5, "4x1", "snip", GROWING), []),
        (1, Pruning(0.5, "4x1", "magnitude", GROWING), []),
        (2, Pruning(0.5, "2:4", "random", GROWING), []),
        (2, Pruning(None, "4x1", lock=True), []),
        (2, Pruning(0.5, "4x1", "snip_momentum", GROWING), ["prune[0].criterion"]),
        (0, Pruning(0.5, "1x1", "wanda", GROWING), ["prune[0].criterion"]),
        (1, Pruning(0.5, "4x1", "magnitude", GROWING, revive=True), ["prune[0].revive"]),
        (3, Pruning(0.5, "4x1", "magnitude", GROWING), ["deepspeed"]),
        (3, Pruning(None, "4x1", lock=True), ["deepspeed"]),
    ],
)
def test_what_is_refused(stage: int | None, pruning: Pruning, keys: list[str], tmp_path: Path) -> None:
    assert [problem.key for problem in deepspeed_problems([pruning], stage)] == keys
    if stage is None or not keys:
        return
    args = arguments(tmp_path)
    args.deepspeed_plugin = type("Plugin", (), {"zero_stage": stage})()
    with pytest.raises(RecipeError, match=keys[0].replace("[", r"\[")):
        PruneCallback(pruning).on_train_begin(
            args, TrainerState(max_steps=8), TrainerControl(), tiny_model(), train_dataloader=[1] * 8
        )


@pytest.mark.parametrize(
    ("environment", "stage"),
    [
        ({}, None),
        ({"ACCELERATE_USE_DEEPSPEED": "false", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"}, None),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, 2),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, 3),
        (
            {
                "ACCELERATE_USE_DEEPSPEED": "true",
                "ACCELERATE_DEEPSPEED_CONFIG_FILE": '{"zero_optimization": {"stage": 1}}',
            },
            1,
        ),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": "{}"}, 0),
    ],
)
def test_the_stage_is_read_where_accelerate_says_it(
    environment: dict[str, str], stage: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        if name.endswith("FILE"):
            (tmp_path / "ds.json").write_text(value)
        monkeypatch.setenv(name, str(tmp_path / "ds.json") if name.endswith("FILE") else value)
    assert asked_stage() == stage


def ran(place: Path, name: str, stage: int | None, **prune: Any) -> subprocess.CompletedProcess[str]:
    raw = small_recipe(place / "model", place)
    raw["prune"] |= {"criterion": "magnitude", **prune}
    raw["train"] |= {"learning_rate": 1e-3, "keep": "last"}
    (place / f"{name}.yaml").write_text(yaml.safe_dump(raw))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "prunus"]
    command += ["run", str(place / f"{name}.yaml"), "-o", str(place / name), "--overwrite"]
    env = os.environ | {"PRUNUS_CACHE": str(place / f"cache-{name}"), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    if stage is not None:
        env |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage)}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without dropout, and texts."""
    place = tmp_path_factory.mktemp("deepspeed")
    save_tiny_bert(place / "model", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    write_texts(place / TEXT_FILE, 64)
    return place


@INSTALLED
@pytest.mark.parametrize("stage", [1, 2])
def test_a_run_ends_where_data_parallel_ends(stage: int, place: Path) -> None:
    for name, asked in (("ddp", None), (f"zero{stage}", stage)):
        done = ran(place, name, asked)
        assert done.returncode == 0, done.stderr[-3000:]
    same_end(place, "ddp", f"zero{stage}")
    facts = [json.loads((place / name / "prunus.json").read_text()) for name in ("ddp", f"zero{stage}")]
    assert facts[0]["sparse"]["sparsity"] == facts[1]["sparse"]["sparsity"]


@INSTALLED
def test_a_run_that_cannot_be_right_is_refused_before_it_starts(place: Path) -> None:
    done = ran(place, "refused", 2, criterion="snip")
    assert done.returncode != 0
    assert "prune[0].criterion" in done.stderr
    assert not (place / "refused").exists()
