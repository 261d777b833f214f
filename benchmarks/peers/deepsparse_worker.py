"""draft"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any, NamedTuple

os.environ["NM_DISABLE_ANALYTICS"] = "True"  # read when deepsparse is imported

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]
POSITIONS, CLEAR = 512, -10000.0


class Value(NamedTuple):
    """A tensor of the graph and what it holds for the calibration input."""

    name: str
    array: Array


def erf(x: Array) -> Array:
    """Abramowitz and Stegun 7.1.26, to 2e-7."""
    t = 1 / (1 + 0.3275911 * np.abs(x))
    poly = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t
    return np.sign(x) * (1 - poly * np.exp(-x * x))


class Graph:
    """Adds nodes and computes what each of them gives, so that scales need no second pass."""

    def __init__(self, settings: argparse.Namespace) -> None:
        self.settings = settings
        self.random = np.random.default_rng(settings.seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.quantized: dict[str, tuple[str, str, str, float]] = {}

    def constant(self, array: Array | float, name: str = "") -> str:
        name = name or f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def value(self, array: Array) -> Value:
        return Value(self.constant(array), array)

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=f"{kind}_{name}", **attributes))
        return name

    def binary(self, kind: str, a: Value, b: Value | Array | float) -> Value:
        other = b if isinstance(b, Value) else self.value(np.asarray(b, np.float32))
        call = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide, "Pow": np.power}[kind]
        return Value(self.op(kind, a.name, other.name), call(a.array, other.array))

    def normal(self, *shape: int, std: float = 0.02) -> Array:
        return (self.random.standard_normal(shape, np.float32) * np.float32(std)).astype(np.float32)

    def weight(self, inp: int, out: int) -> Array:
        """[in, out], with whole blocks of zeros."""
        weight = self.normal(inp, out, std=inp**-0.5)
        weight += np.float32(1e-4) * np.sign(weight)
        along = {"in": (4, 1), "out": (1, 4), "none": (1, 1)}[self.settings.block]
        rows, columns = inp // along[0], out // along[1]
        mask = np.ones(rows * columns, bool)
        mask[self.random.permutation(mask.size)[: round(self.settings.sparsity * mask.size)]] = False
        return weight * mask.reshape(rows, columns).repeat(along[0], 0).repeat(along[1], 1)

    def quantize(self, x: Value) -> tuple[str, str, str, float]:
        """(uint8 tensor, scale, zero point, scale as a number), once a tensor."""
        if x.name not in self.quantized:
            low, high = min(float(x.array.min()), 0.0), max(float(x.array.max()), 0.0)
            step = max((high - low) / 255, 1e-8)
            scale, zero = self.constant(np.float32(step)), self.constant(np.uint8(round(-low / step)))
            self.quantized[x.name] = (self.op("QuantizeLinear", x.name, scale, zero), scale, zero, step)
        return self.quantized[x.name]

    def linear(self, x: Value, out: int) -> Value:
        weight, bias = self.weight(x.array.shape[-1], out), self.normal(out)
        result = x.array @ weight + bias
        if self.settings.precision == "float32":
            return Value(self.op("Add", self.op("MatMul", x.name, self.constant(weight)), self.constant(bias)), result)
        channel = np.abs(weight).max(0) / 127 if self.settings.channel else np.float32(np.abs(weight).max() / 127)
        channel = np.maximum(channel, np.float32(1e-8)).astype(np.float32)
        whole = np.clip(np.rint(weight / channel), -127, 127).astype(np.int8)
        zero: Any = np.int8(0)
        if self.settings.wtype == "uint8":
            whole, zero = (whole.astype(np.int16) + 128).astype(np.uint8), np.uint8(128)
        data, scale, point, step = self.quantize(x)
        if self.settings.form == "qdq":
            dx = self.op("DequantizeLinear", data, scale, point)
            if self.settings.channel:
                dw = self.op("DequantizeLinear", self.constant(whole), self.constant(channel),
                             self.constant(np.full(out, zero)), axis=1)
            else:
                dw = self.op("DequantizeLinear", self.constant(whole), self.constant(channel), self.constant(zero))
            return Value(self.op("Add", self.op("MatMul", dx, dw), self.constant(bias)), result)
        product = self.op("MatMulInteger", data, self.constant(whole), point, self.constant(zero))
        total = (channel * np.float32(step)).astype(np.float32)
        shift = np.rint(bias / total).astype(np.int32)
        added = self.op("Add", product, self.constant(shift))
        cast = self.op("Cast", added, to=TensorProto.FLOAT)
        return Value(self.op("Mul", cast, self.constant(total)), result)

    def product(self, a: Value, b: Value, form: str) -> Value:
        """Of two activations."""
        result = a.array @ b.array
        if self.settings.precision == "float32":
            return Value(self.op("MatMul", a.name, b.name), result)
        qa, qb = self.quantize(a), self.quantize(b)
        if form == "qdq":
            left, right = (self.op("DequantizeLinear", *q[:3]) for q in (qa, qb))
            return Value(self.op("MatMul", left, right), result)
        if form == "integer":
            whole = self.op("MatMulInteger", qa[0], qb[0], qa[2], qb[2])
            cast = self.op("Cast", whole, to=TensorProto.FLOAT)
            return Value(self.op("Mul", cast, self.constant(np.float32(qa[3] * qb[3]))), result)
        low, high = float(result.min()), float(result.max())
        step = (high - low) / 255
        scale, zero = self.constant(np.float32(step)), self.constant(np.uint8(np.clip(round(-low / step), 0, 255)))
        whole = self.op("QLinearMatMul", *qa[:3], *qb[:3], scale, zero)
        return Value(self.op("DequantizeLinear", whole, scale, zero), result)

    def heads(self, x: Value, order: tuple[int, ...]) -> Value:
        batch, tokens, width = x.array.shape
        heads = self.settings.heads
        shape = (batch, tokens, heads, width // heads)
        split = self.op("Reshape", x.name, self.constant(np.array(shape, np.int64)))
        return Value(self.op("Transpose", split, perm=order), x.array.reshape(shape).transpose(order))

    def norm(self, x: Value) -> Value:
        width = x.array.shape[-1]
        mean = Value(self.op("ReduceMean", x.name, axes=[-1]), x.array.mean(-1, keepdims=True))
        off = self.binary("Sub", x, mean)
        square = self.binary("Pow", off, 2.0)
        var = Value(self.op("ReduceMean", square.name, axes=[-1]), square.array.mean(-1, keepdims=True))
        shifted = self.binary("Add", var, 1e-12)
        root = Value(self.op("Sqrt", shifted.name), np.sqrt(shifted.array))
        scaled = self.binary("Mul", self.binary("Div", off, root), 1 + self.normal(width))
        return self.binary("Add", scaled, self.normal(width))

    def gelu(self, x: Value) -> Value:
        inner = self.binary("Div", x, 2**0.5)
        raised = self.binary("Add", Value(self.op("Erf", inner.name), erf(inner.array)), 1.0)
        return self.binary("Mul", self.binary("Mul", x, raised), 0.5)

    def layer(self, x: Value, bias: Value) -> Value:
        s = self.settings
        query = self.heads(self.linear(x, s.hidden), (0, 2, 1, 3))
        key = self.heads(self.linear(x, s.hidden), (0, 2, 3, 1))
        value = self.heads(self.linear(x, s.hidden), (0, 2, 1, 3))
        scores = self.binary("Div", self.product(query, key, s.qk), (s.hidden // s.heads) ** 0.5)
        scores = self.binary("Add", scores, bias)
        exponent = np.exp(scores.array - scores.array.max(-1, keepdims=True))
        chances = Value(self.op("Softmax", scores.name, axis=-1), exponent / exponent.sum(-1, keepdims=True))
        context = self.product(chances, value, s.pv)
        turned = self.op("Transpose", context.name, perm=(0, 2, 1, 3))
        joined = self.op("Reshape", turned, self.constant(np.array(x.array.shape, np.int64)))
        context = Value(joined, context.array.transpose(0, 2, 1, 3).reshape(x.array.shape))
        x = self.norm(self.binary("Add", self.linear(context, s.hidden), x))
        inner = self.gelu(self.linear(x, s.inner))
        return self.norm(self.binary("Add", self.linear(inner, s.hidden), x))

    def table(self, ids: str, rows: int, index: Array) -> Value:
        array = self.normal(rows, self.settings.hidden)
        if self.settings.embed and self.settings.precision == "int8":
            step = np.float32(np.abs(array).max() / 127)
            whole = (np.rint(array / step) + 128).clip(0, 255).astype(np.uint8)
            scale, zero = self.constant(step), self.constant(np.uint8(128))
            found = self.op("DequantizeLinear", self.op("Gather", self.constant(whole), ids), scale, zero)
        else:
            found = self.op("Gather", self.constant(array), ids)
        return Value(found, array[index])


def build(s: argparse.Namespace) -> tuple[onnx.ModelProto, list[Array], Array]:
    g = Graph(s)
    ids = g.random.integers(0, s.vocabulary, (s.batch, s.tokens)).astype(np.int64)
    mask, kinds = np.ones_like(ids), np.zeros_like(ids)
    x = g.binary("Add", g.table("input_ids", s.vocabulary, ids), g.table("token_type_ids", 2, kinds))
    places = np.arange(s.tokens)[None]
    x = g.norm(g.binary("Add", x, g.table(g.constant(places), max(POSITIONS, s.tokens), places)))
    wide = g.op("Unsqueeze", "attention_mask", g.constant(np.array([1, 2], np.int64)))
    flag = Value(g.op("Cast", wide, to=TensorProto.FLOAT), mask[:, None, None].astype(np.float32))
    one = g.value(np.float32(1))
    bias = g.binary("Mul", g.binary("Sub", one, flag), CLEAR)
    for _ in range(s.layers):
        x = g.layer(x, bias)
    g.nodes[-1].output[0] = "last_hidden_state"
    names = ("input_ids", "attention_mask", "token_type_ids")
    shape = [s.batch, s.tokens]
    inputs = [helper.make_tensor_value_info(n, TensorProto.INT64, shape) for n in names]
    output = helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [*shape, s.hidden])
    graph = helper.make_graph(g.nodes, "encoder", inputs, [output], g.initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    return model, [ids, mask, kinds], x.array


def main() -> None:
    p = argparse.ArgumentParser()
    for n, d in (("layers", 12), ("hidden", 768), ("heads", 12), ("inner", 3072), ("vocabulary", 30522), ("batch", 1), ("tokens", 128), ("threads", 2), ("seed", 0)):
        p.add_argument(f"--{n}", type=int, default=d)
    p.add_argument("--sparsity", type=float, default=0.0)
    p.add_argument("--precision", default="int8")
    p.add_argument("--block", default="in")
    p.add_argument("--channel", type=int, default=1)
    p.add_argument("--wtype", default="int8")
    p.add_argument("--form", default="integer")
    p.add_argument("--qk", default="qlinear")
    p.add_argument("--pv", default="qlinear")
    p.add_argument("--embed", type=int, default=1)
    p.add_argument("--save")
    s = p.parse_args()
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    start = time.perf_counter()
    model, inputs, expected = build(s)
    built = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        path = s.save or str(Path(folder, "model.onnx"))
        onnx.save(model, path)
        import deepsparse
        start = time.perf_counter()
        engine = deepsparse.compile_model(path, batch_size=s.batch, num_cores=s.threads)
        compiled = time.perf_counter() - start
    found = engine(inputs)[0]
    cos = float((found * expected).sum() / np.linalg.norm(found) / np.linalg.norm(expected))
    print(json.dumps({"ready": True, "finite": bool(np.isfinite(found).all()), "cosine": cos, "build": built, "compile": compiled, "supported": engine.fraction_of_supported_ops}), file=out)
    for line in sys.stdin:
        request = json.loads(line)
        if request.get("stop"):
            break
        seconds = []
        for _ in range(request["repeats"]):
            start = time.perf_counter()
            engine.run(inputs, False)
            seconds.append(time.perf_counter() - start)
        print(json.dumps({"seconds": seconds}), file=out)


main()
