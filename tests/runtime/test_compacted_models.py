"""Compacted and narrowed models in the engine: what torch gives for them, with layers that lost everything too."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

import prunus
from prunus.checkpoint.huggingface import narrow
from prunus.errors import EngineError
from prunus.runtime import Engine
from prunus.runtime.convert import calibrate, convert
from prunus.runtime.families import canonical, read_checkpoint
from prunus.runtime.store import read_model, write_model
from prunus.sparsity.structures import structures
from small import CONFIGS

FAMILIES = ["bert", "roberta", "electra", "distilbert", "mpnet", "albert"]
CASES = ["heads", "ffn", "no heads", "no neurons", "narrow", "all"]


def model_of(family: str) -> Any:
    torch.manual_seed(0)
    config = CONFIGS[family]()
    for name, value in (("hidden_size", 32), ("dim", 32), ("num_attention_heads", 4), ("n_heads", 4)):
        if name in config.__dict__:
            setattr(config, name, value)
    if family in ("electra", "albert"):
        config.embedding_size = 16
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def cut(model: Any, case: str) -> None:
    draw = torch.Generator().manual_seed(1)
    for number, each in enumerate(structures(model)):
        weight = model.get_parameter(f"{each.reader}.weight")
        own = {"heads": each.kind == "heads", "ffn": each.kind == "ffn", "all": True}.get(case, False)
        lost = torch.randperm(each.units, generator=draw)[: each.units // 2].tolist() if own else []
        if case == f"no {'heads' if each.kind == 'heads' else 'neurons'}" and number < 2:
            lost = list(range(each.units))
        with torch.no_grad():
            for j in lost:
                weight[:, j * each.width : (j + 1) * each.width] = 0
    prunus.compact(model)
    if case in ("narrow", "all"):
        narrow(model, [i for i in range(32) if i % 2])


def expected_of(model: Any, sequences: list[Any]) -> list[Any]:
    with torch.no_grad():
        return [model.base_model(input_ids=torch.tensor(one)[None]).last_hidden_state[0].numpy() for one in sequences]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CASES)
def test_the_engine_gives_what_torch_gives(family: str, case: str, tmp_path: Path) -> None:
    model = model_of(family)
    cut(model, case)
    model.save_pretrained(tmp_path / "small")
    draw = np.random.default_rng(0)
    sequences = [draw.integers(4, 40, size) for size in (9, 1, 30)]
    expected = expected_of(model, sequences)
    dense = read_checkpoint(tmp_path / "small")
    (tmp_path / "packed").mkdir()
    write_model(convert(dense), tmp_path / "packed")
    with Engine(read_model(tmp_path / "packed"), threads=1) as engine:
        for got, wanted in zip(engine.states(sequences), expected, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4)
    with Engine(convert(dense, calibrate(dense, sequences)), threads=1) as engine:
        for got, wanted in zip(engine.states(sequences), expected, strict=True):
            cosine = (got * wanted).sum() / (np.linalg.norm(got) * np.linalg.norm(wanted))
            assert cosine > 0.99


@pytest.mark.parametrize("layout", [[1], {"a": "b"}, {"a": [0.5]}, {"a": [-1]}, {"a": [True]}])
def test_layouts_from_outside_are_checked(layout: Any) -> None:
    model = model_of("bert")
    settings = model.config.to_dict() | {"quantization_config": {"quant_method": "prunus", "layout": layout}}
    with pytest.raises(EngineError, match="quantization_config: layout must map layers to the numbers"):
        canonical(settings, {name: value.detach().numpy() for name, value in model.state_dict().items()})
