"""An encoder that runs: its program, compiled, and memory for it.

Tokens of all sequences lie one after the other, without padding, and are cut into tiles of up to 64. A thread owns tiles; what
one tile needs of another is only keys and values, so the threads meet once a layer. Where there are fewer tiles than threads
the threads share each layer's outputs instead, and meet before every step.
"""

from typing import Any

from numpy.typing import NDArray

from prunus.runtime.convert import Model
from prunus.runtime.encoder_program import encoder_program
from prunus.runtime.isa import Isa
from prunus.runtime.jit import compile_kernels
from prunus.runtime.kernels.attention import scratch_bytes
from prunus.runtime.program import BoundProgram, kernels_of
from prunus.runtime.thread_pool import ThreadPool
from prunus.runtime.workspace import Workspace

__all__ = ["Encoder"]

Array = NDArray[Any]
LEAST_CAPACITY = 128
"""Tokens of the smallest workspace."""


class Encoder:
    """Runs the program of a model with a pool of threads.

    Args:
        model: packed weights.
        isa: the instruction set to compile for.
        threads: how many.

    """

    def __init__(self, model: Model, isa: Isa, threads: int) -> None:
        self.model, self.isa = model, isa
        self.steps = encoder_program(model)
        self._code = compile_kernels(isa, kernels_of(self.steps))
        self.pool = ThreadPool(self._code, threads)
        self._memory: tuple[Workspace, BoundProgram] | None = None
        self._shared: Array | None = None

    @property
    def bytes(self) -> int:
        """Working memory that is allocated now."""
        return self.pool.bytes + (self._memory[0].bytes if self._memory else 0)

    def run(self, lengths: Array, inputs: Array) -> Array:
        """Hidden states ``[tokens, hidden]`` of the last layer, of sequences that lie one after the other.

        Args:
            lengths: ``[sequences]``, each at least one.
            inputs: ``[3, tokens]``: words, positions, types, all in range.

        """
        tokens = int(lengths.sum())
        with self.pool:
            workspace, program = self._reserve(tokens)
            if workspace.place(lengths, inputs) or self._shared is None:
                self._shared = program.shared(workspace.tiles)
            self.pool.run(self._shared, scratch_bytes(int(lengths.max()), self.model.shape.size))
            return workspace.output[:tokens].copy()

    def _reserve(self, tokens: int) -> tuple[Workspace, BoundProgram]:
        """A workspace for so many tokens, and the program in it."""
        if self._memory is None or self._memory[0].capacity < tokens:
            capacity = max(LEAST_CAPACITY, 1 << (tokens - 1).bit_length())
            workspace = Workspace(self.model, capacity, self.pool.threads)
            program = BoundProgram(self.steps, self._code, workspace.buffers, self.pool.threads)
            self._memory = workspace, program
        return self._memory
