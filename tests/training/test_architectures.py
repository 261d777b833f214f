"""Every architecture x head: pruned in a plain Trainer to the exact count, saved, loaded again without prunus."""

from math import floor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prunus import PruneCallback
from small import (
    CONFIGS,
    HEADS,
    arguments,
    batch,
    block_zeros,
    encoder_linears,
    four_by_one,
    plain_trainer,
    rows,
    tiny_model,
)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("architecture", CONFIGS)
def test_exact_count_saved_and_loaded(architecture: str, head: str, tmp_path: Path) -> None:
    model = tiny_model(architecture, head)
    callback = PruneCallback(four_by_one(0.55))
    trainer = plain_trainer(model, arguments(tmp_path / "out"), rows(32, head), callbacks=[callback])
    trainer.train()

    targets = encoder_linears(model)
    assert [fact.name for fact in callback.facts] == list(targets)
    counted = {name: block_zeros(weight) for name, weight in targets.items()}
    units = sum(weight.numel() // 4 for weight in targets.values())
    asked = floor(0.55 * units)
    assert sum(blocks for _, blocks in counted.values()) == asked
    assert sum(zeros for zeros, _ in counted.values()) == 4 * asked
    assert {fact.name: (fact.zeros, fact.zero_units) for fact in callback.facts} == counted

    trainer.save_model(str(tmp_path / "saved"))
    again = HEADS[head].from_pretrained(tmp_path / "saved").eval()
    assert {name: block_zeros(weight) for name, weight in encoder_linears(again).items()} == counted
    inputs = {
        key: value for key, value in batch(rows(5, head, seed=9)).items() if key in ("input_ids", "attention_mask")
    }
    with torch.no_grad():
        before, after = model.eval()(**inputs), again(**inputs)
    for name, value in before.items():
        assert isinstance(value, Tensor)
        assert torch.equal(value, after[name]), name


@pytest.mark.parametrize("architecture", CONFIGS)
def test_head_pooler_and_embeddings_stay_dense(architecture: str, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    names = set(encoder_linears(model))
    zeros_before = {name: int((p == 0).sum()) for name, p in model.named_parameters() if name not in names}
    plain_trainer(model, arguments(tmp_path), rows(32), callbacks=[PruneCallback(four_by_one(0.9))]).train()
    others = {name: int((p == 0).sum()) for name, p in model.named_parameters() if name not in names and p.dim() > 1}
    assert all(zeros <= zeros_before[name] for name, zeros in others.items()), others
