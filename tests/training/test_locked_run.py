"""A sparse model fine-tuned with its pattern locked: zeros identical, mistakes told before anything is trained."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from prunus import RecipeError
from prunus.checkpoint.tensor_io import MASKS_FILE
from prunus.recipe import read_recipe
from prunus.training import dense as dense_module
from prunus.training.plan import plan_facts
from prunus.training.prepare import prepare
from prunus.training.run import run
from small import save_tiny_bert, small_recipe


@pytest.fixture(scope="module")
def pruned(tiny_bert: Path, small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 4x1 model that a run has made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNUS_CACHE", str(tmp_path_factory.mktemp("cache")))
        place = tmp_path_factory.mktemp("pruned") / "run"
        run(read_recipe(small_recipe(tiny_bert, small_data)), place)
    return place


def locked(model: Path, data: Path, task: str = "classification", **more: Any) -> dict[str, Any]:
    recipe = small_recipe(model, data, task, distill=None, dense=None, prune={"lock": True, "pattern": "4x1"})
    recipe["train"] |= {"evaluate_every": None, "weight_decay": 0.1}
    return {key: value for key, value in (recipe | more).items() if value is not None}


def zeros(place: Path) -> dict[str, Tensor]:
    held = load_file(place / "model.safetensors")
    return {n: t == 0 for n, t in held.items() if ".encoder." in n and t.ndim == 2}


@pytest.mark.parametrize("task", ["classification", "question-answering"])
def test_zeros_are_identical_before_and_after(task: str, pruned: Path, small_data: Path, tmp_path: Path) -> None:
    facts = run(read_recipe(locked(pruned, small_data, task, quantize=None)), tmp_path / "out")
    before, after = zeros(pruned), zeros(tmp_path / "out")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert facts.target_sparsity == pytest.approx(0.5)
    assert facts.sparse.sparsity == pytest.approx(0.5)
    weights = (load_file(place / "model.safetensors") for place in (pruned, tmp_path / "out"))
    first, second = ({n: t for n, t in held.items() if ".encoder." in n} for held in weights)
    assert any(not torch.equal(first[name], second[name]) for name in first)
    report = (tmp_path / "out" / "report.html").read_text()
    assert "lock" in report


def test_eight_bits_after_sparse_keep_every_zero(pruned: Path, small_data: Path, tmp_path: Path) -> None:
    run(read_recipe(locked(pruned, small_data, quantize={"samples": 8})), tmp_path / "out")
    before, after = zeros(pruned), zeros(tmp_path / "out")
    assert all(bool((after[name] | ~before[name]).all()) for name in before)  # rounding makes some more


def test_the_teacher_is_fine_tuned_from_the_dense_model(
    pruned: Path, tiny_bert: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    raw = locked(pruned, small_data) | {"distill": {"teacher": "dense"}}
    with pytest.raises(RecipeError, match="not be fine-tuned from the sparse model whose zeros are locked"):
        read_recipe(raw)
    sources: list[str] = []
    load = dense_module.load_model

    def loaded(source: str, *rest: Any, **more: Any) -> Any:
        sources.append(source)
        return load(source, *rest, **more)

    monkeypatch.setattr(dense_module, "load_model", loaded)
    raw["model"] |= {"dense": str(tiny_bert)}
    facts = run(read_recipe(raw), tmp_path / "out")
    assert sources == [str(tiny_bert)]
    assert facts.dense.sparsity == 0.0
    assert all(torch.equal(zeros(pruned)[name], zero) for name, zero in zeros(tmp_path / "out").items())


def damage(place: Path, share: float) -> int:
    held = load_file(place / "model.safetensors")
    name = next(name for name in held if name.endswith("intermediate.dense.weight"))
    places = (held[name] == 0).flatten().nonzero().flatten()
    hit = places[:: int(1 / share)]
    held[name].view(-1)[hit] = 0.1
    save_file(held, place / "model.safetensors", {"format": "pt"})
    return len(hit)


def copied(pruned: Path, place: Path) -> Path:
    import shutil

    shutil.copytree(pruned, place)
    return place


def test_damage_is_told_by_plan(pruned: Path, small_data: Path, tmp_path: Path) -> None:
    place = copied(pruned, tmp_path / "damaged")
    count = damage(place, 0.01)
    with pytest.raises(RecipeError, match=rf"{count} of [\d,]+ weights that its mask locks are not zero"):
        prepare(read_recipe(locked(place, small_data)))
    (place / MASKS_FILE).unlink()
    with pytest.raises(RecipeError, match=r"prune\[0\].pattern must be the pattern of the zeros"):
        prepare(read_recipe(locked(place, small_data)))


@pytest.mark.parametrize(
    ("prune", "told"),
    [
        ({"lock": True, "pattern": "2:4"}, "groups have too few zeros"),
        ({"lock": True, "pattern": "1x4"}, "zeros lie outside whole 1x4 units"),
        ({"lock": True, "pattern": "4x1", "sparsity": 0.8}, "be the share of zeros in the targets, 0.5000"),
        ({"lock": True, "pattern": "4x1", "revive": True}, "not come with lock"),
    ],
)
def test_other_declarations_are_told(prune: Any, told: str, pruned: Path, small_data: Path) -> None:
    with pytest.raises(RecipeError, match=told):
        prepare(read_recipe(locked(pruned, small_data, prune=prune)))


def test_a_dense_model_has_nothing_to_lock(small_data: Path, tmp_path: Path) -> None:
    place = save_tiny_bert(tmp_path / "dense")
    with pytest.raises(RecipeError, match="no zero in"):
        prepare(read_recipe(locked(place, small_data)))
    with pytest.raises(RecipeError, match=r"model\.start must be pretrained"):
        read_recipe(
            locked(place, small_data) | {"model": {"name": str(place), "start": "dense"}, "dense": {"epochs": 1}}
        )


def test_a_plan_says_what_is_locked(pruned: Path, small_data: Path) -> None:
    from prunus.plan_view import plan_lines

    facts = plan_facts(prepare(read_recipe(locked(pruned, small_data))))
    assert facts["rules"][0]["lock"]
    json.dumps(facts["rules"])
    assert any("the zeros of 12 tensors stay" in line for line in plan_lines(facts))
