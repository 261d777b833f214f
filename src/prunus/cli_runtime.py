"""The verbs that need no training: ``prunus export | bench | serve``; ``cli`` puts them beside the others."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from prunus.cli_errors import errors, print_json
from prunus.errors import Problem, RecipeError

__all__ = ["export"]

out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True)
WORDS = {
    "gather": "4x1 blocks, zeros skipped",
    "blocks": "1x4 blocks, zeros skipped",
    "quads": "dense: too few zeros, or not in blocks, to gain from",
    "columns": "groups of 4 outputs, zeros skipped",
    "singles": "single weights, zeros skipped",
}

Directory = Annotated[Path, typer.Argument(help="A packed model: what prunus export wrote.")]
Threads = Annotated[int | None, typer.Option(help="Threads of the engine; default all processors.")]
AsJson = Annotated[bool, typer.Option("--json", help="Facts as one JSON object on standard output.")]


def export(
    directory: Annotated[Path, typer.Argument(help="The output of a run, or any Hugging Face directory.")],
    to: Annotated[str, typer.Option(help="For which runtime: prunus.")] = "prunus",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="New directory; default DIRECTORY-packed.")
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
    """Packs a model for the CPU runtime: int8 or float32, zeros left out."""
    with errors(err):
        from prunus.export import Calibration, export_packed
        from prunus.training.quiet import quiet

        if to != "prunus":
            raise RecipeError(Problem("--to", to, "be prunus", "prunus"))
        quiet()
        target = output or directory.with_name(directory.resolve().name + "-packed")
        calibration = Calibration(texts, samples, data={} if data is None else {"data": str(data)})
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
        kinds: dict[str, list[float]] = {}
        for layer in facts["layers"]:
            kinds.setdefault(layer["kind"], []).append(layer["sparsity"])
        for kind, zeros in kinds.items():
            share = f"{min(zeros):.0%} to {max(zeros):.0%} zeros"
            out.print(f"{len(zeros)} layers as {kind} ({WORDS[kind]}), {share}", highlight=False)
        table = Table("", "float32", facts["precision"], box=None, pad_edge=False)
        metrics = facts.get("metrics")
        if metrics:
            for name, value in metrics["float32"].items():
                table.add_row(name, f"{value:.4f}", f"{metrics['packed'][name]:.4f}")
            table.add_row("same answer", "", f"{metrics['agreement']:.4f}")
        size = facts["bytes"]
        table.add_row("size on disk", f"{size['dense'] / 2**20:.1f} MiB", f"{size['packed'] / 2**20:.1f} MiB")
        out.print(table)
        for note in facts["notes"]:
            out.print(f"metric not measured: {note}", highlight=False, markup=False)
        out.print(f"{target}: load it with prunus.runtime.load", highlight=False)
