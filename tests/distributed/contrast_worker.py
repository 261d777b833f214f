"""One of several processes with contrastive terms; each writes the rows that it saw, its banks and its weights."""

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from prunus import Distillation, PrunusTrainer
from prunus.distillation.contrastive import Contrast, Contrastive, Snapshots
from prunus.distributed.processes import leave_process_group
from prunus.training.contrast import ROW_ID
from small import arguments, batch, four_by_one, rows, tiny_model


def main() -> None:
    """``contrast_worker.py DIRECTORY ROWS-A-PROCESS BANK``."""
    torch.set_num_threads(1)
    place, size, bank = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    features, seen = rows(32), list[int]()
    choice = Contrastive(Contrast(0.3, 0.2), Snapshots(0.3, every=0.2), Contrast(0.3), negatives=8, bank=bank)  # type: ignore[arg-type]
    more: dict[str, Any] = {"per_device_train_batch_size": size, "dataloader_num_workers": 2, "max_steps": 8}
    trainer = PrunusTrainer(
        tiny_model(),
        arguments(place / "trainer", **more),
        train_dataset=features,
        data_collator=batch,
        teacher=tiny_model(seed=1),
        pretrained=tiny_model(seed=2),
        pruning=four_by_one(0.5),
        distillation=Distillation(0.5, 0.5, contrast=choice),
    )
    compute = trainer.compute_loss

    def checking(model: nn.Module, inputs: dict[str, Any], **rest: Any) -> Any:
        ids = inputs[ROW_ID]
        assert all(torch.equal(inputs[name], value) for name, value in batch([features[i] for i in ids]).items())
        seen.extend(ids.tolist())
        return compute(model, inputs, **rest)

    trainer.compute_loss = checking  # type: ignore[method-assign]
    trainer.train()
    assert trainer.contrasting is not None
    held = {"seen": torch.tensor(seen)}
    for name, bank_ in trainer.contrasting.banks.items():
        held[f"bank.{name}"] = bank_.take(torch.arange(32), "cpu")
    for name, value in trainer.model.state_dict().items():
        held[f"model.{name}"] = value.detach().clone()
    save_file({name: value.contiguous() for name, value in held.items()}, place / f"{trainer.args.process_index}")


if __name__ == "__main__":
    main()
    leave_process_group()
