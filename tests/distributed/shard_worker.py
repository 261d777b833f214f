"""One of several processes that prune a sharded, replicated or whole model; each writes masks, weights and what was counted."""

import sys
from pathlib import Path
from typing import Any

import torch
from late import trained
from safetensors.torch import save_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from prunus import Allocation, Masker, Pruning, Schedule, Span
from prunus.sparsity import sharding
from prunus.sparsity.criteria import Scores
from small import batch, rows, tiny_model, without_dropout

STEPS = 6
sharding.SMALL = 64  # the sample that brackets a threshold is taken of these small models, too
GROWING = Schedule("linear", Span(1), end=Span(5), every=Span(1))
LATER = Schedule("linear", Span(1), end=Span(4), every=Span(1), hold=Span(1))
WHOLE = Allocation("global", "normed", 1.0)
LOCAL = Allocation("tensor")
CASES: dict[str, Any] = {
    "unstructured local": Pruning(0.6, "1x1", "snip_momentum", GROWING, LOCAL),
    "unstructured global": Pruning(0.6, "1x1", "snip_momentum", GROWING, Allocation("global", "plain", 0.7)),
    "4x1 local": Pruning(0.5, "4x1", "snip", GROWING, LOCAL),
    "4x1 global": Pruning(0.5, "4x1", "snip_momentum", GROWING, WHOLE),
    "2:4 local": Pruning(None, "2:4", "magnitude", GROWING, LOCAL),
    "2:4 global": Pruning(0.4, "2:4", "snip_momentum", GROWING, WHOLE),
    "rows": Pruning(0.5, "rows", "magnitude", GROWING, Allocation("tensor")),
    "rows global": Pruning(0.5, "rows", "magnitude", GROWING, WHOLE),  # of weights whose rows differ in length
    "columns global": Pruning(0.5, "columns", "snip_momentum", GROWING, Allocation("global", "rms", 0.9)),
    "heads": Pruning(0.5, "heads", "first_order", GROWING, WHOLE),
    "regrowth": Pruning(0.5, "4x1", "magnitude", LATER, LOCAL, revive=True),
    "movement": Pruning(0.5, "1x1", "movement", LATER, LOCAL, revive=True, scores=Scores(0.01)),
    "soft": Pruning(None, "1x1", "movement", LATER, LOCAL, revive=True, scores=Scores(0.2, 0.4, 1.0)),
    "platon": Pruning(0.5, "4x1", "platon", LATER, LOCAL, revive=True),
    "random": Pruning(0.5, "4x1", "random", GROWING, WHOLE),
    "wanda": Pruning(0.5, "1x1", "wanda", GROWING, LOCAL),
    "ties": Pruning(0.3, "1x1", "magnitude", GROWING, Allocation("global", "plain", 1.0)),
}


def model_of(case: str) -> Any:
    """Double precision, so that the order of sums does not decide."""
    model = without_dropout(tiny_model().double())
    if case == "ties":
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() == 2 and ".encoder." in name:
                    parameter.copy_(torch.where(parameter > 0, 0.02, -0.02))
    return model.train()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def main() -> None:
    """``shard_worker.py DIRECTORY one|ddp|fsdp``."""
    torch.set_num_threads(1)
    place, kind = Path(sys.argv[1]), sys.argv[2]
    rank, processes = 0, 1
    if kind != "one":
        torch.distributed.init_process_group("gloo")
        rank, processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
    held: dict[str, torch.Tensor] = {}
    for case, rule in CASES.items():
        model = model_of(case)
        whole_model: Any = model
        if kind == "fsdp":
            mesh = init_device_mesh("cpu", (processes,))
            for layer in model.bert.encoder.layer:
                fully_shard(layer, mesh=mesh)
            fully_shard(model, mesh=mesh)
        elif kind == "ddp":
            whole_model = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
        state = None
        masker = Masker(model, rule, STEPS, seed=3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for step in range(STEPS):
            inputs = batch(rows(12, seed=step))
            own = {name: value[rank * 12 // processes : (rank + 1) * 12 // processes] for name, value in inputs.items()}
            optimizer.zero_grad()
            whole_model(**own).loss.backward()
            masker.observe(model, 1.0 - step / STEPS)
            optimizer.step()
            masker.step(model)
            if step == 2:  # goes on from what was saved
                state = {name: value.clone() for name, value in masker.state_dict().items()}
                masker._scorer.remove_hooks()
                masker = Masker(model, rule, STEPS, state=state)
        facts = masker.finish(model)
        for name, mask in masker.masks.items():
            held[f"{case}|mask|{name}"] = mask
            held[f"{case}|weight|{name}"] = whole(model.get_parameter(name))
        held[f"{case}|zeros"] = torch.tensor([fact.zeros for fact in facts])
    held |= trained(rank, processes)
    save_file({name: value.contiguous() for name, value in held.items()}, place / str(rank))
    if kind != "one":
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
