"""Whole encoders: float32 against float64, int8 against exact sums, and the same whatever the batch and the threads."""

from collections.abc import Iterator, Sequence
from functools import cache

import integer
import numpy as np
import pytest
from harness import (
    DISTINCT,
    FAMILY_NAMES,
    HERE,
    PATTERNS,
    Array,
    draw_ids,
    flat,
    in_float64,
    relative_error,
    small_dense,
)

from prunus.runtime.convert import Model, calibrate, convert
from prunus.runtime.encoder import Encoder
from prunus.runtime.families import DenseEncoder
from prunus.runtime.isa import ISAS
from prunus.runtime.pack import unpack
from prunus.runtime.reference import encode

LENGTHS = (1, 2, 3, 15, 16, 17, 33, 64, 65, 100, 128, 129, 255, 384, 512)
MIXED = (
    17,
    1,
    64,
    3,
    100,
    2,
    65,
    16,
    5,
    15,
    33,
    1,
    1,
    63,
    128,
    7,
    9,
    31,
    48,
    4,
    80,
    6,
    1,
    2,
    3,
    90,
    14,
    11,
    8,
    49,
    1,
    10,
    12,
)
EXACT = 2e-6  # of the norm


@cache
def dense_of(
    family: str, pattern: str = "dense", activation: str = "gelu", heads: tuple[int, ...] = ()
) -> DenseEncoder:
    return small_dense(family, pattern, heads=heads, hidden_act=activation)


@cache
def model_of(dense: tuple[str, ...], integers: bool, smooth: float = 0.85, heads: tuple[int, ...] = ()) -> Model:
    whole = dense_of(*dense, heads=heads)
    if not integers:
        return convert(whole)
    ids, types = draw_ids(whole.shape, (5, 40, 130, 17, 1, 80), seed=99)
    return convert(whole, calibrate(whole, ids, types), smooth=smooth)


class Bench:
    """Encoders by what they are made of; all are closed at the end of a test."""

    def __init__(self) -> None:
        self.open: dict[tuple[int, str, int], Encoder] = {}

    def states(self, model: Model, isa: str, threads: int, ids: Sequence[Array], types: Sequence[Array]) -> list[Array]:
        key = id(model), isa, threads
        if key not in self.open:
            self.open[key] = Encoder(model, ISAS[isa], threads)
        lengths, inputs = flat(model.shape, ids, types)
        return np.split(self.open[key].run(lengths, inputs), np.cumsum(lengths)[:-1])


@pytest.fixture
def bench(shared_code: None) -> Iterator[Bench]:
    bench = Bench()
    yield bench
    for encoder in bench.open.values():
        encoder.pool.close()


def check_floats(dense: DenseEncoder, got: Sequence[Array], ids: Sequence[Array], types: Sequence[Array]) -> None:
    expected = encode(dense.shape, in_float64(dense), ids, types)
    for ours, exact in zip(got, expected, strict=True):
        assert ours.dtype == np.float32
        assert relative_error(ours, exact) < EXACT


def check_integers(
    model: Model, got: Sequence[Array], ids: Sequence[Array], types: Sequence[Array], ties: float = 0.25
) -> None:
    """Equal up to float32's rounding, but where that takes a byte over a tie: there one step of one byte apart.

    ``ties`` is the share of tokens that a tie may touch: a byte of a key or value is read by all tokens of its sequence. A
    wrong sum or scale touches all of them.
    """
    expected = np.concatenate(integer.encode(model, ids, types))
    apart = np.abs(np.concatenate(got) - expected).max(1)
    assert (apart > 1e-5).sum() <= max(1, ties * len(apart))
    assert apart.max() < 0.05


@pytest.mark.parametrize("isa", DISTINCT)
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_family_in_float32(family: str, isa: str, bench: Bench) -> None:
    dense, model = dense_of(family), model_of((family,), False)
    ids, types = draw_ids(dense.shape, (40, 3, 150, 1, 64))
    check_floats(dense, bench.states(model, isa, 1, ids, types), ids, types)


@pytest.mark.parametrize("isa", DISTINCT)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern_in_float32(pattern: str, isa: str, bench: Bench) -> None:
    dense, model = dense_of("bert", pattern), model_of(("bert", pattern), False)
    ids, types = draw_ids(dense.shape, (70, 5, 16))
    check_floats(dense, bench.states(model, isa, 1, ids, types), ids, types)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu", "silu"])
@pytest.mark.parametrize("integers", [False, True])
def test_every_activation(activation: str, integers: bool, bench: Bench) -> None:
    dense, model = dense_of("bert", "4x1", activation), model_of(("bert", "4x1", activation), integers)
    ids, types = draw_ids(dense.shape, (70, 5, 16))
    got = bench.states(model, HERE[0], 1, ids, types)
    if integers:
        check_integers(model, got, ids, types)
    else:
        check_floats(dense, got, ids, types)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("length", LENGTHS)
def test_every_length_in_float32(length: int, threads: int, bench: Bench) -> None:
    dense, model = dense_of("bert"), model_of(("bert",), False)
    ids, types = draw_ids(dense.shape, (length,), seed=length)
    check_floats(dense, bench.states(model, HERE[0], threads, ids, types), ids, types)


@pytest.mark.parametrize("isa", HERE)
@pytest.mark.parametrize("family", ["bert", "distilbert", "mpnet", "roberta"])
def test_every_family_in_int8(family: str, isa: str, bench: Bench) -> None:
    model = model_of((family, "4x1"), True)
    ids, types = draw_ids(model.shape, (40, 3, 150, 1, 64))
    check_integers(model, bench.states(model, isa, 1, ids, types), ids, types)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("smooth", [0.0, 0.85])
def test_every_pattern_in_int8(pattern: str, smooth: float, bench: Bench) -> None:
    model = model_of(("bert", pattern), True, smooth)
    ids, types = draw_ids(model.shape, (70, 5, 16))
    got = bench.states(model, HERE[0], 1, ids, types)
    check_integers(model, got, ids, types)
    dense = dense_of("bert", pattern)
    exact = np.concatenate(encode(dense.shape, in_float64(dense), ids, types))
    assert relative_error(np.concatenate(got), exact) < 0.05  # what int8 costs a random encoder


@pytest.mark.parametrize("length", LENGTHS)
def test_every_length_in_int8(length: int, bench: Bench) -> None:
    model = model_of(("bert", "1x4"), True)
    ids, types = draw_ids(model.shape, (length,), seed=length)
    check_integers(model, bench.states(model, HERE[0], 1, ids, types), ids, types)


@pytest.mark.parametrize("smooth", [0.0, 0.85])
def test_what_is_divided_out_of_the_bytes_is_in_the_weights(smooth: float) -> None:
    dense = dense_of("bert", "4x1")
    ids, types = draw_ids(dense.shape, (5, 40, 130, 17, 1, 80), seed=99)
    model, t, seen = model_of(("bert", "4x1"), True, smooth), dense.tensors, dict[str, Array]()
    encode(dense.shape, t, ids, types, lambda name, value: seen.update({name: np.abs(value).max(0)}))
    for i, layer in enumerate(model.layers):
        key = f"layers.{i}."
        steps = {role: seen[key + role].reshape(4, 8).max(1) / 127 for role in ("query", "key", "value")}
        assert model.tensors[f"{key}attention.scale"] == pytest.approx(steps["query"] * steps["key"] / 8**0.5, rel=1e-4)
        wide = {role: step.repeat(8) for role, step in steps.items()}
        factors = {name: model.tensors[f"{key}{name}.inverse"] for name in ("input", "middle", "intermediate")}
        factors["context"] = model.tensors[f"{key}attention.gain"] / wide["value"]
        readers = {
            "query": "input",
            "key": "input",
            "value": "input",
            "out": "context",
            "up": "middle",
            "down": "intermediate",
        }
        for role, name in readers.items():
            packed, weight = layer[role], t[f"{key}{role}.weight"]
            scale = packed.scale[: len(weight)] * wide.get(role, np.float32(1))
            back = unpack(packed) * scale[:, None] * factors[name][: weight.shape[1]]
            assert (np.abs(back - weight) <= 0.501 * scale[:, None] * factors[name][: weight.shape[1]]).all()
            assert ((back != 0) <= (weight != 0)).all()


def test_narrow_embeddings_in_int8(bench: Bench) -> None:
    model = model_of(("narrow", "4x1"), True)
    ids, types = draw_ids(model.shape, (40, 3, 150, 1, 64))
    check_integers(model, bench.states(model, HERE[0], 1, ids, types), ids, types)


@pytest.mark.parametrize("isa", DISTINCT)
@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_a_sequence_is_the_same_in_every_batch(family: str, integers: bool, isa: str, bench: Bench) -> None:
    # Bit for bit: alone, among 33 others, with others before or behind it.
    model = model_of((family, "4x1"), integers)
    ids, types = draw_ids(model.shape, MIXED)
    together = bench.states(model, isa, 1, ids, types)
    backwards = bench.states(model, isa, 1, ids[::-1], types[::-1])[::-1]
    for i in range(len(MIXED)):
        assert together[i].tobytes() == backwards[i].tobytes()
    for i in (0, 1, 2, 4, 14, 32):
        alone = bench.states(model, isa, 1, ids[i : i + 1], types[i : i + 1])
        assert alone[0].tobytes() == together[i].tobytes()


def test_a_sequence_of_narrow_embeddings_is_nearly_the_same_in_every_batch(bench: Bench) -> None:
    # The projection is a product of numpy, which sums in an order that depends on the number of tokens.
    model = model_of(("narrow", "4x1"), False)
    ids, types = draw_ids(model.shape, MIXED)
    together = bench.states(model, HERE[0], 1, ids, types)
    for i in (0, 1, 4, 14):
        alone = bench.states(model, HERE[0], 1, ids[i : i + 1], types[i : i + 1])
        assert relative_error(alone[0], together[i]) < 1e-6


@pytest.mark.parametrize("threads", [2, 3, 4])
@pytest.mark.parametrize("integers", [False, True])
def test_threads_do_not_change_a_bit(integers: bool, threads: int, bench: Bench) -> None:
    model = model_of(("bert", "4x1"), integers)
    for size in (1, 2, 5, 33):
        ids, types = draw_ids(model.shape, MIXED[:size], seed=size)
        one = bench.states(model, HERE[0], 1, ids, types)
        many = bench.states(model, HERE[0], threads, ids, types)
        assert [state.tobytes() for state in many] == [state.tobytes() for state in one]


@pytest.mark.parametrize("size", range(1, 34, 4))
def test_every_size_of_a_batch(size: int, bench: Bench) -> None:
    dense, model = dense_of("roberta", "unstructured"), model_of(("roberta", "unstructured"), False)
    ids, types = draw_ids(dense.shape, MIXED[-size:], seed=size)
    check_floats(dense, bench.states(model, HERE[0], 1 + size % 2, ids, types), ids, types)


def test_many_short_sequences_after_a_long_one(bench: Bench) -> None:
    # One memory for all calls: what an earlier call left there must not be seen.
    dense = dense_of("bert", "4x1")
    for integers in (False, True):
        model = model_of(("bert", "4x1"), integers)
        for lengths in ((512, 400), (1,) * 130, (512,), (3,), (2, 2), (600 - 88, 1)):
            ids, types = draw_ids(dense.shape, lengths, seed=len(lengths))
            got = bench.states(model, HERE[0], 2, ids, types)
            fresh = Bench()
            again = fresh.states(model, HERE[0], 2, ids, types)
            assert np.concatenate(got).tobytes() == np.concatenate(again).tobytes()
            fresh.open[id(model), HERE[0], 2].pool.close()


@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("heads", [(1, 4), (3, 2)])
def test_layers_with_fewer_heads(heads: tuple[int, int], integers: bool, bench: Bench) -> None:
    dense = dense_of("bert", "4x1", heads=heads)
    model = model_of(("bert", "4x1"), integers, heads=heads)
    ids, types = draw_ids(dense.shape, (40, 70, 1))
    for threads in (1, 4):
        got = bench.states(model, HERE[0], threads, ids, types)
        if integers:
            check_integers(model, got, ids, types)
        else:
            check_floats(dense, got, ids, types)


@pytest.mark.parametrize("inner", [1, 4, 30, 67])
@pytest.mark.parametrize("pattern", ["dense", "unstructured", "1x4"])
@pytest.mark.parametrize("integers", [False, True])
def test_an_inner_size_that_four_does_not_divide(inner: int, pattern: str, integers: bool, bench: Bench) -> None:
    dense = small_dense("bert", pattern, intermediate_size=inner)
    ids, types = draw_ids(dense.shape, (40, 7))
    model = convert(dense, calibrate(dense, ids, types) if integers else None)
    got = bench.states(model, HERE[0], 1, ids, types)
    if integers:
        check_integers(model, got, ids, types)
    else:
        check_floats(dense, got, ids, types)


def test_a_model_without_any_weight(bench: Bench) -> None:
    dense = small_dense("bert")
    for name, value in dense.tensors.items():
        if name.startswith("layers.") and name.endswith(".weight"):
            value[:] = 0
    ids, types = draw_ids(dense.shape, (20, 3))
    check_floats(dense, bench.states(convert(dense), HERE[0], 1, ids, types), ids, types)
    model = convert(dense, calibrate(dense, ids, types))
    check_integers(model, bench.states(model, HERE[0], 1, ids, types), ids, types)


def test_the_reference_is_the_same_in_float32() -> None:
    for family in FAMILY_NAMES:
        dense = dense_of(family)
        ids, types = draw_ids(dense.shape, (9, 20))
        check_floats(dense, encode(dense.shape, dense.tensors, ids, types), ids, types)
