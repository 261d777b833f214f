"""One of several processes that train a model whose loss counts the tokens of a step; each writes its weights and losses."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from prunus import Distillation, PrunusTrainer
from prunus.distributed.processes import leave_process_group
from small import TOKENS, arguments, batch, rows


def made(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = {"vocab_size": TOKENS, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2, pad_token_id=0))


def main() -> None:
    """``items_worker.py DIRECTORY ROWS-A-PROCESS``."""
    torch.set_num_threads(1)
    place, size = Path(sys.argv[1]), int(sys.argv[2])
    features = []
    for index, row in enumerate(rows(16)):
        kept = 0 if index in (2, 3) else 3 + index % 8  # the first rows of the second process have no labels
        labels = [token if at < kept else -100 for at, token in enumerate(row["input_ids"])]
        features.append({**row, "labels": labels})
    args = arguments(
        place / "trainer",
        max_steps=2,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=2,
        train_sampling_strategy="sequential",
        optim="sgd",
        learning_rate=0.5,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=0.0,
    )
    trainer = PrunusTrainer(
        made(0), args, train_dataset=features, data_collator=batch, teacher=made(1), distillation=Distillation(2.0)
    )
    trainer.train()
    assert trainer.model_accepts_loss_kwargs
    held = {name: value.detach().clone().contiguous() for name, value in trainer.model.named_parameters()}
    held["loss"] = torch.tensor([log["loss"] for log in trainer.state.log_history if "loss" in log])
    save_file(held, place / f"{trainer.args.process_index}")


if __name__ == "__main__":
    main()
    leave_process_group()
