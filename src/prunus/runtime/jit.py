"""From kernels to machine code: compiled for the processor found, kept on disk, loaded once a process.

The code of a set of kernels depends on the sources of this room, on the instruction set, on the processor and on LLVM; the
name of its file is a digest of these, so what is read back is what would have been compiled. A file is written beside and
moved into place: processes that start together at worst compile the same thing twice.
"""

import ctypes
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import llvmlite.binding as llvm

from prunus.cache import cache_directory
from prunus.runtime.ir_builder import Kernel
from prunus.runtime.isa import Isa

__all__ = ["Code", "assembly", "load"]

OPTIMIZE = 3


class Code:
    """Compiled kernels: their addresses by name. Keeps what they lie in alive."""

    def __init__(self, engine: llvm.ExecutionEngine, names: list[str]) -> None:
        self._engine = engine
        self.addresses = {name: engine.get_function_address(name) for name in names}

    def function(self, name: str, arguments: int) -> Callable[..., None]:
        """A kernel as a function of Python; it runs without the interpreter's lock."""
        kind = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * arguments)
        return kind(self.addresses[name])


def target(isa: Isa) -> llvm.TargetMachine:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    name, features = isa.processor, ""
    if not name:
        name, features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    elif name == "generic":
        name = "x86-64" if llvm.get_default_triple().startswith("x86_64") else "generic"
    if isa.lanes == 16:
        features += ",-prefer-256-bit"
    return llvm.Target.from_default_triple().create_target_machine(cpu=name, features=features.strip(","), opt=OPTIMIZE)


def optimized(kernels: list[Kernel], machine: llvm.TargetMachine) -> llvm.ModuleRef:
    module = llvm.parse_assembly("")
    module.triple, module.data_layout = machine.triple, str(machine.target_data)
    for kernel in kernels:
        part = llvm.parse_assembly(kernel.text())
        part.verify()
        module.link_in(part)
    options = llvm.create_pipeline_tuning_options(speed_level=OPTIMIZE)
    options.loop_unrolling = False  # kernels are unrolled as far as they should be
    options.loop_vectorization = options.slp_vectorization = False
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return module


def assembly(isa: Isa, kernel: Kernel) -> str:
    """What a kernel became, to read."""
    machine = target(isa)
    return machine.emit_assembly(optimized([kernel], machine))  # type: ignore[no-any-return]


def sources() -> bytes:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.digest()


def digest_of(isa: Isa, names: list[str]) -> str:
    parts = [
        isa.name,
        llvm.get_host_cpu_name(),
        llvm.get_host_cpu_features().flatten(),
        version("llvmlite"),
        sys.platform,
        *names,
    ]
    return hashlib.sha256(sources() + "\n".join(parts).encode()).hexdigest()[:32]


def load(isa: Isa, builders: dict[str, Callable[[], Kernel]], keep: bool = True) -> Code:
    """Compiles kernels, or reads what an earlier process compiled.

    Args:
        isa: what to compile for.
        builders: functions that write the kernels, by the names of the kernels.
        keep: whether to use the cache on disk.

    """
    names = sorted(builders)
    machine = target(isa)
    directory = cache_directory("kernels") if keep else None
    place = None if directory is None else directory / f"{isa.name}-{digest_of(isa, names)}.o"
    binary = None if place is None else read(place)
    if binary is None:
        binary = machine.emit_object(optimized([builders[name]() for name in names], machine))
        if place is not None:
            write(place, binary)
    empty = llvm.parse_assembly("")
    empty.triple = machine.triple
    engine = llvm.create_mcjit_compiler(empty, machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(binary))
    engine.finalize_object()
    return Code(engine, names)


def read(place: Path) -> bytes | None:
    """A cached object file: 32 bytes of SHA-256, then the code; None where it is missing or damaged."""
    try:
        data = place.read_bytes()
    except OSError:
        return None
    return data[32:] if hashlib.sha256(data[32:]).digest() == data[:32] else None


def write(place: Path, binary: bytes) -> None:
    """Best effort: without a place to write, every process compiles."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, name = tempfile.mkstemp(dir=place.parent, suffix=".partial")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(binary).digest() + binary)
            Path(name).replace(place)
        except OSError:
            Path(name).unlink(missing_ok=True)
    except OSError:
        return
