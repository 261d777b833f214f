"""The int8 encoder in numpy, written from the formulas of kernels/linear.py, attention.py and norm.py.

Sums are exact integers. What is a float32 in the kernels is one here, with the product of a sum rounded once (as processors
with fused products do); mean and variance of a layer normalization are summed in float64. So a byte may differ by one where
the number before rounding lies within rounding errors of a tie, and nowhere else.
"""

from collections.abc import Sequence

import numpy as np
from harness import Array

from prunus.runtime.convert import Model
from prunus.runtime.families import places
from prunus.runtime.kernels.maths import PHI, PHI_END, POWER_SHORT
from prunus.runtime.pack import Packed, unpack


def fused(x: Array, factor: Array | float, term: Array | float) -> Array:
    """x * factor + term of float32 numbers, in one rounding."""
    narrow = [np.asarray(number, np.float32).astype(np.float64) for number in (x, factor, term)]
    return (narrow[0] * narrow[1] + narrow[2]).astype(np.float32)


def polynomial(x: Array, coefficients: Sequence[float]) -> Array:
    result = np.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        result = fused(result, x, coefficient)
    return result


def power(x: Array) -> Array:
    """e^x for x <= 0: 2^whole times a polynomial of the fraction."""
    exponent = np.maximum(x.astype(np.float32) * np.float32(1 / np.log(2)), np.float32(-126))
    whole = np.rint(exponent)
    return np.ldexp(polynomial(exponent - whole, POWER_SHORT), whole.astype(np.int64)).astype(np.float32)


def gelu(x: Array) -> Array:
    inside = np.clip(x, np.float32(-PHI_END), np.float32(PHI_END))
    return x * fused(inside, polynomial(inside * inside, PHI), 0.5)


def silu(x: Array) -> Array:
    small = power(-np.abs(x))
    ratio = 1 / (small + np.float32(1))
    return x * np.where(x < 0, small * ratio, ratio)


ACTIVATIONS = {"gelu": gelu, "gelu_tanh": gelu, "relu": lambda x: np.maximum(x, 0), "silu": silu}


def attention(q: Array, k: Array, v: Array, scale: Array, gain: Array, zero: float, bias: Array | None = None) -> Array:
    """One sequence: signed bytes ``[heads, tokens, size]`` -> bytes of that shape; ``gain`` is ``[heads, size]``."""
    sums = q.astype(np.int64) @ k.astype(np.int64).transpose(0, 2, 1)
    scores = sums.astype(np.float32) * scale.astype(np.float32)[:, None, None]
    if bias is not None:
        scores = scores + bias
    weights = np.rint(power(scores - scores.max(2, keepdims=True)).astype(np.float64) * 255).astype(np.int64)
    share = 1 / weights.sum(2, keepdims=True).astype(np.float32)
    y = (weights @ v.astype(np.int64)).astype(np.float32) * share
    return np.rint(np.clip(fused(y, gain[:, None], zero), 0, 255)).astype(np.int64)


def linear(layer: Packed, x: Array) -> Array:
    """y of bytes ``[tokens, inputs]``."""
    sums = x.astype(np.int64) @ unpack(layer).astype(np.int64).T
    outputs = layer.shape[0]
    return fused(sums.astype(np.float32), layer.scale[:outputs], layer.bias[:outputs])


def normalized(x: Array, gamma: Array, beta: Array, epsilon: float) -> Array:
    mean = x.mean(-1, keepdims=True, dtype=np.float64).astype(np.float32)
    apart = x - mean
    variance = np.square(apart.astype(np.float64)).mean(-1, keepdims=True)
    return fused(apart * (1 / np.sqrt(variance + epsilon)).astype(np.float32), gamma, beta)


def encode(model: Model, sequences: Sequence[Array], types: Sequence[Array]) -> list[Array]:
    """Hidden states ``[tokens, hidden]`` of each sequence."""
    return [one(model, ids, kinds) for ids, kinds in zip(sequences, types, strict=True)]


def one(model: Model, ids: Array, kinds: Array) -> Array:
    s, t, count = model.shape, model.tensors, len(ids)

    def stored(name: str, x: Array) -> Array:
        inverse = t[f"{name}.inverse"][: x.shape[1]]
        return np.rint(np.clip(fused(x, inverse, t[f"{name}.zero"]), 0, 255)).astype(np.uint8)

    at = places(s, ids)
    x = t["embeddings.word"][ids] + t["embeddings.type"][kinds] + t["embeddings.position"][at]
    x = normalized(x, t["embeddings.gamma"], t["embeddings.beta"], s.epsilon)
    if s.embedding_size:
        x = (x @ t["projection.weight"].T + t["projection.bias"]).astype(np.float32)
    distance = np.arange(count)[:, None] - np.arange(count)[None, :]
    bias = t["relative"][:, distance + s.max_distance] if s.max_distance else None
    for i, layer in enumerate(model.layers):
        key = f"layers.{i}."
        read = stored(key + "input", x)
        heads = layer["query"].shape[0] // s.size

        def split(role: str, low: int, high: int, read: Array = read, layer: dict[str, Packed] = layer) -> Array:
            whole = np.rint(np.clip(linear(layer[role], read), low, high)).astype(np.int64)
            return whole.reshape(count, -1, s.size).transpose(1, 0, 2)

        q, k, v = split("query", 0, 255) - 128, split("key", -128, 127), split("value", -128, 127)
        scale, gain, zero = (t[f"{key}attention.{name}"] for name in ("scale", "gain", "zero"))
        context = attention(q, k, v, scale, gain.reshape(heads, -1), zero[0], None if bias is None else bias[:heads])
        x = x + linear(layer["out"], context.transpose(1, 0, 2).reshape(count, -1))
        x = normalized(x, t[f"{key}attention_norm.gamma"], t[f"{key}attention_norm.beta"], s.epsilon)
        inner = ACTIVATIONS[s.activation](linear(layer["up"], stored(key + "middle", x)))
        x = x + linear(layer["down"], stored(key + "intermediate", inner))
        x = normalized(x, t[f"{key}output_norm.gamma"], t[f"{key}output_norm.beta"], s.epsilon)
    return x
