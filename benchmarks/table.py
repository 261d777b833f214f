"""Writes docs/results.md from the result files: ``python benchmarks/table.py``.

Every figure in the page comes from a file in ``benchmarks/results/``; a row that was not run is not in the table.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from table_parts import (
    RESULTS,
    cell,
    contrast_section,
    language_model_section,
    load,
    once_section,
    scale_section,
    smaller_section,
)

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "results.md"
METRICS = {"sst2": ["accuracy"], "squad": ["f1", "exact_match"]}
ROWS = {
    "dense": "dense",
    "dense-long": "dense, trained as long as the sparse rows, with their teacher",
    "unstructured-80": "unstructured 80 %",
    "4x1-80": "4x1 80 %",
    "2to4": "2:4",
    "joint-dense": "dense, float32, the joint run's budget and teacher",
    "int8-unstructured-80": "unstructured 80 % (per norm) and int8, trained at once",
}


STARS = "; rows with a star under the bfloat16 autocast of their training, which moves a score by about 0.001"


def accuracy_section(task: str, title: str) -> list[str]:
    """The table of one task at one scale."""
    lines: list[str] = []
    for scale in ("full", "whole", "cpu"):
        found: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for result in load(f"{task}-*-{scale}.json"):
            found[result["row"]].append(result)
        if not found:
            continue
        some = next(iter(found.values()))[0]
        notes = "; ".join(some["notes"]) or f"All {some['train_examples']:,} training examples"
        tuned = [s for s in some["settings"] if s.startswith(("train.freeze", "train.precision", "task.max_length"))]
        epochs = {run["recipe"]["train"]["epochs"] for runs in found.values() for run in runs}
        if scale == "whole" and len(epochs) == 1:
            notes += f", {epochs.pop():g} epochs"
        part = ", part of the data" if scale == "cpu" and lines else ""
        lines += [f"## {title}{part}", "", f"{notes}. {', '.join(f'`{s}`' for s in tuned)}.".replace("..", ".")]
        coarse = {row for row, runs in found.items() if any("bfloat16" in run.get("evaluated", "") for run in runs)}
        lines += [
            f"Evaluated on the whole dev set ({some['validation_examples']:,}), in float32{STARS if coarse else ''}.",
            "",
        ]
        head = " | ".join(METRICS[task])
        lines += [f"| model | {head} | sparsity of the targets | of all weights | seeds | training, s |"]
        lines += ["|---|" + "---|" * (len(METRICS[task]) + 4)]
        for row, name in ROWS.items():
            if row not in found:
                continue
            runs = found[row]
            scores = " | ".join(cell([run["metrics"][metric] for run in runs]) for metric in METRICS[task])
            sparsity = f"{mean(run['sparsity'] for run in runs):.4f} | {mean(run['sparsity_all'] for run in runs):.4f}"
            seeds = ", ".join(str(run["seed"]) for run in runs)
            lines.append(
                f"| {name}{' *' if row in coarse else ''} | {scores} | {sparsity} | {seeds} | "
                f"{mean(r['training_seconds'] for r in runs):.0f} |"
            )
        lines += ["", _where(some), ""]
    return lines


def _where(result: dict[str, Any]) -> str:
    env = result["environment"]
    return (
        f"{env['cpu']}, {env['cores']} cores, {env['threads']} threads; torch {env['torch']}, transformers "
        f"{env['transformers']}, prunus {env['prunus']}. Seconds are those of a machine that did other work too. "
        "Each row: `benchmarks/accuracy.py`; the exact command is in its file."
    )


def peers_section() -> list[str]:
    """INC and prunus in one loop."""
    found = load("peer-sst2-*.json")
    if not found:
        return []
    lines = ["## Side by side with Intel Neural Compressor 2.6", ""]
    lines += [f"SST-2, MiniLM, 4x1 80 %, snip_momentum, one plain training loop for both. {found[0]['notes']}.", ""]
    lines += [
        "| engine | accuracy | sparsity | lowest and highest tensor | seed | training, s |",
        "|---|---|---|---|---|---|",
    ]
    for result in found:
        package = "neural-compressor" if result["engine"] == "inc" else "prunus"
        tensors = f"{result['tensors']['lowest']:.3f} to {result['tensors']['highest']:.3f}"
        lines.append(
            f"| {package} {result['versions'][package]} | {result['accuracy']:.4f} | {result['sparsity']:.6f} | {tensors} | "
            f"{result['seed']} | {result['training_seconds']:.0f} |"
        )
    return [*lines, "", "`benchmarks/peers/sst2_loop.py`.", ""]


def joint_section() -> list[str]:
    """Quantized runs on every engine, and NNCF beside prunus."""
    lines: list[str] = []
    exported = load("exported-*.json")
    if exported:
        lines += ["## Sparse and int8 at once, on every engine", ""]
        lines += ["Whole dev set of SST-2 (872 sentences); `benchmarks/exported.py` on runs of the tables above.", ""]
        lines += [
            "| run | torch | OpenVINO | ONNX Runtime | prunus | same answers | zeros in the files | products on bytes |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for result in exported:
            graphs = [result["openvino"], result["onnx"]]
            same = " / ".join(f"{graph['metrics']['agreement']:.4f}" for graph in graphs)
            zeros = " / ".join(f"{graph['weights']['sparsity']:.4f}" for graph in graphs)
            products = " / ".join(str(graph["products"]["int8"]) for graph in graphs)
            scores = [
                result["torch"],
                *(graph["metrics"]["file"] for graph in graphs),
                result["prunus"]["metrics"]["packed"],
            ]
            row = " | ".join(f"{score['accuracy']:.4f}" for score in scores)
            lines.append(f"| {result['name']} | {row} | {same} | {zeros} | {products} |")
        lines += ["", "Pairs are OpenVINO / ONNX Runtime. Every int8 weight in both files equals the one in torch.", ""]
        lines += ["On disk, in MiB, and after zlib (level 6); `prunus export --to archive`:", ""]
        lines += ["| run | weights | dense float32 | dense int8 | archive |", "|---|---|---|---|---|"]
        for result in exported:
            for part, words in (("pruned", "pruned"), ("all", "whole model")):
                sizes = result["archive"]["bytes"][part]
                cells = " | ".join(
                    f"{sizes[form][0] / 2**20:.2f}, {sizes[form][1] / 2**20:.2f}"
                    for form in ("float32", "int8", "archive")
                )
                lines.append(f"| {result['name']} | {words} | {cells} |")
        lines.append("")
    peers = load("peer-joint-*.json")
    if peers:
        some = peers[0]
        lines += ["## Side by side with NNCF", ""]
        lines += [
            f"SST-2, MiniLM, {some['rows'][0]:,} training sentences, {some['settings']['epochs']} epochs, one plain loop for "
            f"both: unstructured 80 % by normed magnitude, int8, the same teacher, batches and ramp. {some['notes']}.",
            "",
            "| engine | accuracy | sparsity | seed | training, s |",
            "|---|---|---|---|---|",
        ]
        for result in peers:
            version = result["versions"][result["engine"]]
            lines.append(
                f"| {result['engine']} {version} | {result['accuracy']:.4f} | {result['sparsity']:.4f} | {result['seed']} | "
                f"{result['training_seconds']:.0f} |"
            )
        lines += ["", "`benchmarks/peers/joint_loop.py`.", ""]
    return lines


def overhead_section() -> list[str]:
    """What pruning costs: a step, its memory, a mask update."""
    path = RESULTS / "overhead.json"
    if not path.is_file():
        return []
    result = json.loads(path.read_text(encoding="utf-8"))
    lines = ["## What a pruning step and a mask update cost", ""]
    lines += [f"{result['processor']}, {result['threads']} threads, all in one run on a quiet machine.", ""]
    if "training" in result:
        training = result["training"]
        rows, tokens = training["batch"]
        lines += [
            f"A training step of MiniLM, {rows} x {tokens} tokens, {training['steps']} steps of each, one mask update in "
        ]
        lines[-1] += f"{training['steps_between_updates']}; the plain step takes {training['plain_step_s']:.2f} s."
        lines += [
            "",
            "| rule | step / plain step | masks, bytes a weight | scores, bytes a weight |",
            "|---|---|---|---|",
        ]
        for name, arm in training["arms"].items():
            memory = arm["bytes_per_target_weight"]
            lines.append(f"| {name} | {arm['ratio']:.3f} | {memory['masks']:.2f} | {memory['scores']:.2f} |")
        lines.append("")
    if "updates" in result:
        lines += _updates(result["updates"])
    joint = load("joint_step.json")
    if joint:
        seconds, (rows, tokens) = joint[0]["seconds"], joint[0]["batch"]
        lines += [
            f"In the joint run ({joint[0]['weights'] / 1e6:.1f} M weights by normed magnitude, 8 bits, a teacher, {rows} x "
            f"{tokens} tokens) a step takes {seconds['step']:.2f} s, a mask update {1000 * seconds['update']:.0f} ms "
            f"({joint[0]['update / step']:.1%}), and dense weights behind the mask {1000 * seconds['apply']:.0f} ms a step "
            f"({joint[0]['apply / step']:.1%}); `benchmarks/joint_step.py`.",
            "",
        ]
    return [*lines, "`benchmarks/overhead.py`, `benchmarks/results/overhead.json`.", ""]


def _updates(updates: dict[str, Any]) -> list[str]:
    lines = [
        f"Seconds of a mask update of {updates['weights'] / 1e6:.0f} M random weights (BERT-large's encoder), best of two.",
        "",
    ]
    lines += ["| case | prunus | INC 2.6 | NNCF 3.4 |", "|---|---|---|---|"]
    nncf = updates["nncf"].get("cases", {})
    for name, case in updates["prunus"]["cases"].items():
        inc = updates["neural-compressor"].get(name, {})
        found = inc.get("cases", {}).get(name)
        other = nncf.get(f"{name} global")
        reason = inc.get("skipped", "")
        peer = f"{min(found['update_s']):.2f}" if found else reason if reason.startswith("not done") else "not measured"
        rival = (
            f"{min(other['update_s']):.2f}" if other else ("no such criterion or pattern" if nncf else "not measured")
        )
        lines.append(f"| {name} | {min(case['update_s']):.2f} | {peer} | {rival} |")
    return [*lines, ""]


def times_table(head: str, names: list[str], cases: dict[str, Any]) -> list[str]:
    """A row a name: ratio and milliseconds in each case; what took part in none has no row."""
    lines = [f"| {head} | {' | '.join(cases)} |", "|---|" + "---|" * len(cases)]
    for name in names:
        cells = [case.get(name) for case in cases.values()]
        texts = [f"{cell['ratio']:.2f} ({cell['ms']:.2f})" if cell else "" for cell in cells]
        if any(cells):
            lines.append(f"| {name} | {' | '.join(texts)} |")
    return lines


def runtime_section() -> list[str]:
    """The engines side by side, and how close the kernels come to the processor."""
    lines: list[str] = []
    path = RESULTS / "runtime.json"
    if path.is_file():
        result = json.loads(path.read_text(encoding="utf-8"))
        names = list(dict.fromkeys(n for r in result["results"].values() for case in r.values() for n in case))
        lines += ["## The CPU runtime beside other engines", ""]
        lines += [f"{result['processor']}, {result['isa']}. Each cell: {result['ratio']} (ms of one call).", ""]
        for title, cases in result["results"].items():
            lines += [f"### {title}", "", *times_table("engine", names, cases)]
            lines.append("")
        lines += [f"Versions: {', '.join(f'{n} {v}' for n, v in result['versions'].items())}.", ""]
        lines += ["`benchmarks/runtime.py`, `benchmarks/results/runtime.json`.", ""]
    path = RESULTS / "kernels.json"
    if path.is_file():
        result = json.loads(path.read_text(encoding="utf-8"))
        bounds = {name: f"{value / 1e9:.0f}" for name, value in result["bounds"].items()}
        lines += ["## How close the kernels come to the processor", ""]
        lines += [
            f"{result['processor']}, {result['isa']}, one thread, one tile of 64 tokens. Multiply-adds a second from registers "
            f"alone: bytes {bounds['peak']} G, bytes with the shuffles that mix four columns {bounds['mixed']} G, float32 "
            f"{bounds['float_peak']} G. A kernel's rate counts kept weights only.",
            "",
            "| kernel | outputs x inputs | kept | weights | us | G/s | of its bound |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in result["rows"]:
            shape = " x ".join(map(str, row["shape"]))
            lines.append(
                f"| {row['kernel']} | {shape} | {row['kept']:.0%} | {row['weights']} | {row['us']:.1f} | "
                f"{row['rate'] / 1e9:.0f} | {row['fraction']:.0%} |"
            )
        lines += ["", "`benchmarks/kernels.py`, `benchmarks/results/kernels.json`.", ""]
    return lines


def serving_section() -> list[str]:
    """The server under load, beside ONNX Runtime in the same server."""
    path = RESULTS / "serving.json"
    if not path.is_file():
        return []
    result = json.loads(path.read_text(encoding="utf-8"))
    size, texts = result["size"], result["texts"]
    lines = ["## The server under load", ""]
    lines += [
        f"{result['processor']}, {result['threads']} threads; {texts['lines']} texts of {texts['mean_characters']:.0f} "
        f"characters on average, {result['model']['architecture']}, {size['rounds']} interleaved rounds of "
        f"{size['seconds']:g} s. Clients share the processors with the server, for all alike. Medians over the rounds.",
        "",
        "| clients | engine behind the server | answers a second | p50, ms | p99, ms | answers a second / prunus |",
        "|---|---|---|---|---|---|",
    ]
    for clients, arms in result["summary"].items():
        for arm, found in arms.items():
            name = f"prunus {result['model']['precision']}" if arm == "prunus" else arm
            name = "onnxruntime float32" if arm == "onnxruntime" else name
            lines.append(
                f"| {clients} | {name} | {found['per_second']:.0f} | {found['p50_ms']:.1f} | {found['p99_ms']:.1f} | "
                f"{found['ratio']:.3f} |"
            )
    return [*lines, "", "`benchmarks/serving.py`, `benchmarks/results/serving.json`.", ""]


def export_section() -> list[str]:
    """Latency of exported files: zeros make them no faster."""
    path = RESULTS / "export_latency.json"
    if not path.is_file():
        return []
    result = json.loads(path.read_text(encoding="utf-8"))
    lines = [
        "## Exported files: OpenVINO and ONNX Runtime",
        "",
        f"{result['processor']}. Each cell: {result['ratio']} (ms).",
    ]
    for title, cases in result["results"].items():
        names = list(next(iter(cases.values())))
        lines += ["", f"### MiniLM classifier, {title}", "", *times_table("file", names, cases)]
    return [*lines, "", "`benchmarks/export_latency.py`, `benchmarks/results/export_latency.json`.", ""]


def page() -> str:
    """The whole page."""
    lines = ["# Results", "", "Made by `benchmarks/table.py` from the files in `benchmarks/results/`; do not edit.", ""]
    lines += accuracy_section("sst2", "SST-2, all-MiniLM-L6-v2")
    lines += accuracy_section("squad", "SQuAD v1.1, all-MiniLM-L6-v2")
    lines += (
        joint_section()
        + once_section()
        + language_model_section()
        + contrast_section()
        + smaller_section()
        + scale_section()
        + peers_section()
        + overhead_section()
        + runtime_section()
        + serving_section()
        + export_section()
    )
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Writes it."""
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE.relative_to(HERE.parent))


if __name__ == "__main__":
    main()
