"""A run: a recipe in, an output directory out.

    prepare      data, shapes, every mistake            nothing is trained before this is through
    dense        fine-tuned, or kept, where the recipe needs it; scored
    sparse       trained with masks and teacher; counted; scored
    save         model, masks, facts, report, card      beside the output and renamed

The directory is that of a plain Hugging Face model (``AutoModelFor....from_pretrained`` needs no prunus), with
``prunus.json``, ``masks.safetensors``, ``report.html`` and ``README.md`` beside it.
"""

import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from transformers import PreTrainedModel, set_seed

from prunus._version import __version__
from prunus.checkpoint.sentence_files import find_sentence_files
from prunus.checkpoint.staged import staged
from prunus.checkpoint.state import MASKS_FILE, RANGES_FILE, write_masks, write_tensors
from prunus.distributed.processes import barrier, is_main_process
from prunus.environment import environment
from prunus.errors import CheckpointError, Problem, PrunusError
from prunus.models.loading import base_model, carry_over, config_for, load_model, trained_for
from prunus.models.predict import score_task
from prunus.paths import expanded, readable, writable
from prunus.progress import Bars
from prunus.quantization import quantize, strip
from prunus.recipe import OWN_TEACHERS, Recipe
from prunus.report.card import model_card
from prunus.report.facts import FACTS_FILE, read_facts, write_facts
from prunus.report.html import render_html
from prunus.sparsity.measure import measure
from prunus.tasks.base import Metrics
from prunus.tasks.collate import TOKEN_KEYS, Collate
from prunus.training.budgeted import timed_again
from prunus.training.dense import dense_model
from prunus.training.evidence import history, recipe_facts, size_on_disk, task_facts, tensor_facts, weight_facts
from prunus.training.fit import Fit, drop_checkpoints, fit
from prunus.training.prepare import Prepared, prepare, saved_masks
from prunus.training.shape import cut

__all__ = ["run", "score_model"]

_SAMPLES: Final = 64
"""Training examples that say which layers matter."""
_NO_SPEED: Final = "speed: this run measured none; zeros alone make no file smaller and no stock runtime faster"


def check_output(directory: Path, overwrite: bool, resume: bool) -> None:
    """``CheckpointError`` where the output must not be written.

    It is there already, or is to be resumed and is not, or is to be overwritten and is not that of a run.
    """
    writable(directory, "output")
    if resume and not directory.is_dir():
        raise CheckpointError(Problem("output", str(directory), "exist to be resumed", "a run without --resume"))
    if directory.exists() and not directory.is_dir():
        raise CheckpointError(Problem("output", str(directory), "be a directory", "another --output"))
    if not directory.is_dir() or not any(directory.iterdir()):
        return
    if resume:
        if not (directory / FACTS_FILE).is_file():
            rule = f"hold the {FACTS_FILE} of the run that is to go on"
            raise CheckpointError(Problem("output", str(directory), rule, "the directory of that run"))
        return
    if not overwrite:
        fix = "--overwrite, --resume, or another --output"
        raise CheckpointError(Problem("output", str(directory), "be empty or new, so that nothing is lost", fix))
    if not (directory / FACTS_FILE).is_file():
        rule = f"hold the {FACTS_FILE} of an earlier run, which --overwrite then removes"
        raise CheckpointError(Problem("output", str(directory), rule, "another --output"))


def _check_inputs(prepared: Prepared, output: Path) -> None:
    """``CheckpointError`` where removing ``output`` would remove what the run reads."""
    task = prepared.recipe.task
    for read in (
        prepared.source,
        prepared.dense_source,
        *(teacher for teacher in prepared.teachers.values() if teacher not in OWN_TEACHERS),
        task.train,
        task.validation,
        task.data,
    ):
        if read is not None and expanded(read, "output").resolve().is_relative_to(output.resolve()):
            raise CheckpointError(
                Problem("output", str(output), f"not hold {read}, which the run reads", "another one")
            )


def score_model(model: PreTrainedModel, prepared: Prepared, bars: Bars, what: str) -> Metrics:
    """The task's official metrics of ``model`` on the whole validation split."""
    batch = prepared.recipe.train.eval_batch_size
    return score_task(model, prepared.task, prepared.tokenizer, batch, bars, what)


def run(
    recipe: Recipe,
    output: Path,
    *,
    command: str = "",
    overwrite: bool = False,
    resume: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Runs ``recipe`` into ``output`` and returns the facts that ``output / "prunus.json"`` holds.

    With ``resume`` a run that was stopped or killed at any moment goes on: from its last whole checkpoint, from the beginning
    where there is none yet; one that is finished is left as it is. Raises ``PrunusError`` before any training for all that can
    be known then, and ``Interrupted`` after Ctrl-C.
    """
    console = console if is_main_process() else None
    output = readable(output, "output")
    if is_main_process():
        check_output(output, overwrite, resume)
    barrier()
    held = read_facts(output) if resume and (output / FACTS_FILE).is_file() else {}

    def say(text: str) -> None:
        if console is not None:
            console.print(text, highlight=False, soft_wrap=True)

    if held.get("status") == "finished":
        say(f"{output} is finished: nothing to go on with")
        return held
    with Bars(console) as bars:
        prepared = prepare(recipe, bars, held.get("budget"))
        recipe = prepared.recipe
        if overwrite and not resume and output.is_dir() and is_main_process():
            _check_inputs(prepared, output)
            shutil.rmtree(output.resolve())  # of a link its target is emptied, and the link stays
            output.resolve().mkdir()
        barrier()
        output.mkdir(parents=True, exist_ok=True)
        collate = Collate(prepared.tokenizer)
        facts: dict[str, Any] = {
            "prunus": __version__,
            "status": "running",
            "command": command,
            "recipe": recipe_facts(recipe),
            "model": {
                "name": recipe.model.name,
                "base_model": base_model(recipe.model.name),
                "architecture": type(prepared.skeleton).__name__,
                "parameters": prepared.parameters,
            },
            "task": task_facts(prepared.task),
            "environment": environment(recipe.train.threads),
            "seed": recipe.train.seed,
            **({"budget": prepared.budget} if prepared.budget else {}),
            "not_measured": [_NO_SPEED],
            "warnings": [],
        }
        _write(output, facts)
        patterns = {name: rule.pattern for rule in prepared.rules for name in rule.selection.taken}
        try:
            dense, teachers, starting = _dense(prepared, collate, bars, facts, say)
            set_seed(recipe.train.seed)
            model = starting or _start(prepared)
            shape = cut(model, recipe.model, lambda: samples(prepared, collate, _SAMPLES))
            if shape:
                facts["shape"] = shape
            if dense is not None:
                facts["dense"] |= weight_facts(dense, measure(dense, patterns), facts["dense"].get("metrics"))
            if recipe.quantize is not None:
                names = quantize(model, recipe.quantize, samples(prepared, collate, recipe.quantize.samples))
                facts["quantization"] = {"layers": names, **asdict(recipe.quantize)}
            result = fit(
                model,
                prepared.train_features,
                collate,
                recipe.train,
                prepared.length,
                output,
                bars=bars,
                head=prepared.task.head,
                what="sparse training" if recipe.prune else "training",
                pruning=recipe.prune,
                masks=saved_masks(recipe, prepared.source),
                teachers=teachers,
                distillation=recipe.distill,
                pretrained=_pretrained(prepared),
                score=lambda trained: score_model(trained, prepared, bars, "evaluating"),
                metric=prepared.task.metric,
                resume=resume,
                logged=True,
            )
            facts["warnings"] += result.warnings
            if result.banks is not None:
                facts["banks"] = result.banks
            if result.best_step is not None:
                facts["best_step"] = result.best_step
            metrics = score_model(model, prepared, bars, "evaluating")
        except (KeyboardInterrupt, PrunusError) as error:
            status = "failed" if isinstance(error, PrunusError) else "interrupted"
            _write(output, facts | {"status": status})
            raise
        _finish(prepared, model, result, metrics, facts, output)
    return facts


def _write(output: Path, facts: dict[str, Any]) -> None:
    if is_main_process():
        write_facts(output / FACTS_FILE, facts)


def samples(prepared: Prepared, collate: Collate, count: int) -> list[dict[str, Any]]:
    """Batches of training examples, spread evenly over the data, as the model takes them."""
    features, size = prepared.train_features, prepared.recipe.train.batch_size
    count = min(count, len(features))
    chosen = [features[i * len(features) // count] for i in range(count)]
    batches = [collate(chosen[i : i + size]) for i in range(0, count, size)]
    return [{name: value for name, value in batch.items() if name in TOKEN_KEYS} for batch in batches]


def _dense(
    prepared: Prepared, collate: Collate, bars: Bars, facts: dict[str, Any], say: Callable[[str], None]
) -> tuple[PreTrainedModel | None, list[PreTrainedModel], PreTrainedModel | None]:
    """The model of the dense column, the teachers, and the model that training starts from (None: from ``source``)."""
    recipe, head = prepared.recipe, prepared.task.head
    dense = starting = None
    if recipe.needs_dense:
        kept = dense_model(prepared, collate, bars, say)
        facts["dense"] = {"seconds": kept.seconds, "cached": kept.cached, "bytes": kept.bytes}
        dense = kept.model
    elif recipe.prune and trained_for(prepared.config, head):
        dense = _start(prepared)
        facts["dense"] = {"seconds": None, "cached": False, "bytes": size_on_disk(Path(prepared.source)) or None}
    if dense is not None:
        if recipe.evaluate_dense:
            facts["dense"]["metrics"] = score_model(dense, prepared, bars, "evaluating the dense model")
        else:
            facts["not_measured"].append("the dense model's metrics: evaluate_dense is false")
    teachers = []
    for key, teacher in prepared.teachers.items():
        if teacher == "dense" and dense is not None:
            teachers.append(dense)
        elif teacher == "start":
            teachers.append(_start(prepared))
        else:
            teachers.append(_teacher(prepared, teacher, key))
    if recipe.starts_dense and dense is not None:
        starting = deepcopy(dense)
    return dense, teachers, starting


def _start(prepared: Prepared) -> PreTrainedModel:
    """The model of ``source``: as training begins, where it does not begin with the dense one."""
    recipe, rows = prepared.recipe, prepared.train_features
    new = recipe.model.head == "new"
    return load_model(prepared.source, prepared.config, prepared.task.head, recipe.model.revision, rows, new_head=new)


def _teacher(prepared: Prepared, source: str, key: str) -> PreTrainedModel:
    """A teacher that was fine-tuned before."""
    config = config_for(source, prepared.task, key=key, tokenizer=prepared.tokenizer)
    return load_model(source, config, prepared.task.head)


def _pretrained(prepared: Prepared) -> PreTrainedModel | None:
    """The model before the task, where training starts from another and PrC asks for it."""
    recipe = prepared.recipe
    if recipe.distill is None or "prc" not in recipe.distill.contrast.terms or not recipe.starts_dense:
        return None
    return _start(prepared)


def _finish(
    prepared: Prepared, model: PreTrainedModel, result: Fit, metrics: Metrics, facts: dict[str, Any], output: Path
) -> None:
    """Counts, writes everything beside the output and moves it there, the facts last."""
    if not is_main_process():
        barrier()
        return
    with staged(output, FACTS_FILE) as partial:
        column = "sparse" if prepared.recipe.prune else "dense"
        masker = result.callback.masker if result.callback is not None else None
        tensors = result.callback.facts if result.callback is not None else []
        ranges = strip(model)
        if ranges:
            write_tensors(partial / RANGES_FILE, ranges)
            if masker is not None:
                tensors = masker.measure(model)  # rounding to 8 bits made some more of them zero
        model.save_pretrained(partial)
        if prepared.task.head == "masked-language":
            carry_over(prepared.source, partial, model.base_model_prefix)
        prepared.tokenizer.save_pretrained(partial)
        sentences = find_sentence_files(Path(prepared.source)) if Path(prepared.source).is_dir() else None
        if sentences is not None:
            sentences.copy(partial)  # the output makes embeddings as its source does
        facts[column] = weight_facts(model, tensors, metrics) | {
            "seconds": result.seconds,
            "bytes": size_on_disk(partial),
        }
        if masker is not None:
            write_masks(partial / MASKS_FILE, masker.masks)
            facts["tensors"] = tensor_facts(tensors, masker)
            facts["target_sparsity"] = masker.due()
            facts["skipped"] = [
                {"name": name, "shape": list(shape), "reason": reason}
                for selection in masker.selections
                for name, (shape, reason) in selection.skipped.items()
            ]
        if prepared.budget.get("measure") == "latency":
            try:
                facts["budget"] = timed_again(model, prepared.config, prepared.task.head, prepared.budget)
                facts["not_measured"].remove(_NO_SPEED)
            except PrunusError as error:  # nothing of the training is lost for it
                facts["warnings"].append(f"the result could not be compacted and timed: {error}")
        facts["history"] = history(result.history)
        _add_ends(facts["history"]["metrics"], facts, column, prepared)
        facts["status"] = "finished"
        (partial / "report.html").write_text(render_html(facts), encoding="utf-8")
        (partial / "README.md").write_text(model_card(facts), encoding="utf-8")
        write_facts(partial / FACTS_FILE, facts)
    drop_checkpoints(output)
    barrier()


def _add_ends(points: list[dict[str, Any]], facts: dict[str, Any], column: str, prepared: Prepared) -> None:
    """The metrics before the first and after the last step, where they were measured."""
    dense = facts.get("dense", {})
    if column == "sparse" and prepared.recipe.starts_dense and dense.get("metrics"):
        points.insert(0, {"step": 0, "metrics": dense["metrics"], "sparsity": dense["sparsity"]})
    if not points or points[-1]["step"] < prepared.length.total:
        last = {
            "step": prepared.length.total,
            "metrics": facts[column]["metrics"],
            "sparsity": facts[column]["sparsity"],
        }
        points.append(last)
