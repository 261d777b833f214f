"""Instruction sets: what a kernel may count on, and how each one multiplies bytes.

    dot(acc, a, w):   acc[t] += a[t,0] w[0] + a[t,1] w[1] + a[t,2] w[2] + a[t,3] w[3]     a uint8, w int8, acc int32

one lane ``t`` a token, the four bytes of ``a`` in one 32-bit lane, the four of ``w`` in one number. It is exact on every path:
AVX2's own byte product (``vpmaddubsw``) saturates at 16 bits, so that path widens to 16 bits first.

``PRUNUS_ISA`` forces a path; one that the processor does not have is an error.
"""

import os
import platform
from dataclasses import dataclass
from typing import Literal

import llvmlite.binding as llvm

from prunus.errors import EngineError, Problem
from prunus.runtime.ir_builder import I8, I16, I32, Kernel, Value

__all__ = ["ISAS", "Isa", "available", "choose"]


@dataclass(frozen=True)
class Isa:
    """One way to write kernels."""

    name: str
    lanes: int
    """32-bit numbers in a vector."""
    blocks: tuple[int, ...]
    """Tokens that one pass of a kernel covers, the widest first."""
    product: Literal["vnni", "pairs", "plain"]
    processor: str
    """LLVM's name; empty for the processor that runs this."""
    needs: tuple[str, ...] = ()
    """Features that the processor must have."""

    def vectors(self, block: int) -> int:
        """Vectors that a block of tokens fills."""
        return block // self.lanes

    @property
    def packs(self) -> bool:
        """Whether ``narrow`` is there."""
        return self.lanes == 16

    def narrow(self, four: list[Value], signed: bool) -> Value:
        """Four vectors of 16 float32 -> 64 bytes, rounded to even and clipped to what a byte holds.

        Numbers beyond 2^31 count as the lowest.
        Byte ``16 l + 4 j + i`` is lane ``4 l + i`` of vector ``j``: the instructions stay inside 128 bits.
        """
        call = four[0].kernel.call
        to_integers = "llvm.x86.avx512.mask.cvtps2dq.512"
        rounding = [four[0].kernel.constant(t, n) for t, n in ((I32 * 16, 0), (I16, -1), (I32, 4))]
        whole = [call(to_integers, I32 * 16, y, *rounding) for y in four]
        halves = [call("llvm.x86.avx512.packssdw.512", I16 * 32, a, b) for a, b in (whole[:2], whole[2:])]
        return call(f"llvm.x86.avx512.pack{'s' if signed else 'u'}swb.512", I8 * 64, *halves)

    def prepare(self, words: Value) -> list[Value]:
        """Words of four unsigned bytes, as ``dot`` takes its first factor."""
        if self.product == "vnni":
            return [words]
        if self.product == "pairs":
            halves = words.bitcast(I16 * (2 * self.lanes))
            return [halves & 0xFF, halves.shift_right_unsigned(8)]
        return [words.shift_right_unsigned(8 * byte) & 0xFF for byte in range(4)]

    def weight(self, word: Value) -> list[Value]:
        """One word of four signed bytes, or a vector of them, as ``dot`` takes its second factor."""
        wide = word.splat(self.lanes) if word.type.lanes == 1 else word
        if self.product == "vnni":
            return [wide]
        if self.product == "pairs":
            halves = wide.bitcast(I16 * (2 * self.lanes))
            return [(halves << 8).shift_right_signed(8), halves.shift_right_signed(8)]
        return [(wide << (24 - 8 * byte)).shift_right_signed(24) for byte in range(4)]

    def dot(self, sums: Value, factors: list[Value], weights: list[Value]) -> Value:
        """``sums`` and the products of four bytes a lane."""
        kernel: Kernel = sums.kernel
        if self.product == "vnni":
            name = f"llvm.x86.avx512.vpdpbusd.{32 * self.lanes}"
            return kernel.call(name, sums.type, sums, factors[0], weights[0])
        for factor, weight in zip(factors, weights, strict=True):
            if self.product == "pairs":
                name = "llvm.x86.avx2.pmadd.wd" if self.lanes == 8 else "llvm.x86.avx512.pmaddw.d.512"
                sums = sums + kernel.call(name, I32 * self.lanes, factor, weight)
            else:
                sums = sums + factor * weight
        return sums


ISAS = {
    isa.name: isa
    for isa in (
        Isa("avx512_vnni", 16, (64, 32, 16), "vnni", "", ("avx512vl", "avx512bw", "avx512dq", "avx512vnni")),
        Isa("avx512", 16, (64, 32, 16), "pairs", "x86-64-v4", ("avx512vl", "avx512bw", "avx512dq")),
        Isa("avx2", 8, (16,), "pairs", "x86-64-v3", ("avx2", "fma", "bmi2", "f16c")),
        Isa("generic", 4, (16,), "plain", "generic"),
    )
}
"""From the fastest to the one that runs everywhere."""


def available() -> list[str]:
    """The paths that this processor can run, the fastest first."""
    features = llvm.get_host_cpu_features()
    x86 = platform.machine().lower() in {"x86_64", "amd64"}
    return [
        isa.name for isa in ISAS.values() if not isa.needs or (x86 and all(features.get(n, False) for n in isa.needs))
    ]


def choose(name: str | None = None) -> Isa:
    """The path asked for, by argument or by ``PRUNUS_ISA``; else the fastest of this processor.

    Raises:
        EngineError: no such path, or the processor does not have it.

    """
    wanted, possible = name or os.environ.get("PRUNUS_ISA", ""), available()
    if not wanted:
        return ISAS[possible[0]]
    if wanted not in possible:
        rule = f"be one of this processor's: {', '.join(possible)}"
        raise EngineError(Problem("PRUNUS_ISA", wanted, rule, possible[0]))
    return ISAS[wanted]
