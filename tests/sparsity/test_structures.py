"""Heads and neurons: found in every architecture, ranked by the gradient of their gates, gone when their columns are zero."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tiny import Layers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForSequenceClassification

from prunus import Allocation, Masker, Pruning, RecipeError, Schedule, Span, TargetError
from prunus.sparsity.patterns import parse_pattern
from prunus.sparsity.pruning import resolve
from prunus.sparsity.structures import pattern_for, reads
from small import CONFIGS, batch, rows, tiny_model

STEPS = Schedule("linear", Span(0), end=Span(8), every=Span(2))


def llama() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 40}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, num_labels=3, pad_token_id=0)
    return LlamaForSequenceClassification(config).eval()


def model_of(architecture: str) -> Any:
    return llama() if architecture == "llama" else tiny_model(architecture)


@pytest.mark.parametrize("architecture", [*CONFIGS, "llama"])
@pytest.mark.parametrize("structure", ["heads", "ffn"])
def test_each_layer_has_one_projection_that_reads_them(architecture: str, structure: str) -> None:
    model = model_of(architecture)
    (rule,) = resolve(model, [Pruning(0.5, structure, "first_order", STEPS)], 8, 8)
    assert len(rule.selection.taken) == 2
    # 16 hidden units; 2 heads of 8, in Llama 2 groups of 2 heads of 4; 32 neurons, in Llama 24.
    width = 8 if structure == "heads" else 1
    units = 2 if structure == "heads" else 24 if architecture == "llama" else 32
    for shape in rule.selection.taken.values():
        assert shape[0] == 16
        assert rule.pattern.units(shape) == (1, units)
        assert rule.pattern.cell(shape) == (16, width)


def test_names_of_other_families() -> None:
    for name in ("vit.encoder.layer.0.attention.output.dense.weight", "model.layers.3.self_attn.o_proj.weight"):
        assert reads("heads", name)
        assert not reads("ffn", name)
    for name in ("vit.encoder.layer.0.output.dense.weight", "model.layers.3.mlp.down_proj.weight"):
        assert reads("ffn", name)
        assert not reads("heads", name)
    for name in ("bert.pooler.dense.weight", "encoder.layer.0.intermediate.dense.weight", "classifier.dense.weight"):
        assert not reads("ffn", name)
        assert not reads("heads", name)


@contextmanager
def gated(model: nn.Module, gates: dict[str, Tensor]) -> Iterator[None]:
    """Multiplies the inputs of these projections by gates, one a structure."""
    handles = []
    for name, gate in gates.items():
        module = model.get_submodule(name.removesuffix(".weight"))

        def scale(module: nn.Module, inputs: Any, gate: Tensor = gate) -> Any:
            return (inputs[0] * gate.repeat_interleave(inputs[0].shape[-1] // len(gate)),)

        handles.append(module.register_forward_pre_hook(scale))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("architecture", [*CONFIGS, "llama"])
@pytest.mark.parametrize("structure", ["heads", "ffn"])
def test_importance_is_the_gradient_of_the_gates_summed_over_batches(architecture: str, structure: str) -> None:
    model = model_of(architecture).double()
    masker = Masker(model, Pruning(0.5, structure, "first_order", STEPS), 8)
    (rule,) = masker.rules
    gates = {
        name: torch.ones(rule.pattern.units(shape)[1], dtype=torch.float64, requires_grad=True)
        for name, shape in rule.selection.taken.items()
    }
    expected = {name: torch.zeros(len(gate), dtype=torch.float64) for name, gate in gates.items()}
    for seed in range(3):
        inputs = batch(rows(4, seed=seed))
        model.zero_grad()
        model(**inputs).loss.backward()
        masker.observe(model)
        with gated(model, gates):
            found = torch.autograd.grad(model(**inputs).loss, list(gates.values()))
        for name, gradient in zip(gates, found, strict=True):
            expected[name] += gradient.abs()
    state = masker.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(state[f"score.{name}"][0].double(), value, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("architecture", [*CONFIGS, "llama"])
@pytest.mark.parametrize("structure", ["heads", "ffn"])
def test_a_pruned_structure_does_nothing(architecture: str, structure: str) -> None:
    model = model_of(architecture)
    inputs = batch(rows(4))
    schedule = Schedule("one_shot", Span(1))
    masker = Masker(model, Pruning(0.5, structure, "first_order", schedule), 2)
    model(**inputs).loss.backward()
    masker.observe(model)
    whole = model_of(architecture)
    masker.step(model)
    shapes = masker.rules[0].selection.taken
    width = masker.rules[0].pattern.cell(next(iter(shapes.values())))[1]
    gates = {name: mask[0, ::width].float() for name, mask in masker.masks.items()}
    assert sum(int((gate == 0).sum()) for gate in gates.values()) == sum(len(gate) for gate in gates.values()) // 2
    with torch.no_grad(), gated(whole, gates):
        expected = whole(**inputs).logits
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, expected, rtol=1e-5, atol=1e-6)


def test_steps_take_what_they_say_and_a_layer_keeps_a_live_head() -> None:
    torch.manual_seed(0)
    model = tiny_model()
    model.config.num_attention_heads = 8  # of two columns each
    cap = Allocation("global", "normed", 0.9)
    masker = Masker(model, Pruning(0.75, "heads", "first_order", STEPS, cap), 10)
    layers = list(masker.rules[0].selection.taken)
    live = []
    for step in range(9):
        for name, parameter in model.named_parameters():
            if name in layers:
                # One layer matters ten thousand times as much, and its own heads in their order.
                size = 1e4 if name == layers[0] else 1.0
                parameter.grad = torch.ones_like(parameter) * size * torch.arange(1, 17) * parameter.sign()
        masker.observe(model)
        masker.step(model)
        live.append([int(masker.masks[name][0, ::2].sum()) if name in masker.masks else 8 for name in layers])
        assert step + 1 == masker.steps
    assert [sum(each) for each in live] == [16, 13, 13, 10, 10, 7, 7, 4, 4]  # 0.1875 of 16 in each step
    assert all(min(each) >= 1 for each in live)
    masker.finish(model)


def test_a_new_sum_begins_with_each_update() -> None:
    model = tiny_model()
    masker = Masker(model, Pruning(0.5, "ffn", "first_order", STEPS), 8)
    inputs = batch(rows(4))
    for step in range(5):
        model.zero_grad()
        model(**inputs).loss.backward()
        masker.observe(model)
        held = masker.state_dict()
        masker.step(model)
        after = [key for key in masker.state_dict() if key.startswith("score.")]
        assert [key for key in held if key.startswith("score.")]
        assert (after == []) == (step % 2 == 1)


@pytest.mark.parametrize("text", ["*x8", "*x1", "*x64"])
def test_columns_of_a_width_read_and_write(text: str) -> None:
    pattern = parse_pattern(text)
    assert parse_pattern(str(pattern)) == pattern
    assert pattern.cell((3, 64)) == (3, int(text[2:]))


@pytest.mark.parametrize("text", ["*x0", "4x*", "*:4", "**x4"])
def test_other_stars_are_refused(text: str) -> None:
    with pytest.raises(TargetError, match="pattern must"):
        parse_pattern(text)


def test_models_that_do_not_say_how_many_heads_they_have_are_told() -> None:
    with pytest.raises(TargetError, match="no num_attention_heads"):
        pattern_for(Layers(nn.Linear(4, 4)), "heads")
    with pytest.raises(RecipeError, match="no num_attention_heads"):
        resolve(Layers(nn.Linear(4, 4)), [Pruning(0.5, "heads", "magnitude", STEPS)], 8, 8)


def test_first_order_is_not_for_n_of_m() -> None:
    with pytest.raises(RecipeError, match=r"criterion must be another for pattern 2:4"):
        resolve(tiny_model(), [Pruning(None, "2:4", "first_order")], 100, 10)


@pytest.mark.parametrize("multiple", [1, 4, 8, 16])
@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_what_is_left_is_a_multiple(multiple: int, scope: Any) -> None:
    model = tiny_model()
    allocation = Allocation(scope, "normed", 1.0, multiple=multiple)
    masker = Masker(model, Pruning(0.55, "ffn", "magnitude", STEPS, allocation), 8)
    before: dict[str, Tensor] = {}
    for _ in range(8):
        masker.step(model)
        for name, mask in masker.masks.items():
            assert int(mask[0].sum()) % multiple == 0
            assert name not in before or not bool((mask & ~before[name]).any())
        before = masker.masks
    facts = masker.finish(model)
    left = sum(int(mask[0].sum()) for mask in masker.masks.values())
    # Each tensor loses floor(0.55 x 32) = 17 units, both together floor(0.55 x 64) = 35; what is left is rounded up.
    wanted = 64 - 35 if scope == "global" else 2 * (32 - 17)
    assert left == -(-wanted // multiple) * multiple
    assert sum(fact.zeros for fact in facts) == (64 - left) * 16
