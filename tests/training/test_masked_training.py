"""Language models: only masked places through the head, with the loss and the metrics of the whole; chains of runs."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

from prunus.distillation.logits import logit_loss
from prunus.models.masked_language import masked_outputs
from prunus.models.predict import predict
from prunus.recipe import read_recipe
from prunus.report.facts import read_facts
from prunus.tasks.collate import IGNORED, Collate
from prunus.training.fit import Interrupted
from prunus.training.run import run
from small import (
    CONFIGS,
    TEXT_FILE,
    TOKENS,
    WORDS,
    interrupt_at,
    save_tiny_bert,
    small_recipe,
    tiny_tokenizer,
    write_texts,
)

DRAW = torch.Generator().manual_seed(0)


def masked_batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(5, TOKENS, (4, 12), generator=DRAW)
    mask = torch.tensor([[1] * n + [0] * (12 - n) for n in (12, 7, 5, 2)])
    chosen = (torch.rand(4, 12, generator=DRAW) < 0.3) & mask.bool()
    chosen[:, 1] = True
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.where(chosen, ids, IGNORED)}


@pytest.mark.parametrize(
    "architecture", ["bert", "distilbert", "roberta", "electra", "mpnet", "deberta-v2", "modernbert"]
)
def test_masked_places_have_the_logits_of_the_whole(architecture: str) -> None:
    torch.manual_seed(0)
    model, batch = AutoModelForMaskedLM.from_config(CONFIGS[architecture]()).eval(), masked_batch()
    with torch.no_grad():
        outputs, labels = masked_outputs(model, batch)
        logits = outputs["logits"]
        whole = model(**batch)
        again = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    places = batch["labels"] != IGNORED
    torch.testing.assert_close(logits, again[places])
    torch.testing.assert_close(functional.cross_entropy(logits, labels), whole.loss)
    assert again.shape[:2] == (4, 12)  # nothing is left on the model


def write_corpus(path: Path, count: int = 200) -> Path:
    draw = np.random.default_rng(0)
    lines = [" ".join(draw.choice(WORDS, 12)) for _ in range(count)]
    path.write_text("\n\n".join(lines) + "\n")
    return path


def language(model: Path, text: Path, **more: Any) -> dict[str, Any]:
    train = {"epochs": 2, "batch_size": 16, "learning_rate": 1e-2, "threads": 1, "checkpoint_every": 5, "log_every": 2}
    task = {"name": "mlm", "train": str(text), "max_length": 16, "held_out": 0.2}
    return {"model": {"name": str(model)}, "task": task, "train": train | {"evaluate_every": 10}} | more


PRUNED: dict[str, Any] = {
    "pattern": "4x1",
    "sparsity": 0.5,
    "criterion": "magnitude",
    "revive": True,
    "schedule": {"kind": "polynomial", "start": 0, "end": 10, "hold": 4, "every": 2},
}


def test_metrics_are_sums_over_predicted_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    from prunus.tasks import TaskSpec, load_task

    task = load_task(TaskSpec(name="mlm", train=str(write_corpus(tmp_path / "a.txt")), max_length=16))
    features = task.features("validation", tiny_tokenizer())
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(CONFIGS["bert"]()).eval()
    collate = Collate(tiny_tokenizer())
    found = task.score(predict(model, features, collate, task.head, 4), features)
    losses, hits = [], []
    for i in range(len(features)):
        batch = collate([features[i]])
        with torch.no_grad():
            logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits[0].double()
        for place, label in enumerate(batch["labels"][0].tolist()):
            if label != IGNORED:
                losses.append(-float(logits[place].log_softmax(-1)[label]))
                hits.append(int(logits[place].argmax()) == label)
    assert found["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert found["perplexity"] == pytest.approx(np.exp(np.mean(losses)), rel=1e-4)
    assert found["accuracy"] == pytest.approx(np.mean(hits))


def test_teacher_student_transfer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prune Once for All, in small: a teacher, a student that it prunes with, a task with the pattern locked."""
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    place, text = save_tiny_bert(tmp_path / "model"), write_corpus(tmp_path / "text.txt")
    taught = run(read_recipe(language(place, text)), tmp_path / "teacher")
    assert taught.dense.metrics["perplexity"] < TOKENS
    assert taught.model.architecture == "BertForMaskedLM"
    pruned = run(
        read_recipe(language(tmp_path / "teacher", text, prune=PRUNED, distill={"teacher": "start", "weight": 0.5})),
        tmp_path / "pruned",
    )
    assert pruned.sparse.sparsity == 0.5
    assert pruned.dense.metrics == pytest.approx(taught.dense.metrics)
    assert any("distill_loss" in point for point in pruned.history.loss)
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("model", "teacher", "pruned")]
    assert torch.equal(weights[0]["pooler.dense.weight"], weights[1]["bert.pooler.dense.weight"])
    assert torch.equal(weights[0]["pooler.dense.weight"], weights[2]["bert.pooler.dense.weight"])
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "pruned")
    assert torch.equal(loaded.bert.pooler.dense.weight, weights[0]["pooler.dense.weight"])
    texts = write_texts(tmp_path / TEXT_FILE, 64).parent
    recipe = small_recipe(tmp_path / "pruned", texts, prune={"lock": True, "pattern": "4x1", "sparsity": 0.5})
    recipe["model"]["dense"] = str(tmp_path / "teacher")
    run(read_recipe(recipe), tmp_path / "task")
    after = load_file(tmp_path / "task" / "model.safetensors")
    linears = [name for name in after if ".encoder." in name and after[name].ndim == 2]
    assert len(linears) == 12
    assert all(torch.equal(after[name] == 0, weights[2][name] == 0) for name in linears)
    assert any(not torch.equal(after[name], weights[2][name]) for name in linears)


def test_a_resumed_training_sees_the_same_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    place, text = save_tiny_bert(tmp_path / "model"), write_corpus(tmp_path / "text.txt")
    recipe = read_recipe(language(place, text, prune=PRUNED))
    run(recipe, tmp_path / "whole")
    for step in (7, 13):  # in the first epoch, and in the second
        output = tmp_path / f"stopped-{step}"
        with monkeypatch.context() as patch:
            interrupt_at(step, patch)
            with pytest.raises(Interrupted):
                run(recipe, output)
        run(recipe, output, resume=True)
        first, second = (load_file(path / "model.safetensors") for path in (tmp_path / "whole", output))
        assert all(torch.equal(first[name], second[name]) for name in first), step


def test_the_loss_is_that_of_the_paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """hard + T^2 KL over the vocabulary at the masked places, in float64 from the whole logits."""
    from prunus.distillation.logits import Distillation
    from prunus.training.trainer import PrunusTrainer
    from small import arguments

    torch.manual_seed(0)
    student, teacher = (AutoModelForMaskedLM.from_config(CONFIGS["bert"]()) for _ in range(2))
    distillation = Distillation(0.5, 0.5, 2.0)
    trainer = PrunusTrainer(student, arguments(tmp_path), teacher=teacher, distillation=distillation)
    batch = masked_batch()
    student.eval()
    student.training = True  # the mode of a step, without dropout below
    got = trainer.compute_loss(student, batch)
    places = batch["labels"] != IGNORED
    with torch.no_grad():
        s, t = (
            m(**{k: v for k, v in batch.items() if k != "labels"}).logits[places].double() for m in (student, teacher)
        )
    hard = functional.cross_entropy(s, batch["labels"][places])
    p, q = (t / 2).log_softmax(-1), (s / 2).log_softmax(-1)
    soft = (p.exp() * (p - q)).sum(-1).mean() * 4
    assert float(got.detach()) == pytest.approx(float(0.5 * hard + 0.5 * soft), rel=1e-5)
    assert float(logit_loss(s, t)) == pytest.approx(float(soft), rel=1e-3)  # of two models that hardly differ


def test_the_report_of_a_language_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "cache"))
    place, text = save_tiny_bert(tmp_path / "model"), write_corpus(tmp_path / "text.txt")
    raw = language(place, text, prune=PRUNED | {"schedule": PRUNED["schedule"] | {"hold": 0}})
    raw["train"] |= {"lr_scheduler": "linear_rewinding", "warmup": 2, "log_every": 1}
    run(read_recipe(raw), tmp_path / "out")
    facts = read_facts(tmp_path / "out")
    rates = [point["learning_rate"] for point in facts.history.loss]
    assert any(later > sooner for sooner, later in pairwise(rates[3:]))
    assert "perplexity" in (tmp_path / "out" / "report.html").read_text()
    assert json.loads((tmp_path / "out" / "prunus.json").read_text())["task"]["validation_examples"] > 0
