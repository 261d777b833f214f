"""Models with some of their layers: outputs by hand, reload without prunus, influence by its formula."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from test_compact import ARCHITECTURES, SHARED, inputs_of, logits, model_of
from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM, T5Config

from prunus import TargetError
from prunus.sparsity.depth import influence, is_first_fixed, keep_layers, layers_of, spread


def deep(architecture: str, layers: int = 4) -> Any:
    model = model_of(architecture)
    config = model.config
    config.num_hidden_layers = layers
    if hasattr(config, "num_hidden_groups"):
        config.num_hidden_groups = layers
    for name in ("layer_types",):
        held = getattr(config, name, None)
        if isinstance(held, list):
            setattr(config, name, [held[0], held[-1]] * (layers // 2))
    torch.manual_seed(1)
    return type(model)(config).eval()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kept", [[0, 2], [1, 2, 3], [3]])
def test_the_others_are_as_if_they_gave_back_what_they_got(architecture: str, kept: list[int]) -> None:
    if architecture == "modernbert" and 0 not in kept:
        pytest.skip("its first layer has no norm before attention; the configuration cannot say that of another")
    model = deep(architecture)
    _, layers = layers_of(model)
    handles = [
        layer.register_forward_hook(lambda m, given, out: (given[0], *out[1:]) if isinstance(out, tuple) else given[0])
        for i, layer in enumerate(layers)
        if i not in kept
    ]
    expected = logits(model, architecture)
    for handle in handles:
        handle.remove()
    keep_layers(model, kept)
    assert torch.equal(logits(model, architecture), expected)
    assert len(layers_of(model)[1]) == model.config.num_hidden_layers == len(kept)


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "modernbert"])
def test_it_loads_without_prunus(architecture: str, tmp_path: Path) -> None:
    model = deep(architecture)
    keep_layers(model, [0, 2])
    model.save_pretrained(tmp_path / "small")
    expected = logits(model, architecture)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "small").eval()
    assert torch.equal(logits(again, architecture), expected)
    code = "import sys; from transformers import AutoModel; AutoModel.from_pretrained(sys.argv[1]); print(*sys.modules)"
    command = [sys.executable, "-c", code, str(tmp_path / "small")]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "prunus" not in ran.stdout.split()


def test_a_decoder_generates_with_its_cache() -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**SHARED, "num_hidden_layers": 4})).eval()
    keep_layers(model, [1, 3])
    prompt = torch.randint(4, 40, (2, 5), generator=torch.Generator().manual_seed(1))
    cached, plain = (model.generate(prompt, max_new_tokens=8, do_sample=False, use_cache=use) for use in (True, False))
    assert torch.equal(cached, plain)


def test_influence_is_one_minus_the_cosine_over_attended_tokens() -> None:
    model = deep("bert")
    batches = [inputs_of("bert"), {name: value[:2] for name, value in inputs_of("bert").items()}]
    total, tokens = torch.zeros(4, dtype=torch.float64), 0
    for inputs in batches:
        with torch.no_grad():
            states = model(**inputs, output_hidden_states=True).hidden_states
        for row in range(len(inputs["input_ids"])):
            for place in range(int(inputs["attention_mask"][row].sum())):
                vectors: list[Tensor] = [state[row, place].double() for state in states]
                for i in range(4):
                    a, b = vectors[i], vectors[i + 1]
                    total[i] += 1 - float(a @ b / (a.norm() * b.norm()))
                tokens += 1
    assert influence(model, batches) == pytest.approx((total / tokens).tolist(), rel=1e-4)


def test_layers_spread_evenly() -> None:
    assert spread(6, 3) == [0, 2, 4]
    assert spread(12, 5) == [0, 2, 4, 7, 9]
    assert spread(6, 6) == list(range(6))


@pytest.mark.parametrize("kept", [[], [0, 0], [4], [-1]])
def test_numbers_that_are_not_there_are_told(kept: list[int]) -> None:
    with pytest.raises(TargetError, match=r"layers must be one or more different numbers in 0\.\.3"):
        keep_layers(deep("bert"), kept)


@pytest.mark.parametrize("sizes", [{"num_hidden_groups": 1}, {"num_hidden_groups": 1, "inner_group_num": 2}])
def test_layers_that_share_weights_are_no_layers_of_their_own(sizes: dict[str, int]) -> None:
    config = model_of("albert").config
    for name, value in sizes.items():
        setattr(config, name, value)
    with pytest.raises(TargetError, match=r"layers with weights of their own; .* num_hidden_groups: 1"):
        layers_of(AutoModel.from_config(config))


def t5(architecture: str = "T5EncoderModel") -> Any:
    config = T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=4, num_decoder_layers=4, num_heads=2)
    config.decoder_start_token_id = 0
    torch.manual_seed(1)
    return getattr(transformers, architecture)(config).eval()


@pytest.mark.parametrize("kept", [[1, 2, 3], [3], [2, 3]])
@pytest.mark.parametrize("family", ["modernbert", "t5"])
def test_a_first_layer_unlike_the_others_stays(family: str, kept: list[int]) -> None:
    """ModernBERT's has no norm before attention, T5's holds the positions of all: made again, another would be one like it."""
    model = deep("modernbert") if family == "modernbert" else t5()
    names = list(model.state_dict())
    with pytest.raises(TargetError, match=r"leave layer 0 in its place: layer \d differs from it in .*\n    try \[0, "):
        keep_layers(model, kept)
    assert list(model.state_dict()) == names
    assert is_first_fixed(model)
    assert not is_first_fixed(deep("bert"))


@pytest.mark.parametrize("kept", [[0], [0, 2, 3]])
@pytest.mark.parametrize("architecture", ["T5EncoderModel", "T5Model"])
def test_t5_loads_again_with_the_same_outputs(architecture: str, kept: list[int], tmp_path: Path) -> None:
    model = t5(architecture)
    keep_layers(model, kept)
    ids = torch.randint(4, 40, (2, 7), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if architecture == "T5Model" else {})
    model.save_pretrained(tmp_path / "small")
    again, loaded = type(model).from_pretrained(tmp_path / "small", output_loading_info=True)
    assert not loaded["missing_keys"]
    with torch.no_grad():
        assert torch.equal(again.eval()(**inputs).last_hidden_state, model(**inputs).last_hidden_state)
