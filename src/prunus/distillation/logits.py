"""Distillation of logits (Hinton et al. 2015, arXiv:1503.02531).

With student logits s, teacher logits t, temperature T and the task's own ("hard") loss L:

    total = hard_weight * L + weight * D                   and, of each further teacher, its weight * its D
    D     = T^2 * mean over rows of KL(softmax(t / T) || softmax(s / T))        classes, or positions of an answer
    D     = T^2 * mean over rows of sum over labels of
            KL(Bernoulli(sigmoid(t / T)) || Bernoulli(sigmoid(s / T)))          labels that do not exclude each other
    D     = mean over rows and numbers of (s - t)^2                             regression

For classes of tokens, rows are the tokens that the task's own loss counts (labels other than -100; of a causal language model,
the next token's label), and without labels those that are attended to.

T^2 keeps the size of the gradient independent of T. The mean is over rows (``batchmean``), not over rows x classes as in
Intel Neural Compressor's ``KL`` loss, which is smaller by the number of classes. For extractive answers D is the mean of
that of the start and that of the end, each over the tokens that are attended to. ``hard_weight = 0`` replaces the hard loss
(as INC's SQuAD example does), ``hard_weight = 1`` adds to it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

import torch
from torch import Tensor
from torch.nn import functional

from prunus.distillation.contrastive import Contrastive
from prunus.distillation.hidden import Inside
from prunus.distillation.stacks import IGNORED
from prunus.errors import Problem, TargetError

__all__ = ["Distillation", "Outputs", "TeacherSettings", "distill", "logit_loss", "same_sizes"]

Outputs = Literal["classes", "labels", "numbers"]
"""What the logits of a row are: classes of which one is right, labels of which any number is, numbers of a regression."""
_HEADS: Final = (("start_logits", "end_logits"), ("logits",))


@dataclass(frozen=True)
class TeacherSettings:
    """How much one more teacher counts, and in what; see the module's equations."""

    weight: float = 1.0
    """Weight of the KL divergence to this teacher's logits."""
    temperature: float = 2.0
    """T of the logits."""
    hidden: Inside = field(default_factory=Inside)
    """Hidden states of layers."""
    attention: Inside = field(default_factory=Inside)
    """Attention maps of layers."""

    @property
    def counts(self) -> bool:
        """Whether anything of it has a weight."""
        return bool(self.weight or self.hidden.weight or self.attention.weight)

    def problems(self, key: str) -> list[Problem]:
        """What is wrong with these numbers."""
        problems = []
        if not self.weight >= 0:
            problems.append(Problem(f"{key}.weight", self.weight, "be 0 or above", "1.0"))
        if not self.temperature > 0:
            problems.append(Problem(f"{key}.temperature", self.temperature, "be above 0", "2"))
        problems += self.hidden.problems(f"{key}.hidden") + self.attention.problems(f"{key}.attention")
        if not self.counts:
            problems.append(Problem(f"{key}.weight", 0, "not be 0 where nothing else of this teacher counts", "1.0"))
        return problems


@dataclass(frozen=True)
class Distillation:
    """Weights of the two losses and the temperature; see the module's equations."""

    weight: float = 1.0
    """Weight of the KL divergence to the teacher's logits (mean squared error for regression)."""
    hard_weight: float = 1.0
    """Weight of the task's own loss; 0 trains on the teacher alone."""
    temperature: float = 2.0
    """T of the logits. The KL divergence is multiplied by T^2."""
    hidden: Inside = field(default_factory=Inside)
    """Hidden states of layers."""
    attention: Inside = field(default_factory=Inside)
    """Attention maps of layers."""
    reuse: float = 0.0
    """Weight of a loss that trains the student to produce the features that the teacher's head reads; 0 turns it off.
    The student then uses the teacher's head, frozen, with a learned projection folded into it."""
    others: tuple[TeacherSettings, ...] = ()
    """Further teachers."""
    contrast: Contrastive = field(default_factory=Contrastive)
    """Contrastive terms."""

    def problems(self, key: str = "distill") -> list[Problem]:
        """What is wrong with these numbers."""
        problems = [
            Problem(f"{key}.{name}", value, "be 0 or above", "1.0")
            for name, value in (("weight", self.weight), ("hard_weight", self.hard_weight), ("reuse", self.reuse))
            if not value >= 0
        ]
        if not self.temperature > 0:
            problems.append(Problem(f"{key}.temperature", self.temperature, "be above 0", "2"))
        problems += self.hidden.problems(f"{key}.hidden") + self.attention.problems(f"{key}.attention")
        problems += self.contrast.problems(f"{key}.contrast")
        inside = self.hidden.weight + self.attention.weight + self.reuse + len(self.contrast.terms)
        for index, other in enumerate(self.others):
            problems += other.problems(f"{key}.others[{index}]")
        if self.weight == self.hard_weight == inside == 0 and not any(other.counts for other in self.others):
            problems.append(Problem(f"{key}.weight", 0, "not be 0 together with hard_weight", "1.0"))
        return problems


def logit_loss(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 2.0,
    attended: Tensor | None = None,
    outputs: Outputs = "classes",
) -> Tensor:
    """D of the module's docstring for logits ``[rows, classes]``, in float32; a scalar.

    ``attended`` (bool ``[rows, classes]``) leaves places out of both distributions. One class means regression.
    """
    student, teacher = student.float(), teacher.float()
    if outputs == "numbers" or (student.shape[-1] == 1 and attended is None and outputs == "classes"):
        return functional.mse_loss(student, teacher)
    if outputs == "labels":
        on, off = functional.logsigmoid(teacher / temperature), functional.logsigmoid(-teacher / temperature)
        nearer = on.exp() * (on - functional.logsigmoid(student / temperature))
        further = off.exp() * (off - functional.logsigmoid(-student / temperature))
        return (nearer + further).sum(-1).mean() * temperature**2
    if attended is not None:
        lowest = torch.finfo(torch.float32).min / max(1.0, 1 / temperature)
        student, teacher = student.masked_fill(~attended, lowest), teacher.masked_fill(~attended, lowest)
    log_student = functional.log_softmax(student / temperature, dim=-1)
    log_teacher = functional.log_softmax(teacher / temperature, dim=-1)
    rows = max(1, student.shape[0])  # of no rows the mean is 0
    total: Tensor = functional.kl_div(log_student, log_teacher, reduction="sum", log_target=True)
    return total / rows * temperature**2


def distill(
    student: Mapping[str, Tensor],
    teacher: Mapping[str, Tensor],
    inputs: Mapping[str, Tensor],
    temperature: float,
    outputs: Outputs = "classes",
    shifted: bool = False,
) -> Tensor:
    """D over the outputs of two Hugging Face models for the same ``inputs``; the mean where there are several logits.

    ``outputs`` says what logits ``[rows, ...]`` are, ``shifted`` that the logits of a token predict the next one. Raises
    ``TargetError`` for outputs that are not those of rows or tokens, and for a teacher with others than the student.
    """
    names = next((names for names in _HEADS if names[0] in student), None)
    if names is None:
        rule = "give logits, or start_logits and end_logits"
        raise TargetError(Problem("distill.weight", ", ".join(student), rule, "distill.hidden, and weight: 0"))
    for name in names:
        same_sizes(student[name], teacher.get(name), name)
    if names == ("logits",) and student["logits"].dim() != 2:
        return _of_tokens(student["logits"], teacher["logits"], inputs, temperature, shifted)
    attended = inputs["attention_mask"].bool() if names[0] == "start_logits" and "attention_mask" in inputs else None
    losses = [logit_loss(student[name], teacher[name], temperature, attended, outputs) for name in names]
    return torch.stack(losses).mean()


def same_sizes(student: Tensor, teacher: Tensor | None, name: str = "logits") -> None:
    """Raises ``TargetError`` unless the teacher gives logits of the student's shape: torch would repeat a smaller one."""
    expected = list(student.shape)
    if teacher is None:
        rule = f"have the head of the student, which gives {name} {expected}"
        raise TargetError(Problem("the teacher", f"no {name}", rule, "a teacher that was trained for the same task"))
    if teacher.shape != student.shape:
        rule = f"give {name} of the student's shape {expected}"
        fix = "a teacher with the student's labels (or tokens); distill.hidden with weight: 0 compares layers alone"
        raise TargetError(Problem("the teacher", list(teacher.shape), rule, fix))


def _of_tokens(
    student: Tensor, teacher: Tensor, inputs: Mapping[str, Tensor], temperature: float, shifted: bool
) -> Tensor:
    """D over the tokens that count, of logits ``[rows, tokens, classes]``."""
    if student.dim() != 3:
        rule = "be [rows, classes] or [rows, tokens, classes]"
        raise TargetError(Problem("logits", list(student.shape), rule, "distill.hidden, and weight: 0"))
    counts = _counted(student, inputs, shifted)
    return logit_loss(student[counts], teacher[counts], temperature)


def _counted(student: Tensor, inputs: Mapping[str, Tensor], shifted: bool) -> Tensor:
    """Which tokens count: bool ``[rows, tokens]``."""
    places, labels, next_ones = student.shape[:2], inputs.get("labels"), inputs.get("shift_labels")
    if next_ones is not None and next_ones.shape == places:  # of each token the label of the next one, by the collator
        return next_ones != IGNORED
    if labels is not None and labels.shape == places:
        counts = labels != IGNORED
        return functional.pad(counts[:, 1:], (0, 1)) if shifted else counts
    # The logits of an encoder-decoder are those of its decoder's tokens.
    mask = inputs.get("decoder_attention_mask" if "decoder_input_ids" in inputs else "attention_mask")
    if mask is not None and mask.shape == places:
        return mask.bool()
    return torch.ones(places, dtype=torch.bool, device=student.device)
