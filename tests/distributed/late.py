"""Trainings whose model is sharded before or after its zeros are locked or its masks are made (see ``shard_worker``)."""

import re
from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import prunus
from prunus import Masker, Pruning, Schedule, Span
from prunus.errors import TrainingError
from prunus.sparsity.criteria import Scores
from small import batch, locked_bert, rows, tiny_model, without_dropout

STEPS = 6
GROWING = Schedule("linear", Span(1), end=Span(5), every=Span(1))
LATER = Schedule("linear", Span(1), end=Span(4), every=Span(1), hold=Span(1))
RULES: dict[str, Any] = {
    "4x1": Pruning(0.5, "4x1", "snip_momentum", GROWING),
    "columns": Pruning(0.5, "columns", "magnitude", GROWING),
    "movement": Pruning(0.5, "1x1", "movement", LATER, revive=True, scores=Scores(0.01)),
    "wanda": Pruning(0.5, "1x1", "wanda", GROWING),
    "lock": Pruning(None, "4x1", lock=True),
}


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def shard(model: Any, layers: bool = True) -> None:
    if torch.distributed.is_initialized():
        mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
        for layer in model.bert.encoder.layer if layers else ():
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)


def inputs_of(step: int, rank: int, processes: int) -> dict[str, torch.Tensor]:
    inputs = batch(rows(12, seed=step))
    return {name: value[rank * 12 // processes : (rank + 1) * 12 // processes] for name, value in inputs.items()}


def locked(case: str, rank: int, processes: int) -> dict[str, torch.Tensor]:
    """A lock of a model that is sharded after it, before it, or as one group; masks and zeros of the end."""
    model = locked_bert().double()
    if case == "shard, lock":
        shard(model)
    lock = prunus.lock(model, pattern="4x1")
    if case != "shard, lock":
        shard(model, layers=case != "lock, one group")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    for step in range(3):
        model(**inputs_of(step, rank, processes)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():  # leaves the outermost parameters whole
            model(**inputs_of(step, rank, processes))
    facts = lock.remove_pruning()
    masks = Masker.lock(model, pattern="4x1").masks
    told = prunus.lock(model, pattern="4x1", masks=masks)
    name = next(iter(masks))
    with torch.no_grad():
        weight = model.get_parameter(name)
        if rank == 0:
            (weight.to_local() if isinstance(weight, DTensor) else weight).fill_(1.0)
    with pytest.raises(TrainingError, match=re.escape(name)):  # in all processes
        told.remove_pruning()
    held = {f"{case}|mask|{name}": mask for name, mask in masks.items()}
    return held | {f"{case}|zeros": torch.tensor([fact.zeros for fact in facts])}


def pruned(case: str, rank: int, processes: int) -> dict[str, torch.Tensor]:
    """Masks and weights of a training whose model is sharded after its masker was made, at its start or within it."""
    rule, late = RULES[case], 2 if case in ("4x1", "movement") else 0
    model = (locked_bert() if case == "lock" else without_dropout(tiny_model())).double()
    masker = Masker(model, rule, STEPS, seed=3)
    for step in range(STEPS):
        if step == late:
            shard(model)
        if step in (0, late):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        # Until it is sharded, each process trains alone, on the rows of all.
        seen = inputs_of(step, rank, processes) if step >= late else inputs_of(step, 0, 1)
        optimizer.zero_grad()
        model.train()(**seen).loss.backward()
        masker.observe(model, 1.0 - step / STEPS)
        optimizer.step()
        masker.step(model)
        with torch.no_grad():
            model.eval()(**seen)
    facts = masker.finish(model)
    case = f"later {case}"
    held = {f"{case}|mask|{name}": mask for name, mask in masker.masks.items()}
    held |= {f"{case}|weight|{name}": whole(model.get_parameter(name)) for name in masker.masks}
    return held | {f"{case}|zeros": torch.tensor([fact.zeros for fact in facts])}


def trained(rank: int, processes: int) -> dict[str, torch.Tensor]:
    """What each case ended with; a process that is alone shards nothing."""
    held: dict[str, torch.Tensor] = {}
    for case in ("lock, shard", "shard, lock", "lock, one group"):
        held |= locked(case, rank, processes)
    for case in RULES:
        held |= pruned(case, rank, processes)
    return held
