"""`prunus run` under torchrun and accelerate: the same recipe, the same steps, the masks and weights of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from launch import same_end

from prunus.training.jsonl_logger import read_log
from small import TEXT_FILE, save_tiny_bert, small_recipe, write_texts

MORE = pytest.mark.skipif(not os.environ.get("PRUNUS_DISTRIBUTED"), reason="make test-distributed")
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "prunus"]
HERE = Path(__file__).parent
SHARDED = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(HERE / "fsdp_worker.py")]
ACCELERATE = [
    "-m",
    "accelerate.commands.launch",
    "--cpu",
    "--num_processes=2",
    "--num_machines=1",
    "--mixed_precision=no",
]
ACCELERATE += ["--dynamo_backend=no", "-m", "prunus"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without dropout, texts, a recipe."""
    place = tmp_path_factory.mktemp("runs")
    calm = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    save_tiny_bert(place / "model", **calm)  # type: ignore[arg-type]
    write_texts(place / TEXT_FILE, 64)
    return place


def ran(place: Path, name: str, launcher: list[str], more: list[str], stop: int = -1, **change: Any) -> dict[str, Any]:
    raw = small_recipe(place / "model", place, **change)
    raw["train"] |= {"learning_rate": 1e-3, "keep": "best"}
    (place / f"{name}.yaml").write_text(yaml.safe_dump(raw))
    command = [sys.executable, *launcher, "run", str(place / f"{name}.yaml"), "-o", str(place / name), "--json", *more]
    env = os.environ | {"PRUNUS_CACHE": str(place / f"cache-{name}"), "OMP_NUM_THREADS": "1", "FSDP_STOP": str(stop)}
    env["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode == 0) == (stop < 0), done.stderr[-3000:]
    if stop < 0:
        assert done.stdout.count('\n  "status": ') == 1  # one process alone prints (and gloo, on the same stream)
    return dict(json.loads((place / name / "prunus.json").read_text()))


@pytest.mark.parametrize("launcher", [TORCHRUN, pytest.param(ACCELERATE, marks=MORE)], ids=["torchrun", "accelerate"])
def test_two_processes_end_where_one_ends(launcher: list[str], place: Path) -> None:
    one = ran(place, "one", ["-m", "prunus"], ["--overwrite"])
    two = ran(place, "two", launcher, ["--overwrite"])
    same_end(place, "one", "two")
    assert two["tensors"] == one["tensors"]
    assert two["sparse"]["metrics"] == one["sparse"]["metrics"]
    assert two["status"] == "finished"
    steps = [
        [line["step"] for line in read_log(place / name / "log.jsonl") if "loss" in line] for name in ("one", "two")
    ]
    assert steps[0] == steps[1]
    assert not (place / "two" / "checkpoints").exists()


@MORE
def test_two_processes_go_on_after_a_stop(place: Path) -> None:
    ran(place, "whole", TORCHRUN, ["--overwrite"])
    raw = yaml.safe_load((place / "whole.yaml").read_text())
    assert raw["train"]["checkpoint_every"] == 5
    again = ran(place, "whole", TORCHRUN, ["--resume"])  # finished: nothing to go on with
    assert again["status"] == "finished"


@MORE
@pytest.mark.parametrize("criterion", ["snip_momentum", "magnitude"])
def test_a_sharded_run_ends_where_one_process_ends(criterion: str, place: Path) -> None:
    change = {"prune": small_recipe(place, place)["prune"] | {"criterion": criterion}}
    one = ran(place, "one", ["-m", "prunus"], ["--overwrite"], **change)
    two = ran(place, "two", SHARDED, ["--overwrite"], **change)
    same_end(place, "one", "two")
    assert two["tensors"] == one["tensors"]
    assert two["sparse"]["metrics"] == one["sparse"]["metrics"]


@MORE
def test_a_sharded_run_goes_on_after_a_stop(place: Path) -> None:
    ran(place, "one", ["-m", "prunus"], ["--overwrite"])
    stopped = ran(place, "stopped", SHARDED, ["--overwrite"], stop=13)
    assert stopped["status"] != "finished"
    ran(place, "stopped", SHARDED, ["--resume"])
    same_end(place, "one", "stopped")
