import re

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from prunus.report.facts_file import clean
from prunus.report.layers import fraction_of_zeros, layer_grid
from prunus.report.wording import count, duration, fraction, megabytes, recipe_text, short, signed


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        (fraction(0.79996), "0.8000"),
        (fraction(-0.25), "−0.2500"),
        (fraction(None), "not measured"),
        (signed(-0.00916), "−0.0092"),
        (signed(0.5), "+0.5000"),
        (count(22713216), "22,713,216"),
        (megabytes(90868376), "90.9"),
        (megabytes(1340000000), "1,340.0"),
        (megabytes(812345), "0.812"),
        (megabytes(0), "0"),
        (duration(42.34), "42.3 s"),
        (duration(59.96), "1 min 00 s"),
        (duration(312), "5 min 12 s"),
        (duration(3599.6), "1 h 00 min"),
        (duration(7512), "2 h 05 min"),
        (short(0.0), "0"),
        (short(0.25), "0.25"),
        (short(2000.0), "2,000"),
        (short(5e-5), "5e-5"),
        (short(-2.5e-4), "-2.5e-4"),
        (short(1.25e9), "1.25e9"),
    ],
)
def test_numbers_in_words(shown: str, words: str) -> None:
    assert shown == words


_scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
    | st.sampled_from(["yes", "Off", "NULL", "2:4", "1:30", "4x1", "5e-5", "~", "- a", "a: b", "#", "", "2020-01-01"])
)
_keys = st.text(max_size=6).map(clean)
_recipes = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner, max_size=3), max_leaves=12
)


def _cleaned(value: object) -> object:
    if isinstance(value, dict):
        return {key: _cleaned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_cleaned(item) for item in value]
    return clean(value) if isinstance(value, str) else value


@settings(max_examples=300, deadline=None, database=None)
@given(_recipes)
def test_the_recipe_reads_back_as_yaml(recipe: object) -> None:
    assert yaml.safe_load(recipe_text(recipe)) == _cleaned(recipe)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("bert.encoder.layer.0.attention.self.query.weight", "q"),
        ("bert.encoder.layer.0.attention.output.dense.weight", "o"),
        ("bert.encoder.layer.0.output.dense.weight", "ffn out"),
        ("bert.encoder.layer.0.intermediate.dense.weight", "ffn in"),
        ("distilbert.transformer.layer.0.attention.q_lin.weight", "q"),
        ("distilbert.transformer.layer.0.ffn.lin2.weight", "ffn out"),
        ("encoder.layer.0.attention.attn.o.weight", "o"),
        ("model.layers.0.self_attn.k_proj.weight", "k"),
        ("model.layers.0.mlp.gate_proj.weight", "ffn gate"),
        ("model.layers.0.mlp.down_proj.weight", "ffn out"),
        ("transformer.h.0.attn.c_attn.weight", "qkv"),
        ("transformer.h.0.attn.c_proj.weight", "o"),
        ("transformer.h.0.mlp.c_proj.weight", "ffn out"),
        ("model.decoder.layers.0.encoder_attn.v_proj.weight", "cross v"),
        ("model.decoder.layers.0.encoder_attn.out_proj.weight", "cross o"),
        ("decoder.block.0.layer.1.EncDecAttention.q.weight", "cross q"),
        ("encoder.block.0.layer.0.SelfAttention.o.weight", "o"),
        ("encoder.block.0.layer.1.DenseReluDense.wo.weight", "ffn out"),
        ("model.layers.0.attn.Wqkv.weight", "qkv"),
        ("model.layers.0.mlp.Wo.weight", "ffn out"),
        ("gpt_neox.layers.0.attention.dense.weight", "o"),
        ("albert.encoder.albert_layer_groups.0.albert_layers.0.ffn_output.weight", "ffn out"),
        ("pooler.dense.weight", None),
        ("layer.0.monkey.weight", None),
    ],
)
def test_parts_of_known_families(name: str, part: str | None) -> None:
    columns, layers, others = layer_grid([{"name": name}])
    assert columns == ([part] if part else [])
    assert len(others) == (part is None)
    assert sum(len(layer.cells) for layer in layers) == (part is not None)


def test_the_grid_counts_each_tensor_once() -> None:
    names = [f"encoder.layers.{i}.fc1" for i in (10, 2)] + [f"decoder.layers.{i}.fc1.weight" for i in (0, 0)]
    tensors = [{"name": name, "weights": 10, "zeros": i} for i, name in enumerate([*names, "head", None])]
    columns, layers, others = layer_grid(tensors)
    assert columns == ["ffn in"]
    assert [layer.label for layer in layers] == ["encoder 2", "encoder 10", "decoder 0"]
    assert [tensor["zeros"] for tensor in others] == [3, 4, 5]


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ([{"zeros": 8, "weights": 10}, {"zeros": 0, "weights": 90}], 0.08),
        ([{"sparsity": 0.5}, {"sparsity": 0.25}], 0.375),
        ([{"zeros": 0, "weights": 0}], None),
        ([], None),
    ],
)
def test_fraction_of_zeros(tensors: list[dict[str, float]], expected: float | None) -> None:
    assert fraction_of_zeros(tensors) == expected


def test_long_names_take_linear_time() -> None:
    # A pattern that backtracks over 100,000 characters would not end.
    assert layer_grid([{"name": "a." * 50_000 + "!"}])[2]
    assert re.fullmatch("decoder 7", layer_grid([{"name": "x." * 5000 + "decoder.7.q"}])[1][0].label) is None
