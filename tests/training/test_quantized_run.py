"""A run that prunes, distils and quantizes at once: counted, stopped, resumed, reloaded."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from prunus.checkpoint.tensor_io import MASKS_FILE, RANGES_FILE, read_masks
from prunus.quantization import restore
from prunus.recipe import Recipe, read_recipe
from prunus.report.facts import read_facts
from prunus.training import fit as fit_module
from prunus.training.fit import Interrupted
from prunus.training.rescore import rescore
from prunus.training.run import run
from small import HEADS, small_recipe


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))


def joint(tiny_bert: Path, small_data: Path, task: str = "classification", **quantize: Any) -> Recipe:
    raw = small_recipe(tiny_bert, small_data, task)
    raw["quantize"] = {"samples": 8, **quantize}
    raw["train"] |= {"lr_scheduler": "cosine_cycles", "cycles": [2, 1]}
    return read_recipe(raw)


@pytest.mark.parametrize("task", ["classification", "question-answering"])
def test_zeros_bytes_and_names(task: str, tiny_bert: Path, small_data: Path, tmp_path: Path) -> None:
    recipe = joint(tiny_bert, small_data, task)
    facts = run(recipe, tmp_path / "out")
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert not [name for name in saved if "range" in name]
    masks = read_masks(tmp_path / "out" / MASKS_FILE)
    ranges = load_file(tmp_path / "out" / RANGES_FILE)
    for name, mask in masks.items():
        assert (saved[name][~mask] == 0).all()
        own = ranges[name.removesuffix(".weight") + ".weight_range"]
        assert (own >= 0).all()
        whole = saved[name] / own * 127
        assert (whole - whole.round()).abs().max() < 1e-3
    assert facts.target_sparsity <= facts.sparse.sparsity < facts.target_sparsity + 0.02
    counted = {name: int((saved[name] == 0).sum()) for name in masks}
    assert {row["name"]: row["zeros"] for row in facts.tensors} == counted
    assert len(facts.quantization["layers"]) == len([name for name in ranges if name.endswith(".bits")])
    model = HEADS[task].from_pretrained(tmp_path / "out")
    restore(model, ranges)
    assert read_facts(tmp_path / "out").quantization["mode"] == "mixed"
    again = rescore(tmp_path / "out", {})
    assert again["metrics"] == facts.sparse.metrics  # in 8 bits, from the files alone
    assert again["sparsity"] == facts.sparse.sparsity
    layers = len(facts.quantization["layers"])
    assert f"{layers} layers were trained in 8 bits" in (tmp_path / "out" / "README.md").read_text()
    assert f"int8, {layers} layers" in (tmp_path / "out" / "report.html").read_text()


def test_stopped_and_resumed_it_ends_with_the_same_bytes(
    tiny_bert: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = joint(tiny_bert, small_data)
    recipe = replace(recipe, train=replace(recipe.train, checkpoint_every=None))
    run(recipe, tmp_path / "whole")
    stop = fit_module._StopOnSignal

    class StopEarly(stop):  # type: ignore[misc, valid-type]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.session.interrupted |= state.global_step == 5
            super().on_step_end(args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(fit_module, "_StopOnSignal", StopEarly)
        with pytest.raises(Interrupted):
            run(recipe, tmp_path / "halves")
    run(recipe, tmp_path / "halves", resume=True)
    for name in ("model.safetensors", RANGES_FILE):
        first, second = load_file(tmp_path / "whole" / name), load_file(tmp_path / "halves" / name)
        assert all(torch.equal(first[key], second[key]) for key in first), name
