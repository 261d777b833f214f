"""Contrastive terms in a training: the loss, ids that stay with their rows, banks and snapshots, resume."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional
from transformers import TrainerCallback

from prunus import CheckpointError, Distillation, Pruning, PrunusTrainer, RecipeError, Schedule, Span, TargetError
from prunus.distillation.banks import draw
from prunus.distillation.contrastive import Contrast, Contrastive, Snapshots, contrastive_loss, sets_of
from prunus.recipe import read_recipe
from prunus.training.contrast import ROW_ID, Numbered, represented, representing
from prunus.training.plan import plan_facts
from prunus.training.prepare import prepare
from prunus.training.run import run
from small import arguments, batch, four_by_one, rows, small_recipe, teacher_of, tiny_model, without_dropout

ALL = Contrastive(Contrast(0.3, 0.2), Snapshots(0.5, 0.1, every=0.2), Contrast(0.7, 0.4, 0.2), negatives=16)


def calm(architecture: str = "bert", head: str = "classification", seed: int = 0) -> Any:
    return without_dropout(tiny_model(architecture, head, seed))


def trainer_of(place: Path, contrast: Contrastive, head: str = "classification", **more: Any) -> PrunusTrainer:
    settings = {
        key: more.pop(key)
        for key in list(more)
        if key not in ("pruning", "teacher", "pretrained", "callbacks", "model")
    }
    return PrunusTrainer(
        more.pop("model", calm(head=head)),
        arguments(place, **settings),
        train_dataset=rows(32, head),
        data_collator=settings.pop("collate", with_ids),
        distillation=Distillation(0.5, 0.25, contrast=contrast),
        teacher=more.pop("teacher", calm(head=head, seed=1)),
        **more,
    )


def with_ids(features: list[dict[str, Any]]) -> dict[str, Tensor]:
    return batch(features)


def bodies(model: Any, features: list[dict[str, Any]], kind: str = "auto") -> Tensor:
    """Representations of rows, in float64 and of length one."""
    inputs = {k: v for k, v in batch(features).items() if k in ("input_ids", "attention_mask")}
    with torch.no_grad():
        out = model.eval().base_model(**inputs)
    pooled = getattr(out, "pooler_output", None)
    if kind == "mean":
        found = out.last_hidden_state.mean(1)
    else:
        found = pooled if pooled is not None and kind in ("auto", "pooler") else out.last_hidden_state[:, 0]
    return functional.normalize(found.double(), dim=1)


@pytest.mark.parametrize("head", ["classification", "question-answering"])
@pytest.mark.parametrize("kind", ["auto", "cls", "mean"])
def test_the_loss_is_the_weighted_sum_with_the_terms(head: str, kind: Any, tmp_path: Path) -> None:
    supervised = 0.2 if head == "classification" else 0.0
    choice = Contrastive(Contrast(0.3, supervised), fic=Contrast(0.7, 0.0, 0.2), negatives=5, representation=kind)
    teacher, pretrained = calm(head=head, seed=1), calm(head=head, seed=2)
    trainer = trainer_of(tmp_path, choice, head, teacher=teacher, pretrained=pretrained, max_steps=1)
    seen: list[float] = []

    class Losses(TrainerCallback):  # type: ignore[misc]
        def on_log(self, *args: Any, logs: dict[str, float], **kwargs: Any) -> None:
            if "loss" in logs:
                seen.append(logs["loss"])

    trainer.add_callback(Losses())
    taken: list[Tensor] = []
    compute = trainer.compute_loss

    def noting(model: nn.Module, inputs: dict[str, Any], **more: Any) -> Any:
        taken.append(inputs[ROW_ID].clone())
        return compute(model, inputs, **more)

    trainer.compute_loss = noting  # type: ignore[method-assign]
    trainer.train()
    (ids,) = taken
    features = rows(32, head)
    student, inputs = calm(head=head), batch([features[i] for i in ids])
    with torch.no_grad():
        out = student(**inputs)
        taught = teacher(**{k: v for k, v in inputs.items() if k in ("input_ids", "attention_mask")})
    pairs = [("logits",)] if head == "classification" else [("start_logits",), ("end_logits",)]
    soft = [
        4 * (p.exp() * (p - q)).sum(-1).mean()
        for (name,) in pairs
        for p, q in [((taught[name].double() / 2).log_softmax(-1), (out[name].double() / 2).log_softmax(-1))]
    ]
    expected = 0.25 * float(out.loss) + 0.5 * float(torch.stack(soft).mean())
    anchors = bodies(student, [features[i] for i in ids], kind)
    labels = torch.tensor([row.get("labels", 0) for row in features])
    for name, model, term in (("prc", pretrained, choice.prc), ("fic", teacher, choice.fic)):
        others = draw(f"{name} 0 0", 7, 0, 32, 5)
        chosen = torch.cat([ids, others])
        states = bodies(model, features, kind).half().double()[chosen]
        candidates, named = torch.cat([anchors, states]), torch.cat([ids, chosen])
        for weight, own, all_ in ((term.weight, ids, named), (term.supervised, labels[ids], labels[named])):
            if weight:
                positive, counts = sets_of(own, all_)
                expected += weight * float(contrastive_loss(anchors, candidates, positive, counts, term.temperature))
    assert seen[0] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("workers", "accumulation"), [(0, 1), (2, 1), (0, 2), (2, 3)])
@pytest.mark.parametrize("head", ["classification", "question-answering"])
def test_ids_stay_with_their_rows(head: str, workers: int, accumulation: int, tmp_path: Path) -> None:
    features = rows(32, head)
    trainer = trainer_of(
        tmp_path,
        Contrastive(Contrast(0.3), negatives=4),
        head,
        dataloader_num_workers=workers,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=2,
        max_steps=-1,
        remove_unused_columns=True,
    )
    seen: list[int] = []
    compute = trainer.compute_loss

    def checking(model: nn.Module, inputs: dict[str, Any], **more: Any) -> Any:
        ids = inputs[ROW_ID]
        assert ids.dtype == torch.int64
        expected = batch([features[i] for i in ids])
        assert all(torch.equal(inputs[name], value) for name, value in expected.items())
        seen.extend(ids.tolist())
        return compute(model, inputs, **more)

    trainer.compute_loss = checking  # type: ignore[method-assign]
    trainer.train()
    assert sorted(seen) == sorted(2 * list(range(32)))
    assert seen[:32] != list(range(32))


def test_snapshots_are_taken_on_the_grid_of_sparsity_before_the_next_update(tmp_path: Path) -> None:
    schedule = Schedule("linear", Span(1), end=Span(21), every=Span(2))  # 0, .06, .12, ..., .6 after 1, 3, ..., 21
    trainer = trainer_of(tmp_path, ALL, pruning=Pruning(0.6, "4x1", "magnitude", schedule), max_steps=24)
    trainer.train()
    # 0.24 is reached after step 9 and kept until step 10, 0.42 after 15; 0.6 is the end, which no update follows.
    assert sorted(path.stem for path in (tmp_path / "banks").glob("snc-*")) == ["snc-00000010", "snc-00000016"]
    assert trainer.contrasting is not None
    assert trainer.contrasting.facts["passes"] == 4
    last = [log for log in trainer.state.log_history if "snc_loss" in log]
    assert [log["step"] for log in last] == list(range(11, 25))
    weights = trainer.weights
    for log in last:
        assert log["loss"] == pytest.approx(sum(weights[n] * log[n] for n in weights if n in log), rel=1e-4)


@pytest.mark.parametrize("last", [None, 1])
def test_how_many_snapshots_count(last: int | None, tmp_path: Path) -> None:
    choice = Contrastive(snc=Snapshots(0.5, every=0.1, last=last))
    trainer = trainer_of(tmp_path, choice, pruning=four_by_one(0.6), max_steps=8)
    trainer.train()
    assert trainer.contrasting is not None
    assert len(trainer.contrasting.banks["snc"]) == (last or 3)  # after 0.15, 0.3, 0.45


@pytest.mark.parametrize("bank", ["cpu", "device", "mmap"])
def test_a_resumed_training_ends_where_a_whole_one_does(bank: Any, tmp_path: Path) -> None:
    choice = Contrastive(ALL.prc, Snapshots(0.5, every=0.2), ALL.fic, negatives=8, bank=bank)
    more: dict[str, Any] = {"pruning": four_by_one(0.5), "max_steps": 8, "save_strategy": "steps", "save_steps": 4}
    whole = trainer_of(tmp_path, choice, **more)
    whole.train()
    again = trainer_of(tmp_path, choice, **more)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert again.contrasting is not None
    assert whole.contrasting is not None
    assert again.contrasting.banks["snc"].names == whole.contrasting.banks["snc"].names
    for left, right in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(left, right)
    shutil.copytree(tmp_path, tmp_path / "moved", ignore=shutil.ignore_patterns("checkpoint-8", "moved"))
    elsewhere = trainer_of(tmp_path / "new", choice, **more)
    elsewhere.train(resume_from_checkpoint=str(tmp_path / "moved" / "checkpoint-4"))
    for left, right in zip(whole.model.parameters(), elsewhere.model.parameters(), strict=True):
        assert torch.equal(left, right)
    shutil.rmtree(tmp_path / "moved" / "banks")
    with pytest.raises(CheckpointError, match="be in the folder of banks beside the checkpoint"):
        trainer_of(tmp_path / "newer", choice, **more).train(
            resume_from_checkpoint=str(tmp_path / "moved" / "checkpoint-4")
        )
    other = trainer_of(tmp_path, choice, **more)
    other.train_dataset = Numbered(rows(32, seed=5))
    assert other.contrasting is not None
    other.contrasting._rows = other.train_dataset
    with pytest.raises(CheckpointError, match="be of the data of this run"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_terms_without_what_they_need_are_told(tmp_path: Path) -> None:
    with pytest.raises(TargetError) as caught:
        trainer_of(tmp_path, ALL, "question-answering", teacher=None)
    text = str(caught.value)
    for said in (
        "distill.contrast.fic must come with a teacher",
        "distill.contrast.snc must come with a rule",
        "without labels",
    ):
        assert said in text
    with pytest.raises(TargetError, match="be cls or mean for a model without a pooled output"):
        trainer_of(tmp_path, Contrastive(Contrast(1.0), representation="pooler"), "question-answering").train()
    wide = teacher_of(32)
    trainer = trainer_of(tmp_path, Contrastive(Contrast(1.0), fic=Contrast(1.0), representation="cls"), teacher=wide)
    with pytest.raises(TargetError, match=r"distill\.contrast\.fic must be as wide as the other models"):
        trainer.train()


@pytest.mark.parametrize(
    "architecture", ["bert", "distilbert", "roberta", "electra", "mpnet", "deberta-v2", "modernbert"]
)
def test_representations_of_every_architecture(architecture: str) -> None:
    model = tiny_model(architecture)
    inputs = batch(rows(5))
    labels = inputs.pop("labels")
    with representing(model) as found, torch.no_grad():
        model(**inputs, labels=labels)
    with torch.no_grad():
        states = model.base_model(**inputs)[0]
    attended = inputs["attention_mask"]
    assert torch.equal(represented(found[0], attended, "cls"), states[:, 0])
    torch.testing.assert_close(represented(found[0], attended, "mean"), states.mean(1))
    half = attended.clone()
    half[:, 6:] = 0
    torch.testing.assert_close(represented((states, None), half, "mean"), states[:, :6].mean(1))


# Recipes


@pytest.mark.parametrize("task", ["classification", "question-answering"])
def test_a_recipe_with_all_terms(
    task: str, small_data: Path, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    term = {"weight": 0.3, "supervised": 0.1 if task == "classification" else 0.0}
    contrast = {"prc": term, "snc": {**term, "every": 0.2}, "fic": {**term, "temperature": 0.2}, "negatives": 8}
    distill = {"teacher": "dense", "weight": 0.9, "hard_weight": 0.1, "contrast": contrast}
    recipe = read_recipe(small_recipe(tiny_bert, small_data, task, distill=distill))
    prepared = prepare(recipe)
    rows_, width = len(prepared.train_features), prepared.config.hidden_size
    assert plan_facts(prepared)["bytes"]["banks"] == 2 * rows_ * width * 4  # PrC, FiC, two snapshots: 0.2 and 0.4
    facts = run(recipe, tmp_path / "out")
    assert facts.banks["passes"] == 4
    assert facts.banks["bytes"] == 2 * rows_ * width * 4
    last = facts.history.loss[-1]
    forms = ["loss", "label_loss"] if task == "classification" else ["loss"]
    weights = {"hard_loss": 0.1, "distill_loss": 0.9}
    weights |= {f"{n}_{f}": w for n in ("prc", "snc", "fic") for f, w in zip(forms, (0.3, 0.1), strict=False)}
    assert last["loss"] == pytest.approx(sum(weight * last[name] for name, weight in weights.items()), rel=1e-3)
    assert facts.sparse.sparsity == pytest.approx(0.5)
    assert not (tmp_path / "out" / "checkpoints").exists()
    assert "contrastive banks, 4 passes" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("distill", "more", "said"),
    [
        ({"contrast": {"prc": {"wieght": 1.0}}}, {}, r"contrast\.prc\.wieght.*\s+try distill\.contrast\.prc\.weight"),
        (
            {"contrast": {"snc": {"weight": 1.0}}},
            {"prune": []},
            r"distill\.contrast\.snc must come with a rule of prune",
        ),
        ({"contrast": {"bank": "disk"}}, {}, r"distill\.contrast\.bank must be one of cpu, device, mmap"),
    ],
)
def test_mistakes_in_recipes(
    distill: dict[str, Any], more: dict[str, Any], said: str, small_data: Path, tiny_bert: Path
) -> None:
    with pytest.raises(RecipeError, match=said):
        read_recipe(small_recipe(tiny_bert, small_data, **{"distill": {"teacher": "dense", **distill}, **more}))


def test_supervised_terms_want_classes(small_data: Path, tiny_bert: Path) -> None:
    distill = {"teacher": "dense", "contrast": {"fic": {"supervised": 1.0}}}
    recipe = read_recipe(small_recipe(tiny_bert, small_data, "question-answering", distill=distill))
    with pytest.raises(RecipeError, match=r"distill\.contrast\.fic\.supervised must be 0 for question-answering"):
        prepare(recipe)


@pytest.mark.parametrize("unused", [True, False])
def test_columns_that_the_model_does_not_take_are_left_out_as_trainer_does(unused: bool, tmp_path: Path) -> None:
    """A text column goes to no collator, in banks as in batches; ``remove_unused_columns=False`` leaves everything in."""
    seen: list[set[str]] = []

    def collate(features: list[dict[str, Any]]) -> dict[str, Tensor]:
        seen.extend(set(feature) for feature in features)
        return batch([{k: v for k, v in feature.items() if k != "text"} for feature in features])

    data = Dataset.from_list([{**row, "text": "a good film"} for row in rows(12)])
    contrast = Contrastive(prc=Contrast(0.1), fic=Contrast(0.1, supervised=0.1))
    trainer = PrunusTrainer(
        calm(),
        arguments(tmp_path, max_steps=2, remove_unused_columns=unused),
        train_dataset=data,
        data_collator=collate,
        teacher=calm(seed=1),
        distillation=Distillation(weight=1.0, contrast=contrast),
    )
    trainer.train()
    assert seen
    assert all(("text" in names) != unused for names in seen)
