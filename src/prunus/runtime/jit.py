"""The JIT: kernel specifications -> machine code for the processor that runs this, kept on disk, loaded once a process.

The code of a set of kernels depends on the sources of this room, the specifications, the instruction set, the processor and
LLVM; the name of its file is a digest of these, so a cached file holds what would have been compiled. A file is written under
another name and moved into place: processes that start together at worst compile the same thing twice.
"""

import ctypes
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import llvmlite.binding as llvm

from prunus import grid
from prunus.cache import cache_directory
from prunus.runtime.ir_builder import Kernel
from prunus.runtime.isa import Isa
from prunus.runtime.kernels.step import KernelSpec

__all__ = ["Code", "assembly", "compile_kernels"]

OPTIMIZE = 3


class Code:
    """Compiled kernels: their addresses by specification. They stay in memory as long as this object."""

    def __init__(self, engines: Iterable[llvm.ExecutionEngine], addresses: Mapping[KernelSpec, int]) -> None:
        self._engines = list(engines)
        self.addresses = dict(addresses)

    def function(self, kernel: KernelSpec, parameters: int) -> Callable[..., None]:
        """A kernel as a function of Python with this many 64-bit parameters; it runs without the interpreter's lock."""
        kind = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * parameters)
        return kind(self.addresses[kernel])


def _target(isa: Isa) -> llvm.TargetMachine:
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


def _optimized(kernels: Iterable[Kernel], target: llvm.TargetMachine) -> llvm.ModuleRef:
    module = llvm.parse_assembly("")
    module.triple, module.data_layout = target.triple, str(target.target_data)
    for kernel in kernels:
        part = llvm.parse_assembly(kernel.text())
        part.verify()
        module.link_in(part)
    options = llvm.create_pipeline_tuning_options(speed_level=OPTIMIZE)
    options.loop_unrolling = False  # kernels are unrolled as far as they should be
    options.loop_vectorization = options.slp_vectorization = False
    builder = llvm.create_pass_builder(target, options)
    builder.getModulePassManager().run(module, builder)
    return module


def assembly(isa: Isa, kernel: KernelSpec) -> str:
    """The machine code of a kernel, to read."""
    target = _target(isa)
    return target.emit_assembly(_optimized([kernel.build(isa)], target))  # type: ignore[no-any-return]


def _source_digest() -> bytes:
    digest = hashlib.sha256()
    for path in (Path(grid.__file__), *sorted(Path(__file__).parent.rglob("*.py"))):
        digest.update(path.read_bytes())
    return digest.digest()


def _cache_key(isa: Isa, kernels: Iterable[KernelSpec]) -> str:
    parts = [
        isa.name,
        llvm.get_host_cpu_name(),
        llvm.get_host_cpu_features().flatten(),
        version("llvmlite"),
        sys.platform,
        *map(repr, kernels),
    ]
    return hashlib.sha256(_source_digest() + "\n".join(parts).encode()).hexdigest()[:32]


def compile_kernels(isa: Isa, kernels: Iterable[KernelSpec], keep: bool = True) -> Code:
    """Compiles kernels, or reads what an earlier process compiled.

    Args:
        isa: what to compile for.
        kernels: specifications; equal ones are compiled once, and their order does not matter.
        keep: whether to use the cache on disk.

    Raises:
        ValueError: two different specifications with one symbol, or a kernel whose name is not its symbol.

    """
    specs = sorted(set(kernels), key=lambda spec: spec.symbol)
    for one, other in pairwise(specs):
        if one.symbol == other.symbol:
            raise ValueError(f"{one} and {other} have one symbol, {one.symbol}")
    target = _target(isa)
    directory = cache_directory("kernels") if keep else None
    place = None if directory is None else directory / f"{isa.name}-{_cache_key(isa, specs)}.o"
    binary = None if place is None else _read(place)
    if binary is None:
        binary = target.emit_object(_optimized([_built(spec, isa) for spec in specs], target))
        if place is not None:
            _write(place, binary)
    empty = llvm.parse_assembly("")
    empty.triple = target.triple
    engine = llvm.create_mcjit_compiler(empty, target)
    engine.add_object_file(llvm.ObjectFileRef.from_data(binary))
    engine.finalize_object()
    return Code([engine], {spec: engine.get_function_address(spec.symbol) for spec in specs})


def _built(spec: KernelSpec, isa: Isa) -> Kernel:
    kernel = spec.build(isa)
    if kernel.name != spec.symbol:
        raise ValueError(f"{spec} wrote a kernel named {kernel.name!r}; its symbol is {spec.symbol!r}")
    return kernel


def _read(place: Path) -> bytes | None:
    """A cached object file: 32 bytes of SHA-256, then the code; None where it is missing or damaged."""
    try:
        data = place.read_bytes()
    except OSError:
        return None
    return data[32:] if hashlib.sha256(data[32:]).digest() == data[:32] else None


def _write(place: Path, binary: bytes) -> None:
    """Writes if it can: without a place to write, every process compiles."""
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
