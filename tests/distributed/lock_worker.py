"""One of several processes that train a model whose zeros are locked; each writes what it ended with."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.utils.data import SequentialSampler
from transformers import Trainer

import prunus
from prunus import Pruning, PrunusTrainer
from prunus.distributed.processes import leave_process_group
from small import arguments, batch, locked_bert, rows


class InOrder(Trainer):  # type: ignore[misc]
    """Rows as they stand, so that one process and several see the same batches."""

    def _get_train_sampler(self, train_dataset: object = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


class PrunedInOrder(InOrder, PrunusTrainer):
    """The same, with the lock as a rule."""


def main() -> None:
    """``lock_worker.py DIRECTORY ROWS-A-PROCESS plain|prunus``."""
    torch.set_num_threads(1)
    place, size, kind = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    model = locked_bert()
    more = {"per_device_train_batch_size": size, "max_steps": 6, "max_grad_norm": 0.0, "weight_decay": 0.1}
    args = arguments(place / "trainer", optim="sgd", lr_scheduler_type="constant", **{**more, "learning_rate": 0.1})
    features = rows(24)
    if kind == "plain":
        held = prunus.lock(model, pattern="4x1")
        trainer = InOrder(model, args, train_dataset=features, data_collator=batch)
    else:
        rule = Pruning(None, "4x1", lock=True)
        trainer = PrunedInOrder(model, args, train_dataset=features, data_collator=batch, pruning=rule)
    trainer.train()
    if kind == "plain":
        held.remove_pruning()
    save_file(
        {name: value.detach().clone() for name, value in model.state_dict().items()}, place / f"{args.process_index}"
    )


if __name__ == "__main__":
    main()
    leave_process_group()
