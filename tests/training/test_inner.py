"""Hidden states and attention maps in a training: their share of the loss, and projectors that learn and are not saved."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from prunus import Distillation, PrunusTrainer, RecipeError, TargetError, TeacherSettings
from prunus.distillation.hidden import Inside
from prunus.recipe import read_recipe
from prunus.training.prepare import prepare
from prunus.training.run import run
from prunus.training.session import STATE_FILE
from small import arguments, batch, rows, small_recipe, teacher_of, tiny_model, tiny_tokenizer, without_dropout

BOTH = Distillation(0.5, 0.25, 2.0, Inside(0.7, "uniform"), Inside(0.3, "last"))


def trainer_of(place: Path, distillation: Distillation, teacher: Any, **more: Any) -> PrunusTrainer:
    model = without_dropout(tiny_model("bert"))
    features = rows(24)
    return PrunusTrainer(
        model,
        arguments(place, **more),
        train_dataset=features,
        data_collator=batch,
        teacher=teacher,
        distillation=distillation,
    )


def test_the_loss_is_the_weighted_sum_of_its_parts(tmp_path: Path) -> None:
    teacher = teacher_of()
    trainer = trainer_of(tmp_path, BOTH, teacher)
    student = trainer.model.train()
    inputs = batch(rows(6))
    got = float(trainer.compute_loss(student, dict(inputs)).detach())
    asked = {k: v for k, v in inputs.items() if k != "labels"}
    with torch.no_grad():
        s, t = (m.eval()(**asked, output_hidden_states=True, output_attentions=True) for m in (student, teacher))
    mask = inputs["attention_mask"].bool()
    hard = functional.cross_entropy(s.logits.double(), inputs["labels"])
    p, q = (t.logits.double() / 2).log_softmax(-1), (s.logits.double() / 2).log_softmax(-1)
    soft = 4 * (p.exp() * (p - q)).sum(-1).mean()
    hidden = []
    for i, j in ((0, 0), (1, 2), (2, 4)):
        wide = torch.zeros_like(t.hidden_states[j]).double()
        wide[..., :16] = s.hidden_states[i].double()  # how projectors begin
        hidden.append((wide - t.hidden_states[j].double())[mask].square().mean())
    maps = s.attentions[-1].double().mean(1) - t.attentions[-1].double().mean(1)
    pairs = mask[:, :, None] & mask[:, None, :]
    attention = maps[pairs].square().mean()
    expected = 0.25 * hard + 0.5 * soft + 0.7 * torch.stack(hidden).mean() + 0.3 * attention
    assert got == pytest.approx(float(expected), rel=1e-5)


def test_projectors_learn_and_are_not_saved(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, BOTH, teacher_of(), max_steps=4)
    assert trainer.teaching is not None
    before = {name: value.clone() for name, value in trainer.teaching.projectors.state_dict().items()}
    assert set(before) == {f"0.projectors.{pair}.weight" for pair in ("0-0", "1-2", "2-4")}
    trainer.train()
    assert all(not torch.equal(value, before[name]) for name, value in trainer.teaching.projectors.state_dict().items())
    trainer.save_model(str(tmp_path / "saved"))
    assert not any("projector" in name for name in load_file(tmp_path / "saved" / "model.safetensors"))
    assert not (tmp_path / "saved" / STATE_FILE).exists()


def test_no_projectors_where_widths_agree(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, BOTH, tiny_model("bert", seed=3))
    assert trainer.teaching is not None
    assert list(trainer.teaching.projectors.parameters()) == []


def test_without_weights_nothing_more_is_asked_of_the_models(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, Distillation(), teacher_of())
    assert trainer.teaching is not None
    assert trainer.teaching.asks == {}


def test_layers_that_are_not_there_are_told(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"distill\.hidden\.pairs"):
        trainer_of(tmp_path, Distillation(hidden=Inside(1.0, pairs=((3, 1),))), teacher_of())


def test_a_resumed_training_has_its_projectors(tmp_path: Path) -> None:
    more: dict[str, Any] = {"max_steps": 8, "save_strategy": "steps", "save_steps": 4}
    whole = trainer_of(tmp_path / "whole", BOTH, teacher_of(), **more)
    whole.train()
    again = trainer_of(tmp_path / "whole", BOTH, teacher_of(), **more)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert whole.teaching is not None
    assert again.teaching is not None
    for left, right in zip(whole.teaching.projectors.parameters(), again.teaching.projectors.parameters(), strict=True):
        assert torch.equal(left, right)
    for left, right in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(left, right)


def test_a_recipe_with_hidden_states(
    small_data: Path, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    hidden = {"weight": 1.0, "layers": "uniform", "loss": "cosine"}
    recipe = small_recipe(
        tiny_bert, small_data, distill={"teacher": "dense", "hidden": hidden, "attention": {"weight": 1}}
    )
    facts = run(read_recipe(recipe), tmp_path / "out")
    last = facts.history.loss[-1]
    assert {"hard_loss", "distill_loss", "hidden_loss", "attention_loss"} <= set(last)
    parts = last["hard_loss"] * 0 + sum(
        last[name] for name in ("hard_loss", "distill_loss", "hidden_loss", "attention_loss")
    )
    assert last["loss"] == pytest.approx(parts, rel=1e-3)
    with pytest.raises(RecipeError, match=r"distill\.hidden\.lyers"):
        read_recipe(recipe | {"distill": {"hidden": {"lyers": "last"}}})


@pytest.mark.parametrize(
    ("distill", "said"),
    [
        ({"hidden": {"weight": 1.0, "pairs": [[3, 1]]}}, r"distill\.hidden\.pairs must be in 0\.\.2 of the student"),
        ({"attention": {"weight": 1.0, "pairs": [[0, 1]]}}, r"distill\.attention\.pairs must be in 1\.\.2"),
        (
            {"others": [{"teacher": "dense", "hidden": {"weight": 1.0, "pairs": [[1, 5]]}}]},
            r"distill\.others\[0\]\.hidden\.pairs must be in",
        ),
    ],
)
def test_layers_of_a_recipe_are_checked_before_the_teacher_is_trained(
    distill: dict[str, Any], said: str, small_data: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    recipe = read_recipe(small_recipe(tiny_bert, small_data, distill={"teacher": "dense", **distill}))
    with pytest.raises(RecipeError, match=said):
        prepare(recipe)


@pytest.mark.parametrize("tokens", ["other tokens", "the same tokens", "no tokenizer"])
def test_a_teacher_in_a_directory_is_made_for_the_models_tokens(
    tokens: str, small_data: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    teacher = tiny_model(labels=2)
    teacher.config.id2label = {0: "negative", 1: "positive"}
    teacher.save_pretrained(tmp_path / "teacher")
    if tokens != "no tokenizer":
        tiny_tokenizer().save_pretrained(tmp_path / "teacher")
    path = tmp_path / "teacher" / "tokenizer.json"
    if tokens == "other tokens":
        vocabulary = json.loads(path.read_text())
        words = vocabulary["model"]["vocab"]
        words["good"], words["bad"] = words["bad"], words["good"]
        path.write_text(json.dumps(vocabulary))
    recipe = read_recipe(small_recipe(tiny_bert, small_data, distill={"teacher": str(tmp_path / "teacher")}))
    if tokens != "other tokens":
        prepare(recipe)
        return
    with pytest.raises(
        RecipeError, match=r"distill\.teacher must be made for the model's tokenizer, which numbers '(good|bad)'"
    ):
        prepare(recipe)


# Several teachers


def test_each_teacher_counts_by_its_own_weights_and_temperature(tmp_path: Path) -> None:
    teachers = [teacher_of(), tiny_model("bert", seed=3), tiny_model("bert", seed=4)]
    others = (TeacherSettings(0.4, 3.0, Inside(0.2, "last", loss="cosine")), TeacherSettings(0.1, 1.0))
    trainer = trainer_of(tmp_path, Distillation(0.5, 0.25, 2.0, others=others), teachers)
    student = trainer.model.train()
    inputs = batch(rows(6))
    got = float(trainer.compute_loss(student, dict(inputs)).detach())
    asked = {k: v for k, v in inputs.items() if k != "labels"}
    with torch.no_grad():
        s, *taught = (m.eval()(**asked, output_hidden_states=True) for m in (student, *teachers))
    expected = 0.25 * float(functional.cross_entropy(s.logits.double(), inputs["labels"]))
    for t, weight, temperature in zip(taught, (0.5, 0.4, 0.1), (2.0, 3.0, 1.0), strict=True):
        p, q = ((m.logits.double() / temperature).log_softmax(-1) for m in (t, s))
        expected += weight * temperature**2 * float((p.exp() * (p - q)).sum(-1).mean())
    mask = inputs["attention_mask"].bool()
    left, right = (m.hidden_states[-1].double()[mask] for m in (s, taught[1]))
    cosines = (left * right).sum(-1) / (left.norm(dim=-1) * right.norm(dim=-1))
    expected += 0.2 * float((1 - cosines).mean())
    assert got == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("teachers", "others"), [(1, 1), (2, 0), (3, 1)])
def test_a_teacher_without_weights_is_told(teachers: int, others: int, tmp_path: Path) -> None:
    models = [tiny_model("bert", seed=seed) for seed in range(teachers)]
    with pytest.raises(RecipeError, match=r"distill\.others must be one for each teacher but the first"):
        trainer_of(tmp_path, Distillation(others=(TeacherSettings(),) * others), models)


def test_a_recipe_with_several_teachers(
    small_data: Path, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    plain = small_recipe(tiny_bert, small_data, prune=[], distill=None)
    run(read_recipe(plain), tmp_path / "other")
    more = {"teacher": str(tmp_path / "other"), "weight": 0.5, "temperature": 4, "hidden": {"weight": 0.3}}
    taught = {"teacher": "dense", "hard_weight": 0.5, "others": [more]}
    facts = run(read_recipe(small_recipe(tiny_bert, small_data, distill=taught)), tmp_path / "out")
    last = facts.history.loss[-1]
    weights = {"hard_loss": 0.5, "distill_loss": 1.0, "distill_loss_2": 0.5, "hidden_loss_2": 0.3}
    assert last["loss"] == pytest.approx(sum(weight * last[name] for name, weight in weights.items()), rel=1e-3)
    assert "hidden_loss" not in last


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"teacher": "/nowhere"}, r"distill\.others\[0\]\.teacher must be an existing directory"),
        ({"teacher": "start"}, r"distill\.others\[0\]\.teacher must be a model that is fine-tuned"),
        ({"wieght": 1.0}, r"distill\.others\[0\]\.wieght must be a known key.*\s+try distill\.others\[0\]\.weight"),
        ({"weight": 0.0}, r"distill\.others\[0\]\.weight must not be 0"),
        ({"hard_weight": 0.5}, r"distill\.others\[0\]\.hard_weight must be a known key.*\s+try distill\.hard_weight"),
    ],
)
def test_what_is_wrong_with_one_more_teacher(
    other: dict[str, Any], said: str, small_data: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    recipe = small_recipe(tiny_bert, small_data, distill={"teacher": "dense", "others": [other]})
    with pytest.raises(RecipeError, match=said):
        run(read_recipe(recipe), tmp_path / "out")


# The reused head


def reusing(place: Path, student: Any, teacher: Any, features: Any) -> PrunusTrainer:
    """Three steps by the teacher's features alone."""
    return PrunusTrainer(
        student,
        arguments(place, max_steps=3),
        train_dataset=features,
        data_collator=batch,
        teacher=teacher,
        distillation=Distillation(0.0, 0.0, reuse=1.0),
    )


def head_of(model: Any, states: torch.Tensor, head: str) -> torch.Tensor:
    """What a model's head makes of last hidden states."""
    if head == "question-answering":
        return model.qa_outputs(states)
    if hasattr(model, "classifier") and hasattr(model.base_model, "pooler") and model.base_model.pooler is not None:
        return model.classifier(model.base_model.pooler(states))
    if hasattr(model, "pre_classifier"):
        return model.classifier(torch.relu(model.pre_classifier(states[:, 0])))
    return model.classifier(states)


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "roberta", "electra", "mpnet"])
@pytest.mark.parametrize("head", ["classification", "question-answering"])
def test_the_student_ends_with_the_teachers_head_behind_the_projector(
    architecture: str, head: str, tmp_path: Path
) -> None:
    student, teacher = tiny_model(architecture, head), tiny_model(architecture, head, seed=5)
    features = rows(16, head)
    trainer = reusing(tmp_path, student, teacher, features)
    assert trainer.teaching is not None
    reuse: Any = trainer.teaching.projectors[0].reuse
    trainer.train()
    inputs = {k: v for k, v in batch(features[:4]).items() if k in ("input_ids", "attention_mask")}
    with torch.no_grad():
        states = student.eval()(**inputs, output_hidden_states=True).hidden_states[-1]
        got = student(**inputs)
        expected = head_of(teacher.eval(), reuse.projector(states), head)
    logits = got.logits if head == "classification" else torch.stack([got.start_logits, got.end_logits], -1)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    moved = reuse.projector.weight.detach() - torch.eye(16)
    assert float(moved.abs().max()) > 1e-4


@pytest.mark.parametrize("head", ["classification", "question-answering"])
def test_the_loss_is_that_of_the_features_the_head_reads(head: str, tmp_path: Path) -> None:
    student, teacher = tiny_model("bert", head), tiny_model("bert", head, seed=5)
    distillation = Distillation(0.0, 0.0, reuse=2.0)
    trainer = PrunusTrainer(student, arguments(tmp_path), teacher=teacher, distillation=distillation)
    without_dropout(student)
    inputs = batch(rows(6, head))
    got = float(trainer.compute_loss(student.train(), dict(inputs)).detach())
    asked = {k: v for k, v in inputs.items() if k in ("input_ids", "attention_mask")}
    with torch.no_grad():
        s, t = (m.eval()(**asked, output_hidden_states=True).hidden_states[-1].double() for m in (student, teacher))
    gap = (s - t)[:, 0] if head == "classification" else (s - t)[inputs["attention_mask"].bool()]
    assert got == pytest.approx(2 * float(gap.square().mean()), rel=1e-5)


def test_heads_for_answers_fit_whatever_the_widths(tmp_path: Path) -> None:
    from transformers import BertForQuestionAnswering

    student = tiny_model("bert", "question-answering")
    config = teacher_of().config
    config.num_labels = 2
    teacher = BertForQuestionAnswering(config)
    features = rows(16, "question-answering")
    trainer = reusing(tmp_path, student, teacher, features)
    trainer.train()
    assert trainer.teaching is not None
    reuse: Any = trainer.teaching.projectors[0].reuse
    inputs = {k: v for k, v in batch(features[:4]).items() if k in ("input_ids", "attention_mask")}
    with torch.no_grad():
        states = student.eval()(**inputs, output_hidden_states=True).hidden_states[-1]
        expected = teacher.qa_outputs(reuse.projector(states))
        torch.testing.assert_close(student(**inputs).start_logits, expected[..., 0], rtol=1e-4, atol=1e-5)


def test_a_head_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"(?s)have a head that fits the student.*a teacher of width 16"):
        trainer_of(tmp_path, Distillation(reuse=1.0), teacher_of())
    with pytest.raises(TargetError, match="be a BertForSequenceClassification"):
        trainer_of(tmp_path, Distillation(reuse=1.0), tiny_model("roberta"))
