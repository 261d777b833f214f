"""A run: a recipe in, an output directory out.

    prepare      data, shapes, every mistake            nothing is trained before this is through
    dense        fine-tuned, or kept, where the recipe needs it; scored
    sparse       trained with masks and teacher; counted; scored
    save         model, masks, facts, report, card      beside the output and renamed

The directory is that of a plain Hugging Face model (``AutoModelFor....from_pretrained`` needs no prunus), with
``prunus.json``, ``masks.safetensors``, ``report.html`` and ``README.md`` beside it.
"""

import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from signal import SIGINT
from typing import Any, Final

from rich.console import Console
from transformers import PreTrainedModel, set_seed

from prunus._version import __version__
from prunus.checkpoint.locked import locked
from prunus.checkpoint.sentence_files import find_sentence_files
from prunus.checkpoint.staged import staged
from prunus.checkpoint.tensor_io import MASKS_FILE, RANGES_FILE, write_masks, write_tensors
from prunus.distributed.processes import barrier, is_main_process
from prunus.environment import environment
from prunus.errors import CheckpointError, Problem, PrunusError
from prunus.models.loading import base_model, carry_over, config_for, load_model, trained_for
from prunus.models.predict import score_task
from prunus.paths import expanded, readable, writable
from prunus.progress import Bars
from prunus.quantization import quantize, to_float
from prunus.recipe import OWN_TEACHERS, Recipe
from prunus.report.card import model_card
from prunus.report.facts import FACTS_FILE, History, ModelFacts, ModelResults, RunFacts, Status, read_facts, write_facts
from prunus.report.html import render_html
from prunus.signals import Stopped
from prunus.sparsity.measure import measure
from prunus.tasks.base import Metrics
from prunus.tasks.collate import TOKEN_KEYS, Collate
from prunus.training.budgeted import timed_again
from prunus.training.dense import dense_model
from prunus.training.fit import Fit, drop_checkpoints, fit, last_checkpoint
from prunus.training.inputs import input_digests
from prunus.training.prepare import prepare, saved_masks
from prunus.training.run_facts import counted, history, recipe_facts, size_on_disk, task_facts, tensor_rows
from prunus.training.run_plan import RunPlan
from prunus.training.same_recipe import check_inputs, check_recipe
from prunus.training.shape import cut

__all__ = ["run", "score_model"]

_SAMPLES: Final = 64
"""Training examples that say which layers matter."""
_NO_DENSE: Final = "the dense model's metrics: evaluate_dense is false"


def check_output(directory: Path, overwrite: bool, resume: bool) -> None:
    """``CheckpointError`` where the output must not be written.

    It is there already, or is to be resumed and is not, or is to be overwritten and is not that of a run.
    """
    writable(directory, "output")
    if resume and overwrite:
        rule = "not come with --overwrite, which begins again"
        raise CheckpointError(Problem("--resume", "both", rule, "one of the two"))
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


def _empty(plan: RunPlan, output: Path) -> None:
    """Removes what is in ``output``. ``CheckpointError`` where that would remove what the run reads."""
    task = plan.recipe.task
    for read in (
        plan.source,
        plan.dense_source,
        *(teacher for teacher in plan.teachers.values() if teacher not in OWN_TEACHERS),
        task.train,
        task.validation,
        task.data,
    ):
        if read is not None and expanded(read, "output").resolve().is_relative_to(output.resolve()):
            raise CheckpointError(
                Problem("output", str(output), f"not hold {read}, which the run reads", "another one")
            )
    shutil.rmtree(output.resolve())  # of a link its target is emptied, and the link stays
    output.resolve().mkdir()


def score_model(model: PreTrainedModel, plan: RunPlan, bars: Bars, what: str) -> Metrics:
    """The task's official metrics of ``model`` on the whole validation split."""
    batch = plan.recipe.train.eval_batch_size
    return score_task(model, plan.task, plan.tokenizer, batch, bars, what)


def run(
    recipe: Recipe,
    output: Path,
    *,
    command: str = "",
    overwrite: bool = False,
    resume: bool = False,
    console: Console | None = None,
) -> RunFacts:
    """Runs ``recipe`` into ``output`` and returns the facts that ``output / "prunus.json"`` holds.

    With ``resume`` a run that was stopped or killed at any moment goes on: from its last whole checkpoint, from the beginning
    where there is none yet; one that is finished is left as it is. Raises ``PrunusError`` before any training for all that can
    be known then, and ``Stopped`` (a ``KeyboardInterrupt``) after Ctrl-C, SIGTERM or SIGHUP.
    """
    output = readable(output, "output")
    if not is_main_process():
        return _run(recipe, output, command, overwrite, resume, None)
    writable(output, "output")
    with locked(output):
        return _run(recipe, output, command, overwrite, resume, console)


def _run(
    recipe: Recipe, output: Path, command: str, overwrite: bool, resume: bool, console: Console | None
) -> RunFacts:
    """``run``, while no other command writes into ``output``."""
    if is_main_process():
        check_output(output, overwrite, resume)
    barrier()
    earlier = read_facts(output) if resume and (output / FACTS_FILE).is_file() else None

    def say(text: str) -> None:
        if console is not None:
            console.print(text, highlight=False, soft_wrap=True)

    if earlier is not None:
        check_recipe(recipe, earlier, output, resolved=False)
    if earlier is not None and earlier.status == "finished":
        say(f"{output} is finished: nothing to go on with")
        return earlier
    with Bars(console) as bars:
        plan, inputs = _prepared(recipe, output, bars, earlier)
        recipe = plan.recipe
        if earlier is not None:
            say(_start_of(output))
        elif overwrite and output.is_dir() and is_main_process():
            _empty(plan, output)
        barrier()
        output.mkdir(parents=True, exist_ok=True)
        collate = Collate(plan.tokenizer)
        facts = replace(_first_facts(plan, command), inputs=inputs)
        _write(output, facts)
        patterns = {name: rule.pattern for rule in plan.rules for name in rule.selection.taken}
        try:
            dense, teachers, starting, results = _dense(plan, inputs, collate, bars, say)
            notes = () if results is None or results.metrics else (_NO_DENSE,)
            facts = replace(facts, dense=results, not_measured=notes)
            set_seed(recipe.train.seed)
            model = starting or _start(plan)
            shape = cut(model, recipe.model, lambda: samples(plan, collate, _SAMPLES))
            facts = replace(facts, shape=shape)
            if dense is not None and results is not None:
                facts = replace(facts, dense=counted(results, dense, measure(dense, patterns)))
            if recipe.quantize is not None:
                names = quantize(model, recipe.quantize, samples(plan, collate, recipe.quantize.samples))
                facts = replace(facts, quantization={"layers": names, **asdict(recipe.quantize)})
            result = fit(
                model,
                plan.train_features,
                collate,
                recipe.train,
                plan.length,
                output,
                bars=bars,
                head=plan.task.head,
                what="sparse training" if recipe.prune else "training",
                pruning=recipe.prune,
                masks=saved_masks(recipe.model, plan.rules, plan.source),
                teachers=teachers,
                distillation=recipe.distill,
                pretrained=_pretrained(plan),
                score=lambda trained: score_model(trained, plan, bars, "evaluating"),
                metric=plan.task.metric,
                resume=resume,
                logged=True,
            )
            warnings = tuple(result.warnings)
            facts = replace(facts, warnings=warnings, banks=result.banks or {}, best_step=result.best_step)
            metrics = score_model(model, plan, bars, "evaluating")
        except (KeyboardInterrupt, PrunusError) as error:
            status: Status = "failed" if isinstance(error, PrunusError) else "interrupted"
            with suppress(PrunusError):  # what went wrong first is said
                _write(output, replace(facts, status=status))
            raise _advised(error) from None
        try:
            return _finish(plan, model, result, metrics, facts, output)
        except KeyboardInterrupt as error:
            raise _advised(error) from None


def _prepared(recipe: Recipe, output: Path, bars: Bars, earlier: RunFacts | None) -> tuple[RunPlan, dict[str, str]]:
    """The plan, and digests of what the run reads; of one that goes on both are compared with the ``earlier`` facts."""
    plan = prepare(recipe, bars, earlier.budget or None if earlier is not None else None)
    inputs = input_digests(plan)
    if earlier is not None:
        check_recipe(plan.recipe, earlier, output, resolved=True)
        check_inputs(inputs, earlier, output)
    return plan, inputs


def _start_of(output: Path) -> str:
    """Where a run goes on from, in words."""
    checkpoints = output / "checkpoints"
    start, there = last_checkpoint(checkpoints), {path.name for path in checkpoints.glob("checkpoint-*")}
    if start is None:
        more = f": {', '.join(sorted(there))} cannot be used, files are missing or cut short" if there else ""
        return f"goes on from the beginning{more}" if there else "goes on: it has no checkpoint yet"
    step = int(start.name.rpartition("-")[2])
    later = sorted(name for name in there if (last := name.rpartition("-")[2]).isdecimal() and int(last) > step)
    more = f"; {', '.join(later)} cannot be used: files are missing or cut short" if later else ""
    return f"goes on from {start.name}{more}"


def _advised(error: BaseException) -> BaseException:
    """What a signal raised, with how to go on."""
    if not isinstance(error, KeyboardInterrupt) or str(error):
        return error
    return Stopped("go on with --resume", getattr(error, "number", SIGINT))


def _first_facts(plan: RunPlan, command: str) -> RunFacts:
    """What is known before anything is trained."""
    recipe, name = plan.recipe, plan.recipe.model.name
    return RunFacts(
        __version__,
        status="running",
        command=command,
        recipe=recipe_facts(recipe),
        model=ModelFacts(name, base_model(name) or "", type(plan.skeleton).__name__, plan.parameters),
        task=task_facts(plan.task),
        environment=environment(recipe.train.threads),
        seed=recipe.train.seed,
        budget=plan.budget,
    )


def _write(output: Path, facts: RunFacts) -> None:
    if is_main_process():
        write_facts(output / FACTS_FILE, facts)


def samples(plan: RunPlan, collate: Collate, count: int) -> list[dict[str, Any]]:
    """Batches of training examples, spread evenly over the data, as the model takes them."""
    features, size = plan.train_features, plan.recipe.train.batch_size
    count = min(count, len(features))
    chosen = [features[i * len(features) // count] for i in range(count)]
    batches = [collate(chosen[i : i + size]) for i in range(0, count, size)]
    return [{name: value for name, value in batch.items() if name in TOKEN_KEYS} for batch in batches]


def _dense(
    plan: RunPlan, inputs: Mapping[str, str], collate: Collate, bars: Bars, say: Callable[[str], None]
) -> tuple[PreTrainedModel | None, list[PreTrainedModel], PreTrainedModel | None, ModelResults | None]:
    """The model of the dense column, the teachers, and the model that training starts from (None: from ``source``)."""
    recipe, head = plan.recipe, plan.task.head
    dense = starting = results = None
    if recipe.needs_dense:
        kept = dense_model(plan, inputs, collate, bars, say)
        results = ModelResults(seconds=kept.seconds, cached=kept.cached, bytes=kept.bytes)
        dense = kept.model
    elif recipe.prune and trained_for(plan.config, head):
        dense = _start(plan)
        results = ModelResults(bytes=size_on_disk(Path(plan.source)) or None)
    if dense is not None and results is not None and recipe.evaluate_dense:
        results = replace(results, metrics=score_model(dense, plan, bars, "evaluating the dense model"))
    teachers = []
    for key, teacher in plan.teachers.items():
        if teacher == "dense" and dense is not None:
            teachers.append(dense)
        elif teacher == "start":
            teachers.append(_start(plan))
        else:
            teachers.append(_teacher(plan, teacher, key))
    if recipe.starts_dense and dense is not None:
        starting = deepcopy(dense)
    return dense, teachers, starting, results


def _start(plan: RunPlan) -> PreTrainedModel:
    """The model of ``source``: as training begins, where it does not begin with the dense one."""
    recipe, rows = plan.recipe, plan.train_features
    new = recipe.model.head == "new"
    return load_model(plan.source, plan.config, plan.task.head, rows, new_head=new)


def _teacher(plan: RunPlan, source: str, key: str) -> PreTrainedModel:
    """A teacher that was fine-tuned before."""
    config = config_for(source, plan.task, key=key, tokenizer=plan.tokenizer)
    return load_model(source, config, plan.task.head)


def _pretrained(plan: RunPlan) -> PreTrainedModel | None:
    """The model before the task, where training starts from another and PrC asks for it."""
    recipe = plan.recipe
    if recipe.distill is None or "prc" not in recipe.distill.contrast.terms or not recipe.starts_dense:
        return None
    return _start(plan)


def _finish(
    plan: RunPlan, model: PreTrainedModel, result: Fit, metrics: Metrics, facts: RunFacts, output: Path
) -> RunFacts:
    """Counts, writes everything beside the output and moves it there, the facts last."""
    if not is_main_process():
        barrier()
        return facts
    with staged(output, FACTS_FILE, held=True) as partial:
        masker, tensors = result.session.masker, result.session.tensor_facts
        ranges = to_float(model)
        if ranges:
            write_tensors(partial / RANGES_FILE, ranges)
            if masker is not None:
                tensors = masker.measure(model)  # rounding to 8 bits made some more of them zero
        model.save_pretrained(partial)
        if plan.task.head == "masked-language":
            carry_over(plan.source, partial, model.base_model_prefix)
        plan.tokenizer.save_pretrained(partial)
        sentences = find_sentence_files(Path(plan.source)) if Path(plan.source).is_dir() else None
        if sentences is not None:
            sentences.copy(partial)  # the output makes embeddings as its source does
        trained = ModelResults(metrics, bytes=size_on_disk(partial), seconds=result.seconds)
        trained = counted(trained, model, tensors)
        facts = replace(facts, sparse=trained) if plan.recipe.prune else replace(facts, dense=trained)
        if masker is not None:
            write_masks(partial / MASKS_FILE, masker.masks)
            skipped = tuple(
                {"name": name, "shape": list(shape), "reason": reason}
                for selection in masker.selections
                for name, (shape, reason) in selection.skipped.items()
            )
            rows = tensor_rows(tensors, masker)
            facts = replace(facts, tensors=rows, target_sparsity=masker.due(), skipped=skipped)
        if plan.budget.get("measure") == "latency":
            try:
                timed = timed_again(model, plan.config, plan.task.head, plan.budget)
                facts = replace(facts, budget=timed)
            except PrunusError as error:  # nothing of the training is lost for it
                warning = f"the result could not be compacted and timed: {error}"
                facts = replace(facts, warnings=(*facts.warnings, warning))
        facts = replace(facts, history=_with_ends(history(result.history), facts, trained, plan), status="finished")
        (partial / "report.html").write_text(render_html(facts), encoding="utf-8")
        (partial / "README.md").write_text(model_card(facts), encoding="utf-8")
        write_facts(partial / FACTS_FILE, facts)
    drop_checkpoints(output)
    barrier()
    return facts


def _with_ends(logged: History, facts: RunFacts, trained: ModelResults, plan: RunPlan) -> History:
    """The history with the metrics before the first and after the last step, where they were measured."""
    points, dense, total = list(logged.metrics), facts.dense, plan.length.total
    if facts.sparse is not None and plan.recipe.starts_dense and dense is not None and dense.metrics:
        points.insert(0, {"step": 0, "metrics": dense.metrics, "sparsity": dense.sparsity})
    if not points or points[-1]["step"] < total:
        points.append({"step": total, "metrics": trained.metrics, "sparsity": trained.sparsity})
    return replace(logged, metrics=tuple(points))
