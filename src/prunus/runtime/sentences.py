"""Sentence embeddings: what sentence-transformers does with the hidden states of an encoder, in numpy.

    states [tokens, hidden] -> pooling -> steps (dense layers, layer norm, length one) -> embedding [features]

A packed model keeps the description (``Sentences``) as JSON in its metadata, and the tensors of step N as
``sentence.N.weight``, ``.bias`` and ``.residual``. The modules and their formulas are those of sentence-transformers.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from prunus.errors import EngineError, Problem
from prunus.runtime.reference import ACTIVATIONS, normalized

__all__ = ["DENSE_ACTIVATIONS", "MEAN", "MODES", "EmbeddingStep", "Sentences", "sentences_of", "unit"]

Array = NDArray[Any]
MODES: Final = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
DENSE_ACTIVATIONS: Final[dict[str, Callable[[Array], Array]]] = {
    "Identity": lambda x: x,
    "Tanh": np.tanh,
    "ReLU": ACTIVATIONS["relu"],
    "GELU": ACTIVATIONS["gelu"],
    "SiLU": ACTIVATIONS["silu"],
    "Sigmoid": lambda x: (1 + np.tanh(x / 2)) / 2,
}
"""By the names of PyTorch's classes."""
KINDS: Final = ("dense", "norm", "normalize")
EPSILON: Final = 1e-5
"""Of PyTorch's ``LayerNorm``."""
LARGEST: Final = 2**24


@dataclass(frozen=True)
class EmbeddingStep:
    """One module after the pooling."""

    kind: str
    """``dense`` (a linear layer and its activation), ``norm`` (layer norm) or ``normalize`` (length one)."""
    activation: str = "Identity"
    """Of a dense layer: a key of ``DENSE_ACTIVATIONS``."""
    residual: bool = False
    """Whether a dense layer adds its input, through ``sentence.N.residual`` where the sizes differ."""


@dataclass(frozen=True)
class Sentences:
    """How a sentence becomes an embedding; frozen when the model is exported."""

    pooling: tuple[str, ...] = ("mean",)
    """Names of ``MODES``; the results of several are joined."""
    include_prompt: bool = True
    """Whether the tokens of a prompt are pooled too."""
    steps: tuple[EmbeddingStep, ...] = ()
    max_length: int | None = None
    """Tokens that a sentence is cut to; None: what the tokenizer's own settings say."""
    lower: bool = False
    """Whether sentences are put into lower case first."""
    prompts: tuple[tuple[str, str], ...] = ()
    """Name and text of each prompt; a prompt is put before the sentence."""
    default_prompt: str | None = None
    """Name of the prompt that is used where none is given."""
    features: int | None = None
    """Features of the result that are kept (``truncate_dim``); None: all."""

    def prompt(self, text: str | None = None, name: str | None = None) -> str:
        """The text to put before each sentence; empty without one.

        Raises:
            EngineError: a name that no prompt has.

        """
        if text is not None:
            return text
        prompts, name = dict(self.prompts), self.default_prompt if name is None else name
        if name is None:
            return ""
        if name not in prompts:
            raise EngineError(
                Problem("prompt_name", name, f"be one of {', '.join(prompts) or 'none: it has no prompts'}")
            )
        return prompts[name]

    def width(self, hidden: int, tensors: Mapping[str, Array]) -> int:
        """Features of an embedding of an encoder with ``hidden`` features."""
        size = hidden * len(self.pooling)
        for i, step in enumerate(self.steps):
            size = len(tensors[f"sentence.{i}.weight"]) if step.kind == "dense" else size
        return min(size, self.features or size)

    def embed(self, states: Array, tensors: Mapping[str, Array], skip: int = 0) -> Array:
        """The embedding of one sentence.

        Args:
            states: ``[tokens, hidden]``.
            tensors: those of the packed model.
            skip: tokens of the prompt, which are left out unless ``include_prompt``.

        """
        skip = 0 if self.include_prompt else skip
        value = np.concatenate([pooled(mode, states, skip) for mode in self.pooling]).astype(np.float32)
        for i, step in enumerate(self.steps):
            name = f"sentence.{i}"
            if step.kind == "normalize":
                value = unit(value)
            elif step.kind == "norm":
                value = normalized(value, tensors[f"{name}.weight"], tensors[f"{name}.bias"], EPSILON)
            else:
                # By vecdot, not matmul: BLAS would wake threads that spin on the engine's processors.
                out = DENSE_ACTIVATIONS[step.activation](
                    np.vecdot(value, tensors[f"{name}.weight"]) + tensors[f"{name}.bias"]
                )
                if step.residual:
                    other = tensors.get(f"{name}.residual")
                    out = out + (value if other is None else np.vecdot(value, other))
                value = out
        return np.asarray(value[: self.features], np.float32)

    def json(self) -> dict[str, Any]:
        """For the metadata of a packed model."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self) | {"prompts": dict(self.prompts)}))
        return plain


MEAN: Final = Sentences()
"""Of an encoder that says nothing of sentences: the mean."""


def unit(vector: Array) -> Array:
    """The vector at length one; zeros stay zeros."""
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-12), np.float32)


def pooled(mode: str, states: Array, skip: int) -> Array:
    """``[tokens, hidden]`` -> ``[hidden]``, without the first ``skip`` tokens."""
    kept = states[skip:]
    if mode == "cls":
        return np.asarray(states[skip if len(kept) else 0])
    if mode == "lasttoken":
        return np.asarray(states[-1] if len(kept) else np.zeros_like(states[0]))
    if mode == "max":
        return np.asarray(kept.max(0, initial=-np.inf))
    if mode == "weightedmean":  # tokens keep the weight of their place in the whole text
        weights = np.arange(skip + 1, len(states) + 1, dtype=np.float32)[:, None]
        return np.asarray((kept * weights).sum(0) / max(float(weights.sum()), 1e-9))
    count = max(len(kept), 1e-9)
    return np.asarray(kept.sum(0) / np.float32(count if mode == "mean" else np.sqrt(count)))


def sentences_of(stated: Any, hidden: int, tensors: Mapping[str, Array]) -> Sentences:
    """The description that ``Sentences.json`` gave, checked with its tensors.

    Raises:
        EngineError: anything in it that is unknown, of another type, or of another shape than the step before leaves.

    """
    problems: list[Problem] = []

    def check(key: str, fine: bool, rule: str) -> None:
        if not fine:
            got = stated.get(key) if isinstance(stated, dict) else stated
            problems.append(Problem(f"sentence: {key}", str(got)[:60], rule, "exporting the model again"))

    if not isinstance(stated, dict):
        check("description", False, "be a JSON object")
        raise EngineError(*problems)
    modes, steps, prompts = stated.get("pooling"), stated.get("steps"), stated.get("prompts")
    fine = isinstance(modes, list) and 0 < len(modes) <= len(MODES) and all(mode in MODES for mode in modes)
    check("pooling", fine, f"list some of {', '.join(MODES)}")
    for key in ("include_prompt", "lower"):
        check(key, isinstance(stated.get(key), bool), "be true or false")
    for key in ("max_length", "features"):
        value = stated.get(key)
        check(key, value is None or (type(value) is int and 0 < value < LARGEST), "be a whole number above 0, or null")
    fine = isinstance(prompts, dict) and all(isinstance(text, str) for text in prompts.values())
    check("prompts", fine, "map names to texts")
    name = stated.get("default_prompt")
    check("default_prompt", name is None or (fine and name in (prompts or ())), "be null, or the name of a prompt")
    fine = isinstance(steps, list) and all(
        isinstance(step, dict)
        and step.get("kind") in KINDS
        and step.get("activation") in DENSE_ACTIVATIONS
        and isinstance(step.get("residual"), bool)
        for step in steps
    )
    check("steps", fine, f"list steps of the kinds {', '.join(KINDS)}")
    if problems:
        raise EngineError(*problems)
    sentences = Sentences(
        tuple(stated["pooling"]),
        stated["include_prompt"],
        tuple(EmbeddingStep(step["kind"], step["activation"], step["residual"]) for step in stated["steps"]),
        stated["max_length"],
        stated["lower"],
        tuple(stated["prompts"].items()),
        stated["default_prompt"],
        stated["features"],
    )
    _check_tensors(sentences, hidden, tensors)
    return sentences


def _check_tensors(sentences: Sentences, hidden: int, tensors: Mapping[str, Array]) -> None:
    """Raises ``EngineError`` for tensors that are missing or do not fit the step before."""
    problems = []
    size = hidden * len(sentences.pooling)

    def take(name: str, *shape: int | None) -> Array | None:
        value = tensors.get(name)
        fits = value is not None and value.dtype == np.float32 and value.ndim == len(shape)
        if value is not None and fits:
            fits = all(want in (None, got) for want, got in zip(shape, value.shape, strict=True))
            fits = fits and value.size > 0 and bool(np.isfinite(value).all())
        if value is None or not fits:
            got = "nothing" if value is None else f"{value.dtype} {value.shape}"
            rule = f"be finite float32 numbers {tuple('any' if n is None else n for n in shape)}"
            problems.append(Problem(name, got, rule, "exporting the model again"))
            return None
        return value

    for i, step in enumerate(sentences.steps):
        name = f"sentence.{i}"
        if step.kind == "norm":
            take(f"{name}.weight", size), take(f"{name}.bias", size)
        elif step.kind == "dense":
            weight = take(f"{name}.weight", None, size)
            if weight is None:
                break
            take(f"{name}.bias", len(weight))
            if step.residual and len(weight) != size:
                take(f"{name}.residual", len(weight), size)
            size = len(weight)
    if problems:
        raise EngineError(*problems)
