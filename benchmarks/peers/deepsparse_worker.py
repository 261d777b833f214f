"""DeepSparse 1.8 on a sparse int8 BERT-shaped encoder, as a process that times calls when told to.

    DEEPSPARSE_PYTHON benchmarks/peers/deepsparse_worker.py --layers 12 --hidden 768 --heads 12 --inner 3072
        --vocabulary 30522 --sparsity 0.8 --precision int8 --batch 1 --tokens 128 --threads 2 --seed 0

JSON lines. First, once the model is compiled, one line of facts: {"ready": true, "versions", "zeros" (share of the encoder's
weights), "cosine" (to the unquantized model's output), "supported" (share of the graph that DeepSparse runs itself),
"build_s", "compile_s"}. Then {"repeats": n} is answered with {"seconds": [n numbers]}; {"stop": true} or the end of input
ends it. Whatever DeepSparse prints goes to stderr. A worker waiting for a line uses no processor time.

The model: random weights, random token ids without padding, the post-LayerNorm encoder with its embeddings, without a
pooler. int8 is what SparseML's exporter makes of a BERT, for this is what DeepSparse fuses: QuantizeLinear, MatMulInteger,
Add of an int32 bias, Cast, Mul around each weight; QLinearMatMul with uint8 output for Q K^T and P V; embeddings as uint8.
What costs DeepSparse its speed and is easily got wrong (2 layers of BERT-base's width, 128 tokens, an EPYC with VNNI):
Q/DQ pairs around plain MatMuls are not fused (8 times slower); a QLinearMatMul of two activations is only supported where
one of them has no zero point, so K and V are symmetric int8; and zeros must lie in blocks of 4 outputs (``--block out``, the
default, our own 4x1): at 80 %, blocks of 4 inputs take 1.3 times as long, single zeros 1.5 times. The blocks that are kept
must be full, so no kept weight may round to 0; here it becomes 1 step. Scales per tensor are 6 % faster than per channel.
Activation scales come from the fp32 forward pass of the very input that is timed.

Two threads wait for each other many times a layer: where other work runs on the same two cores, a call with two threads
takes 10 times as long as alone and more, and longer than one with a single thread. Compare on a quiet machine.

Environment: Python 3.11, ``pip install deepsparse==1.8.0`` (brings onnx 1.14), no licence key, analytics off. The package's
licence allows evaluation only, so it is never a dependency of prunus, and nothing of it is part of this repository.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]
POSITIONS, CLEAR = 512, -10000.0
BLOCKS = {"in": (4, 1), "out": (1, 4), "none": (1, 1)}  # of a weight [in, out]
CALLS = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide, "Pow": np.power}
SIZES = {
    "layers": 12,
    "hidden": 768,
    "heads": 12,
    "inner": 3072,
    "vocabulary": 30522,
    "batch": 1,
    "tokens": 128,
    "threads": 2,
    "seed": 0,
}


class Value(NamedTuple):
    """A tensor of the graph and what it holds for the calibration input."""

    name: str
    array: Array


class Quantized(NamedTuple):
    """An 8 bit tensor of the graph with its parameters."""

    name: str
    scale: str
    zero: str
    step: np.float32


def erf(x: Array) -> Array:
    """Abramowitz and Stegun 7.1.26, to 2e-7; NumPy has none."""
    t = 1 / (1 + 0.3275911 * np.abs(x))
    poly = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t
    result: Array = np.sign(x) * (1 - poly * np.exp(-x * x))
    return result


class Encoder:
    """Adds nodes to a graph and computes what each of them gives, so that scales need no second pass."""

    def __init__(self, settings: argparse.Namespace) -> None:
        self.settings = settings
        self.int8 = settings.precision == "int8"
        self.random = np.random.default_rng(settings.seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.quantized: dict[str, Quantized] = {}
        self.zeros = self.weights = 0

    def constant(self, array: Array | np.generic) -> str:
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=f"{kind}_{name}", **attributes))
        return name

    def binary(self, kind: str, a: Value, b: Value | Array | float) -> Value:
        if not isinstance(b, Value):
            array = np.asarray(b, np.float32)
            b = Value(self.constant(array), array)
        return Value(self.op(kind, a.name, b.name), CALLS[kind](a.array, b.array))

    def normal(self, *shape: int, std: float = 0.02) -> Array:
        return self.random.standard_normal(shape, np.float32) * np.float32(std)

    def weight(self, inp: int, out: int) -> Array:
        """[in, out], with whole blocks of zeros."""
        high, wide = BLOCKS[self.settings.block]
        keep = np.ones(inp // high * (out // wide), bool)
        keep[self.random.permutation(keep.size)[: round(self.settings.sparsity * keep.size)]] = False
        mask = keep.reshape(inp // high, out // wide).repeat(high, 0).repeat(wide, 1)
        return self.normal(inp, out, std=inp**-0.5) * mask

    def quantize(self, x: Value) -> Quantized:
        """As uint8 with a zero point; once a tensor, however many use it."""
        if x.name not in self.quantized:
            low, high = min(float(x.array.min()), 0.0), max(float(x.array.max()), 0.0)
            step = np.float32(max((high - low) / 255, 1e-8))
            scale, zero = self.constant(step), self.constant(np.uint8(round(-low / float(step))))
            self.quantized[x.name] = Quantized(self.op("QuantizeLinear", x.name, scale, zero), scale, zero, step)
        return self.quantized[x.name]

    def symmetric(self, x: Value) -> Quantized:
        """As int8 without a zero point."""
        step = np.float32(np.abs(x.array).max() / 127)
        scale, zero = self.constant(step), self.constant(np.int8(0))
        return Quantized(self.op("QuantizeLinear", x.name, scale, zero), scale, zero, step)

    def linear(self, x: Value, out: int) -> Value:
        weight, bias = self.weight(x.array.shape[-1], out), self.normal(out)
        result = x.array @ weight + bias
        self.weights += weight.size
        self.zeros += int((weight == 0).sum())
        if not self.int8:
            product = self.op("MatMul", x.name, self.constant(weight))
            return Value(self.op("Add", product, self.constant(bias)), result)
        step = np.abs(weight).max(0 if self.settings.scales == "channel" else None) / np.float32(127)
        step = np.maximum(step, np.float32(1e-8))
        whole = np.clip(np.rint(weight / step), -127, 127)
        whole = np.where(whole == 0, np.sign(weight), whole).astype(np.int8)  # only the mask makes zeros
        data = self.quantize(x)
        total = np.asarray(step * data.step, np.float32)
        product = self.op("MatMulInteger", data.name, self.constant(whole), data.zero, self.constant(np.int8(0)))
        added = self.op("Add", product, self.constant(np.rint(bias / total).astype(np.int32)))
        cast = self.op("Cast", added, to=TensorProto.FLOAT)
        return Value(self.op("Mul", cast, self.constant(total)), result)

    def product(self, a: Value, b: Value) -> Value:
        """Of two activations; DeepSparse wants one of them without a zero point."""
        result = a.array @ b.array
        if not self.int8:
            return Value(self.op("MatMul", a.name, b.name), result)
        left, right = self.quantize(a), self.symmetric(b)
        low, high = min(float(result.min()), 0.0), max(float(result.max()), 0.0)
        step = max((high - low) / 255, 1e-8)
        scale, zero = self.constant(np.float32(step)), self.constant(np.uint8(round(-low / step)))
        whole = self.op("QLinearMatMul", *left[:3], *right[:3], scale, zero)
        return Value(self.op("DequantizeLinear", whole, scale, zero), result)

    def split(self, x: Value, order: tuple[int, ...]) -> Value:
        batch, tokens, width = x.array.shape
        shape = (batch, tokens, self.settings.heads, width // self.settings.heads)
        name = self.op("Reshape", x.name, self.constant(np.array(shape, np.int64)))
        return Value(self.op("Transpose", name, perm=order), x.array.reshape(shape).transpose(order))

    def join(self, x: Value) -> Value:
        batch, heads, tokens, width = x.array.shape
        array = x.array.transpose(0, 2, 1, 3).reshape(batch, tokens, heads * width)
        name = self.op("Transpose", x.name, perm=(0, 2, 1, 3))
        return Value(self.op("Reshape", name, self.constant(np.array(array.shape, np.int64))), array)

    def mean(self, x: Value) -> Value:
        return Value(self.op("ReduceMean", x.name, axes=[-1]), x.array.mean(-1, keepdims=True))

    def norm(self, x: Value) -> Value:
        """LayerNorm as PyTorch exports it to opset 13."""
        width = x.array.shape[-1]
        centred = self.binary("Sub", x, self.mean(x))
        variance = self.binary("Add", self.mean(self.binary("Pow", centred, 2.0)), 1e-12)
        root = Value(self.op("Sqrt", variance.name), np.sqrt(variance.array))
        scaled = self.binary("Mul", self.binary("Div", centred, root), 1 + self.normal(width))
        return self.binary("Add", scaled, self.normal(width))

    def gelu(self, x: Value) -> Value:
        inner = self.binary("Div", x, 2**0.5)
        raised = self.binary("Add", Value(self.op("Erf", inner.name), erf(inner.array)), 1.0)
        return self.binary("Mul", self.binary("Mul", x, raised), 0.5)

    def softmax(self, x: Value) -> Value:
        raised = np.exp(x.array - x.array.max(-1, keepdims=True))
        return Value(self.op("Softmax", x.name, axis=-1), raised / raised.sum(-1, keepdims=True))

    def layer(self, x: Value, bias: Value) -> Value:
        hidden = self.settings.hidden
        query = self.split(self.linear(x, hidden), (0, 2, 1, 3))
        key = self.split(self.linear(x, hidden), (0, 2, 3, 1))
        value = self.split(self.linear(x, hidden), (0, 2, 1, 3))
        scores = self.binary("Div", self.product(query, key), (hidden // self.settings.heads) ** 0.5)
        context = self.join(self.product(self.softmax(self.binary("Add", scores, bias)), value))
        x = self.norm(self.binary("Add", self.linear(context, hidden), x))
        inner = self.gelu(self.linear(x, self.settings.inner))
        return self.norm(self.binary("Add", self.linear(inner, hidden), x))

    def table(self, rows: int, ids: str, index: Array) -> Value:
        array = self.normal(rows, self.settings.hidden)
        if not self.int8:
            return Value(self.op("Gather", self.constant(array), ids), array[index])
        step = np.abs(array).max() / np.float32(127)
        whole = self.constant((np.rint(array / step) + 128).astype(np.uint8))
        scale, zero = self.constant(step), self.constant(np.uint8(128))
        return Value(self.op("DequantizeLinear", self.op("Gather", whole, ids), scale, zero), array[index])

    def build(self) -> tuple[onnx.ModelProto, list[Array], Array]:
        """The model, an input for it, and its output before quantization."""
        sizes = self.settings
        shape = (sizes.batch, sizes.tokens)
        ids = self.random.integers(0, sizes.vocabulary, shape).astype(np.int64)
        mask, kinds, places = np.ones_like(ids), np.zeros_like(ids), np.arange(sizes.tokens)[None]
        x = self.table(sizes.vocabulary, "input_ids", ids)
        x = self.binary("Add", x, self.table(2, "token_type_ids", kinds))
        x = self.norm(self.binary("Add", x, self.table(max(POSITIONS, sizes.tokens), self.constant(places), places)))
        wide = self.op("Unsqueeze", "attention_mask", self.constant(np.array([1, 2])))
        kept = Value(self.op("Cast", wide, to=TensorProto.FLOAT), mask[:, None, None].astype(np.float32))
        bias = self.binary("Mul", self.binary("Sub", kept, 1.0), -CLEAR)
        for _ in range(sizes.layers):
            x = self.layer(x, bias)
        self.nodes[-1].output[0] = "last_hidden_state"
        given = [
            helper.make_tensor_value_info(name, TensorProto.INT64, shape)
            for name in ("input_ids", "attention_mask", "token_type_ids")
        ]
        result = helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [*shape, sizes.hidden])
        graph = helper.make_graph(self.nodes, "encoder", given, [result], self.initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
        return model, [ids, mask, kinds], x.array


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Times DeepSparse on a BERT-shaped encoder, on request.")
    for name, default in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--sparsity", type=float, default=0.0, help="share of zeros, in blocks of 4")
    parser.add_argument("--precision", choices=("int8", "float32"), default="int8")
    parser.add_argument("--block", choices=tuple(BLOCKS), default="out", help="the side along which 4 zeros lie")
    parser.add_argument("--scales", choices=("tensor", "channel"), default="tensor", help="of the int8 weights")
    parser.add_argument("--model", type=Path, help="keep the ONNX file here, as for deepsparse.debug_analysis")
    return parser.parse_args()


def main() -> None:
    settings = arguments()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the engine prints must not mix with the answers
    os.environ["NM_DISABLE_ANALYTICS"] = "True"  # read at the import
    import deepsparse  # type: ignore[import-not-found]

    start = time.perf_counter()
    encoder = Encoder(settings)
    model, inputs, expected = encoder.build()
    built = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        path = settings.model or Path(folder, "model.onnx")
        onnx.save(model, str(path))
        start = time.perf_counter()
        engine = deepsparse.compile_model(str(path), batch_size=settings.batch, num_cores=settings.threads)
        compiled = time.perf_counter() - start
    found = engine.run(inputs)[0]
    cosine = float((found * expected).sum() / np.linalg.norm(found) / np.linalg.norm(expected))
    if not (np.isfinite(found).all() and cosine > 0.95):
        raise RuntimeError(f"wrong result: cosine {cosine} to the unquantized model")
    facts = {
        "ready": True,
        "versions": {name: version(name) for name in ("deepsparse", "onnx")},
        "zeros": encoder.zeros / max(encoder.weights, 1),
        "cosine": cosine,
        "supported": engine.fraction_of_supported_ops,
        "build_s": built,
        "compile_s": compiled,
    }
    del model, encoder, expected
    print(json.dumps(facts), file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        if request.get("stop"):
            break
        seconds = []
        for _ in range(request["repeats"]):
            start = time.perf_counter()
            engine.run(inputs, False)
            seconds.append(time.perf_counter() - start)
        print(json.dumps({"seconds": seconds}), file=answers)


if __name__ == "__main__":
    main()
