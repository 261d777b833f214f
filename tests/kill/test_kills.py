"""Runs that are killed at random moments go on, and end with the masks and weights of one that never was.

``make test`` kills a few; ``make test-kill`` (PRUNUS_KILLS=200) the number that is asked for, over all kinds, and writes
``benchmarks/results/kills.json``.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from kill_worker import KINDS
from safetensors.torch import load_file

from prunus.bench.command import versions
from prunus.checkpoint.tensor_io import read_masks
from prunus.environment import processor
from prunus.report.facts import read_facts
from small import TEXT_FILE, save_tiny_bert, write_texts

HERE = Path(__file__).parent
KILLS = int(os.environ.get("PRUNUS_KILLS", "2"))
KINDS_KILLED = list(KINDS) if KILLS > 10 else ["4x1 with a teacher"]


def started(place: Path, kind: str, output: Path, resume: bool) -> "subprocess.Popen[str]":
    more = {"PRUNUS_CACHE": str(place / "cache"), "PYTHONPATH": str(HERE.parent)}
    command = [sys.executable, str(HERE / "kill_worker.py"), kind, str(place / "model"), str(place), str(output)]
    command += ["resume"] if resume else []
    return subprocess.Popen(
        command,
        env=os.environ | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("kill")
    save_tiny_bert(place / "model")
    write_texts(place / TEXT_FILE, 64)
    return place


@pytest.mark.parametrize("kind", KINDS_KILLED)
def test_a_killed_run_ends_as_one_that_was_not(kind: str, place: Path) -> None:
    draw = random.Random(f"{kind} {KILLS}")
    whole = place / f"{kind} whole"
    began = time.monotonic()
    first = started(place, kind, whole, False)
    _, err = first.communicate(timeout=300)
    assert first.returncode == 0, err[-2000:]
    again = started(
        place, kind, place / f"{kind} again", False
    )  # the dense model is kept now: how long such a run takes
    begun = time.monotonic()
    again.communicate(timeout=300)
    seconds, kills, runs, moments = time.monotonic() - begun, 0, 0, []
    wanted = -(-KILLS // len(KINDS_KILLED))
    while kills < wanted:
        output, resume = place / f"{kind} {runs}", False
        while True:
            process = started(place, kind, output, resume)
            moment = draw.uniform(0.3, 1.0) * seconds
            try:
                _, err = process.communicate(timeout=moment if kills < wanted else 300)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                kills += 1
                moments.append(round(moment, 2))
                resume = output.is_dir() and (output / "prunus.json").is_file()
                continue
            assert process.returncode == 0, f"cannot resume after {kills} kills: {err[-2000:]}"
            break
        runs += 1
        left, right = (load_file(d / "model.safetensors") for d in (whole, output))
        assert all(torch.equal(left[name], right[name]) for name in left), f"other weights after kills at {moments}"
        masks = [read_masks(d / "masks.safetensors") for d in (whole, output)]
        assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])
        assert read_facts(output).status == "finished"
        assert not (output / "checkpoints").exists()
    note(kind, {"kills": kills, "runs": runs, "seconds": round(time.monotonic() - began, 1), "moments": moments})


def note(kind: str, found: dict[str, object]) -> None:
    """Prints, and where many were asked for keeps, what was done."""
    print(kind, found)
    if KILLS > 10:
        path = HERE.parents[1] / "benchmarks" / "results" / "kills.json"
        held = (
            json.loads(path.read_text())
            if path.is_file()
            else {"command": f"PRUNUS_KILLS={KILLS} make test-kill", "kinds": {}}
        )
        now = datetime.now(UTC).isoformat(timespec="seconds")
        held |= {"date": now, "processor": processor(), "versions": versions(), "seed": f"the kind and {KILLS}"}
        held["kinds"][kind] = found | {"other weights": 0, "other masks": 0, "not resumed": 0}
        path.write_text(json.dumps(held, indent=1) + "\n", encoding="utf-8")
