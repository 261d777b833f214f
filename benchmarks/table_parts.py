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
    "mrpc": ("MRPC", "accuracy"),  # f1 is 0.81 for the answer "yes" to all
    "cola": ("CoLA", "matthews"),
    "stsb": ("STS-B", "spearman"),
    "squad": ("SQuAD", "f1"),
}


def examples_and_seeds(rows: list[dict[str, Any]]) -> tuple[str, str]:
    """What stands below a table: examples to train on and to evaluate on, by task; and the seeds."""
    sizes = {row["task"]: (row["train_examples"], row["validation_examples"]) for row in rows}
    counts = ", ".join(f"{ONCE_METRICS[task][0]} {a:,} / {b:,}" for task, (a, b) in sizes.items())
    return counts, ", ".join(str(seed) for seed in sorted({row["seed"] for row in rows}))


def once_section() -> list[str]:
    """One sparse language model on all tasks, beside models pruned for each."""
    found = [
        *once_table("once.json", "### The encoder as it was"),
        *once_table("once_words.json", "### The encoder after it learnt masked words", EARLIER),
        *once_ways(),
    ]
    return ["## Prune once, five tasks", "", *found] if found else []


def once_values(result: dict[str, Any], row: str, task: str) -> list[float]:
    """The metric of a row on a task, one a seed."""
    return [r["metrics"][ONCE_METRICS[task][1]] for r in result["rows"] if (r["row"], r["task"]) == (row, task)]


EARLIER = "STS-B: before a new regression head began at the mean of its labels."
WAYS = {
    "magnitude": "magnitude in each tensor, hidden states teach",
    "snip": "SNIP momentum over all tensors, hidden states teach",
    "no_dropout": "the same without dropout, on the task, too",
}


def once_ways() -> list[str]:
    """What changes a short training of a sparse language model: one seed, two tasks."""
    found = {way: load(f"once_ways_{way}.json") for way in WAYS}
    files = {way: each[0] for way, each in found.items() if each}
    if not files:
        return []
    rows, tasks = ("once-4x1-80", "direct-4x1-80", "dense"), ("sst2", "stsb")
    columns = [f"{ONCE_METRICS[task][0]}, {ONCE[row]}" for task in tasks for row in rows]
    lines = [
        "### Ways to train it",
        "",
        f"| 4x1 80 % | steps | {' | '.join(columns)} |",
        "|---|---|" + "---|" * len(columns),
    ]
    for way, result in files.items():
        values = [once_values(result, row, task) for task in tasks for row in rows]
        cells = [cell(each) if each else "" for each in values]
        lines.append(f"| {WAYS[way]} | {result['language_models']['1x4-80']['steps']} | {' | '.join(cells)} |")
    counts, seeds = examples_and_seeds([row for result in files.values() for row in result["rows"]])
    some = next(iter(files.values()))
    lines += [
        "",
        f"Examples to train on / to evaluate on: {counts}. Seed {seeds}. {some['processor']}, threads: {some['threads']}.",
        "",
    ]
    return [*lines, f"{EARLIER} `benchmarks/once.py`, `once_ways_*.json`.", ""]


def once_table(file: str, title: str, note: str = "") -> list[str]:
    """The language models of one result file, and what became of them on each task."""
    found_files = load(file)
    if not found_files:
        return []
    result = found_files[0]
    lines = [title, "", "The language models, on held-out text:", ""]
    lines += ["| model | sparsity | perplexity | accuracy | steps |", "|---|---|---|---|---|"]
    for name, found in result["language_models"].items():
        metrics = found["metrics"]
        lines.append(
            f"| {name} | {found['sparsity']:.4f} | {metrics['perplexity']:.1f} | {metrics['accuracy']:.4f} | "
            f"{found['steps']} |"
        )
    some = result["language_models"]["teacher"]
    rows = f"{some['train']['batch_size']} rows of {some['task']['max_length']} tokens"
    lines += ["", f"Steps of {rows}.", ""]
    tasks = [task for task in ONCE_METRICS if any(row["task"] == task for row in result["rows"])]
    lines += ["Each task from part of its training data, means over seeds, and their range:", ""]
    lines += [f"| model | {' | '.join(', '.join(ONCE_METRICS[task]) for task in tasks)} | mean |"]
    lines += ["|---|" + "---|" * (len(tasks) + 1)]
    for row, words in ONCE.items():
        values = [once_values(result, row, task) for task in tasks]
        cells, means = [cell(each) if each else "" for each in values], [mean(each) for each in values if each]
        if not means:
            continue
        average = f"{mean(means):.4f}" if len(means) == len(tasks) else ""
        lines.append(f"| {words} | {' | '.join(cells)} | {average} |")
    counts, seeds = examples_and_seeds(result["rows"])
    lines += ["", f"Examples to train on / to evaluate on: {counts}. Seeds {seeds}. Language models: one seed.", ""]
    return [
        *lines,
        f"{note} {result['processor']}, threads: {result['threads']}. `benchmarks/once.py`, `{file}`.".lstrip(),
        "",
    ]


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
    "both": "and all three, each by label too",
}


def contrast_section() -> list[str]:
    """What contrastive terms add, with the difference to the same runs without them."""
    found = load("contrast.json")
    if not found:
        return []
    result = found[0]
    scores: dict[tuple[str, float, str], dict[int, float]] = defaultdict(dict)
    for row in result["rows"]:
        task, sparsity, seed = row["task"], row["sparsity_asked"], row["seed"]
        metric = ONCE_METRICS[task][1]
        scores[task, sparsity, row["loss"]][seed] = row["metrics"][metric]
        if row["dense"]:
            scores[task, sparsity, "dense"][seed] = row["dense"][metric]
    tasks = list(dict.fromkeys(task for task, _, _ in scores))
    all_seeds = {row["seed"] for row in result["rows"]}
    lines = [
        "## What contrastive terms add",
        "",
        "MiniLM, 4x1, equal epochs; mean and standard deviation over seeds. The terms are the unsupervised ones (positives are",
        "the same example), 0.1 each:",
        "",
    ]
    for sparsity in sorted({sparsity for _, sparsity, _ in scores}):
        names = " | ".join(f"{ONCE_METRICS[task][0]}, {ONCE_METRICS[task][1]}" for task in tasks)
        lines += [f"| {sparsity:.0%} zeros | {names} |", "|---|" + "---|" * len(tasks)]
        for loss, words in ({"dense": "dense, which they start from"} | LOSSES).items():
            cells = []
            for task in tasks:
                own, base = scores[task, sparsity, loss], scores[task, sparsity, "KD"]
                if not own:
                    cells.append("")
                    continue
                spread = f" +- {stdev(own.values()):.4f}" if len(own) > 1 else ""
                pairs = [own[seed] - base[seed] for seed in own if seed in base]
                gain = ""
                if pairs and loss not in ("dense", "CE", "KD"):
                    gain = f" ({mean(pairs):+.3f}: {min(pairs):+.3f} to {max(pairs):+.3f})"
                fewer = "" if own.keys() == all_seeds else f", {len(own)} of {len(all_seeds)} seeds"
                cells.append(f"{mean(own.values()):.4f}{spread}{gain}{fewer}")
            lines.append(f"| {words} | {' | '.join(cells)} |")
        lines.append("")
    counts, seeds = examples_and_seeds(result["rows"])
    lines += [
        f"In brackets: the difference to labels and teacher with the same seed, its mean and its range. Seeds {seeds}. "
        f"Examples: {counts}.",
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


SMALLER = {
    "dense": "dense",
    "dense-long": "dense, trained on as long, with the same teacher",
    "params 0.5": "`--params 0.5`",
    "latency 0.5": "`--latency 0.5`",
}


def smaller_section() -> list[str]:
    """Half of the parameters and half of the time: the metric, and the time on every runtime."""
    found = load("smaller.json")
    if not found:
        return []
    result = found[0]
    tasks = list(dict.fromkeys(row["task"] for row in result["rows"]))
    names = " | ".join(f"{ONCE_METRICS[task][0]}, {ONCE_METRICS[task][1]}" for task in tasks)
    lines = [
        "## Smaller models",
        "",
        f"| MiniLM | {names} | left of the parameters outside embeddings and head |",
        "|---|" + "---|" * (len(tasks) + 1),
    ]
    for row, words in SMALLER.items():
        own = [r for r in result["rows"] if r["row"] == row]
        cells = []
        for task in tasks:
            metric = ONCE_METRICS[task][1]
            values = [r.get("metrics_compacted", r["metrics"])[metric] for r in own if r["task"] == task]
            cells.append(cell(values) if values else "")
        counts = [r["compacted"]["encoder"] for r in own if "compacted" in r]
        left = cell([count["after"] / count["before"] for count in counts]) if counts else "1"
        lines.append(f"| {words} | {' | '.join(cells)} | {left} |")
    counts, seeds = examples_and_seeds(result["rows"])
    lines += ["", f"Means over seeds {seeds} and their range; compacted models, loaded again. Examples: {counts}.", ""]
    if "timings" in result:
        cases = [case for case in result["timings"] if case not in ("command", "threads")]
        engines = list(result["timings"][cases[0]])
        threads = result["timings"]["threads"]
        lines += [
            "Time of a model / time of the dense one on the same runtime (ms of one call), float32, all in one run, "
            f"threads: {threads}.",
            "",
            f"| runtime, model | {' | '.join(cases)} |",
            "|---|" + "---|" * len(cases),
        ]
        for engine in engines:
            for name in result["timings"][cases[0]][engine]:
                found = [result["timings"][case][engine][name] for case in cases]
                cells = [f"{each['ratio']:.2f} ({each['ms']:.2f})" for each in found]
                lines.append(f"| {engine.removesuffix(' float32')}, {name} | {' | '.join(cells)} |")
        lines.append("")
    peers = load("peer-smaller-*.json")
    if peers:
        lines += ["Beside Torch-Pruning in one plain loop (`benchmarks/peers/smaller_loop.py`), SST-2:", ""]
        lines += ["| engine | accuracy | of the dense | parameters of the layers left |", "|---|---|---|---|"]
        for engine in dict.fromkeys(peer["engine"] for peer in peers):
            own = [peer for peer in peers if peer["engine"] == engine]
            columns = [cell([peer[key] for peer in own]) for key in ("accuracy", "dense", "layer_parameters")]
            lines.append(f"| {engine} | {' | '.join(columns)} |")
        lines.append("")
    return [
        *lines,
        f"{result['processor']}; trained with {result['threads']} threads. `benchmarks/smaller.py`, `smaller.json`.",
        "",
    ]


def scale_section() -> list[str]:
    """Cost against size and processes; kills; damaged files."""
    lines: list[str] = []
    for result in load("scaling.json"):
        lines += ["## Cost of masks against size", "", "A mask update, global selection at 80 %:", ""]
        lines += [
            "| rule | weights (M) | processes | seconds | seconds a 100 M weights | memory a weight beyond it (bytes) |"
        ]
        lines += ["|---|---|---|---|---|---|"]
        for row in (row for row in result["rows"] if row["part"] == "update"):
            start = f"| {row['rule']} | {row['millions']} | {row['processes']} |"
            if "failed" in row:
                lines.append(f"{start} does not fit | | |")
                continue
            each = row["weights"] / 1e8
            held = row["more_bytes"] / row["weights"] * row["processes"]
            lines.append(f"{start} {row['seconds']:.2f} | {row['seconds'] / each:.2f} | {held:.1f} |")
        lines += ["", "A training step of 256 tokens, masks updated in every tenth:", ""]
        lines += ["| rule | weights (M) | time / plain |", "|---|---|---|"]
        for row in (row for row in result["rows"] if row["part"] == "step" and "ratio" in row):
            lines.append(f"| {row['rule']} | {row['millions']} | {row['ratio']:.3f} |")
        lines += ["", f"{result['processor']}. `benchmarks/scaling.py`, `scaling.json`.", ""]
    for result in load("kills.json"):
        lines += [
            "## Kills",
            "",
            "| kind of run | kills | runs | cannot resume | other masks | other weights |",
            "|---|---|---|---|---|---|",
        ]
        for kind, found in result["kinds"].items():
            counts = " | ".join(
                str(found[key]) for key in ("kills", "runs", "not resumed", "other masks", "other weights")
            )
            lines.append(f"| {kind} | {counts} |")
        lines += ["", "SIGKILL at a random moment of a run, or of its resumption. `make test-kill`, `kills.json`.", ""]
    for result in load("fuzz.json"):
        lines += [
            "## Damaged files",
            "",
            "| reader | inputs | refused | findings | most memory gained (MiB) |",
            "|---|---|---|---|---|",
        ]
        for reader, found in result["mutate"].items():
            gained = found["peak_growth_bytes"] / 2**20
            lines.append(
                f"| {reader} | {found['inputs']:,} | {found['refused']:,} | {found['findings']} | {gained:.0f} |"
            )
        lines += [
            "",
            "A finding is an error that is not one of prunus', more than 5 seconds, or more than 512 MiB.",
            "",
        ]
        if "atheris" in result:
            runs = ", ".join(f"{name} {found['inputs']:,}" for name, found in result["atheris"].items())
            total = sum(found["findings"] for found in result["atheris"].values())
            lines += [f"Guided by coverage (atheris): {runs} inputs; findings {total}.", ""]
        lines += ["`make fuzz`, `fuzz.json`.", ""]
    return lines
