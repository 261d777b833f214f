"""Distillation of logits against a float64 NumPy reference."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax  # type: ignore[import-untyped]
from torch import Tensor

from prunus import Distillation
from prunus.distillation import distill, logit_loss
from prunus.errors import TargetError


def draw(*shape: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reference(student: Tensor, teacher: Tensor, temperature: float, attended: Tensor | None = None) -> float:
    """T^2 x mean over rows of KL(teacher || student), row by row and only over the places that are attended to."""
    found = []
    for row in range(len(student)):
        places: NDArray[Any] = np.ones(student.shape[1], bool) if attended is None else attended[row].numpy()
        s, t = (x[row].double().numpy()[places] / temperature for x in (student, teacher))
        p, log_p, log_q = np.exp(log_softmax(t)), log_softmax(t), log_softmax(s)
        found.append(float((p * (log_p - log_q)).sum()))
    return temperature**2 * float(np.mean(found))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 8.0])
@pytest.mark.parametrize("classes", [2, 3, 100])
def test_classes(classes: int, temperature: float) -> None:
    student, teacher = draw(7, classes), draw(7, classes, seed=1)
    assert float(logit_loss(student, teacher, temperature)) == pytest.approx(
        reference(student, teacher, temperature), rel=1e-5
    )
    assert float(logit_loss(student, student, temperature)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 8.0])
def test_padding_does_not_count(temperature: float) -> None:
    student, teacher = draw(4, 9), draw(4, 9, seed=1)
    attended = torch.arange(9)[None] < torch.tensor([9, 5, 2, 1])[:, None]
    expected = reference(student, teacher, temperature, attended)
    assert float(logit_loss(student, teacher, temperature, attended)) == pytest.approx(expected, rel=1e-5)
    noise = torch.where(attended, student, torch.full_like(student, 50.0))
    assert float(logit_loss(noise, teacher, temperature, attended)) == pytest.approx(expected, rel=1e-5)
    longer = [torch.cat([x, draw(4, 6, seed=2)], 1) for x in (student, teacher)]
    wider = torch.cat([attended, torch.zeros(4, 6, dtype=torch.bool)], 1)
    assert float(logit_loss(longer[0], longer[1], temperature, wider)) == pytest.approx(expected, rel=1e-5)


def test_padding_gets_no_gradient() -> None:
    student = draw(4, 9).requires_grad_()
    attended = torch.arange(9)[None] < torch.tensor([9, 5, 2, 1])[:, None]
    logit_loss(student, draw(4, 9, seed=1), 2.0, attended).backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    assert not student.grad[~attended].any()
    assert student.grad[0].abs().min() > 0


def test_one_class_is_regression() -> None:
    student, teacher = draw(6, 1), draw(6, 1, seed=1)
    expected = float(np.mean((student.double().numpy() - teacher.double().numpy()) ** 2))
    for temperature in (1.0, 4.0):
        assert float(logit_loss(student, teacher, temperature)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("classes", [2, 5])
def test_the_mean_is_over_rows_and_not_over_rows_x_classes(classes: int) -> None:
    # Intel Neural Compressor's KL loss averages over both, and is smaller by the number of classes.
    student, teacher = draw(6, classes), draw(6, classes, seed=1)
    p = torch.softmax(teacher / 2, 1)
    over_both = float((p * (p.log() - torch.log_softmax(student / 2, 1))).mean()) * 4
    assert float(logit_loss(student, teacher, 2.0)) == pytest.approx(classes * over_both, rel=1e-5)


def test_the_gradient_keeps_its_size_at_high_temperature() -> None:
    # For T above the logits, T^2 KL tends to the mean square of the centred difference / (2 classes), whatever T is.
    student, teacher = draw(5, 4, scale=1.0), draw(5, 4, seed=1, scale=1.0)
    difference = (student - teacher).double()
    limit = float((difference - difference.mean(1, keepdim=True)).square().sum(1).mean()) / (2 * 4)
    for temperature, tolerance in ((30.0, 0.1), (100.0, 0.03)):
        assert float(logit_loss(student, teacher, temperature)) == pytest.approx(limit, rel=tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    student, teacher = draw(5, 3).to(dtype), draw(5, 3, seed=1).to(dtype)
    loss = logit_loss(student, teacher, 2.0)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(reference(student.float(), teacher.float(), 2.0), rel=1e-5)


@pytest.mark.parametrize(
    ("names", "masked"),
    [(("logits",), False), (("start_logits", "end_logits"), True), (("start_logits", "end_logits"), False)],
)
def test_outputs_of_models(names: tuple[str, ...], masked: bool) -> None:
    student = {name: draw(4, 6, seed=index) for index, name in enumerate(names)}
    teacher = {name: draw(4, 6, seed=9 + index) for index, name in enumerate(names)}
    mask = (torch.arange(6)[None] < torch.tensor([6, 4, 3, 2])[:, None]).long()
    inputs = {"attention_mask": mask} if masked else {"input_ids": mask}
    attended = mask.bool() if masked else None
    expected = np.mean([reference(student[name], teacher[name], 2.0, attended) for name in names])
    assert float(distill(student, teacher, inputs, 2.0)) == pytest.approx(expected, rel=1e-5)


def sigmoid(x: NDArray[Any]) -> NDArray[Any]:
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("temperature", [0.5, 2.0])
@pytest.mark.parametrize("labels", [1, 5])
def test_labels_that_do_not_exclude_each_other(labels: int, temperature: float) -> None:
    student, teacher = draw(6, labels), draw(6, labels, seed=1)
    p, q = (sigmoid(x.double().numpy() / temperature) for x in (teacher, student))
    each = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    found = logit_loss(student, teacher, temperature, outputs="labels")
    assert float(found) == pytest.approx(temperature**2 * each.sum(1).mean(), rel=1e-5)
    assert float(logit_loss(student, student, temperature, outputs="labels")) == pytest.approx(0.0, abs=1e-6)
    far = logit_loss(300 * student, -300 * teacher, temperature, outputs="labels")
    assert torch.isfinite(far)


def test_numbers() -> None:
    student, teacher = draw(6, 3), draw(6, 3, seed=1)
    expected = (student.double() - teacher.double()).square().mean()
    assert float(logit_loss(student, teacher, 2.0, outputs="numbers")) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("counted", ["labels", "next labels", "attended", "all", "none"])
def test_classes_of_tokens(counted: str) -> None:
    student, teacher = draw(3, 5, 4), draw(3, 5, 4, seed=1)
    labels = torch.tensor([[-100, 1, 2, -100, 3], [0, -100, -100, -100, -100], [-100] * 5])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    inputs = {"attention_mask": mask, "labels": labels}
    places = {
        "labels": [(0, 1), (0, 2), (0, 4), (1, 0)],
        "next labels": [(0, 0), (0, 1), (0, 3)],
        "attended": [(row, token) for row, token in mask.nonzero().tolist()],
        "all": [(row, token) for row in range(3) for token in range(5)],
        "none": [],
    }[counted]
    if counted in ("attended", "all"):
        del inputs["labels"]
    if counted == "all":
        del inputs["attention_mask"]
    if counted == "none":
        inputs["labels"] = torch.full((3, 5), -100)
    found = distill({"logits": student}, {"logits": teacher}, inputs, 2.0, shifted=counted == "next labels")
    at = tuple(torch.tensor(places).T) if places else None
    expected = reference(student[at], teacher[at], 2.0) if at is not None else 0.0
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_logits_of_pixels_are_told() -> None:
    given = {"logits": draw(2, 3, 4, 4)}
    with pytest.raises(TargetError, match=r"be \[rows, classes\] or \[rows, tokens, classes\]"):
        distill(given, given, {}, 2.0)


def test_a_classifier_does_not_mask_its_classes() -> None:
    student, teacher = {"logits": draw(4, 3)}, {"logits": draw(4, 3, seed=1)}
    inputs = {"attention_mask": torch.tensor([[1, 0, 0]] * 4)}
    expected = reference(student["logits"], teacher["logits"], 2.0)
    assert float(distill(student, teacher, inputs, 2.0)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("choice", "keys"),
    [
        (Distillation(), []),
        (Distillation(4.5, 0.0, 2.0), []),
        (Distillation(0.0, 1.0), []),
        (Distillation(-1.0), ["distill.weight"]),
        (Distillation(1.0, -0.5), ["distill.hard_weight"]),
        (Distillation(1.0, 1.0, 0.0), ["distill.temperature"]),
        (Distillation(0.0, 0.0), ["distill.weight"]),
        (Distillation(-1.0, -1.0, -1.0), ["distill.weight", "distill.hard_weight", "distill.temperature"]),
        (Distillation(float("nan"), 1.0, float("nan")), ["distill.weight", "distill.temperature"]),
    ],
)
def test_numbers_out_of_range(choice: Distillation, keys: list[str]) -> None:
    assert [problem.key for problem in choice.problems()] == keys
