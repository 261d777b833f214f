"""Masked language modelling: tokens a second with and without pruning and teacher, and memory against the size of the text.

    python benchmarks/language_model.py --text wiki.txt.gz [--rounds 7]

1. A training step of MiniLM on 32 full rows of 128 tokens (bfloat16 autocast, AdamW), in four arms that take turns: plain, with
   masks (4x1 80 %, magnitude, regrowth allowed, an update in every tenth step), with a teacher, with both. Medians of rounds.

2. The text is tokenised into rows and 500 of them are read, in a process of its own, for 1, 4 and 16 copies of its first 12 MB;
   peak resident memory of that process, less that of one that imports the same and reads nothing.

Results go to ``benchmarks/results/language_model.json``.
"""

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, TrainingArguments

from prunus import Distillation, Masker, Pruning, PrunusTrainer, Schedule, Span
from prunus.bench.command import versions
from prunus.environment import processor
from prunus.models.loading import MINILM, model_source
from prunus.progress import quiet
from prunus.tasks import TaskSpec, load_task
from prunus.tasks.collate import Collate

HERE = Path(__file__).parent
ROWS, TOKENS, THREADS, CHUNK = 32, 128, 2, 10
PRUNING = Pruning(0.8, "4x1", "magnitude", Schedule("constant", Span(0), Span(10_000), Span(CHUNK)), revive=True)
READ = """
import sys
from transformers import AutoTokenizer
from prunus.tasks import TaskSpec, load_task
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
if sys.argv[2]:
    rows = load_task(TaskSpec(name="mlm", train=sys.argv[2])).features("train", tokenizer)
    order = iter(rows.sampler(0))
    for _ in range(500):
        rows[next(order)]
    print(len(rows), file=sys.stderr)
# Not ru_maxrss, which begins with the memory of the process that started this one.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def batches(text: Path, count: int) -> list[dict[str, torch.Tensor]]:
    """Full rows of real text."""
    tokenizer = AutoTokenizer.from_pretrained(model_source(MINILM))
    spec = TaskSpec(name="mlm", train=str(text), max_length=TOKENS, short_share=0.0)
    rows, collate = load_task(spec).features("train", tokenizer), Collate(tokenizer)
    return [collate([rows[i * ROWS + j] for j in range(ROWS)]) for i in range(count)]


class Arm:
    """One model with what belongs to it, and one step of its training."""

    def __init__(self, masks: bool, taught: bool, place: str) -> None:
        torch.manual_seed(0)
        self.model, teacher = (AutoModelForMaskedLM.from_pretrained(model_source(MINILM)) for _ in range(2))
        args = TrainingArguments(output_dir=place, use_cpu=True, bf16=True, report_to="none", disable_tqdm=True)
        self.trainer = PrunusTrainer(
            self.model, args, teacher=teacher if taught else None, distillation=Distillation(0.5, 0.5)
        )
        self.masker = Masker(self.model, PRUNING, 10_000) if masks else None
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)

    def step(self, batch: dict[str, torch.Tensor]) -> None:
        """Forward, backward, optimizer, masks."""
        with torch.autocast("cpu", torch.bfloat16):
            loss: Any = self.trainer.compute_loss(self.model.train(), batch)
        loss.backward()
        if self.masker is not None:
            self.masker.observe(self.model)
        self.optimizer.step()
        if self.masker is not None:
            self.masker.step(self.model)
        self.optimizer.zero_grad()


def speed(text: Path, rounds: int) -> dict[str, Any]:
    """Tokens a second of each arm."""
    held = batches(text, CHUNK)
    kinds = {
        "plain": (False, False),
        "masks": (True, False),
        "teacher": (False, True),
        "masks and teacher": (True, True),
    }
    with tempfile.TemporaryDirectory() as place:
        arms = {name: Arm(*kind, place) for name, kind in kinds.items()}
        times: dict[str, list[float]] = {name: [] for name in arms}
        for _ in range(rounds + 1):
            for name, arm in arms.items():
                began = time.perf_counter()
                for batch in held:
                    arm.step(batch)
                times[name].append(time.perf_counter() - began)
    seconds = {name: median(each[1:]) for name, each in times.items()}  # the first round warms up
    return {
        name: {"tokens_per_second": CHUNK * ROWS * TOKENS / each, "time / plain": each / seconds["plain"]}
        for name, each in seconds.items()
    }


def memory(text: Path) -> list[dict[str, float]]:
    """Peak memory of reading texts of several sizes, beyond that of the imports."""
    with gzip.open(text) if text.name.endswith(".gz") else text.open("rb") as file:
        part = file.read(12_000_000).rpartition(b"\n")[0] + b"\n\n"
    found, source = [], model_source(MINILM)
    with tempfile.TemporaryDirectory() as place:
        more = os.environ | {"PRUNUS_CACHE": place, "TOKENIZERS_PARALLELISM": "true"}

        def peak(path: str) -> int:
            ran = subprocess.run([sys.executable, "-c", READ, source, path], env=more, capture_output=True, check=True)
            return int(ran.stdout) * 1024

        nothing = peak("")
        for copies in (1, 4, 16):
            path = Path(place) / f"{copies}.txt"
            path.write_bytes(part * copies)
            found.append({"text_bytes": len(part) * copies, "peak_bytes": peak(str(path)) - nothing})
            path.unlink()
    return found


def main() -> None:
    """Measures and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", choices=("memory", "speed"), help="measures this again, and keeps the other")
    options = parser.parse_args()
    quiet()
    torch.set_num_threads(THREADS)
    path = HERE / "results" / "language_model.json"
    result = json.loads(path.read_text(encoding="utf-8")) if options.only else {}
    result |= {
        "command": f"python benchmarks/language_model.py --text TEXT --rounds {options.rounds}",
        "text": options.text.name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": processor(),
        "threads": THREADS,
        "versions": versions(),
        "batch": [ROWS, TOKENS],
    }
    if options.only != "speed":
        result["memory"] = memory(options.text)
    if options.only != "memory":
        result["speed"] = speed(options.text, options.rounds)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
