"""A recipe: method = pruning x teaching x precision, with the model, the task and the training it is for, as YAML.

Reading is strict and complete. Every unknown key, wrong type and value out of range of the whole file is gathered and
raised in one ``RecipeError``, each with its key, its value, the rule and the nearest valid key or a value that works.
A name in a recipe is looked up in a dict literal; none of them is ever imported.

    precedence    recipe < --set key=value < flags of the command line
"""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from prunus.distillation.logits import Distillation
from prunus.errors import Problem, RecipeError, nearest
from prunus.sparsity.allocation import Allocation
from prunus.sparsity.pruning import Pruning
from prunus.sparsity.schedules import Schedule, Span, parse_span
from prunus.sparsity.targets import Targets
from prunus.tasks.spec import TaskSpec

__all__ = [
    "SHIPPED",
    "DistillSpec",
    "ModelSpec",
    "Recipe",
    "TrainSpec",
    "load_recipe",
    "parse_yaml",
    "read_recipe",
    "shipped_recipes",
]

SHIPPED: Final = Path(__file__).with_name("recipes")
_BYTES: Final = 1 << 20
_VALUES: Final = 100_000
_LEVELS: Final = 32
_LONGEST: Final = 10**12  # steps, epochs or per cent; a longer span is a slip, and a far longer one no float
_UNREAD: Final = object()  # stands for a value that could not be read; its key keeps the default
T = TypeVar("T")


@dataclass(frozen=True)
class ModelSpec:
    """Which model, and from which weights the sparse training starts."""

    name: str = "minilm"
    """A directory, a Hub id, or ``minilm``: the embedded all-MiniLM-L6-v2 of the extra ``demo``."""
    revision: str | None = None
    start: Literal["auto", "dense", "pretrained"] = "auto"
    """``dense``: from the fine-tuned dense model; ``pretrained``: from ``name``; ``auto``: dense where one is trained."""


@dataclass(frozen=True)
class TrainSpec:
    """One training. Spans are steps, epochs or per cent of this training."""

    epochs: float = 3.0
    max_steps: int | None = None
    batch_size: int = 32
    eval_batch_size: int = 64
    gradient_accumulation_steps: int = 1
    learning_rate: float = 5e-5
    lr_scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup", "polynomial"] = "linear"
    warmup: Span = field(default_factory=lambda: Span(0))
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    max_grad_norm: float = 1.0
    seed: int = 42
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    group_by_length: bool = True
    """Batches of rows of similar length: less padding, the usual speed-up on a CPU."""
    freeze: tuple[str, ...] = ()
    """Regular expressions on parameter names that are not trained."""
    evaluate_every: Span | None = None
    """None evaluates at the end alone."""
    checkpoint_every: Span | None = field(default_factory=lambda: Span(25, "%"))
    log_every: Span = field(default_factory=lambda: Span(20))
    threads: int | None = None
    """CPU threads; None leaves torch's own choice."""

    def problems(self, key: str = "train") -> list[Problem]:
        """Values out of range."""
        found = []
        for name in ("epochs", "learning_rate", "batch_size", "eval_batch_size", "gradient_accumulation_steps"):
            if not getattr(self, name) > 0:
                found.append(Problem(f"{key}.{name}", getattr(self, name), "be above 0", str(getattr(TrainSpec, name))))
        if self.max_steps is not None and self.max_steps < 1:
            found.append(Problem(f"{key}.max_steps", self.max_steps, "be at least 1", "leaving it out"))
        if self.weight_decay < 0:
            found.append(Problem(f"{key}.weight_decay", self.weight_decay, "be 0 or above", "0.01"))
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                found.append(Problem(f"{key}.{name}", getattr(self, name), "be in [0, 1)", "0.9"))
        if self.max_grad_norm < 0:
            found.append(Problem(f"{key}.max_grad_norm", self.max_grad_norm, "be 0 (no clipping) or above", "1.0"))
        if not 0 <= self.seed < 2**32:
            found.append(Problem(f"{key}.seed", self.seed, "be in [0, 2**32)", "42"))
        if self.threads is not None and self.threads < 1:
            found.append(Problem(f"{key}.threads", self.threads, "be at least 1", "leaving it out"))
        return found


@dataclass(frozen=True)
class DistillSpec(Distillation):
    """A teacher for the sparse model, and how much it counts (``prunus.Distillation``)."""

    teacher: str = "dense"
    """``dense`` fine-tunes the dense model first and keeps it for the next run; else a directory or a Hub id."""


@dataclass(frozen=True)
class Recipe:
    """All that a run needs. ``dense`` says how the dense model is fine-tuned where the run needs one."""

    model: ModelSpec = field(default_factory=ModelSpec)
    task: TaskSpec = field(default_factory=TaskSpec)
    train: TrainSpec = field(default_factory=TrainSpec)
    dense: TrainSpec | None = None
    prune: tuple[Pruning, ...] = ()
    distill: DistillSpec | None = None
    evaluate_dense: bool = True
    """False saves the time of scoring the dense model; its metrics then are not in the report."""
    output: str | None = None

    @property
    def needs_dense(self) -> bool:
        """Whether a dense model is fine-tuned before the run's own training."""
        taught = self.distill is not None and self.distill.teacher == "dense"
        return self.model.start == "dense" or taught

    @property
    def dense_training(self) -> TrainSpec:
        """How the dense model is fine-tuned."""
        return self.dense or self.train

    def problems(self) -> list[Problem]:
        """Everything that is wrong before data and model are looked at."""
        found = self.train.problems("train")
        if self.dense is not None:
            found += self.dense.problems("dense")
        for index, pruning in enumerate(self.prune):
            found += pruning.problems(f"prune[{index}]")
        if self.distill is not None:
            found += self.distill.problems("distill")
        return found


_BLOCKS: Final[dict[str, type[Any]]] = {
    "model": ModelSpec,
    "task": TaskSpec,
    "train": TrainSpec,
    "prune": Pruning,
    "prune.schedule": Schedule,
    "prune.allocation": Allocation,
    "prune.targets": Targets,
    "distill": DistillSpec,
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
    found: list[Problem] = []
    given: list[tuple[str, Any]] = []
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            found.append(Problem("--set", setting, "be key=value", "train.epochs=3"))
            continue
        try:
            given.append((key, parse_yaml(value, f"--set {key}")))
        except RecipeError as error:
            found += error.problems
    for key, value in [*given, *(flags or {}).items()]:
        try:
            _put(raw, key, value)
        except RecipeError as error:
            found += error.problems
    return read_recipe(raw, found)


def read_recipe(raw: Mapping[str, Any], found: Sequence[Problem] = ()) -> Recipe:
    """The recipe of a plain mapping; ``RecipeError`` with ``found`` and all of its own problems."""
    problems = list(found)
    raw = dict(raw)
    if isinstance(raw.get("prune"), dict):
        raw["prune"] = [raw["prune"]]
    if isinstance(raw.get("dense"), dict) and isinstance(raw.get("train"), dict):
        known = {entry.name for entry in fields(TrainSpec)}
        shared = {name: value for name, value in raw["train"].items() if name in known}
        raw["dense"] = {**shared, **raw["dense"]}  # what the dense training does not say, it shares
    recipe = _read(Recipe, raw, "", problems)
    if problems:
        # What could not be read stands as its default; only what was read can be checked further.
        bad = tuple(problem.key for problem in problems)
        problems += [p for p in recipe.problems() if not p.key.startswith(bad)]
        raise RecipeError(*problems)
    if problems := recipe.problems():
        raise RecipeError(*problems)
    return recipe


class _Loader(yaml.SafeLoader):
    """YAML without the surprises of its version 1.1.

    ``2:4`` is text, not the number 124; ``5e-5`` is a number; ``012`` is 12, not 10; a date is text; no key counts twice.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value} stands twice", problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regex) for tag, regex in resolvers if not tag.endswith((":int", ":float", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?\d+$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d+)?$"), list("-+.0123456789")
)


_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))
_Loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: float(node.value))


def parse_yaml(text: str, name: str) -> Any:
    """The value of a YAML text, which ``name`` names in the ``RecipeError`` (with the line) where it is none."""
    try:
        value = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        where = name if error.problem_mark is None else f"{name}, line {error.problem_mark.line + 1}"
        raise RecipeError(Problem(where, str(error.problem), "be valid YAML", "quoting the value")) from None
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        # An explicit tag (!!int x) or a number of 5,000 digits fails inside the YAML reader with errors of any kind.
        shown = str(error).partition("\n")[0][:200] or type(error).__name__
        raise RecipeError(Problem(name, shown, "be valid YAML", "plain values without tags")) from None
    if not _is_small(value):
        rule = f"hold at most {_VALUES:,} values in {_LEVELS} levels, repeated ones counted"
        raise RecipeError(Problem(name, "more", rule, "a recipe without anchors"))
    return value


def _is_small(value: Any) -> bool:
    """False for what a few anchors can grow into: 10**9 values, or a list that holds itself."""
    level, count = [value], 0
    for _ in range(_LEVELS):
        inner: list[Any] = []
        for item in level:
            inner += item.values() if isinstance(item, Mapping) else item if isinstance(item, list) else ()
            if count + len(inner) > _VALUES:
                return False
        level, count = inner, count + len(inner)
    return not level


def _put(raw: dict[str, Any], dotted: str, value: Any) -> None:
    """Sets ``prune[0].sparsity`` or ``prune.0.sparsity`` or, where there is one rule, ``prune.sparsity``."""
    parts = dotted.replace("[", ".").replace("]", "").split(".")
    holder: Any = {"": raw}
    place: Any = ""
    for part in parts:
        here = holder[place]
        if isinstance(here, list) and part.isdecimal() and int(part) < len(here):
            holder, place = here, int(part)
        elif isinstance(here, list) and not part.isdecimal() and len(here) == 1 and isinstance(here[0], dict):
            holder, place = here[0], part
        elif isinstance(here, list):
            rule = f"name one of the {len(here)} entries of {parts[0]}"
            raise RecipeError(Problem("--set", dotted, rule, f"{parts[0]}[0]"))
        elif part == "0" and place != "":
            continue  # a single rule that was written without the list
        else:
            if not isinstance(here, dict):
                holder[place] = here = {}
            holder, place = here, part
        if isinstance(holder, dict):
            holder.setdefault(place, None)
    holder[place] = value


def _read(cls: type[T], raw: Any, key: str, found: list[Problem]) -> T:
    """A dataclass from a mapping; what cannot be read stays at its default and is noted in ``found``."""
    if not isinstance(raw, Mapping):
        found.append(Problem(key or "recipe", raw, "be a mapping of keys", ", ".join(f.name for f in fields(cls))))  # type: ignore[arg-type]
        return cls()
    hints = get_type_hints(cls)
    known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, value in raw.items():
        where = f"{key}.{name}" if key else str(name)
        if name not in known:
            found.append(Problem(where or "''", value, "be a known key", _nearest_key(str(name), key, known)))
            continue
        read = _value(hints[name], value, where, found)
        if read is not _UNREAD:
            values[name] = read
    return cls(**values)


def _nearest_key(name: str, key: str, known: Sequence[str]) -> str:
    """The same key in another block, else the nearest of this block, else the nearest of all, else all of this block."""
    others = {f"{block}.{entry.name}": entry.name for block, cls in _BLOCKS.items() for entry in fields(cls)}
    for wanted in (name, nearest(name, others.values())):
        if wanted == name or nearest(name, known).startswith("one of "):
            for full, other in others.items():
                if other == wanted:
                    return full
    here = nearest(name, known)
    return f"{key}.{here}" if key and not here.startswith("one of ") else here


def _value(hint: Any, value: Any, key: str, found: list[Problem], optional: bool = False) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        if value is None:
            return None
        return _value(next(a for a in arguments if a is not NoneType), value, key, found, optional=True)
    if hint is Span:
        if value == "auto" and optional:
            return None
        try:
            span = parse_span(value, key)
        except RecipeError as error:
            found += error.problems
            return _UNREAD
        if span.value > _LONGEST:
            found.append(Problem(key, value, f"be at most {_LONGEST:g}", "'10%'"))
            return _UNREAD
        return span
    if is_dataclass(hint) and isinstance(hint, type):
        return _read(hint, value, key, found)
    if origin is Literal:
        if value not in arguments:
            found.append(Problem(key, value, "be one of " + ", ".join(arguments), nearest(str(value), arguments)))
            return _UNREAD
        return value
    if origin is tuple:
        several = value if isinstance(value, list | tuple) else [value]
        read = (_value(arguments[0], item, f"{key}[{index}]", found) for index, item in enumerate(several))
        return tuple(item for item in read if item is not _UNREAD)
    if origin is not None and isinstance(value, Mapping):
        pairs = ((str(name), _value(arguments[1], item, f"{key}.{name}", found)) for name, item in value.items())
        return {name: item for name, item in pairs if item is not _UNREAD}
    return _plain(hint, value, key, found)


def _plain(hint: Any, value: Any, key: str, found: list[Problem]) -> Any:
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not abs(value) <= sys.float_info.max:  # also not for NaN
            found.append(Problem(key, value, "be a finite number", "0.5"))
            return _UNREAD
        return float(value)
    if hint is str and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, hint if isinstance(hint, type) else Mapping) or (
        isinstance(value, bool) and hint is not bool
    ):
        names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
        wanted = names.get(hint, "a mapping of names to values")
        found.append(Problem(key, value, f"be {wanted}", {bool: "true", int: "1", float: "0.5"}.get(hint, "")))
        return _UNREAD
    return value
