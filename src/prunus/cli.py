"""The command line: ``prunus run | plan | eval | export | compact | bench | serve | report | convert | recipes | env``.

Facts go to standard output, as text or (``--json``) as one JSON object; progress and errors go to standard error. Exit
codes: 0 done, 2 a ``PrunusError`` (nothing was trained where it could be known), 130 stopped by Ctrl-C, 143 by
SIGTERM, 129 by SIGHUP.
"""

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.syntax import Syntax

from prunus._version import __version__
from prunus.cli_errors import console, errors, flush_output, in_utf8, print_json, tolerant
from prunus.cli_runtime import bench, compact, convert, engines_table, export, serve
from prunus.errors import CheckpointError, Problem, RecipeError
from prunus.paths import readable, writable
from prunus.signals import handling, stop

app = typer.Typer(
    name="prunus",
    help="Dense transformer in, sparse transformer out, with the evidence.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
recipes_app = typer.Typer(help="The recipes that come with prunus.", no_args_is_help=True)
app.add_typer(recipes_app, name="recipes")
app.command()(export)
app.command()(compact)
app.command()(bench)
app.command()(convert)
app.command()(serve)

out = console()
err = console(stderr=True)

Recipe_ = Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe (prunus recipes ls) or a YAML file.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any key, as train.epochs=3.")]
Model = Annotated[str | None, typer.Option(help="A directory, a Hub id, or minilm.")]
Data = Annotated[Path | None, typer.Option(help="Directory with the task's files.")]
TrainFile = Annotated[Path | None, typer.Option(help="Training file: JSON, JSONL, TSV, CSV, also .gz.")]
ValidationFile = Annotated[Path | None, typer.Option(help="Validation file.")]
Epochs = Annotated[float | None, typer.Option(help="Passes over the training data.")]
BatchSize = Annotated[int | None, typer.Option(help="Rows a step.")]
LearningRate = Annotated[float | None, typer.Option(help="Peak learning rate.")]
Seed = Annotated[int | None, typer.Option(help="Seed of everything random.")]
Sparsity = Annotated[float | None, typer.Option(help="Fraction of zeros in the targets, 0.8 and not 80.")]
Pattern = Annotated[str | None, typer.Option(help="4x1, 2:4, unstructured, rows, ...")]
Params = Annotated[float | None, typer.Option(help="Share of the layers' parameters that may stay, as 0.5.")]
Flops = Annotated[float | None, typer.Option(help="The same of their multiply-adds.")]
Latency = Annotated[float | None, typer.Option(help="The same of the time of the dense model, measured here.")]
AsJson = Annotated[bool, typer.Option("--json", help="Facts as one JSON object on standard output.")]


def _flags(**values: object) -> dict[str, Any]:
    """Dotted keys of the flags that were given."""
    given = {key.replace("__", "."): value for key, value in values.items() if value is not None}
    return {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}


def _budget(params: float | None, flops: float | None, latency: float | None) -> dict[str, float] | None:
    """The budget of the flags, which takes the place of the recipe's."""
    given = {"params": params, "flops": flops, "latency": latency}
    return {name: value for name, value in given.items() if value is not None} or None


@app.command()
def run(
    recipe: Recipe_,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="New directory; default runs/RECIPE.")] = None,
    model: Model = None,
    data: Data = None,
    train_file: TrainFile = None,
    validation_file: ValidationFile = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    learning_rate: LearningRate = None,
    seed: Seed = None,
    sparsity: Sparsity = None,
    pattern: Pattern = None,
    params: Params = None,
    flops: Flops = None,
    latency: Latency = None,
    set_: Set = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing output directory.")] = False,
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint in the output directory.")] = False,
    as_json: AsJson = False,
) -> None:
    """Trains what the recipe says and writes the model with its evidence."""
    with errors(err):
        from prunus.distributed.processes import is_main_process
        from prunus.progress import quiet
        from prunus.recipe import load_recipe
        from prunus.report.tables import summary_table
        from prunus.training.run import run as run_recipe

        quiet()
        flags = _flags(
            model__name=model,
            task__data=data,
            task__train=train_file,
            task__validation=validation_file,
            train__epochs=epochs,
            train__batch_size=batch_size,
            train__learning_rate=learning_rate,
            train__seed=seed,
            prune__sparsity=sparsity,
            prune__pattern=pattern,
            budget=_budget(params, flops, latency),
        )
        loaded = load_recipe(recipe, set_ or (), flags)
        directory = readable(output or Path(loaded.output or f"runs/{Path(recipe).stem}"), "output")
        command = shlex.join(["prunus", *sys.argv[1:]])
        facts = run_recipe(loaded, directory, command=command, overwrite=overwrite, resume=resume, console=err)
        if not is_main_process():
            return
        if as_json:
            print_json(facts.to_json())
        else:
            out.print(summary_table(facts))
            out.print(f"{directory}: model, prunus.json, report.html", highlight=False)


@app.command()
def plan(
    recipe: Recipe_,
    model: Model = None,
    data: Data = None,
    train_file: TrainFile = None,
    validation_file: ValidationFile = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    sparsity: Sparsity = None,
    pattern: Pattern = None,
    params: Params = None,
    flops: Flops = None,
    latency: Latency = None,
    set_: Set = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Every tensor and every mask update.")] = False,
    as_json: AsJson = False,
) -> None:
    """Says what run would do, and every mistake in the recipe at once; trains nothing."""
    with errors(err):
        from prunus.plan_view import plan_lines
        from prunus.progress import Bars, quiet
        from prunus.recipe import load_recipe
        from prunus.training.plan import plan_facts
        from prunus.training.prepare import prepare

        quiet()
        flags = _flags(
            model__name=model,
            task__data=data,
            task__train=train_file,
            task__validation=validation_file,
            train__epochs=epochs,
            train__batch_size=batch_size,
            prune__sparsity=sparsity,
            prune__pattern=pattern,
            budget=_budget(params, flops, latency),
        )
        with Bars(err) as bars:
            facts = plan_facts(prepare(load_recipe(recipe, set_ or (), flags), bars))
        if as_json:
            print_json(facts)
        else:
            for line in plan_lines(facts, verbose):
                out.print(line, highlight=False, markup=False)
            out.print("ok: nothing was trained", highlight=False)


@app.command(name="eval")
def evaluate(
    directory: Annotated[Path, typer.Argument(help="The output of a run.")],
    data: Data = None,
    validation_file: ValidationFile = None,
    backend: Annotated[
        list[str] | None, typer.Option(help="torch, openvino, onnxruntime or prunus; repeat for one table of several.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Loads a saved model as anyone would and measures it again: metrics, and zeros counted in the file."""
    with errors(err):
        from prunus.export.running import check_saved
        from prunus.progress import quiet
        from prunus.training.rescore import rescore

        quiet()
        directory = readable(directory, "directory")
        flags = _flags(data=data, validation=validation_file)
        if backend:
            from prunus.export.compare import compare

            facts = compare(directory, backend, flags, err)
            if as_json:
                print_json(facts)
                return
            held = facts["backends"]
            same = {name: one["same_answers"] for name, one in list(held.items())[1:]}
            scores = {name: one["metrics"] for name, one in held.items()}
            out.print(engines_table(scores, same, {name: one["bytes"] for name, one in held.items()}))
            return
        check_saved(directory)
        facts = rescore(directory, flags, err)
        if as_json:
            print_json(facts)
            return
        for name, value in facts["metrics"].items():
            out.print(f"{name:<22} {value:.4f}", highlight=False)
        out.print(f"{'sparsity of targets':<22} {facts['sparsity']:.6f}", highlight=False)
        out.print(f"{'sparsity of all':<22} {facts['sparsity_all']:.6f}", highlight=False)


@app.command()
def report(
    directory: Annotated[Path, typer.Argument(help="The output of a run.")],
    html: Annotated[Path | None, typer.Option(help="Write the page here instead of DIRECTORY/report.html.")] = None,
    as_json: AsJson = False,
) -> None:
    """Writes report.html again from a run's facts and prints its table; also of a run that is still going."""
    with errors(err):
        from prunus.report.facts import read_facts
        from prunus.report.html import render_html
        from prunus.report.tables import summary_table

        directory = readable(directory, "directory")
        facts = read_facts(directory)
        if facts.status != "finished" and facts.history is None:
            from prunus.training.jsonl_logger import LOG_FILE, read_log
            from prunus.training.run_facts import history

            facts = replace(facts, history=history(read_log(directory / LOG_FILE)))
        if as_json:
            print_json(facts.to_json())
            return
        path = writable(html or directory / "report.html", "--html")
        try:
            path.write_text(render_html(facts), encoding="utf-8")
        except OSError as error:
            raise CheckpointError(Problem(str(path), str(error), "be writable", "--html with another path")) from None
        out.print(summary_table(facts))
        if facts.status != "finished" and facts.history is not None and facts.history.loss:
            last = facts.history.loss[-1]
            out.print(f"{facts.status}: step {last['step']:,}, loss {last['loss']:.4g}", highlight=False)
        out.print(str(path), highlight=False)


@recipes_app.command("ls")
def recipes_ls(as_json: AsJson = False) -> None:
    """Lists them, with what each says of itself."""
    with errors(err):
        from prunus.recipe import SHIPPED, shipped_recipes

        first = {n: (SHIPPED / f"{n}.yaml").read_text(encoding="utf-8").partition("\n")[0] for n in shipped_recipes()}
        about = {name: line.lstrip("# ") for name, line in first.items()}
        if as_json:
            print_json(about)
            return
        width = max(map(len, shipped_recipes()))
        for name, line in about.items():
            out.print(f"{name:<{width}} {line}", highlight=False, markup=False)


def _shipped(name: str) -> str:
    from prunus.errors import nearest
    from prunus.recipe import SHIPPED, shipped_recipes

    if name not in shipped_recipes():
        raise RecipeError(Problem("recipe", name, "be a shipped recipe", nearest(name, shipped_recipes())))
    return (SHIPPED / f"{name}.yaml").read_text(encoding="utf-8")


@recipes_app.command("show")
def recipes_show(name: str, as_json: AsJson = False) -> None:
    """Prints one."""
    with errors(err):
        text = _shipped(name)
        if as_json:
            from prunus.yaml_text import parse_yaml

            print_json(parse_yaml(text, name))
        elif out.is_terminal:
            out.print(Syntax(text, "yaml", background_color="default", word_wrap=True))
        else:
            sys.stdout.write(text)


@recipes_app.command("cp")
def recipes_cp(name: str, target: Annotated[Path, typer.Argument()] = Path(".")) -> None:
    """Copies one to a file or a directory of your own, to edit it."""
    with errors(err):
        text = _shipped(name)
        target = writable(target, "target")
        path = target / f"{name}.yaml" if target.is_dir() else target
        if path.exists():
            raise CheckpointError(Problem("target", str(path), "not exist yet", "another name"))
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise CheckpointError(
                Problem("target", str(path), f"be writable ({error.strerror})", "another place")
            ) from None
        out.print(f"{path}: run it with prunus run {path}", highlight=False)


@recipes_app.command("schema")
def recipes_schema() -> None:
    """Prints a JSON Schema, by which an editor completes and checks a recipe."""
    with errors(err):
        from prunus.recipe_schema import json_schema

        print_json(json_schema())


@recipes_app.command("reference")
def recipes_reference() -> None:
    """Prints every key of a recipe with its default, its values and its meaning, in Markdown."""
    with errors(err):
        from prunus.recipe_schema import reference

        sys.stdout.write(reference())


@app.command()
def env(as_json: AsJson = False) -> None:
    """Versions and machine, for a bug report."""
    with errors(err):
        from prunus.environment import environment

        facts = environment()
        if as_json:
            print_json(facts)
            return
        for name, value in facts.items():
            out.print(f"{name:<14} {value}", highlight=False, markup=False)


def _version(asked: bool) -> None:
    if asked:
        out.print(__version__, highlight=False)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """The entry point of the console script."""
    in_utf8()
    tolerant()
    try:
        with handling(stop):
            app()
    finally:
        if "prunus.distributed.processes" in sys.modules:  # else nothing has started a group
            from prunus.distributed.processes import leave_process_group

            leave_process_group()
        flush_output()
