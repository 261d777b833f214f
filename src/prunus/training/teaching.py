"""What teachers add to the loss of a training.

    loss = hard_weight * task loss
         + sum over teachers of weight * logits + hidden.weight * hidden states + attention.weight * attention maps
                                                            (distillation/logits.py, distillation/hidden.py)

Teachers run in eval mode without gradients, on the student's own inputs, and in the precision that it trains in. The decoder of
an encoder-decoder reads what the student's reads: the labels, shifted as the student shifts them.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any, final

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn
from transformers import TrainingArguments
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from prunus.distillation.feature_distiller import FeatureDistiller
from prunus.distillation.logits import Distillation, Outputs, TeacherSettings, distill, logit_loss, same_sizes
from prunus.distributed.deepspeed import stage_of
from prunus.errors import CheckpointError, Problem, PrunusError, RecipeError, TargetError, first_line
from prunus.models.masked_language import masked_outputs
from prunus.models.predict import LABEL_KEYS
from prunus.sparsity.wrappers import unwrapped
from prunus.training.teacher_checks import embeddings_of, row_problems, teacher_problems

__all__ = ["Teaching", "decoded", "outputs_of"]


@dataclass(frozen=True)
class _Taught:
    suffix: str
    key: str
    settings: TeacherSettings | Distillation
    teacher: Any
    features: FeatureDistiller | None
    fewer: int | None
    """How many embeddings the teacher has, where it has fewer than the student."""


@final
class Teaching:
    """The teachers of one student, with their weights and projectors.

    ``masked`` says that the task is to predict masked tokens, whose logits alone are computed (``models.masked_language``).
    ``teachers[0]`` teaches as ``distillation`` says, the next as ``distillation.others`` say, in their order. Raises
    ``RecipeError`` where there are more or fewer, and for teachers that share weights with the student or have other labels;
    ``TargetError`` for layers that are not there.
    """

    def __init__(
        self,
        student: Any,
        teachers: Sequence[Any],
        distillation: Distillation,
        device: torch.device | str = "cpu",
        masked: bool = False,
    ) -> None:
        self.student, self._masked = student, masked
        strange = [each for each in teachers if not isinstance(each, nn.Module)]
        if strange:
            rule = "be a model, or a list of models"
            fix = "a model that is loaded: AutoModelForSequenceClassification.from_pretrained(...)"
            raise RecipeError(Problem("teacher", strange[0], rule, fix))
        if len(teachers) != 1 + len(distillation.others):
            rule = f"be one for each teacher but the first: {max(0, len(teachers) - 1)}"
            fix = "Distillation(others=(TeacherSettings(weight=0.5),)) with two teachers"
            raise RecipeError(Problem("distill.others", len(distillation.others), rule, fix))
        all_settings: list[TeacherSettings | Distillation] = [distillation, *distillation.others]
        keys = ["teacher"] if len(teachers) == 1 else [f"teacher[{number}]" for number in range(len(teachers))]
        problems = []
        for key, settings, teacher in zip(keys, all_settings, teachers, strict=True):
            head = bool(settings.weight) or (settings is distillation and bool(distillation.reuse))
            problems += teacher_problems(student, teacher, key, head and not masked)
        if problems:
            raise RecipeError(*problems)
        self.weights = {"hard_loss": distillation.hard_weight, "feature_loss": distillation.reuse}
        self._taught: list[_Taught] = []
        for number, (key, settings, teacher) in enumerate(zip(keys, all_settings, teachers, strict=True)):
            reuse = bool(distillation.reuse) and number == 0
            features = None
            if settings.hidden.weight or settings.attention.weight or reuse:
                said = "distill" if number == 0 else f"distill.others[{number - 1}]"
                features = FeatureDistiller(settings.hidden, settings.attention, student, teacher, reuse, said)
            suffix = "" if number == 0 else f"_{number + 1}"
            tokens, student_tokens = embeddings_of(teacher), embeddings_of(student)
            fewer = tokens if tokens is not None and student_tokens is not None and tokens < student_tokens else None
            self._taught.append(_Taught(suffix, key, settings, teacher, features, fewer))
            self.weights |= {
                f"distill_loss{suffix}": settings.weight,
                f"hidden_loss{suffix}": settings.hidden.weight,
                f"attention_loss{suffix}": settings.attention.weight,
            }
        for each in self._taught:
            each.teacher.requires_grad_(False).eval()
            if not getattr(
                unwrapped(each.teacher), "hf_device_map", None
            ):  # one that is spread over devices stays there
                each.teacher.to(device)
            if each.settings.attention.weight:
                for model in (student, each.teacher):
                    _show_attention(model)
        self.projectors = nn.ModuleList(self._feature_distillers()).to(device)

    def check_rows(
        self, rows: Any, collate: Callable[[list[Any]], Mapping[str, Any]], columns: frozenset[str] | None
    ) -> None:
        """Raises ``RecipeError`` for rows that a teacher cannot read and the student can (``teacher_checks.row_problems``)."""
        problems = []
        for each in self._taught:
            problems += row_problems(self.student, each.teacher, each.key, rows, collate, columns)
        if problems:
            raise RecipeError(*problems)

    @property
    def asks(self) -> dict[str, bool]:
        """What the student has to be called with."""
        return _named(self.student) | {name: True for features in self._feature_distillers() for name in features.asks}

    def parts(
        self,
        outputs: Mapping[str, Any],
        inputs: Mapping[str, Any],
        student: nn.Module,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        labelled: bool = True,
    ) -> dict[str, Tensor]:
        """How far the ``outputs`` of ``student`` are from each teacher's for the same ``inputs``, in each respect that counts.

        Teachers run within ``autocast``. ``labelled`` says that the student was given the labels among ``inputs``.
        """
        losses: dict[str, Tensor] = {}
        kind, shifted = outputs_of(student)
        inputs = decoded(student, inputs) if labelled else inputs
        shifts = labelled and _shifts_itself(student, inputs, outputs)
        for each in self._taught:
            with torch.no_grad(), autocast():
                teacher_outputs = self._outputs(each, inputs, student if shifts else None)
            parts = {} if each.features is None else each.features(outputs, teacher_outputs, inputs)
            temperature = each.settings.temperature
            if each.settings.weight and self._masked:
                same_sizes(outputs["logits"], teacher_outputs.get("logits"))
                parts["distill_loss"] = logit_loss(outputs["logits"], teacher_outputs["logits"], temperature)
            elif each.settings.weight:
                parts["distill_loss"] = distill(outputs, teacher_outputs, inputs, temperature, kind, shifted)
            losses |= {name if name == "feature_loss" else name + each.suffix: value for name, value in parts.items()}
        return losses

    def _outputs(self, each: _Taught, inputs: Mapping[str, Any], shifting: nn.Module | None) -> Mapping[str, Any]:
        """What a teacher makes of the student's inputs; of the labels too, where it shifts them as ``shifting`` does.

        Raises ``TargetError`` where it does not take them.
        """
        asks: dict[str, Any] = _named(each.teacher) | ({} if each.features is None else each.features.asks)
        if shifting is not None:
            _same_start(shifting, each.teacher, each.key)
            asks["labels"] = inputs["labels"]
        ids = inputs.get("input_ids")
        if each.fewer is not None and ids is not None and ids.numel() and int(ids.max()) >= each.fewer:
            rule = f"have an embedding for token {int(ids.max())} of this batch"
            raise TargetError(Problem(each.key, f"{each.fewer} embeddings", rule, "a teacher with the same tokenizer"))
        try:
            if self._masked:
                return masked_outputs(each.teacher, inputs, asks)[0]
            known = {k: v for k, v in inputs.items() if k not in LABEL_KEYS and _takes(each.teacher, k)}
            outputs: Mapping[str, Any] = each.teacher(**known, **asks)
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, PrunusError) or should_reduce_batch_size(error):
                raise
            rule = f"take the inputs of the model that is trained ({type(error).__name__}: {first_line(error)})"
            fix = "a teacher with the same tokenizer and as many positions"
            raise TargetError(Problem(each.key, type(unwrapped(each.teacher)).__name__, rule, fix)) from error
        if not isinstance(outputs, Mapping):
            rule = "return its outputs by name"
            raise TargetError(Problem(each.key, type(outputs).__name__, rule, "a ModelOutput, or a dict of tensors"))
        return outputs

    def fold(self, student: nn.Module) -> None:
        """A reused head takes in its projector."""
        for features in self._feature_distillers():
            if features.reuse is not None:
                features.reuse.fold(student)

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

    def _feature_distillers(self) -> list[FeatureDistiller]:
        return [each.features for each in self._taught if each.features is not None]


def outputs_of(student: nn.Module) -> tuple[Outputs, bool]:
    """What a model's logits are by what it says of itself, and whether those of a token predict the next one.

    transformers writes ``problem_type`` into a configuration that leaves it open when it computes the first loss.
    """
    model = unwrapped(student)
    problem = getattr(getattr(model, "config", None), "problem_type", None)
    kinds: dict[str | None, Outputs] = {"regression": "numbers", "multi_label_classification": "labels"}
    return kinds.get(problem, "classes"), type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


def _named(model: nn.Module) -> dict[str, bool]:
    """What a model that would return a tuple is called with."""
    config = getattr(unwrapped(model), "config", None)
    return {"return_dict": True} if getattr(config, "return_dict", None) is False else {}


def _takes(model: nn.Module, name: str) -> bool:
    """Whether a model has an input: not all have types of tokens, or a decoder. Of others a model has to say that itself."""
    known = signature(unwrapped(model).forward).parameters
    if name in ("token_type_ids", "decoder_input_ids", "decoder_attention_mask"):
        open_ended = any(each.kind is Parameter.VAR_KEYWORD for each in known.values())
        return name in known or (open_ended and not hasattr(model, "config"))
    return True


def decoded(student: nn.Module, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The inputs with what the student's decoder reads where it is given labels and no inputs of its own."""
    model: Any = unwrapped(student)
    given = any(inputs.get(name) is not None for name in ("decoder_input_ids", "decoder_inputs_embeds"))
    labels = inputs.get("labels")
    if given or labels is None or not hasattr(model, "prepare_decoder_input_ids_from_labels"):
        return inputs
    return {**inputs, "decoder_input_ids": model.prepare_decoder_input_ids_from_labels(labels)}


def _shifts_itself(student: nn.Module, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> bool:
    """Whether a student without that function has made its decoder's inputs from the labels (Whisper, Blenderbot)."""
    model: Any = unwrapped(student)
    given = any(inputs.get(name) is not None for name in ("decoder_input_ids", "decoder_inputs_embeds"))
    both = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False)) and _takes(
        model, "decoder_input_ids"
    )
    labels, logits = inputs.get("labels"), outputs.get("logits")
    return (
        both
        and not given
        and labels is not None
        and logits is not None
        and labels.dim() == 2
        and labels.shape == logits.shape[:2]
    )


def _same_start(student: nn.Module, teacher: nn.Module, key: str) -> None:
    """Raises ``TargetError`` for a teacher that would put another token before the labels."""
    names = ("decoder_start_token_id", "pad_token_id")
    student_ids, other = (
        [getattr(unwrapped(model).config, name, None) for name in names] for model in (student, teacher)
    )
    if student_ids != other:
        rule = f"have the {' and '.join(names)} of the model that is trained, {student_ids}"
        raise TargetError(Problem(key, other, rule, "setting both in teacher.config"))


def _show_attention(model: Any) -> None:
    """Takes the implementation of attention that gives its maps; a model without a choice has to give them as it is."""
    plain: Any = unwrapped(model)
    if hasattr(plain, "set_attn_implementation"):
        plain.set_attn_implementation("eager")
