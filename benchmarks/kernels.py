"""How close the kernels come to what the processor can do: ``python benchmarks/kernels.py``. One thread, one tile of 64 tokens.

    peak        byte products in registers alone: nothing is loaded
    mixed       16 byte products and the 8 shuffles that mix four columns, in registers: the bound of ``group_sparse_int8``
    float peak  16 multiply-adds in registers: the bound of ``group_sparse_float32``

A kernel's rate counts kept weights times tokens (multiply-adds a second); its fraction is of its own bound. Results go to
``benchmarks/results/kernels.json``.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from prunus.bench.command import versions
from prunus.environment import processor
from prunus.runtime.ir_builder import F32, I8, I32, Kernel
from prunus.runtime.isa import Isa, choose
from prunus.runtime.jit import compile_kernels
from prunus.runtime.kernels.linear import LinearSpec
from prunus.runtime.kernels.maths import quads_of
from prunus.runtime.kernels.step import PARAMETERS, TILE, KernelSpec
from prunus.runtime.pack import pack
from prunus.runtime.program import table_of
from prunus.runtime.thread_pool import aligned

HERE = Path(__file__).parent
SHAPES = ((384, 384), (1536, 384), (384, 1536), (768, 768), (3072, 768), (768, 3072))
DENSITIES = (0.2, 0.1)
LOOPS = 200_000


def peak(isa: Isa, name: str) -> Kernel:
    """A loop of products on registers; what they start from and end in is memory, so nothing is optimized away."""
    block = isa.blocks[0]
    count = isa.vectors(block)
    floating = name == "float_peak"
    number = F32 if floating else I32
    with Kernel(name, ("memory", "loops")) as k:
        sums = [k.variables(count, number * isa.lanes) for _ in range(4)]
        columns = [k.variable(I8 * block) for _ in range(4)]
        for i, column in enumerate(columns):
            column.set((k.memory + 64 * i).load(I8 * block))
        factors = [(k.memory + 256 + 64 * v).load(number * isa.lanes) for v in range(count)]
        weights = [(k.memory + 1024 + 4 * i).load(number) for i in range(4)]
        with k.loop(0, k.loops) as _:
            if name == "mixed":
                mixed = [isa.prepare(quad) for quad in quads_of(isa, [column.get() for column in columns])]
                columns[0].set(columns[1].get())  # the next mix is another one
                columns[1].set(columns[2].get())
                columns[2].set(columns[3].get())
                columns[3].set(
                    sums[0][0].get().bitcast(I8 * (4 * isa.lanes)) if block == 4 * isa.lanes else columns[0].get()
                )
            elif not floating:
                mixed = [isa.prepare(factor) for factor in factors]
            for output in range(4):
                for v, cell in enumerate(sums[output]):
                    if floating:
                        cell.set(factors[v].fma(weights[output], cell.get()))
                    else:
                        cell.set(isa.dot(cell.get(), mixed[v], isa.weight(weights[output])))
        for output, row in enumerate(sums):
            for v, cell in enumerate(row):
                (k.memory + 2048 + 64 * (output * count + v)).store(cell.get())
    return k


@dataclass(frozen=True)
class Peak(KernelSpec):
    """One of the loops of ``peak``."""

    name: str

    @property
    def symbol(self) -> str:
        return self.name

    def build(self, isa: Isa) -> Kernel:
        return peak(isa, self.name)


def best(call: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def bounds(isa: Isa) -> dict[str, float]:
    """Multiply-adds a second of the three loops."""
    names = ("peak", "mixed", "float_peak")
    code = compile_kernels(isa, map(Peak, names), keep=False)
    memory = aligned((16384,), np.uint8)
    found = {}
    for name in names:
        call = code.function(Peak(name), 2)
        seconds = best(partial(call, memory.ctypes.data, LOOPS), 15)
        found[name] = LOOPS * 4 * isa.blocks[0] * (1 if name == "float_peak" else 4) / seconds
    return found


def rate(isa: Isa, kind: str, shape: tuple[int, int], density: float, layers: int) -> dict[str, Any]:
    """One kernel on several weights of one shape in turn: they come from as far away as in a model."""
    outputs, inputs = shape
    draw = np.random.default_rng(0)
    integers = kind == "group_sparse_int8"
    kernel = LinearSpec(kind, "store")
    call = compile_kernels(isa, [kernel], keep=False)
    function = call.function(kernel, len(PARAMETERS))
    x = aligned((1, inputs, TILE), np.uint8 if integers else np.float32)
    x[:] = draw.integers(0, 255, x.shape)
    y = aligned((1, outputs, TILE), np.float32)
    widths, starts = np.array([TILE]), np.array([0])
    tables, held, kept = [], [], 0
    for _ in range(layers):
        keep = np.repeat(draw.random((outputs // 4, inputs)) < density, 4, axis=0)
        weight = (draw.standard_normal(shape) * keep).astype(np.float32)
        packed = pack(kind, weight, np.zeros(outputs, np.float32), 0.01)
        values = {"widths": widths, "starts": starts, "x": x, "first": packed.first, "records": packed.records}
        values |= {"scale": packed.scale, "bias": packed.bias, "y": y}
        tables.append(table_of(kernel.arguments, values))
        held.append(packed)
        kept += int(keep.sum())

    def all_layers() -> None:
        for table in tables:
            function(table.ctypes.data, 0, 1, 0, outputs // 4, 0)

    seconds = best(all_layers, 40)
    return {"us": seconds / layers * 1e6, "rate": kept * TILE / seconds, "bytes": sum(p.records.nbytes for p in held)}


def main() -> None:
    parser = argparse.ArgumentParser(description="How close the kernels come to what the processor can do.")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "kernels.json")
    options = parser.parse_args()
    isa = choose()
    limit = bounds(isa)
    rows = []
    for kind, bound in (("group_sparse_int8", "mixed"), ("group_sparse_float32", "float_peak")):
        for density in DENSITIES:
            for shape in SHAPES:
                for where, layers in (("same weights", 1), ("12 weights in turn", 12)):
                    found = rate(isa, kind, shape, density, layers)
                    row = {"kernel": kind, "shape": list(shape), "kept": density, "weights": where} | found
                    rows.append(row | {"fraction": found["rate"] / limit[bound]})
                    print(kind, shape, density, where, f"{found['us']:.1f} us, {rows[-1]['fraction']:.0%} of {bound}")
    result = {
        "command": "python benchmarks/kernels.py",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": processor(),
        "isa": isa.name,
        "threads": 1,
        "versions": versions(),
        "bounds": limit,
        "rows": rows,
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print({name: f"{value / 1e9:.0f} G/s" for name, value in limit.items()})


if __name__ == "__main__":
    main()
