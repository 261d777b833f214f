"""A regression head that was drawn begins at the mean of the labels."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from prunus.models.loading import centre
from prunus.recipe import read_recipe
from prunus.training.run import run
from small import CONFIGS, batch, rows, save_tiny_bert, small_recipe, tiny_model

LABELS = [1.0, 2.0, 6.0]


@pytest.mark.parametrize("architecture", CONFIGS)
def test_the_head_of_every_architecture_gives_the_mean(architecture: str) -> None:
    model = tiny_model(architecture, labels=1)
    inputs = {name: value for name, value in batch(rows(4)).items() if name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        before = model(**inputs).logits
        centre(model, iter(LABELS))
        torch.testing.assert_close(model(**inputs).logits, before + 3.0)


def test_a_classifier_and_a_head_without_a_bias_stay_as_they_are() -> None:
    for model in (tiny_model("bert"), torch.nn.Linear(4, 1, bias=False)):
        held = {name: value.clone() for name, value in model.state_dict().items()}
        centre(model, LABELS)
        assert all(torch.equal(value, held[name]) for name, value in model.state_dict().items())


def ended(model: Path, data: Path, output: Path, **more: Any) -> float:
    """The bias of the head after a training that moves nothing."""
    raw = small_recipe(model, data, dense=None, distill=None, prune=[])
    raw["task"] = {"name": "classification", "train": str(data / "scores.csv"), "columns": {"score": "rating"}}
    raw["task"]["validation"] = raw["task"]["train"]
    raw["train"] |= {"learning_rate": 1e-12, "max_steps": 2}
    run(read_recipe(raw | more), output, command="", overwrite=True)
    return float(load_file(output / "model.safetensors")["classifier.bias"])


def test_a_run_begins_there_and_a_head_that_was_trained_stays(tmp_path: Path) -> None:
    words = "".join(f"{('good', 'bad')[i % 2]} film,{2.5 + i % 2}\n" for i in range(48))
    (tmp_path / "scores.csv").write_text(f"text,rating\n{words}")
    own = ended(save_tiny_bert(tmp_path / "model"), tmp_path, tmp_path / "out")
    assert own == pytest.approx(3.0)
    (tmp_path / "scores.csv").write_text(f"text,rating\n{words.replace('2.5', '7')}")
    assert ended(tmp_path / "out", tmp_path, tmp_path / "again") == pytest.approx(3.0)
