"""Parts of docs/results.md that ``table.py`` puts together: what a method does at equal budget."""

import json
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

RESULTS = Path(__file__).parent / "results"


def load(pattern: str) -> list[dict[str, Any]]:
    """The result files whose names match."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob(pattern))]


def cell(values: list[float]) -> str:
    """One value, or mean and range of several."""
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{mean(values):.4f} ({min(values):.4f} to {max(values):.4f})"


ONCE = {
    "dense": "dense",
    "direct-4x1-80": "4x1 80 %, pruned for the task",
    "once-4x1-80": "4x1 80 %, pruned once, locked",
    "once-4x1-80-int8": "the same, fine-tuned in 8 bits",
    "direct-85": "unstructured 85 %, pruned for the task",
    "once-85": "unstructured 85 %, pruned once, locked",
    "dense-long": "dense, trained on as long as the sparse rows, with their teacher",
    "after-4x1-80": "4x1 80 %, pruned for the task after dense fine-tuning",
    "after-85": "unstructured 85 %, pruned for the task after dense fine-tuning",
}
ONCE_METRICS = {
    "sst2": ("SST-2", "accuracy"),
    "mrpc": ("MRPC", "f1"),
    "cola": ("CoLA", "matthews"),
    "stsb": ("STS-B", "spearman"),
    "squad": ("SQuAD", "f1"),
}


def once_section() -> list[str]:
    """One sparse language model on all tasks, beside models pruned for each."""
    path = RESULTS / "once.json"
    if not path.is_file():
        return []
    result = json.loads(path.read_text(encoding="utf-8"))
    lines = ["## Prune once, five tasks", "", "The language models, on held-out text:", ""]
    lines += ["| model | sparsity | perplexity | accuracy | steps | hours |", "|---|---|---|---|---|---|"]
    for name, found in result["language_models"].items():
        metrics = found["metrics"]
        lines.append(
            f"| {name} | {found['sparsity']:.4f} | {metrics['perplexity']:.1f} | {metrics['accuracy']:.4f} | "
            f"{found['steps']} | {found['seconds'] / 3600:.1f} |"
        )
    some = result["language_models"]["teacher"]
    rows = f"{some['train']['batch_size']} rows of {some['task']['max_length']} tokens"
    lines += ["", f"Steps of {rows}; hours are those of a machine that did other work too.", ""]
    lines += ["Each task from part of its training data, means over seeds, and their range:", ""]
    lines += [f"| model | {' | '.join(f'{task}, {metric}' for task, metric in ONCE_METRICS.values())} | mean |"]
    lines += ["|---|" + "---|" * (len(ONCE_METRICS) + 1)]
    for row, words in ONCE.items():
        cells, means = [], []
        for task, (_, metric) in ONCE_METRICS.items():
            values = [r["metrics"][metric] for r in result["rows"] if r["row"] == row and r["task"] == task]
            cells.append(cell(values) if values else "")
            means += [mean(values)] if values else []
        average = f"{mean(means):.4f}" if len(means) == len(ONCE_METRICS) else ""
        lines.append(f"| {words} | {' | '.join(cells)} | {average} |")
    sizes = {r["task"]: (r["train_examples"], r["validation_examples"]) for r in result["rows"]}
    counts = ", ".join(f"{ONCE_METRICS[task][0]} {a:,} / {b:,}" for task, (a, b) in sizes.items())
    seeds = ", ".join(str(seed) for seed in sorted({r["seed"] for r in result["rows"]}))
    lines += ["", f"Examples to train on / to evaluate on: {counts}. Seeds {seeds}. Language models: one seed.", ""]
    return [*lines, f"{result['processor']}, {result['threads']} threads. `benchmarks/once.py`, `once.json`.", ""]


def language_model_section() -> list[str]:
    """What masked language modelling costs with masks and a teacher, and its memory."""
    path = RESULTS / "language_model.json"
    if not path.is_file():
        return []
    result = json.loads(path.read_text(encoding="utf-8"))
    rows, tokens = result["batch"]
    lines = ["## What a step of masked language modelling costs", ""]
    lines += [
        f"MiniLM, {rows} x {tokens} tokens, {result['processor']}, {result['threads']} threads, all in one run.",
        "",
    ]
    lines += ["| arm | tokens a second | time / plain |", "|---|---|---|"]
    for name, arm in result["speed"].items():
        lines.append(f"| {name} | {arm['tokens_per_second']:.0f} | {arm['time / plain']:.3f} |")
    peaks = ", ".join(f"{m['peak_bytes'] / 2**20:.0f} MiB for {m['text_bytes'] / 1e6:.0f} MB" for m in result["memory"])
    lines += ["", f"Peak memory of tokenising a text and reading rows of it, beyond the imports: {peaks}.", ""]
    return [*lines, "`benchmarks/language_model.py`, `benchmarks/results/language_model.json`.", ""]


LOSSES = {
    "CE": "labels",
    "KD": "labels and teacher",
    "prc": "and PrC",
    "fic": "and FiC",
    "snc": "and SnC",
    "all": "and all three",
}


def contrast_section() -> list[str]:
    """What contrastive terms add, with the difference to the same runs without them."""
    found = load("contrast.json")
    if not found:
        return []
    result = found[0]
    scores: dict[tuple[str, float, str], dict[int, float]] = defaultdict(dict)
    for row in result["rows"]:
        scores[row["task"], row["sparsity_asked"], row["loss"]][row["seed"]] = row["metrics"][
            ONCE_METRICS[row["task"]][1]
        ]
    tasks = list(dict.fromkeys(task for task, _, _ in scores))
    lines = [
        "## What contrastive terms add",
        "",
        "MiniLM, 4x1, equal epochs; mean and standard deviation over seeds:",
        "",
    ]
    for sparsity in sorted({sparsity for _, sparsity, _ in scores}):
        names = " | ".join(f"{ONCE_METRICS[task][0]}, {ONCE_METRICS[task][1]}" for task in tasks)
        lines += [f"| {sparsity:.0%} zeros | {names} |", "|---|" + "---|" * len(tasks)]
        for loss, words in LOSSES.items():
            cells = []
            for task in tasks:
                own, base = scores[task, sparsity, loss], scores[task, sparsity, "KD"]
                if not own:
                    cells.append("")
                    continue
                spread = f" +- {stdev(own.values()):.4f}" if len(own) > 1 else ""
                pairs = [own[seed] - base[seed] for seed in own if seed in base]
                gain = f" ({mean(pairs):+.4f})" if pairs and loss not in ("CE", "KD") else ""
                cells.append(f"{mean(own.values()):.4f}{spread}{gain}")
            lines.append(f"| {words} | {' | '.join(cells)} |")
        lines.append("")
    seeds = ", ".join(str(seed) for seed in sorted({row["seed"] for row in result["rows"]}))
    sizes = {row["task"]: (row["train_examples"], row["validation_examples"]) for row in result["rows"]}
    counts = ", ".join(f"{ONCE_METRICS[task][0]} {a:,} / {b:,}" for task, (a, b) in sizes.items())
    lines += [
        f"In brackets: the mean difference to labels and teacher, seed by seed. Seeds {seeds}. Examples: {counts}.",
        "",
    ]
    costs = load("contrast_cost.json")
    if costs:
        cost = costs[0]
        lines += [
            f"A step of {cost['batch']} sentences with all three terms takes {cost['ratio']:.3f} of one without. Banks of "
            f"{cost['examples']:,} examples with {cost['snapshots']} snapshots take {cost['bank_bytes'] / 2**20:.0f} MiB; a "
            f"pass that encodes them takes {cost['encoding_pass_seconds']:.1f} s.",
            "",
        ]
    return [*lines, "`benchmarks/contrast.py`, `contrast.json`, `contrast_cost.json`.", ""]
