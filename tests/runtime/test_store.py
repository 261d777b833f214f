"""Packed files: read back as they were written, and refused where anything in them is wrong."""

import contextlib
import json
import warnings
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import PATTERNS, Array, compiled, draw_ids, settings_of, small_dense
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from prunus.errors import EngineError
from prunus.runtime import Engine, load
from prunus.runtime import encoder as encoder_module
from prunus.runtime.convert import Model, calibrate, convert
from prunus.runtime.kernels.linear import RECORD
from prunus.runtime.store import FILE, read_model, write_model

SMALL = {"vocab_size": 12, "max_position_embeddings": 24, "num_hidden_layers": 1, "intermediate_size": 20}
PRECISIONS = {"int8": True, "float32": False}
# A family and a pattern whose layers are of each weight format.
MADE_OF = {
    "group_sparse_int8": ("bert", "4x1", True),
    "dense_int8x4": ("bert", "dense", True),
    "block_sparse_int8": ("bert", "1x4", True),
    "group_sparse_float32": ("bert", "4x1", False),
    "sparse_float32": ("bert", "unstructured", False),
    "biased": ("mpnet", "4x1", True),
    "narrow": ("narrow", "4x1", True),
}


@cache
def model_of(family: str, pattern: str, integers: bool) -> Model:
    dense = small_dense(family, pattern, **SMALL)
    ids, types = draw_ids(dense.shape, (20, 5))
    return convert(dense, calibrate(dense, ids, types) if integers else None)


def write(model: Model, place: Path) -> Path:
    write_model(model, place)
    return place / FILE


def contents(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata())  # noqa: SIM118


def run(model: Model) -> Array:
    """Runs a model, with numbers that may be nonsense."""
    ids, types = draw_ids(model.shape, (17, 1, 20))
    with warnings.catch_warnings(), np.errstate(all="ignore"), Engine(model, threads=1) as engine:
        warnings.simplefilter("ignore")
        return np.concatenate(engine.states(ids, types))


@pytest.mark.parametrize("integers", [True, False])
@pytest.mark.parametrize(("family", "pattern"), [*(("bert", p) for p in PATTERNS), ("mpnet", "4x1"), ("narrow", "1x4")])
def test_what_is_written_is_read(family: str, pattern: str, integers: bool, tmp_path: Path, shared_code: None) -> None:
    model = model_of(family, pattern, integers)
    path = write(model, tmp_path)
    again = read_model(tmp_path)
    assert (again.shape, again.integers, again.settings) == (model.shape, model.integers, model.settings)
    for ours, theirs in zip(again.layers, model.layers, strict=True):
        assert list(ours) == list(theirs)
        for role, packed in theirs.items():
            assert (ours[role].weight_format, ours[role].shape) == (packed.weight_format, packed.shape)
            for part in ("first", "records", "scale", "bias"):
                one, other = getattr(ours[role], part), getattr(packed, part)
                assert (one.dtype, one.tobytes()) == (other.dtype, other.tobytes())
    for name, tensor in model.tensors.items():
        assert (again.tensors[name].shape, again.tensors[name].tobytes()) == (tensor.shape, tensor.tobytes())
    assert run(again).tobytes() == run(model).tobytes()
    before = contents(path)
    write_model(again, tmp_path)
    after = contents(path)
    assert {name: array.tobytes() for name, array in after[0].items()} == {n: a.tobytes() for n, a in before[0].items()}
    assert after[1] == before[1]
    assert [file.name for file in tmp_path.iterdir()] == [FILE]


def test_a_model_read_back_has_the_tensors_it_had(tmp_path: Path) -> None:
    model = model_of("bert", "4x1", True)
    write(model, tmp_path)
    assert set(read_model(tmp_path).tensors) == set(model.tensors)


def test_the_file_states_what_it_is(tmp_path: Path) -> None:
    model = model_of("bert", "4x1", True)
    arrays, metadata = contents(write(model, tmp_path))
    assert (metadata["format"], metadata["version"], metadata["precision"]) == ("prunus-packed", "3", "int8")
    assert json.loads(metadata["config"]) == model.settings
    assert json.loads(metadata["layers"])["layers.0.up"] == [model.layers[0]["up"].weight_format, 20, 32]
    for name, dtype in (("first", np.uint32), ("records", np.uint8), ("scale", np.float32), ("bias", np.float32)):
        assert arrays[f"layers.0.query.{name}"].dtype == dtype


# damage: (arrays, metadata) -> None, each changes one thing

Change = Callable[[dict[str, Array], dict[str, str]], None]


def put(name: str, index: int, value: float, arrays: dict[str, Array], *_: Any) -> None:
    arrays[name] = arrays[name].copy()
    arrays[name].flat[index] = value


def without(name: str, arrays: dict[str, Array], *_: Any) -> None:
    del arrays[name]


def changed(name: str, how: Callable[[Array], Array], arrays: dict[str, Array], *_: Any) -> None:
    arrays[name] = np.ascontiguousarray(how(arrays[name]))


def stated(name: str, value: str | None, arrays: object, metadata: dict[str, str]) -> None:
    metadata.pop(name)
    if value is not None:
        metadata[name] = value


def layer_stated(value: Any, arrays: object, metadata: dict[str, str]) -> None:
    layers = json.loads(metadata["layers"])
    layers["layers.0.up"] = value
    metadata["layers"] = json.dumps(layers)


def setting(name: str, value: Any, arrays: object, metadata: dict[str, str]) -> None:
    metadata["config"] = json.dumps({**json.loads(metadata["config"]), name: value})


def refused(place: Path, model: Model, change: Change) -> EngineError:
    path = write(model, place)
    arrays, metadata = contents(path)
    change(arrays, metadata)
    save_file(arrays, path, metadata=metadata)
    with pytest.raises(EngineError) as caught:
        load(place, threads=1).close()
    assert all(problem.key and problem.rule for problem in caught.value.problems)
    return caught.value


UP = "layers.0.up"
DAMAGE: dict[str, Change] = {
    "no records": partial(without, f"{UP}.records"),
    "no first": partial(without, f"{UP}.first"),
    "no scale": partial(without, f"{UP}.scale"),
    "no words": partial(without, "embeddings.word"),
    "no types": partial(without, "embeddings.type"),
    "no gamma": partial(without, "layers.0.output_norm.gamma"),
    "no attention scale": partial(without, "layers.0.attention.scale"),
    "records cut": partial(changed, f"{UP}.records", lambda a: a[:-1]),
    "a record less": partial(changed, f"{UP}.records", lambda a: a[:-24]),
    "no record": partial(changed, f"{UP}.records", lambda a: a[:0]),
    "records as rows": partial(changed, f"{UP}.records", lambda a: a[None]),
    "signed records": partial(changed, f"{UP}.records", lambda a: a.view(np.int8)),
    "first out of order": partial(put, f"{UP}.first", 1, 2**31),
    "first starts late": partial(put, f"{UP}.first", 0, 1),
    "first ends late": partial(put, f"{UP}.first", -1, 2**32 - 1),
    "first cut": partial(changed, f"{UP}.first", lambda a: a[:-1]),
    "first longer": partial(changed, f"{UP}.first", lambda a: np.append(a, a[-1:])),
    "first signed": partial(changed, f"{UP}.first", lambda a: a.astype(np.int32)),
    "first wide": partial(changed, f"{UP}.first", lambda a: a.astype(np.uint64)),
    "scale of NaN": partial(put, f"{UP}.scale", 3, np.nan),
    "bias of infinity": partial(put, f"{UP}.bias", 3, np.inf),
    "bias cut": partial(changed, f"{UP}.bias", lambda a: a[:-1]),
    "half scale": partial(changed, f"{UP}.scale", lambda a: a.astype(np.float16)),
    "double scale": partial(changed, f"{UP}.scale", lambda a: a.astype(np.float64)),
    "words cut": partial(changed, "embeddings.word", lambda a: a[:-1]),
    "words transposed": partial(changed, "embeddings.word", lambda a: a.T),
    "words of NaN": partial(put, "embeddings.word", 5, np.nan),
    "positions cut": partial(changed, "embeddings.position", lambda a: a[:-1]),
    "integer words": partial(changed, "embeddings.word", lambda a: a.astype(np.int32)),
    "gamma of NaN": partial(put, "layers.0.attention_norm.gamma", 0, np.nan),
    "gamma of the embeddings cut": partial(changed, "embeddings.gamma", lambda a: a[:-1]),
    "attention scale longer": partial(changed, "layers.0.attention.scale", lambda a: np.append(a, a)),
    "format": partial(stated, "format", "other"),
    "version": partial(stated, "version", "2"),
    "no sentence": partial(stated, "sentence", None),
    "no version": partial(stated, "version", None),
    "precision": partial(stated, "precision", "int4"),
    "no precision": partial(stated, "precision", None),
    "layers are not JSON": partial(stated, "layers", "{"),
    "layers are a list": partial(stated, "layers", "[]"),
    "layers are deep": partial(stated, "layers", "[" * 100_000),
    "no layers": partial(stated, "layers", None),
    "config is not JSON": partial(stated, "config", "not JSON"),
    "config is empty": partial(stated, "config", ""),
    "config is a list": partial(stated, "config", "[1]"),
    "config is null": partial(stated, "config", "null"),
    "config is a text": partial(stated, "config", '"bert"'),
    "config is deep": partial(stated, "config", '{"a":' * 100_000),
    "config has a huge number": partial(stated, "config", '{"a": ' + "9" * 5000 + "}"),
    "no config": partial(stated, "config", None),
    "kind": partial(layer_stated, ["other", 20, 32]),
    "weight format is a list": partial(layer_stated, [["group_sparse_int8"], 20, 32]),
    "weight format is missing": partial(layer_stated, [20, 32]),
    "a layer is a name": partial(layer_stated, "group_sparse_int8"),
    "a layer is null": partial(layer_stated, None),
    "outputs of another layer": partial(layer_stated, ["group_sparse_int8", 16, 32]),
    "no outputs": partial(layer_stated, ["group_sparse_int8", 0, 32]),
    "outputs below zero": partial(layer_stated, ["group_sparse_int8", -20, 32]),
    "outputs as a text": partial(layer_stated, ["group_sparse_int8", "20", 32]),
    "outputs as a fraction": partial(layer_stated, ["group_sparse_int8", 20.0, 32]),
    "outputs are true": partial(layer_stated, ["group_sparse_int8", True, 32]),
    "inputs of another layer": partial(layer_stated, ["group_sparse_int8", 20, 64]),
    "too many inputs": partial(layer_stated, ["group_sparse_int8", 20, 2**16]),
    "weight format of the other precision": partial(layer_stated, ["group_sparse_float32", 20, 32]),
    "another hidden size": partial(setting, "hidden_size", 48),
    "another number of heads": partial(setting, "num_attention_heads", 2),
    "another number of layers": partial(setting, "num_hidden_layers", 2),
    "another vocabulary": partial(setting, "vocab_size", 13),
    "more positions": partial(setting, "max_position_embeddings", 25),
    "another family": partial(setting, "model_type", "mpnet"),
    "no family": partial(setting, "model_type", "gpt2"),
    "no activation": partial(setting, "hidden_act", "step"),
    "another head": partial(setting, "architectures", ["BertForSequenceClassification"]),
    "architectures are a number": partial(setting, "architectures", 3),
}
INTEGER_DAMAGE: dict[str, Change] = {
    "no gain": partial(without, "layers.0.attention.gain"),
    "one gain a head": partial(changed, "layers.0.attention.gain", lambda a: a[::8]),
    "no zero": partial(without, "layers.0.middle.zero"),
    "no inverse": partial(without, "layers.0.intermediate.inverse"),
    "inverse cut": partial(changed, "layers.0.input.inverse", lambda a: a[:-1]),
    "inverse of NaN": partial(put, "layers.0.input.inverse", 0, np.nan),
    "two zeros": partial(changed, "layers.0.input.zero", lambda a: np.append(a, a)),
    "zero of NaN": partial(put, "layers.0.attention.zero", 0, np.nan),
}


@pytest.mark.parametrize("name", [*DAMAGE, *INTEGER_DAMAGE])
def test_damage_is_an_engine_error(name: str, tmp_path: Path, shared_code: None) -> None:
    refused(tmp_path, model_of("bert", "4x1", True), (DAMAGE | INTEGER_DAMAGE)[name])


@pytest.mark.parametrize("role", ["query", "key", "value", "out", "up", "down"])
@pytest.mark.parametrize("weight_format", RECORD)
def test_an_index_out_of_range_is_an_engine_error(weight_format: str, role: str, tmp_path: Path) -> None:
    model = model_of(*MADE_OF[weight_format])
    packed = model.layers[0][role]
    if packed.weight_format != weight_format:  # a small layer may be of another weight format
        assert role in ("out", "down", "up")
        return
    if weight_format == "dense_int8x4":
        change = partial(changed, f"layers.0.{role}.first", lambda a: np.append(a[:1], a[1:] - (a[1:] < a[-1])))
        assert "records" in str(refused(tmp_path, model, change))
        return
    limit = -(-packed.shape[1] // 4) if weight_format == "block_sparse_int8" else packed.shape[1]
    dtype: Any = np.uint16 if weight_format == "group_sparse_int8" else np.uint32
    for index in (limit, limit + 1, int(np.iinfo(dtype).max)):

        def change(arrays: dict[str, Array], *_: Any, index: int = index) -> None:
            records = arrays[f"layers.0.{role}.records"].copy()
            records[-RECORD[weight_format] :][: dtype().nbytes] = np.array([index], dtype).view(np.uint8)
            arrays[f"layers.0.{role}.records"] = records

        assert "records" in str(refused(tmp_path, model, change))


@pytest.mark.parametrize("weight_format", ["group_sparse_float32", "sparse_float32"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_an_engine_error(weight_format: str, value: float, tmp_path: Path) -> None:
    def change(arrays: dict[str, Array], *_: Any) -> None:
        records = arrays["layers.0.query.records"].copy()
        records[4:8] = np.array([value], np.float32).view(np.uint8)
        arrays["layers.0.query.records"] = records

    assert "finite" in str(refused(tmp_path, model_of(*MADE_OF[weight_format]), change))


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("mpnet", partial(without, "relative")),
        ("mpnet", partial(changed, "relative", lambda a: a[:-1])),
        ("mpnet", partial(changed, "relative", lambda a: a[:, :-1])),
        ("narrow", partial(without, "projection.weight")),
        ("narrow", partial(changed, "projection.weight", lambda a: a[:-1])),
        ("narrow", partial(changed, "projection.bias", lambda a: a[:-1])),
        ("narrow", partial(setting, "embedding_size", 8)),
        ("narrow", partial(setting, "embedding_size", 32)),
        ("narrow", partial(setting, "embedding_size", "wide")),
    ],
)
def test_damage_of_what_one_family_has(family: str, change: Change, tmp_path: Path) -> None:
    refused(tmp_path, model_of(family, "4x1", True), change)


HEADS = {
    "BertForTokenClassification": {"classifier": (5, 32)},
    "BertForQuestionAnswering": {"qa_outputs": (2, 32)},
    "BertForSequenceClassification": {"pooler.dense": (32, 32), "classifier": (3, 32)},
    "BertModel": {"pooler.dense": (32, 32)},
}


@pytest.mark.parametrize(
    ("architecture", "change"),
    [
        ("BertForTokenClassification", partial(without, "head.classifier.weight")),
        ("BertForTokenClassification", partial(without, "head.classifier.bias")),
        ("BertForTokenClassification", partial(changed, "head.classifier.weight", lambda a: a[:, :-1])),
        ("BertForTokenClassification", partial(changed, "head.classifier.weight", lambda a: a[0])),
        ("BertForTokenClassification", partial(changed, "head.classifier.bias", lambda a: a[:-1])),
        ("BertForTokenClassification", partial(put, "head.classifier.weight", 7, np.nan)),
        ("BertForTokenClassification", partial(put, "head.classifier.bias", 1, np.inf)),
        ("BertForSequenceClassification", partial(without, "head.pooler.dense.weight")),
        ("BertForSequenceClassification", partial(changed, "head.pooler.dense.bias", lambda a: a[1:])),
        ("BertForSequenceClassification", partial(changed, "head.classifier.weight", lambda a: a.T)),
        ("BertForQuestionAnswering", partial(changed, "head.qa_outputs.weight", lambda a: a.astype(np.float64))),
        ("BertModel", partial(changed, "head.pooler.dense.weight", lambda a: a[:, 1:])),
    ],
)
def test_a_damaged_head_is_an_engine_error(
    architecture: str, change: Change, tmp_path: Path, shared_code: None
) -> None:
    refused(tmp_path, with_head(architecture), change)


def with_head(architecture: str) -> Model:
    model = model_of("bert", "4x1", True)
    tensors = dict(model.tensors)
    for name, shape in HEADS[architecture].items():
        tensors[f"head.{name}.weight"] = np.ones(shape, np.float32)
        tensors[f"head.{name}.bias"] = np.ones(shape[0], np.float32)
    return Model(model.shape, True, model.layers, tensors, {**model.settings, "architectures": [architecture]})


@pytest.mark.parametrize("outputs", [1, 3])
def test_answers_need_two_outputs(outputs: int, tmp_path: Path, shared_code: None) -> None:
    def change(arrays: dict[str, Array], *_: Any) -> None:
        arrays["head.qa_outputs.weight"] = np.ones((outputs, 32), np.float32)
        arrays["head.qa_outputs.bias"] = np.ones(outputs, np.float32)

    refused(tmp_path, with_head("BertForQuestionAnswering"), change)


@pytest.mark.parametrize("share", [*np.linspace(0, 0.999, 25).tolist()])
def test_a_truncated_file_is_an_engine_error(share: float, tmp_path: Path) -> None:
    path = write(model_of("bert", "4x1", True), tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(EngineError):
        read_model(tmp_path)


@pytest.mark.parametrize("size", [*range(10), 100, -1, -2, -4, -100, "more", "huge header", "zeros", "text"])
def test_a_file_of_another_size_is_an_engine_error(size: int | str, tmp_path: Path) -> None:
    path = write(model_of("bert", "4x1", True), tmp_path)
    whole = path.read_bytes()
    other = {
        "more": whole + b"\0",
        "huge header": b"\xff" * 7 + b"\x7f" + whole[8:],
        "zeros": bytes(len(whole)),
        "text": b"not a safetensors file",
    }
    path.write_bytes(other[size] if isinstance(size, str) else whole[:size])
    with pytest.raises(EngineError):
        read_model(tmp_path)


def test_a_missing_file_is_an_engine_error(tmp_path: Path) -> None:
    path = write(model_of("bert", "4x1", True), tmp_path)
    path.unlink()
    for place in (tmp_path, path, tmp_path / "nowhere"):
        with pytest.raises(EngineError, match="must be a file"):
            read_model(place)
    path.mkdir()
    with pytest.raises(EngineError):
        read_model(tmp_path)


def test_a_file_may_have_any_name(tmp_path: Path) -> None:
    model = model_of("bert", "4x1", True)
    write_model(model, tmp_path / "small.prunus")
    assert read_model(tmp_path / "small.prunus").shape == model.shape
    assert [path.name for path in tmp_path.iterdir()] == ["small.prunus"]


@pytest.mark.parametrize("name", settings_of("bert"))
@pytest.mark.parametrize("value", [None, "x", [], {}, -1, 0, 1e300, float("inf"), 2**70, True], ids=str)
def test_a_config_with_any_value_is_refused_or_runs(name: str, value: Any, tmp_path: Path, shared_code: None) -> None:
    model = model_of("bert", "4x1", True)
    path = write(model, tmp_path)
    arrays, metadata = contents(path)
    setting(name, value, arrays, metadata)
    save_file(arrays, path, metadata=metadata)
    with contextlib.suppress(EngineError):
        assert run(read_model(tmp_path)).shape == (38, 32)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for name, made_of in MADE_OF.items():
        found[name] = tmp_path_factory.mktemp(name)
        write(model_of(*made_of), found[name])
    return found


def survives(place: Path, data: bytes, whole: bytes) -> None:
    """A changed file is refused, or it is a model that runs."""
    path = place / FILE
    path.write_bytes(data)
    compile_kernels, encoder_module.compile_kernels = encoder_module.compile_kernels, compiled  # type: ignore[assignment]
    try:
        with contextlib.suppress(EngineError):
            model = read_model(place)
            assert run(model).shape == (38, model.shape.hidden)
    finally:
        encoder_module.compile_kernels = compile_kernels
        path.write_bytes(whole)


@pytest.mark.parametrize("weight_format", MADE_OF)
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    flips=st.lists(
        st.tuples(st.sampled_from(["header", "first", "records", "any"]), st.floats(0, 1), st.integers(1, 255)),
        min_size=1,
        max_size=4,
    )
)
@example(flips=[("records", 0.0, 255), ("records", 0.02, 255)])
@example(flips=[("first", 0.0, 1)])
@example(flips=[("header", 0.0, 255)])
def test_flipped_bytes_never_crash(
    weight_format: str, flips: list[tuple[str, float, int]], places: dict[str, Path]
) -> None:
    place = places[weight_format]
    whole = (place / FILE).read_bytes()
    begin = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:begin])
    data = bytearray(whole)
    for where, share, flip in flips:
        low, high = 0, len(whole)
        if where == "header":
            high = begin
        elif where != "any":
            roles = [role for role in ("query", "up", "down") if header[f"layers.0.{role}.{where}"]["data_offsets"][1]]
            low, high = (begin + at for at in header[f"layers.0.{roles[flip % len(roles)]}.{where}"]["data_offsets"])
        data[low + min(int(share * (high - low)), high - low - 1)] ^= flip
    survives(place, bytes(data), whole)


@pytest.mark.parametrize("weight_format", MADE_OF)
@settings(max_examples=15, deadline=None, derandomize=True, database=None)
@given(
    role=st.sampled_from(["query", "key", "value", "out", "up", "down"]),
    part=st.sampled_from(["first", "records"]),
    places_=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 2**32 - 1)), min_size=1, max_size=6),
)
def test_other_numbers_never_crash(
    weight_format: str, role: str, part: str, places_: list[tuple[float, int]], places: dict[str, Path]
) -> None:
    place = places[weight_format]
    whole = (place / FILE).read_bytes()
    arrays, metadata = contents(place / FILE)
    raw = arrays[f"layers.0.{role}.{part}"].copy()
    words = raw[: len(raw) // 4 * 4].view(np.uint32) if part == "records" else raw
    for share, number in places_:
        words[min(int(share * len(words)), len(words) - 1)] = number
    arrays[f"layers.0.{role}.{part}"] = raw
    save_file(arrays, place / "other", metadata=metadata)
    survives(place, (place / "other").read_bytes(), whole)
