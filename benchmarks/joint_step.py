"""What a mask update costs in the joint run: MiniLM, unstructured 80 % by normed magnitude, in 8 bits, with a teacher.

    python benchmarks/joint_step.py [--rounds 7]

A step is forward and backward of the quantized student, forward of the teacher, and AdamW, on 32 x 128 random tokens under
bfloat16 autocast, embeddings frozen. An update selects again among all 10.6 M weights of the encoder; ``apply`` is what every
step pays for keeping the dense weights behind the mask. Medians of rounds in which the parts take turns; nothing else runs.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from transformers import AutoModelForSequenceClassification

from headers import header
from prunus import Allocation, Masker, Pruning, Schedule, Span
from prunus.models.loading import MINILM, model_source
from prunus.progress import quiet
from prunus.quantization import Quantization, quantize

HERE = Path(__file__).parent
ROWS, TOKENS, THREADS = 32, 128, 2


def main() -> None:
    """Measures and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    quiet()
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    student, teacher = (AutoModelForSequenceClassification.from_pretrained(model_source(MINILM)) for _ in range(2))
    batch = {
        "input_ids": torch.randint(1000, 20_000, (ROWS, TOKENS)),
        "attention_mask": torch.ones(ROWS, TOKENS).long(),
    }
    quantize(student, Quantization(), [batch])
    for name, parameter in student.named_parameters():
        parameter.requires_grad_("embeddings" not in name)
    schedule = Schedule("constant", Span(0), Span(10_000), Span(1))
    pruning = Pruning(0.8, "unstructured", "magnitude", schedule, Allocation("global", "normed", 1.0), revive=True)
    masker = Masker(student, pruning, 10_000)
    optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=1e-4)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            logits = student.train()(**batch).logits
            with torch.no_grad():
                taught = teacher.eval()(**batch).logits
        (logits.float() - taught.float()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    def update() -> None:
        masker._update(student, masker.rules[0])

    def apply() -> None:
        masker._absorb(student)
        masker.apply(student)

    parts: dict[str, Callable[[], None]] = {"step": step, "update": update, "apply": apply}
    times: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(options.rounds + 1):
        for name, part in parts.items():
            began = time.perf_counter()
            part()
            times[name].append(time.perf_counter() - began)
    seconds = {name: median(each[1:]) for name, each in times.items()}  # the first round warms up
    result = {
        **header(f"python benchmarks/joint_step.py --rounds {options.rounds}", threads=THREADS),
        "batch": [ROWS, TOKENS],
        "weights": sum(rule.selection.weights for rule in masker.rules),
        "seconds": seconds,
        "update / step": seconds["update"] / seconds["step"],
        "apply / step": seconds["apply"] / seconds["step"],
    }
    (HERE / "results" / "joint_step.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
