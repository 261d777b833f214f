"""The verbs without training: ``prunus export | compact | bench | convert | serve``; ``cli`` puts them beside the others."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from prunus.cli_errors import console, errors, print_json
from prunus.errors import CheckpointError, MissingExtra, Problem, RecipeError, nearest
from prunus.paths import expanded, readable, writable

if TYPE_CHECKING:
    from prunus.export import Calibration

__all__ = ["bench", "compact", "convert", "export", "serve"]

out = console()
err = console(stderr=True)
WEIGHT_FORMATS = {
    "group_sparse_int8": "4x1 blocks, zeros skipped",
    "block_sparse_int8": "1x4 blocks, zeros skipped",
    "dense_int8x4": "dense: too few zeros, or not in blocks, to gain from",
    "group_sparse_float32": "groups of 4 outputs, zeros skipped",
    "sparse_float32": "single weights, zeros skipped",
}

TARGETS = ("prunus", "onnx", "openvino", "archive", "transformers")
"""What a model can be exported to."""

Directory = Annotated[Path, typer.Argument(help="A packed model: what prunus export wrote.")]
Threads = Annotated[
    int | None, typer.Option(help="Threads of the engine; default all processors, within the CPU quota.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Facts as one JSON object on standard output.")]


def export(
    directory: Annotated[
        Path, typer.Argument(help="The output of a run, a Hugging Face directory, or a Hub id in the cache.")
    ],
    to: Annotated[
        str, typer.Option(help="A runtime: prunus, onnx, openvino. Or archive, a small file; transformers undoes it.")
    ] = "prunus",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="New directory; default DIRECTORY-packed, -onnx, -openvino.")
    ] = None,
    precision: Annotated[str, typer.Option(help="int8 or float32.")] = "int8",
    texts: Annotated[Path | None, typer.Option(help="Calibrate int8 with these: one text a line.")] = None,
    samples: Annotated[int, typer.Option(help="Texts to calibrate with.")] = 128,
    data: Annotated[Path | None, typer.Option(help="Directory with the task's files, if not the run's own.")] = None,
    evaluate: Annotated[bool, typer.Option(help="Measure the metric before and after.")] = True,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing packed model.")] = False,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Packs a model for the CPU runtime, zeros left out; writes ONNX or OpenVINO IR; or makes it small on disk. What is written
    is read back and checked.
    """
    with errors(err):
        from prunus.export import Calibration, export_packed
        from prunus.progress import quiet

        if to not in TARGETS:
            raise RecipeError(Problem("--to", to, f"be one of {', '.join(TARGETS)}", nearest(to, TARGETS)))
        quiet()
        suffix = "packed" if to == "prunus" else to
        directory, place = found(directory, suffix)
        target = writable(output or place)
        if to in ("archive", "transformers"):
            archive(directory, target, to, overwrite, as_json)
            return
        calibration = Calibration(
            None if texts is None else expanded(texts, "--texts"),
            samples,
            data={} if data is None else {"data": str(data)},
        )
        if to != "prunus":
            export_to(directory, target, to, precision, calibration, evaluate, overwrite, as_json)
            return
        facts = export_packed(
            directory,
            target,
            precision,
            calibration,
            evaluate=evaluate,
            overwrite=overwrite,
            threads=threads,
            console=err,
        )
        if as_json:
            print_json(facts | {"output": str(target)})
            return
        formats: dict[str, list[float]] = {}
        for layer in facts["layers"]:
            formats.setdefault(layer["weight_format"], []).append(layer["sparsity"])
        for weight_format, zeros in formats.items():
            share = f"{min(zeros):.0%} to {max(zeros):.0%} zeros"
            out.print(
                f"{len(zeros)} layers as {weight_format} ({WEIGHT_FORMATS[weight_format]}), {share}", highlight=False
            )
        own, metrics, size = facts["precision"], facts.get("metrics"), facts["bytes"]
        own = own if own != "float32" else "packed"
        scores = {"float32": metrics["float32"], own: metrics["packed"]} if metrics else {}
        same = {own: metrics["agreement"]} if metrics else {}
        out.print(engines_table(scores, same, {"float32": size["dense"], own: size["packed"]}))
        for note in facts["notes"]:
            out.print(f"metric not measured: {note}", highlight=False, markup=False)
        out.print(f"{target}: load it with prunus.runtime.load", highlight=False)


def found(directory: Path, suffix: str) -> tuple[Path, Path]:
    """The directory that is meant, and the place of what is made of it where the user names none: ``DIRECTORY-SUFFIX``.

    A Hub id means the model's files in the cache; nothing is downloaded for a name that may be a mistyped path.
    """
    name, path = str(directory), readable(directory, "directory")
    if not path.exists() and not name.startswith((".", "/", "~")) and name.count("/") < 2:
        from prunus.models.hub import cached_snapshot

        snapshot = cached_snapshot(name)
        if snapshot is not None:
            return snapshot, Path(f"{path.name}-{suffix}")
    return path, path.with_name(f"{path.resolve().name}-{suffix}")


def engines_table(
    metrics: Mapping[str, Mapping[str, float]], same: Mapping[str, float], sizes: Mapping[str, int]
) -> Table:
    """A column for each engine: its metrics, how often it answers as the first does, bytes on disk."""
    names = list(dict.fromkeys([*metrics, *sizes]))
    table = Table("", *names, box=None, pad_edge=False)
    for row in next(iter(metrics.values()), {}):
        table.add_row(row, *(f"{metrics[name][row]:.4f}" if name in metrics else "" for name in names))
    if same:
        table.add_row("same answer", *(f"{same[name]:.4f}" if name in same else "" for name in names))
    table.add_row("size on disk", *(f"{sizes[name] / 2**20:.1f} MiB" if name in sizes else "" for name in names))
    return table


def archive(directory: Path, target: Path, to: str, overwrite: bool, as_json: bool) -> None:
    """A model's archive, or the model of an archive."""
    from prunus.export.archive import export_archive, restore_archive

    if to == "transformers":
        facts = restore_archive(directory, target, overwrite=overwrite, console=err)
        if as_json:
            print_json(facts | {"output": str(target)})
            return
        size = f"{facts['bytes'] / 2**20:.1f} MiB"
        out.print(f"{facts['tensors']} tensors as they were, {size}: {target}", highlight=False)
        return
    facts = export_archive(directory, target, overwrite=overwrite, console=err)
    if as_json:
        print_json(facts | {"output": str(target)})
        return
    parts = {"pruned": "pruned", "all": "whole"}
    table = Table("MiB", *(f"{words}{zipped}" for words in parts.values() for zipped in ("", ", zlib")), box=None)
    for row, words in (("float32", "dense float32"), ("int8", "dense int8"), ("archive", "archive")):
        held = [facts["bytes"][part].get(row) for part in parts]
        if any(held):
            cells = [f"{size / 2**20:.2f}" for pair in held for size in (pair or ())]
            table.add_row(words, *cells)
    out.print(table)
    out.print(f"read back, every tensor equal: {target}", highlight=False)


def export_to(
    directory: Path,
    target: Path,
    to: str,
    precision: str,
    calibration: "Calibration",
    evaluate: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """ONNX or OpenVINO IR."""
    from prunus.export.graph import export_graph

    facts = export_graph(
        directory, target, to, precision, calibration, evaluate=evaluate, overwrite=overwrite, console=err
    )
    if as_json:
        print_json(facts | {"output": str(target)})
        return
    products = facts["products"]
    words = f"{products['int8']} products on bytes, {products['float32']} in float; ranges: {facts['ranges']}"
    out.print(words, highlight=False)
    if facts.get("weights"):
        same = facts["weights"]
        out.print(f"{same['compared']} weights equal to torch's, {same['sparsity']:.4f} zeros", highlight=False)
    metrics = facts.get("metrics")
    scores = {"torch": metrics["torch"], to: metrics["file"]} if metrics else {}
    out.print(engines_table(scores, {to: metrics["agreement"]} if metrics else {}, {to: facts["bytes"]}))
    for note in facts["notes"]:
        out.print(note, highlight=False, markup=False)
    out.print(f"{target}", highlight=False)


def bench(
    directory: Annotated[
        Path, typer.Argument(help="The output of a run, a Hugging Face directory, or a Hub id in the cache.")
    ],
    engine: Annotated[list[str] | None, typer.Option(help="An engine, as 'openvino int8'; repeat for more.")] = None,
    case: Annotated[list[str] | None, typer.Option(metavar="BxT", help="Sequences x tokens, as 8x128.")] = None,
    texts: Annotated[Path | None, typer.Option(help="One text a line: for int8 ranges and mixed lengths.")] = None,
    rounds: Annotated[int, typer.Option(min=3, max=1000, help="Rounds in which all engines take turns.")] = 15,
    threads: Annotated[
        int | None, typer.Option(min=1, max=256, help="Of every engine; default 2, or 1 where there is no second.")
    ] = None,
    report: Annotated[bool, typer.Option(help="Write the figures into a run's facts and its report.html.")] = True,
    as_json: AsJson = False,
) -> None:
    """Times this runtime against PyTorch, ONNX Runtime and OpenVINO on this machine, side by side."""
    with errors(err):
        from prunus.bench.command import CASES
        from prunus.bench.command import bench as run_bench
        from prunus.progress import quiet
        from prunus.report.facts import FACTS_FILE
        from prunus.report.html import add_speed
        from prunus.runtime.processors import processors

        cases = [read_case(text) for text in case or ()] or list(CASES)
        quiet()
        directory = found(directory, "")[0]
        texts = None if texts is None else expanded(texts, "--texts")
        count = min(2, max(1, processors())) if threads is None else threads
        facts = run_bench(directory, engine or (), cases, count, rounds, texts, err)
        if as_json:
            print_json(facts)
        else:
            print_speed(facts)
        if report and (directory / FACTS_FILE).is_file():
            add_speed(directory, facts)
            err.print(f"{directory / 'report.html'}: with a plot of these", highlight=False)


def print_speed(facts: dict[str, Any]) -> None:
    """A table a case."""
    out.print(f"{facts['processor']}, {facts['threads']} threads, {facts['isa']}", highlight=False)
    for label, found in facts["cases"].items():
        table = Table(label, "ms", "x the time of prunus", "quartiles", box=None, pad_edge=False)
        for name, timing in found.items():
            low, high = timing["quartiles"]
            table.add_row(name, f"{timing['ms']:.3f}", f"{timing['ratio']:.2f}", f"{low:.2f} - {high:.2f}")
        out.print(table)
    for name, missing in facts["left out"].items():
        out.print(f"left out: {name} (pip install {' '.join(missing)})", highlight=False)


def compact(
    directory: Annotated[
        Path, typer.Argument(help="The output of a run, a Hugging Face directory, or a Hub id in the cache.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="New directory; default DIRECTORY-compact.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Takes the heads and neurons that do nothing out of a model, and checks that it gives the same."""
    with errors(err):
        from prunus.export.smaller import compact_directory

        directory, place = found(directory, "compact")
        place = writable(output or place)
        facts = compact_directory(directory, place, err)
        if as_json:
            print_json(facts)
            return
        table = Table("layer that reads them", "", "before", "left", box=None, pad_edge=False)
        for layer in facts["layers"]:
            table.add_row(layer["reader"], layer["kind"], f"{layer['before']:,}", f"{layer['after']:,}")
        out.print(table)
        for words, counts in (("parameters", facts["parameters"]), ("  of the layers", facts["encoder"])):
            share = counts["after"] / counts["before"]
            out.print(f"{words:<16}{counts['before']:,} -> {counts['after']:,}  ({share:.1%})", highlight=False)
        gap, size = facts["largest_difference"], facts["largest_output"]
        out.print(f"outputs differ by at most {gap:.1e}; the largest is {size:.3g}", highlight=False)
        out.print(f"{place}: AutoModel loads it after `import prunus`", highlight=False)


def convert(
    file: Annotated[Path, typer.Argument(help="nncf_config.json, or a pruning configuration of MCR.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A new YAML file; default the terminal.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Turns another tool's configuration into the recipe it means, and names what a recipe cannot say."""
    with errors(err):
        import yaml

        from prunus.converters import convert_file

        file = readable(file, "file")
        output = None if output is None else writable(output)
        found = convert_file(file)
        if as_json:
            print_json({"recipe": found.recipe, "lost": found.lost})
            return
        notes = [f"# not expressed: {line}" for line in found.lost]
        head = [f"# From {file.name}. Add model:, task:, train: and distill:, which it does not say.", *notes]
        words = "\n".join(head) + "\n" + yaml.safe_dump(found.recipe, sort_keys=False)
        if output is None:
            out.print(words, highlight=False, markup=False)
            return
        if output.exists():
            raise CheckpointError(Problem("--output", str(output), "be a new file", "another name"))
        output.write_text(words, encoding="utf-8")
        for line in notes:
            err.print(line.removeprefix("# "), highlight=False, markup=False)
        out.print(str(output), highlight=False)


def read_case(text: str) -> tuple[int, int]:
    """``8x128`` -> (8, 128)."""
    sequences, _, tokens = text.partition("x")
    if not (sequences.isdigit() and tokens.isdigit() and 0 < int(sequences) <= 4096 and 0 < int(tokens) <= 8192):
        raise RecipeError(Problem("--case", text, "be sequences x tokens, as 8x128", "8x128"))
    return int(sequences), int(tokens)


def serve(
    directory: Directory,
    host: Annotated[str, typer.Option(help="Address to listen on; others than loopback need a proxy.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 is any free one.")] = 8000,
    threads: Threads = None,
    isa: Annotated[str | None, typer.Option(help="Forces a path of instructions.")] = None,
    max_batch_tokens: Annotated[int, typer.Option(help="Tokens of one pass.")] = 4096,
    queue_tokens: Annotated[int, typer.Option(help="Tokens that may wait.")] = 65536,
    max_wait_ms: Annotated[float, typer.Option(help="How long a lone request waits for others.")] = 0.0,
    max_body_bytes: Annotated[int, typer.Option(help="Of a request.")] = 2**20,
    name: Annotated[str | None, typer.Option(help="Of the model, as clients see it.")] = None,
) -> None:
    """Serves a packed model over HTTP: embeddings, classes or answers."""
    with errors(err):
        try:
            from prunus.serving.command import serve as run_server
        except ModuleNotFoundError as error:
            fix = 'pip install "prunus[serve]"'
            raise MissingExtra(Problem("prunus serve", f"no package {error.name}", "have its packages", fix)) from None
        run_server(
            readable(directory, "directory"),
            host,
            port,
            threads,
            isa,
            max_batch_tokens,
            queue_tokens,
            max_wait_ms,
            max_body_bytes,
            name,
        )
