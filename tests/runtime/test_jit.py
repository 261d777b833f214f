"""Compiled code on disk: read back, made anew where it does not fit, and never in the way."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from harness import HERE, Written

from prunus.runtime import jit
from prunus.runtime.ir_builder import I64, Kernel
from prunus.runtime.isa import ISAS, Isa
from prunus.runtime.kernels.linear import LinearSpec
from prunus.runtime.kernels.step import KernelSpec

TWO_AT_ONCE = """
import sys, time, numpy as np
from prunus.runtime.isa import choose
from prunus.runtime.kernels.attention import AttentionSpec
from prunus.runtime.ir_builder import I64, Kernel
from prunus.runtime.jit import compile_kernels
from prunus.runtime.kernels.step import KernelSpec

class Add(KernelSpec):
    def build(self, isa):
        with Kernel(self.symbol, ("x",)) as k:
            k.x.store(k.x.load(I64) + 41)
        return k

isa = choose("generic")
sys.stdout.write("ready\\n")
sys.stdout.flush()
sys.stdin.readline()
code = compile_kernels(isa, [Add(), AttentionSpec(integers=True, biased=False)])
number = np.array([1])
code.function(Add(), 1)(number.ctypes.data)
print(number[0])
"""


class Counted:
    """A kernel that adds a number, and how often it was written."""

    def __init__(self, number: int = 41, name: str = "f") -> None:
        self.number, self.name, self.written = number, name, 0

    def __call__(self) -> Kernel:
        self.written += 1
        with Kernel(self.name, ("x",)) as k:
            k.x.store(k.x.load(I64) + self.number)
        return k

    def answer(self, isa: str = "generic", keep: bool = True) -> int:
        kernel, number = Written(self.name, self), np.array([1])
        code = jit.compile_kernels(ISAS[isa], [kernel], keep)
        code.function(kernel, 1)(number.ctypes.data)
        return int(number[0])


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "deep" / "cache"))
    return tmp_path / "deep" / "cache" / "kernels"


def files(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir())


def test_what_was_compiled_is_read_back(cache: Path) -> None:
    first, second = Counted(), Counted()
    assert (first.answer(), first.written) == (42, 1)
    assert len(files(cache)) == 1
    assert (second.answer(), second.written) == (42, 0)
    assert len(files(cache)) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setattr(jit, "_source_digest", lambda: b"other sources"),
        lambda patch: patch.setattr(jit, "version", lambda name: "0.0.1"),
        lambda patch: patch.setattr(jit.llvm, "get_host_cpu_name", lambda: "generic"),
        lambda patch: patch.setattr(jit.sys, "platform", "plan9"),
    ],
    ids=["sources", "llvmlite", "processor", "platform"],
)
def test_code_of_other_sources_or_another_processor_is_not_taken(
    change: object, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Counted().answer()
    change(monkeypatch)  # type: ignore[operator]
    again = Counted()
    assert (again.answer(), again.written) == (42, 1)
    assert len(files(cache)) == 2


def test_other_kernels_and_other_paths_have_files_of_their_own(cache: Path) -> None:
    for isa in HERE:
        for name in ("f", "g"):
            kernel = Counted(name=name)
            assert (kernel.answer(isa), kernel.written) == (42, 1)
    assert len(files(cache)) == 2 * len(HERE)
    assert {name.split("-")[0] for name in files(cache)} == set(HERE)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:31],
        lambda data: data[:32],
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
        lambda data: bytes([data[0] ^ 128]) + data[1:],
        lambda data: b"\x7fELF" * 100,
    ],
    ids=[
        "empty",
        "31 bytes",
        "digest alone",
        "one less",
        "one more",
        "a bit of the code",
        "a bit of the digest",
        "other",
    ],
)
def test_a_damaged_file_is_compiled_anew(damage: object, cache: Path) -> None:
    Counted().answer()
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))  # type: ignore[operator]
    again, after = Counted(), Counted()
    assert (again.answer(), again.written) == (42, 1)
    assert (after.answer(), after.written) == (42, 0)
    assert files(cache) == [path.name]


def test_the_cache_can_be_left_out(cache: Path) -> None:
    kernel = Counted()
    assert kernel.answer(keep=False) == kernel.answer(keep=False) == 42
    assert kernel.written == 2
    assert not cache.exists()


def test_a_cache_below_a_file_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("here", encoding="utf-8")
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "file"))
    kernel = Counted()
    assert kernel.answer() == kernel.answer() == 42
    assert kernel.written == 2
    assert (tmp_path / "file").read_text(encoding="utf-8") == "here"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_without_permission_is_no_obstacle(cache: Path) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o500)
    kernel = Counted()
    assert kernel.answer() == kernel.answer() == 42
    cache.chmod(0o700)
    assert files(cache) == []


def test_a_file_that_cannot_be_moved_into_place_leaves_nothing_behind(cache: Path) -> None:
    Counted().answer()
    (path,) = cache.iterdir()
    path.unlink()
    (path / "full").mkdir(parents=True)
    kernel = Counted()
    assert (kernel.answer(), kernel.written) == (42, 1)
    assert files(cache) == [path.name]


@pytest.mark.parametrize("named", [True, False])
def test_a_user_without_a_home_is_no_obstacle(named: bool, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if not named:
        monkeypatch.delenv("PRUNUS_CACHE")
    assert Counted().answer() == 42


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"PRUNUS_CACHE": "a", "XDG_CACHE_HOME": "b"}, "a/kernels"),
        ({"XDG_CACHE_HOME": "b"}, "b/prunus/kernels"),
        ({}, "home/.cache/prunus/kernels"),
    ],
)
def test_where_the_cache_is(
    variables: dict[str, str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PRUNUS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    assert jit.cache_directory("kernels") == tmp_path / expected


def test_two_processes_at_once(cache: Path) -> None:
    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", TWO_AT_ONCE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    both = [start(), start()]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate()[0] for process in both]
    assert answers == ["42\n", "42\n"]
    assert [process.returncode for process in both] == [0, 0]
    assert len(files(cache)) == 1
    assert files(cache)[0].endswith(".o")


def test_code_keeps_what_it_lies_in_alive() -> None:
    kernel = Written("f", Counted())
    functions = [jit.compile_kernels(ISAS["generic"], [Written("f", Counted(i))], keep=False) for i in range(20)]
    numbers = np.zeros(20, np.int64)
    for i, code in enumerate(functions):
        code.function(kernel, 1)(numbers[i:].ctypes.data)
    assert numbers.tolist() == list(range(20))


@pytest.mark.parametrize(("isa", "word"), [("avx512_vnni", "vpdpbusd"), ("avx512", "vpmaddwd"), ("avx2", "vpmaddwd")])
def test_each_path_multiplies_with_its_own_instruction(isa: str, word: str) -> None:
    if isa not in HERE:
        pytest.skip(f"a processor without {isa}")
    text = jit.assembly(ISAS[isa], LinearSpec("dense_int8x4", "store"))
    assert word in text
    assert ("zmm" in text) == (ISAS[isa].lanes == 16)


@dataclass(frozen=True)
class Adds(KernelSpec):
    """Adds a number; the symbol is the base class's, of the class and its values."""

    number: int

    def build(self, isa: Isa) -> Kernel:
        return Counted(self.number, self.symbol)()


def test_equal_specifications_are_one_kernel_in_any_order(cache: Path) -> None:
    code = jit.compile_kernels(ISAS["generic"], [Adds(1), Adds(2), Adds(1)])
    again = jit.compile_kernels(ISAS["generic"], {Adds(2), Adds(1)})
    assert set(code.addresses) == set(again.addresses) == {Adds(1), Adds(2)}
    assert len(files(cache)) == 1
    number = np.array([10])
    for kernel in (Adds(2), Adds(1), Adds(2)):
        again.function(kernel, 1)(number.ctypes.data)
    assert number[0] == 15


def test_the_values_of_a_specification_are_part_of_the_key(cache: Path) -> None:
    for number in (1, 2, 1):
        jit.compile_kernels(ISAS["generic"], [Adds(number)])
    assert len(files(cache)) == 2


def test_two_kernels_with_one_symbol_are_refused() -> None:
    with pytest.raises(ValueError, match="have one symbol, Adds_1"):
        jit.compile_kernels(ISAS["generic"], [Adds(1), Written("Adds_1", Counted())], keep=False)
    with pytest.raises(ValueError, match="wrote a kernel named 'f'; its symbol is 'g'"):
        jit.compile_kernels(ISAS["generic"], [Written("g", Counted())], keep=False)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("rows", "store"), "the weight format must be one of"),
        (("dense_int8x4", "matrix"), "the epilogue of dense_int8x4 must be one of"),
        (("group_sparse_float32", "queries"), "the epilogue of group_sparse_float32 must be one of add, store, matrix"),
        (("dense_int8x4", "store", "tanh"), "the activation must be one of"),
    ],
)
def test_a_linear_kernel_that_there_is_not(values: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LinearSpec(*values)
