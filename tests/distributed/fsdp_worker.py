"""``prunus`` under FSDP2 on CPUs, as accelerate sets it up for GPUs alone; FSDP_STOP names a step with Ctrl-C."""

import os
import signal
from typing import Any

from accelerate import PartialState
from accelerate.state import DistributedType

from prunus.cli import main
from prunus.sparsity.measure import is_sharded
from prunus.training import fit
from prunus.training.callback import PruneCallback
from prunus.training.trainer import PrunusTrainer

SHARDING = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "BertLayer",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}


class Sharding(PrunusTrainer):
    """The Trainer, told that its processes have GPUs; what it trains has to be sharded."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        assert kwargs["args"].device.type == "cpu"
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        super().__init__(*args, **kwargs)
        assert self.accelerator.is_fsdp2


whole = PruneCallback.on_optimizer_step


def stepping(self: PruneCallback, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
    assert any(is_sharded(parameter) for parameter in model.parameters())
    whole(self, args, state, control, model, **kwargs)
    if self.masker is not None and self.masker.steps == int(os.environ.get("FSDP_STOP", "-1")):
        signal.raise_signal(signal.SIGINT)


if __name__ == "__main__":
    os.environ.update(SHARDING)
    fit.PrunusTrainer = Sharding  # type: ignore[misc]
    PruneCallback.on_optimizer_step = stepping  # type: ignore[method-assign]
    main()
