"""The same encoder in numpy: what the engine is calibrated with and tested against.

In the precision of its input arrays: float32 to calibrate, float64 to judge.
"""

from collections.abc import Callable, Sequence
from math import erf as exact_erf
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunus.runtime.families import Shape, places

__all__ = ["attention", "encode", "normalized"]

Array = NDArray[Any]
Watch = Callable[[str, Array], None]


def erf(x: Array) -> Array:
    """Of float64 exact; of float32 as Abramowitz and Stegun, 7.1.26, whose error is below 1.5e-7."""
    if x.dtype == np.float64:
        return np.asarray(np.vectorize(exact_erf, otypes=[np.float64])(x))
    z = np.abs(x)
    t = 1 / (1 + np.float32(0.3275911) * z)
    series = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t
    return np.asarray(np.sign(x) * (1 - series * np.exp(-z * z)), x.dtype)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: x * (1 + erf(x / x.dtype.type(sqrt(2)))) / 2,
    "gelu_tanh": lambda x: (
        x * (1 + np.tanh(x.dtype.type(0.7978845608028654) * (x + x.dtype.type(0.044715) * x**3))) / 2
    ),
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
}


def normalized(x: Array, gamma: Array, beta: Array, epsilon: float) -> Array:
    """Layer normalization over the last axis."""
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    y: Array = centred / np.sqrt(variance + x.dtype.type(epsilon)) * gamma + beta
    return y


def attention(q: Array, k: Array, v: Array, heads: int, bias: Array | None) -> Array:
    """softmax(q k^T / sqrt(size) + bias) v for ``[tokens, heads * size]``; ``bias`` is ``[heads, queries, keys]``."""
    tokens, width = q.shape
    size = width // heads
    q, k, v = (part.reshape(tokens, heads, size).transpose(1, 0, 2) for part in (q, k, v))
    scores = q @ k.transpose(0, 2, 1) / q.dtype.type(sqrt(size))
    if bias is not None:
        scores = scores + bias
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.asarray((weights @ v).transpose(1, 0, 2).reshape(tokens, width))


def encode(
    shape: Shape,
    t: dict[str, Array],
    sequences: Sequence[Array],
    types: Sequence[Array] | None = None,
    watch: Watch | None = None,
) -> list[Array]:
    """Hidden states ``[tokens, hidden]`` of each sequence of token ids.

    Args:
        shape: of the encoder.
        t: canonical tensors, all of one floating type.
        sequences: token ids of each.
        types: token types of each; zeros without it.
        watch: called with the name and the value (all tokens of all sequences) of what int8 stores as bytes:
            ``layers.N.`` and ``input``, ``query``, ``key``, ``value``, ``context``, ``middle``, ``intermediate``.

    """
    watch = watch or (lambda name, value: None)
    lengths = [len(ids) for ids in sequences]
    cuts = np.cumsum(lengths)[:-1]
    kinds = np.concatenate([np.zeros_like(ids) for ids in sequences] if types is None else list(types))
    at = np.concatenate([places(shape, ids) for ids in sequences])
    x = t["embeddings.word"][np.concatenate(list(sequences))] + t["embeddings.type"][kinds]
    x = normalized(x + t["embeddings.position"][at], t["embeddings.gamma"], t["embeddings.beta"], shape.epsilon)
    if shape.embedding_size:
        x = x @ t["projection.weight"].T + t["projection.bias"]

    def linear(name: str, value: Array) -> Array:
        return np.asarray(value @ t[f"{name}.weight"].T + t[f"{name}.bias"])

    def bias(length: int) -> Array | None:
        distance = np.arange(length)[:, None] - np.arange(length)[None, :]
        return t["relative"][:, distance + shape.max_distance] if shape.max_distance else None

    for i in range(shape.layers):
        key = f"layers.{i}."
        watch(key + "input", x)
        projected = {role: linear(key + role, x) for role in ("query", "key", "value")}
        for role, value in projected.items():
            watch(key + role, value)
        heads = projected["query"].shape[1] // shape.size
        parts = zip(*(np.split(value, cuts) for value in projected.values()), strict=True)
        context = np.concatenate([attention(q, k, v, heads, bias(len(q))) for q, k, v in parts])
        watch(key + "context", context)
        gamma, beta = (t[f"{key}attention_norm.{name}"] for name in ("gamma", "beta"))
        x = normalized(x + linear(key + "out", context), gamma, beta, shape.epsilon)
        watch(key + "middle", x)
        intermediate = ACTIVATIONS[shape.activation](linear(key + "up", x))
        watch(key + "intermediate", intermediate)
        gamma, beta = (t[f"{key}output_norm.{name}"] for name in ("gamma", "beta"))
        x = normalized(x + linear(key + "down", intermediate), gamma, beta, shape.epsilon)
    return np.split(x, cuts)
