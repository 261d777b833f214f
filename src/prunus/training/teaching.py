"""What teachers add to the loss of a training.

    loss = hard_weight * task loss
         + sum over teachers of weight * logits + hidden.weight * hidden states + attention.weight * attention maps
                                                            (distillation/logits.py, distillation/hidden.py)

Teachers run in eval mode without gradients, on the student's own inputs, and in the precision that it trains in.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from transformers import TrainingArguments
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from prunus.distillation.feature_distiller import Inner
from prunus.distillation.logits import Distillation, Lesson, Outputs, distill, logit_loss
from prunus.distributed.deepspeed import stage_of
from prunus.errors import CheckpointError, Problem, RecipeError
from prunus.models.masked_language import masked_outputs
from prunus.models.predict import LABEL_KEYS
from prunus.sparsity.wrappers import unwrapped

__all__ = ["Teaching"]


@dataclass(frozen=True)
class _Taught:
    suffix: str
    lesson: Lesson | Distillation
    teacher: Any
    inner: Inner | None


@final
class Teaching:
    """The teachers of one student, with their weights and projectors.

    ``masked`` says that the task is to predict masked tokens, whose logits alone are computed (``models.masked_language``).
    ``teachers[0]`` teaches as ``distillation`` says, the next as ``distillation.others`` say, in their order. Raises
    ``RecipeError`` where there are more or fewer, and ``TargetError`` for layers that are not there.
    """

    def __init__(
        self,
        student: Any,
        teachers: Sequence[Any],
        distillation: Distillation,
        device: torch.device | str = "cpu",
        masked: bool = False,
    ) -> None:
        self._masked = masked
        if len(teachers) != 1 + len(distillation.others):
            rule = f"be one for each teacher but the first: {max(0, len(teachers) - 1)}"
            fix = "Distillation(others=(Lesson(weight=0.5),)) with two teachers"
            raise RecipeError(Problem("distill.others", len(distillation.others), rule, fix))
        self.weights = {"hard_loss": distillation.hard_weight, "feature_loss": distillation.reuse}
        self._taught: list[_Taught] = []
        lessons: list[Lesson | Distillation] = [distillation, *distillation.others]
        for number, (lesson, teacher) in enumerate(zip(lessons, teachers, strict=True), 1):
            teacher.requires_grad_(False).eval().to(device)
            reuse = bool(distillation.reuse) and number == 1
            inner = None
            if lesson.hidden.weight or lesson.attention.weight or reuse:
                inner = Inner(lesson.hidden, lesson.attention, student, teacher, reuse)
            if lesson.attention.weight:
                for model in (student, teacher):
                    model.set_attn_implementation("eager")  # others do not give their maps
            suffix = "" if number == 1 else f"_{number}"
            self._taught.append(_Taught(suffix, lesson, teacher, inner))
            self.weights |= {
                f"distill_loss{suffix}": lesson.weight,
                f"hidden_loss{suffix}": lesson.hidden.weight,
                f"attention_loss{suffix}": lesson.attention.weight,
            }
        self.projectors = nn.ModuleList(self._inners()).to(device)

    @property
    def asks(self) -> dict[str, bool]:
        """What the student has to be called with."""
        return {name: True for inner in self._inners() for name in inner.asks}

    def parts(
        self,
        outputs: Mapping[str, Any],
        inputs: Mapping[str, Any],
        student: nn.Module,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> dict[str, Tensor]:
        """How far the ``outputs`` of ``student`` are from each teacher's for the same ``inputs``, in each respect that counts.

        Teachers run within ``autocast``.
        """
        found: dict[str, Tensor] = {}
        kind, shifted = _outputs_of(student)
        for each in self._taught:
            asks = {} if each.inner is None else each.inner.asks
            with torch.no_grad(), autocast():
                if self._masked:
                    taught, _ = masked_outputs(each.teacher, inputs, asks)
                else:
                    taught = each.teacher(**{k: v for k, v in inputs.items() if k not in LABEL_KEYS}, **asks)
            parts = {} if each.inner is None else each.inner(outputs, taught, inputs)
            temperature = each.lesson.temperature
            if self._masked:
                parts["distill_loss"] = logit_loss(outputs["logits"], taught["logits"], temperature)
            else:
                parts["distill_loss"] = distill(outputs, taught, inputs, temperature, kind, shifted)
            found |= {name if name == "feature_loss" else name + each.suffix: value for name, value in parts.items()}
        return found

    def fold(self, student: nn.Module) -> None:
        """A reused head takes in its projector."""
        for inner in self._inners():
            if inner.reuse is not None:
                inner.reuse.fold(student)

    def begin(self, student: nn.Module, args: TrainingArguments, saved: Mapping[str, Tensor] | None) -> None:
        """Takes the projectors of a checkpoint where ``saved`` is given.

        Raises ``RecipeError`` under DeepSpeed, which knows the parameters of the model alone and not the projectors.
        """
        stage = stage_of(args)
        if stage is not None:
            rule = "need no projector under DeepSpeed, which steps before their gradients are averaged"
            raise RecipeError(
                Problem("distill", f"ZeRO-{stage}", rule, "layers of one width, or DDP (accelerate launch)")
            )
        if saved is not None:
            self.load_state_dict(saved, student)

    def load_state_dict(self, saved: Mapping[str, Tensor], student: nn.Module) -> None:
        """Takes projectors of a checkpoint. Raises ``CheckpointError`` where they belong to other layers."""
        shapes = {name: tuple(value.shape) for name, value in self.projectors.state_dict().items()}
        if {name: tuple(value.shape) for name, value in saved.items()} != shapes:
            rule = "hold the projectors of these teachers"
            fix = "the teachers and layers that the checkpoint was written with"
            raise CheckpointError(Problem("the checkpoint", ", ".join(saved), rule, fix))
        self.projectors.load_state_dict(saved)
        self.fold(student)

    def average_gradients(self, processes: int) -> None:
        """Averages the projectors' gradients; DistributedDataParallel averages those of the student alone."""
        if processes > 1:
            for parameter in self.projectors.parameters():
                if parameter.grad is not None:
                    torch.distributed.all_reduce(parameter.grad)
                    parameter.grad /= processes

    def _inners(self) -> list[Inner]:
        return [each.inner for each in self._taught if each.inner is not None]


def _outputs_of(student: nn.Module) -> tuple[Outputs, bool]:
    """What a model's logits are by what it says of itself, and whether those of a token predict the next one.

    transformers writes ``problem_type`` into a configuration that leaves it open when it computes the first loss.
    """
    model = unwrapped(student)
    problem = getattr(getattr(model, "config", None), "problem_type", None)
    kinds: dict[str | None, Outputs] = {"regression": "numbers", "multi_label_classification": "labels"}
    return kinds.get(problem, "classes"), type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
