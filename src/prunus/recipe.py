"""A recipe: method = pruning x teaching x precision, with the model, the task and the training it is for, as YAML.

Reading is strict and complete. Every unknown key, wrong type and value out of range of the whole file is gathered and
raised in one ``RecipeError``, each with its key, its value, the rule and the nearest valid key or a value that works.
A name in a recipe is looked up in a dict literal; none of them is ever imported.

    precedence    recipe < --set key=value < flags of the command line
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

from prunus.distillation.contrastive import Contrast, Contrastive, Snapshots
from prunus.distillation.hidden import Inside
from prunus.distillation.logits import Distillation, TeacherSettings
from prunus.errors import Problem, RecipeError, nearest
from prunus.quantization.spec import Quantization
from prunus.reading import read_dataclass
from prunus.recipe_blocks import ModelSpec, TrainSpec
from prunus.sparsity.allocation import Allocation
from prunus.sparsity.budget import Budget
from prunus.sparsity.criteria import Scores
from prunus.sparsity.pruning import Pruning
from prunus.sparsity.schedules import Schedule
from prunus.sparsity.structures import STRUCTURES
from prunus.sparsity.targets import Targets
from prunus.tasks import check_task
from prunus.tasks.spec import TaskSpec
from prunus.yaml_text import parse_yaml, put

__all__ = [
    "OWN_TEACHERS",
    "SHIPPED",
    "DistillSpec",
    "OtherSpec",
    "Recipe",
    "load_recipe",
    "read_recipe",
    "shipped_recipes",
]

SHIPPED: Final = Path(__file__).with_name("recipes")
OWN_TEACHERS: Final = ("dense", "start")
_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class OtherSpec(TeacherSettings):
    """One more teacher."""

    teacher: str = "dense"
    """As `distill.teacher`."""


@dataclass(frozen=True)
class DistillSpec(Distillation):
    """A teacher for the sparse model, and how much it counts (``prunus.Distillation``)."""

    teacher: str = "dense"
    """`dense` fine-tunes the dense model first and caches it; `start` is the model as it is before this training;
    otherwise a directory or a Hub id."""
    others: tuple[OtherSpec, ...] = ()
    """Further teachers."""

    @property
    def teachers(self) -> dict[str, str]:
        """Key in the recipe -> teacher, in their order."""
        return {"distill.teacher": self.teacher} | {
            f"distill.others[{index}].teacher": other.teacher for index, other in enumerate(self.others)
        }


@dataclass(frozen=True)
class Recipe:
    """All that a run needs. ``dense`` says how the dense model is fine-tuned where the run needs one."""

    model: ModelSpec = field(default_factory=ModelSpec)
    task: TaskSpec = field(default_factory=TaskSpec)
    train: TrainSpec = field(default_factory=TrainSpec)
    dense: TrainSpec | None = None
    prune: tuple[Pruning, ...] = ()
    distill: DistillSpec | None = None
    quantize: Quantization | None = None
    budget: Budget | None = None
    """What may be left of the dense model's size or time; the rules for heads and ffn then get the sparsity that it takes."""
    evaluate_dense: bool = True
    """Whether the dense baseline is evaluated. False saves that time; the report then has no dense metrics."""
    output: str | None = None
    """A new directory for the results, by default `runs/RECIPE`. `--overwrite` replaces an old one, `--resume`
    continues one with the same recipe."""

    @property
    def needs_dense(self) -> bool:
        """Whether a dense model is fine-tuned before the run's own training."""
        taught = self.distill is not None and "dense" in self.distill.teachers.values()
        return self.model.start == "dense" or taught

    @property
    def locks(self) -> bool:
        """Whether a rule keeps the zeros that the model has."""
        return any(pruning.lock for pruning in self.prune)

    @property
    def starts_dense(self) -> bool:
        """Whether the sparse training starts from the fine-tuned dense model."""
        by_default = self.model.start == "auto" and not self.locks and self.model.dense is None
        return self.needs_dense and (by_default or self.model.start == "dense")

    @property
    def dense_training(self) -> TrainSpec:
        """How the dense model is fine-tuned."""
        return self.dense or self.train

    def budgets(self, pruning: Pruning) -> bool:
        """Whether the sparsity of this rule comes from the budget."""
        return self.budget is not None and pruning.pattern in STRUCTURES and not pruning.lock

    def _budget_problems(self) -> list[Problem]:
        if self.budget is None:
            return []
        problems = self.budget.problems()
        if not any(self.budgets(pruning) for pruning in self.prune):
            rule = "come with a rule of prune for heads or ffn, which leave a smaller model"
            problems.append(Problem("budget", "given", rule, "prune: [{pattern: heads, ...}, {pattern: ffn, ...}]"))
        if self.model.cuts:
            rule = "be left out with model.layers, depth or hidden: it is a share of the model as it is before"
            problems.append(Problem("budget", "given", rule, "prune: [{pattern: heads, sparsity: 0.5, ...}]"))
        for index, pruning in enumerate(self.prune):
            if self.budgets(pruning) and pruning.sparsity is not None:
                rule = "be left out where a budget says how much may stay"
                problems.append(Problem(f"prune[{index}].sparsity", pruning.sparsity, rule, "one of the two"))
        return problems

    def problems(self) -> list[Problem]:
        """Everything that is wrong before data and model are looked at."""
        problems = self.train.problems("train")
        if self.dense is not None:
            problems += self.dense.problems("dense")
        problems += self._budget_problems()
        for index, pruning in enumerate(self.prune):
            problems += (replace(pruning, sparsity=0.5) if self.budgets(pruning) else pruning).problems(
                f"prune[{index}]"
            )
        if self.distill is not None:
            problems += self.distill.problems("distill")
        growing = any(not pruning.lock for pruning in self.prune)
        for key, train in (("train", self.train), ("dense", self.dense)):
            if train is not None and train.lr_scheduler == "linear_rewinding" and not (growing and key == "train"):
                rule = "come with a rule of prune whose masks grow: it goes by their updates"
                problems.append(Problem(f"{key}.lr_scheduler", train.lr_scheduler, rule, "linear"))
        if self.distill is not None and self.distill.contrast.snc.counts and not growing:
            rule = "come with a rule of prune whose masks grow: it goes by their snapshots"
            problems.append(Problem("distill.contrast.snc", self.distill.contrast.snc.weight, rule, "leaving it out"))
        if self.model.layers and self.model.depth is not None:
            rule = "be left out where model.layers names the layers"
            problems.append(Problem("model.depth", self.model.depth, rule, "one of the two"))
        for name in ("depth", "hidden"):
            value = getattr(self.model, name)
            if value is not None and value < 1:
                problems.append(Problem(f"model.{name}", value, "be at least 1", "3" if name == "depth" else "256"))
        if self.locks and self.model.start == "dense":
            rule = "be pretrained where a rule of prune locks the zeros of model.name"
            problems.append(Problem("model.start", "dense", rule, "leaving it out"))
        elif self.locks and self.needs_dense and self.model.dense is None:
            rule = "not be fine-tuned from the sparse model whose zeros are locked"
            fix = "model.dense, the model before pruning; or the directory of a teacher"
            problems.append(Problem("distill.teacher", "dense", rule, fix))
        if self.quantize is not None:
            problems += self.quantize.problems("quantize")
        return problems


_BLOCKS: Final[dict[str, type[Any]]] = {
    "model": ModelSpec,
    "task": TaskSpec,
    "train": TrainSpec,
    "prune": Pruning,
    "prune.schedule": Schedule,
    "prune.allocation": Allocation,
    "prune.targets": Targets,
    "prune.scores": Scores,
    "distill": DistillSpec,
    "distill.others": OtherSpec,
    "distill.hidden": Inside,
    "distill.attention": Inside,
    "distill.contrast": Contrastive,
    "distill.contrast.prc": Contrast,
    "distill.contrast.snc": Snapshots,
    "distill.contrast.fic": Contrast,
    "quantize": Quantization,
    "budget": Budget,
}


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with prunus."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def load_recipe(name: str, settings: Sequence[str] = (), flags: Mapping[str, Any] | None = None) -> Recipe:
    """A shipped recipe by name, or a YAML file, with ``key=value`` settings and then flags (dotted key -> value) over it."""
    path = Path(name)
    if name in shipped_recipes():
        path = SHIPPED / f"{name}.yaml"
    elif not path.is_file():
        raise RecipeError(
            Problem("recipe", name, "be a YAML file or a shipped recipe", nearest(name, shipped_recipes()))
        )
    if (size := path.stat().st_size) > _BYTES:
        raise RecipeError(Problem("recipe", f"{size} bytes", "be at most 1 MiB", "the right file"))
    try:
        raw = parse_yaml(path.read_text(encoding="utf-8"), path.name)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(Problem(path.name, str(error), "be readable text in UTF-8", "saving it as UTF-8")) from None
    raw = {} if raw is None else raw
    if not isinstance(raw, dict):
        raise RecipeError(
            Problem(path.name, type(raw).__name__, "be a mapping of keys", "model:, task:, train:, prune:")
        )
    problems: list[Problem] = []
    given: list[tuple[str, Any]] = []
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            problems.append(Problem("--set", setting, "be key=value", "train.epochs=3"))
            continue
        try:
            given.append((key, parse_yaml(value, f"--set {key}")))
        except RecipeError as error:
            problems += error.problems
    given += (flags or {}).items()
    named = {key for key, _ in given}
    task = raw.get("task")
    if "task.data" in named and isinstance(task, dict):  # a directory takes the place of the recipe's own files
        raw["task"] = {key: value for key, value in task.items() if key not in ("train", "validation")}
    for key, value in given:
        try:
            put(raw, key, value)
        except RecipeError as error:
            problems += error.problems
    return read_recipe(raw, problems)


def read_recipe(raw: Mapping[str, Any], earlier: Sequence[Problem] = ()) -> Recipe:
    """The recipe of a plain mapping; ``RecipeError`` with the ``earlier`` problems and all of the recipe's own."""
    problems, dense_keys = list(earlier), None
    raw = dict(raw)
    if isinstance(raw.get("prune"), dict):
        raw["prune"] = [raw["prune"]]
    if isinstance(raw.get("dense"), dict) and isinstance(raw.get("train"), dict):
        known = {entry.name for entry in fields(TrainSpec)}
        shared = {name: value for name, value in raw["train"].items() if name in known}
        dense_keys = {str(name) for name in raw["dense"]}
        raw["dense"] = {**shared, **raw["dense"]}  # what the dense training does not say, it shares
    recipe = read_dataclass(Recipe, raw, problems, _BLOCKS)
    # What could not be read stands as its default; only what was read can be checked further.
    bad = tuple(problem.key for problem in problems)
    problems += [problem for problem in recipe.problems() if not (bad and problem.key.startswith(bad))]
    if dense_keys is not None:  # a mistake that dense shares with train is said once
        problems = [
            p for p in problems if not p.key.startswith("dense.") or p.key.split(".")[1].partition("[")[0] in dense_keys
        ]
    if problems:
        raise RecipeError(*problems, *(p for p in check_task(recipe.task) if not p.key.startswith(bad)))
    return recipe
