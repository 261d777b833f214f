"""The reused teacher classifier (SimKD, Chen et al. 2022, arXiv:2203.14001): learn the teacher's features, take over its head.

    loss     mean over places and features of (P f_s - f_t)^2          no labels, no temperature
    head     the teacher's, frozen, behind P

f are the last hidden states at the places that the head reads: the first token of a classifier, all attended ones of a head for
answers. P is a linear map with a bias that begins as the identity. The first layer of the head, y = W f + b, takes it in,

    W (P f + p) + b = (W P) f + (W p + b)

so that the student stays a plain model of its architecture, with nothing to ship beside it. The layer has to have the
teacher's outputs and the student's inputs: heads for answers do, whatever the widths; a pooler, which is square, where they
agree.
"""

from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunus.architectures import POOLER
from prunus.errors import Problem, TargetError, first_line
from prunus.sparsity.wrappers import evaluating, unwrapped

__all__ = ["Reuse", "first_layer", "head_parameters"]


def head_parameters(model: Any) -> dict[str, nn.Parameter]:
    """What lies behind the encoder: everything outside the model's body, and the pooler in it."""
    body = f"{model.base_model_prefix}."
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if not name.startswith(body) or name.removeprefix(body).startswith(f"{POOLER}.")
    }


@torch.no_grad()
def first_layer(model: Any) -> tuple[str, Literal["first", "all"]]:
    """The Linear layer of the head that reads the last hidden states, and whether it reads the first token or all of them.

    Raises ``TargetError`` where there is none.
    """
    rule = "have a head with a Linear layer that reads the last hidden states"
    if id(unwrapped(model)) != id(model):
        fix = "the model itself: model.merge_and_unload() takes adapters in"
        raise TargetError(Problem("distill.reuse", type(model).__name__, "be used with a model without a wrapper", fix))
    if not hasattr(model, "base_model_prefix") or not hasattr(model, "config"):
        raise TargetError(
            Problem("distill.reuse", type(model).__name__, "be used with Hugging Face models", "weight=1.0")
        )
    if getattr(model.config, "is_encoder_decoder", False):
        raise TargetError(
            Problem("distill.reuse", f"{type(model).__name__}, an encoder-decoder", rule, "distill.hidden")
        )
    head = {name.rpartition(".")[0] for name in head_parameters(model)}
    seen: dict[str, Tensor] = {}
    states: list[Tensor] = []
    device = next(model.parameters()).device
    handles = []
    try:
        handles.append(model.base_model.register_forward_hook(lambda module, inputs, output: states.append(output[0])))
        for name, module in model.named_modules():
            if name in head and isinstance(module, nn.Linear):
                hook = lambda module, inputs, name=name: seen.setdefault(name, inputs[0])  # noqa: E731
                handles.append(module.register_forward_pre_hook(hook))
        ids = torch.arange(5, 9, device=device)[None]
        with evaluating(model):
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
    except Exception as error:  # each architecture has its own way to fail: a vision model, one with fewer tokens
        said = f"read a row of tokens, by which its first layer is found ({first_line(error)})"
        raise TargetError(Problem("distill.reuse", type(model).__name__, said, "distill.hidden")) from None
    finally:
        for handle in handles:
            handle.remove()
    for name, given in seen.items():
        if torch.equal(given, states[0]):
            return name, "all"
        if torch.equal(given.reshape(-1), states[0][:, 0].reshape(-1)):
            return name, "first"
    raise TargetError(Problem("distill.reuse", type(model).__name__, rule, "distill.hidden"))


@final
class Reuse(nn.Module):
    """The projector P of one student and teacher; ``fold`` puts the teacher's head behind it into the student.

    The student's own head is frozen. Raises ``TargetError`` for heads that do not fit each other.
    """

    def __init__(self, student: Any, teacher: Any) -> None:
        super().__init__()
        (self.layer, self.reads), (other, reads) = first_layer(student), first_layer(teacher)
        student_head, teacher_head = head_parameters(student), head_parameters(teacher)
        wide, narrow = teacher.get_submodule(other).in_features, student.get_submodule(self.layer).in_features
        problems = []
        if type(student) is not type(teacher) or reads != self.reads or not set(teacher_head) <= set(student_head):
            rule = f"be a {type(student).__name__}, whose head the student can take over"
            problems.append(Problem("distill.reuse", type(teacher).__name__, rule, "distill.hidden"))
        for name in sorted(set(student_head) & set(teacher_head)):
            shape = tuple(teacher_head[name].shape)
            expected = (shape[0], narrow) if name == f"{self.layer}.weight" else shape
            if tuple(student_head[name].shape) != expected:
                rule = f"have a head that fits the student: {name} {list(shape)} into {list(student_head[name].shape)}"
                problems.append(Problem("distill.reuse", f"width {wide}", rule, f"a teacher of width {narrow}"))
                break
        if not problems and f"{self.layer}.bias" not in teacher_head:
            rule = f"have a bias in {self.layer}, into which the projector's goes"
            problems.append(Problem("distill.reuse", type(teacher).__name__, rule, "distill.hidden"))
        if problems:
            raise TargetError(*problems)
        self.projector = nn.Linear(narrow, wide)
        nn.init.eye_(self.projector.weight)
        nn.init.zeros_(self.projector.bias)
        for name in teacher_head:
            student_head[name].requires_grad_(False)
        self._head = {name: parameter.detach().clone() for name, parameter in teacher_head.items()}
        self.fold(student)

    def forward(self, student: Tensor, teacher: Tensor, attended: Tensor) -> Tensor:
        """The loss of last hidden states ``[rows, tokens, width]``; ``attended`` is bool ``[rows, tokens]``."""
        if self.reads == "first":
            student, teacher = student[:, 0], teacher[:, 0]
        else:
            student, teacher = student[attended], teacher[attended]
        return functional.mse_loss(self.projector(student.to(self.projector.weight.dtype)).float(), teacher.float())

    @torch.no_grad()
    def fold(self, student: nn.Module) -> None:
        """Writes the teacher's head, with P in its first layer, into the student's."""
        first = f"{self.layer}.weight"
        weight, bias = self.projector.weight, self.projector.bias
        head = {name: tensor.to(weight.device, weight.dtype) for name, tensor in self._head.items()}
        head[f"{self.layer}.bias"] = head[f"{self.layer}.bias"] + head[first] @ bias
        head[first] = head[first] @ weight
        for name, value in head.items():
            student.get_parameter(name).copy_(value)
