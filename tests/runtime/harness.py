"""What the tests of the runtime share: compiled kernels, memory for them, tiles of tokens, small random encoders."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from prunus.runtime.families import DenseEncoder, Shape, places, shape_of
from prunus.runtime.ir_builder import Kernel
from prunus.runtime.isa import ISAS, Isa, available
from prunus.runtime.jit import Code, compile_kernels
from prunus.runtime.kernels.step import PARAMETERS, KernelSpec, StepSpec
from prunus.runtime.program import table_of

Array = NDArray[Any]
HERE: Final = available()
DISTINCT: Final = [name for name in HERE if name != "avx512" or "avx512_vnni" not in HERE]
"""Where no bytes are multiplied, the code of ``avx512`` is that of ``avx512_vnni``."""
TILE: Final = 64
SLACK: Final = 8192


@dataclass(frozen=True)
class Written(KernelSpec):
    """A kernel of a test: its name, and the function that writes it."""

    name: str
    write: Callable[[], Kernel] = field(compare=False, repr=False)

    @property
    def symbol(self) -> str:
        return self.name

    def build(self, isa: Isa) -> Kernel:
        return self.write()


KEPT: dict[tuple[str, KernelSpec], Code] = {}


def compiled(isa: Isa, kernels: Iterable[KernelSpec], keep: bool = True) -> Code:
    """Kernels as ``jit.compile_kernels`` gives them; each is compiled once for all tests."""
    kernels = set(kernels)
    for kernel in kernels:
        if (isa.name, kernel) not in KEPT:
            KEPT[isa.name, kernel] = compile_kernels(isa, [kernel], keep=False)
    return Code([], {kernel: KEPT[isa.name, kernel].addresses[kernel] for kernel in kernels})


def run(isa: str, write: Callable[..., None], *arrays: Array | int) -> None:
    """Writes, compiles and calls one kernel: ``write(kernel, address or number ...)``."""
    names = tuple(f"a{index}" for index in range(len(arrays)))

    def build() -> Kernel:
        with Kernel("f", names) as k:
            write(k, *(getattr(k, name) for name in names))
        return k

    kernel = Written("f", build)
    code = compile_kernels(ISAS[isa], [kernel], keep=False)
    code.function(kernel, len(arrays))(*(a.ctypes.data if isinstance(a, np.ndarray) else a for a in arrays))


def room(shape: tuple[int, ...], dtype: Any, fill: Any = 0) -> Array:
    """An array with slack before and behind that kernels may read; the slack holds ``fill`` too."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.full((size + 2 * SLACK) // np.dtype(dtype).itemsize + 64, fill, dtype).view(np.uint8)
    start = SLACK + -(raw.ctypes.data + SLACK) % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def call(isa: str, kernel: StepSpec, tiles: tuple[int, int], groups: tuple[int, int], **values: Array | int) -> None:
    """Calls a kernel with these arguments for tiles and groups, with plenty of scratch memory."""
    scratch, table = room((1 << 20,), np.uint8, 0xAA), table_of(kernel.arguments, values)
    function = compiled(ISAS[isa], [kernel]).function(kernel, len(PARAMETERS))
    function(table.ctypes.data, *tiles, *groups, scratch.ctypes.data)


def starts_of(widths: Sequence[int]) -> Array:
    return np.concatenate([[0], np.cumsum(widths)[:-1]]).astype(np.int64)


def to_tiles(x: Array, widths: Sequence[int], fill: Any = 0) -> Array:
    """``[features, tokens]`` -> ``[tiles, features, 64]``, what is behind a tile's width filled."""
    tiles = room((len(widths), len(x), TILE), x.dtype, fill)
    tiles[:] = fill
    for tile, (start, width) in enumerate(zip(starts_of(widths), widths, strict=True)):
        tiles[tile, :, :width] = x[:, start : start + width]
    return tiles


def from_tiles(tiles: Array, widths: Sequence[int]) -> Array:
    """``[tiles, features, 64, ...]`` -> ``[features, tokens, ...]``."""
    return np.concatenate([tile[:, :width] for tile, width in zip(tiles, widths, strict=True)], axis=1)


def row_order(isa: str, width: int) -> Array:
    """Which token each byte of a row is, in a tile of this width: kernels/maths.py states it."""
    order = np.arange(width)
    if ISAS[isa].lanes == 16 and width == 64:
        for lane, j, i in np.ndindex(4, 4, 4):
            order[16 * lane + 4 * j + i] = 16 * j + 4 * lane + i
    return order


def to_rows(isa: str, x: Array, widths: Sequence[int]) -> Array:
    """Bytes ``[features, tokens]`` -> tiles of rows."""
    tiles = to_tiles(x, widths)
    for tile, width in zip(tiles, widths, strict=True):
        tile[:, :width] = tile[:, row_order(isa, width)]
    return tiles


def from_rows(isa: str, tiles: Array, widths: Sequence[int]) -> Array:
    natural = tiles.copy()
    for tile, width in zip(natural, widths, strict=True):
        tile[:, row_order(isa, width)] = tile[:, :width].copy()
    return from_tiles(natural, widths)


def quads(x: Array) -> Array:
    """``[features, tokens]`` -> ``[quads, tokens, 4]``, features padded with zeros."""
    padded = np.pad(x, ((0, -len(x) % 4), (0, 0)))
    return np.ascontiguousarray(padded.reshape(-1, 4, x.shape[1]).transpose(0, 2, 1))


def unquads(x: Array) -> Array:
    """``[quads, tokens, 4]`` -> ``[features, tokens]``."""
    return x.transpose(0, 2, 1).reshape(-1, x.shape[1])


def to_int8x4(x: Array, widths: Sequence[int]) -> Array:
    """Bytes ``[features, tokens]`` -> tiles of quads ``[tiles, quads, 64 * 4]``."""
    words = quads(x).view(np.uint32)[:, :, 0]
    return to_tiles(words, widths).view(np.uint8)


def from_int8x4(tiles: Array, widths: Sequence[int]) -> Array:
    words = from_tiles(tiles.view(np.uint32), widths)
    return unquads(np.ascontiguousarray(words)[:, :, None].view(np.uint8))


# small random encoders

PATTERNS: Final = ("4x1", "8x1", "16x1", "2:4", "1x4", "unstructured", "dense")
FAMILY_NAMES: Final = (
    "bert",
    "roberta",
    "xlm-roberta",
    "camembert",
    "electra",
    "narrow",
    "distilbert",
    "mpnet",
    "albert",
)
_SIZES: Final = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 68,
    "num_hidden_layers": 2,
    "vocab_size": 60,
    "max_position_embeddings": 520,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
}
_DISTILBERT: Final = {
    "hidden_size": "dim",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "num_hidden_layers": "n_layers",
    "hidden_act": "activation",
}


def settings_of(family: str, **more: Any) -> dict[str, Any]:
    """A ``config.json``; ``narrow`` is ELECTRA with embeddings of 16 features."""
    sizes: dict[str, Any] = {**_SIZES, **more}
    if family == "distilbert":
        sizes = {_DISTILBERT.get(name, name): value for name, value in sizes.items()}
    own: dict[str, Any] = {
        "narrow": {"embedding_size": 16},
        "electra": {"embedding_size": sizes.get("hidden_size")},
        "albert": {"embedding_size": 16, "num_hidden_groups": 1, "pad_token_id": 0},
        "mpnet": {"pad_token_id": 1},
        "roberta": {"pad_token_id": 1},
        "xlm-roberta": {"pad_token_id": 1},
        "camembert": {"pad_token_id": 1},
    }.get(family, {"pad_token_id": 0})
    kind = "electra" if family == "narrow" else family
    return {"model_type": kind, "architectures": ["SmallModel"], **sizes, **own}


def keep(pattern: str, shape: tuple[int, int], density: float, draw: np.random.Generator) -> Array:
    """Which weights a pattern keeps."""
    outputs, inputs = shape
    if pattern == "dense":
        return np.ones(shape, bool)
    if pattern == "2:4":
        ranks = draw.random((outputs, inputs // 4, 4)).argsort(2)
        return (ranks < 2).reshape(shape)
    rows, columns = (1, 1) if pattern == "unstructured" else (int(part) for part in pattern.split("x"))
    units = draw.random((-(-outputs // rows), -(-inputs // columns))) < density
    return units.repeat(rows, 0).repeat(columns, 1)[:outputs, :inputs]


def small_dense(
    family: str = "bert", pattern: str = "dense", seed: int = 0, heads: Sequence[int] = (), **more: Any
) -> DenseEncoder:
    """A random encoder under canonical names; ``heads`` states how many heads each layer has left."""
    settings = settings_of(family, **more)
    shape = shape_of(settings)
    draw = np.random.default_rng(seed)
    tensors: dict[str, Array] = {}

    def normal(name: str, *size: int, scale: float = 1.0, mean: float = 0.0) -> None:
        tensors[name] = (mean + scale * draw.standard_normal(size)).astype(np.float32)

    def norm(name: str, size: int) -> None:
        normal(f"{name}.gamma", size, scale=0.2, mean=1.0)
        normal(f"{name}.beta", size, scale=0.2)

    wide, hidden = shape.embedding_size or shape.hidden, shape.hidden
    normal("embeddings.word", shape.vocab_size, wide)
    normal("embeddings.position", shape.positions, wide, scale=0.5)
    normal("embeddings.type", shape.types, wide, scale=0.5)
    norm("embeddings", wide)
    if shape.embedding_size:
        normal("projection.weight", hidden, wide, scale=0.3)
        normal("projection.bias", hidden, scale=0.3)
    if shape.max_distance:
        normal("relative", shape.heads, 2 * shape.max_distance + 64)
    for i in range(shape.layers):
        left = (heads[i] if heads else shape.heads) * shape.size
        sizes = {
            "out": (hidden, left),
            "up": (shape.intermediate_size, hidden),
            "down": (hidden, shape.intermediate_size),
        }
        for role in ("query", "key", "value", "out", "up", "down"):
            size = sizes.get(role, (left, hidden))
            kept = keep(pattern, size, 0.25, draw)
            weight = f"layers.{i}.{role}.weight"
            normal(weight, *size, scale=1.2 / np.sqrt(max(1.0, kept.sum(1).mean())))
            tensors[weight] *= kept
            normal(f"layers.{i}.{role}.bias", size[0], scale=0.2)
        norm(f"layers.{i}.attention_norm", hidden)
        norm(f"layers.{i}.output_norm", hidden)
    return DenseEncoder(shape, tensors, settings)


def in_float64(dense: DenseEncoder) -> dict[str, Array]:
    return {name: value.astype(np.float64) for name, value in dense.tensors.items()}


def draw_ids(shape: Shape, lengths: Sequence[int], seed: int = 0) -> tuple[list[Array], list[Array]]:
    """Random token ids and types."""
    draw = np.random.default_rng(seed)
    ids = [draw.integers(0, shape.vocab_size, length) for length in lengths]
    return ids, [draw.integers(0, shape.types, length) for length in lengths]


def flat(shape: Shape, ids: Sequence[Array], types: Sequence[Array]) -> tuple[Array, Array]:
    """Lengths and inputs as ``Encoder.run`` takes them."""
    lengths = np.array([len(one) for one in ids])
    at = np.concatenate([places(shape, row) for row in ids])
    return lengths, np.stack([np.concatenate(ids), at, np.concatenate(types)])


def relative_error(got: Array, expected: Array) -> float:
    """Norm of the difference, as a share of the norm."""
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))
