"""Movement pruning, hard and soft, against a plain autograd version: a masked product whose mask passes gradients on."""

from typing import Any

import pytest
import torch
from tiny import Layers
from torch import Tensor, nn

from prunus import Masker, Pruning, RecipeError, Schedule, Span, Targets
from prunus.sparsity.criteria import Scores, learn, least_kept, regularizer_gradient

STEPS = 14


class Straight(torch.autograd.Function):
    """w x mask(s): the gradient of w is masked, that of s is not."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, score: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(weight, mask)
        return weight * mask

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        weight, mask = ctx.saved_tensors
        return grad * mask, grad * weight, None


def layers(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return Layers(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 8))


def data(step: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(100 + step)
    return torch.randn(10, 12, generator=draw), torch.randn(10, 8, generator=draw)


def factor(step: int) -> float:
    """Warm-up over three steps, then linearly to 0."""
    return step / 3 if step < 3 else (STEPS - step) / (STEPS - 3)


def share(step: int, start: int = 2, end: int = 9) -> float:
    x = min(1.0, max(0.0, (step - start) / (end - start)))
    return float(1 - (1 - x) ** 3) if step >= start else 0.0


def reference(sparsity: float, choice: Scores) -> tuple[nn.Sequential, list[Tensor]]:
    """Weights and masks after the training, in torch alone."""
    model = layers()
    weights = [model[0].weight, model[2].weight]
    scores = [torch.zeros_like(w, requires_grad=True) for w in weights]
    masks = [torch.ones_like(w) for w in weights]
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": parameters, "lr": 0.02, "weight_decay": 0.0},
            {"params": scores, "lr": choice.learning_rate, "weight_decay": 0.0},
        ]
    )
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    for step in range(STEPS):
        x, y = data(step)
        hidden = torch.tanh(x @ Straight.apply(weights[0], scores[0], masks[0]).T + model[0].bias)
        out = hidden @ Straight.apply(weights[1], scores[1], masks[1]).T + model[2].bias
        loss = (out - y).square().mean()
        if choice.threshold is not None:
            strength = choice.regularization * share(step)
            loss = loss + strength * torch.stack([torch.sigmoid(s).mean() for s in scores]).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        rates.step()
        done = step + 1
        if 2 <= done <= 12:  # updates at every step from 2 on; held from 9 to 12
            for i, score in enumerate(scores):
                s = score.detach()
                if choice.threshold is not None:
                    masks[i] = (torch.sigmoid(s) > choice.threshold * share(done)).float()
                else:
                    k = int(sparsity * share(done) * s.numel() + 1e-6)
                    order = s.flatten().argsort(stable=True)[:k]
                    masks[i] = torch.ones(s.numel()).index_fill(0, order, 0.0).view_as(s)
    return model, masks


@pytest.mark.parametrize(
    ("sparsity", "choice"),
    [
        (0.5, Scores(0.01)),
        (0.9, Scores(0.05)),
        (None, Scores(0.5, 0.1, 4.0)),
        (None, Scores(0.2, 0.4, 1.0)),
    ],
    ids=["hard 50 %", "hard 90 %", "soft", "soft, high threshold"],
)
def test_masks_and_weights_are_those_of_autograd(sparsity: float | None, choice: Scores) -> None:
    expected, masks = reference(sparsity or 0.0, choice)
    model = layers()
    schedule = Schedule("polynomial", Span(2), end=Span(9), every=Span(1), hold=Span(3))
    rule = Pruning(
        sparsity,
        "unstructured",
        "movement",
        schedule,
        targets=Targets(include=("weight",)),
        revive=True,
        scores=choice,
    )
    rule = Pruning(**{**rule.__dict__, "allocation": type(rule.allocation)(scope="tensor")})
    masker = Masker(model, rule, STEPS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.0)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    for step in range(STEPS):
        x, y = data(step)
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        masker.observe(model, optimizer.param_groups[0]["lr"] / 0.02)
        optimizer.step()
        rates.step()
        masker.step(model)
    facts = masker.finish(model)
    for i, name in enumerate(("0.weight", "2.weight")):
        assert torch.equal(masker.masks[name], masks[i].bool())
        weight = expected.get_parameter(name).detach() * masks[i]
        torch.testing.assert_close(model.get_parameter(name).detach(), weight, rtol=1e-4, atol=1e-6)
    zeros = sum(int((mask == 0).sum()) for mask in masks)
    assert sum(fact.zeros for fact in facts) == zeros > 30
    assert masker.due() == pytest.approx(zeros / sum(mask.numel() for mask in masks), abs=0.01)


def test_a_resumed_masker_learns_on_as_a_whole_one() -> None:
    schedule = Schedule("polynomial", Span(2), end=Span(9), every=Span(1), hold=Span(3))
    choice = Pruning(0.6, "4x1", "movement", schedule, revive=True, scores=Scores(0.03))

    def train(model: nn.Module, masker: Masker, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
        for step in range(first, last):
            x, y = data(step)
            optimizer.zero_grad()
            (model(x) - y).square().mean().backward()
            masker.observe(model, factor(step))
            optimizer.step()
            masker.step(model)

    whole, halves = layers(), layers()
    masker = Masker(whole, choice, STEPS)
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.05)
    train(whole, masker, optimizer, 0, STEPS)
    first = Masker(halves, choice, STEPS)
    optimizer = torch.optim.SGD(halves.parameters(), lr=0.05)
    train(halves, first, optimizer, 0, 6)
    state = {name: value.clone() for name, value in first.state_dict().items()}
    again = Masker(halves, choice, STEPS, state=state)
    train(halves, again, optimizer, 6, STEPS)
    assert all(torch.equal(masker.masks[name], again.masks[name]) for name in masker.masks)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), halves.parameters(), strict=True))


def test_adam_is_torchs() -> None:
    draw = torch.Generator().manual_seed(0)
    score = torch.randn(5, 7, generator=draw)
    held = score.clone().requires_grad_()
    first, second = torch.zeros_like(score), torch.zeros_like(score)
    optimizer = torch.optim.Adam([held], lr=0.03)
    for step in range(1, 9):
        gradient = torch.randn(5, 7, generator=draw)
        held.grad = gradient.clone()
        optimizer.step()
        learn(score, first, second, gradient, 0.03, step)
    torch.testing.assert_close(score, held.detach(), rtol=1e-5, atol=1e-7)


def test_the_regulariser_is_that_of_autograd() -> None:
    scores = [torch.randn(4, 6, dtype=torch.float64, requires_grad=True), torch.randn(3, 5, dtype=torch.float64)]
    loss = 190 * torch.stack([torch.sigmoid(s).mean() for s in scores]).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(regularizer_gradient(scores[0].detach(), 190, 2), scores[0].grad)


@pytest.mark.parametrize(("units", "kept"), [(1, 1), (199, 1), (200, 2), (10_000, 51)])
def test_soft_movement_leaves_every_tensor_something(units: int, kept: int) -> None:
    assert least_kept(units) == kept
    model = Layers(nn.Linear(1, units), nn.Flatten())
    rule = Pruning(
        None,
        "unstructured",
        "movement",
        Schedule("polynomial", Span(1), end=Span(3), every=Span(1)),
        targets=Targets(include=("weight",)),
        revive=True,
        scores=Scores(0.1, 0.9),
    )
    masker = Masker(model, rule, 4)
    for _ in range(4):  # sigma(0 and thereabouts) is below 0.9
        model.zero_grad()
        model(torch.ones(2, 1)).sum().backward()
        masker.observe(model)
        masker.step(model)
    assert int(masker.masks["0.weight"].sum()) == kept


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"criterion": "magnitude"}, r"scores must come with criterion movement"),
        ({"revive": False}, r"revive must be true with scores that learn"),
        ({"scores": Scores(0.0)}, r"scores\.learning_rate must be above 0"),
        ({"scores": Scores(0.1, 1.5)}, r"scores\.threshold must be in \(0, 1\)"),
        ({"scores": Scores(0.1, None, 5.0)}, r"scores\.regularization must come with threshold"),
        ({"scores": Scores(0.1, 0.1, -5.0)}, r"scores\.regularization must be 0 or above"),
        ({"scores": Scores(0.1, 0.1), "sparsity": 0.5}, r"sparsity must be left out with scores\.threshold"),
        ({"scores": Scores(0.1, 0.1), "pattern": "2:4"}, r"scores\.threshold must be left out for pattern 2:4"),
        ({"lock": True, "criterion": "snip_momentum", "revive": False}, r"scores must not come with lock"),
    ],
)
def test_what_does_not_fit_is_told(more: dict[str, Any], said: str) -> None:
    base: dict[str, Any] = {"pattern": "4x1", "criterion": "movement", "revive": True, "scores": Scores()}
    given = base | more
    if "sparsity" not in given and (given["scores"].threshold is None and not given.get("lock")):
        given["sparsity"] = 0.5
    with pytest.raises(RecipeError, match=said):
        Masker(layers(), Pruning(**given), 100)
