"""What the weights of pruned tensors are worth: scores that remember optimizer steps, by parameter name.

see      gradient criteria: the contribution of this step joins the score, or teaches it (``scores``)
watch    criteria that ask for inputs: sums of squares of what comes into the layers, while the model trains
score    of the units of a tensor (of its weights, for N:M), as they are now, checked for NaN
"""

import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import final
from zlib import crc32

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from prunus.errors import Problem, TrainingError
from prunus.sparsity.pruning import Rule
from prunus.sparsity.scores import Scores, learn, regularizer_gradient
from prunus.sparsity.sharding import LOCAL, World
from prunus.sparsity.wrappers import submodule

__all__ = ["KINDS", "Scorer", "tell_blank"]

KINDS = ("score", "input", "first", "second")
"""Kinds of tensors in the state."""


@final
class Scorer:
    """The scores of one masker. ``seed`` is that of criterion random."""

    def __init__(self, seed: int, world: World = LOCAL) -> None:
        self.seed, self._world = seed, world
        self._held: dict[str, dict[str, Tensor]] = {kind: {} for kind in KINDS}
        # For magnitudes: fresh memory would cost more than all that is done with them.
        self._room: dict[str, Tensor] = {}
        self._hooks: list[RemovableHandle] = []

    @property
    def _scores(self) -> dict[str, Tensor]:
        return self._held["score"]

    def watch(self, model: nn.Module, rules: Sequence[Rule], steps: int) -> None:
        """Looks at what comes into the layers of rules that ask for it and have an update to come."""
        for rule in rules:
            if rule.criterion.needs_input and steps < rule.timetable.update_steps[-1]:
                for name in rule.selection.taken:
                    layer = submodule(model, name.rpartition(".")[0])
                    self._hooks.append(layer.register_forward_pre_hook(partial(self._look, name)))

    def unwatch(self) -> None:
        """Looks no more."""
        for handle in self._hooks:
            handle.remove()
        self._hooks = []

    @torch.no_grad()
    def _look(self, name: str, module: nn.Module, given: tuple[Tensor, ...]) -> None:
        if module.training:
            squares = given[0].detach().float().flatten(0, -2).square().sum(0)
            held = self._held["input"].get(name)
            self._held["input"][name] = squares if held is None else held.to(squares.device).add_(squares)

    def see(self, name: str, rule: Rule, weight: Tensor, grad: Tensor, steps: int, rate: float) -> None:
        """One step's gradient of a tensor whose dense weights are ``weight``, after ``steps`` steps."""
        contribution = rule.criterion.contribution
        if contribution is None:
            return
        score = contribution(weight.float(), grad.float())
        if rule.criterion.of_units:
            score = self._world.pool(name, rule.pattern, score, "sum").abs()
        elif not rule.pattern.needs_element_scores:
            score = self._world.pool(name, rule.pattern, score, rule.pruning.reduce)
        held = self._scores.get(name)
        if rule.pruning.scores is not None:
            self._learn(name, rule, rule.pruning.scores, -score, steps, rate)
        elif held is None or rule.criterion.history == 0:
            self._scores[name] = score
        else:
            held.mul_(rule.criterion.history).add_(score)

    def _learn(self, name: str, rule: Rule, choice: Scores, gradient: Tensor, steps: int, rate: float) -> None:
        score, first, second = (
            self._held[kind].setdefault(name, torch.zeros_like(gradient)) for kind in ("score", "first", "second")
        )
        if choice.regularization:
            strength = choice.regularization * rule.timetable.share(steps)
            shape = rule.selection.taken[name]
            rows, columns = shape if rule.pattern.needs_element_scores else rule.pattern.units(shape)
            gradient = gradient + regularizer_gradient(score, strength, len(rule.selection.taken), rows * columns)
        learn(score, first, second, gradient, choice.learning_rate * rate, steps + 1)

    def score(self, name: str, rule: Rule, weight: Tensor) -> Tensor:
        """Scores of the weights (N:M) or of the units (blocks), before importance.

        Raises ``TrainingError`` where no gradient or input was seen, and for NaN.
        """
        pattern, score = rule.pattern, self._scores.get(name)
        if rule.criterion.contribution is None:
            generator = torch.Generator().manual_seed(self.seed ^ crc32(name.encode()))
            shape = rule.selection.taken[name]
            shape = shape if pattern.needs_element_scores else pattern.units(shape)
            score = self._world.units(name, torch.rand(shape, generator=generator)).to(weight.device)
        elif rule.criterion.needs_input:
            score = rule.criterion.contribution(weight.float(), self._norms(name).to(weight.device))
            score = (
                score if pattern.needs_element_scores else self._world.pool(name, pattern, score, rule.pruning.reduce)
            )
        elif not rule.criterion.needs_gradient:
            if name not in self._room or self._room[name].device != weight.device:
                self._room[name] = torch.empty_like(weight, dtype=torch.float32)
            score = torch.abs(weight.float(), out=self._room[name])
            score = (
                score if pattern.needs_element_scores else self._world.pool(name, pattern, score, rule.pruning.reduce)
            )
        if score is None:
            rule_ = f"have a gradient for criterion {rule.criterion.name}"
            raise TrainingError(Problem(name, "no gradient seen", rule_, "unfreezing it, or criterion: magnitude"))
        if score.numel() and not all(torch.isfinite(extreme) for extreme in torch.aminmax(score)):
            fix = "a lower learning rate, gradient clipping, or fp32"
            raise TrainingError(Problem(name, "NaN or infinite scores", "have finite weights and gradients", fix))
        return score

    def _norms(self, name: str) -> Tensor:
        """Norms of what came into a layer, over all processes."""
        squares = self._held["input"].get(name)
        if squares is None:
            rule = "have seen inputs for criterion wanda"
            raise TrainingError(Problem(name, "no input seen", rule, "training steps before the first update"))
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            squares = squares.clone()
            torch.distributed.all_reduce(squares)
        return squares.sqrt()

    def follow(self, name: str, device: torch.device) -> None:
        """Moves what is remembered of a tensor to the device where its weight is."""
        for kept in self._held.values():
            if name in kept and kept[name].device != device:
                kept[name] = kept[name].to(device)

    def own(self, name: str, score: Tensor) -> bool:
        """Whether ``score`` may be changed in place: it is room for magnitudes."""
        return self._room.get(name) is score

    def updated(self, rule: Rule, last: bool) -> None:
        """After an update: sums over the steps between updates begin anew; after the ``last`` one nothing is read any more."""
        again = {"input": rule.criterion.needs_input, "score": rule.criterion.of_units}
        kinds = [kind for kind in KINDS if last or again.get(kind)]
        for name in rule.selection.taken:
            for kind in kinds:
                self._held[kind].pop(name, None)
            if last:
                self._room.pop(name, None)

    def tensors(self) -> Iterator[Tensor]:
        """All that is held."""
        yield from self._room.values()
        for held in self._held.values():
            yield from held.values()

    def state_dict(self) -> dict[str, Tensor]:
        """``kind.name`` -> tensor."""
        return {f"{kind}.{name}": value for kind, held in self._held.items() for name, value in held.items()}

    def load(self, kind: str, name: str, value: Tensor) -> None:
        """One entry of the state."""
        self._held[kind][name] = value.to(torch.float32, copy=True)


def tell_blank(rule: Rule, names: Sequence[str], steps: int) -> None:
    """Says that the scores of the named tensors are all zero after ``steps`` steps: their masks would go by position.

    A warning where it is some of a rule's tensors, ``TrainingError`` where it is all of them.
    """
    if not names or not (rule.criterion.needs_gradient or rule.criterion.needs_input):
        return
    seen = "inputs" if rule.criterion.needs_input else "gradients"
    if len(names) == len(rule.selection.taken):
        text = f"differ between weights (criterion {rule.criterion.name}): all {seen} that it saw were zero"
        fix = "observe() before the gradients are set to zero, a loss that depends on these weights"
        raise TrainingError(Problem("scores", "0 for every weight", text, fix))
    text = (
        f"step {steps}: scores of {len(names)} tensors are all zero ({names[0]}, ...), so their masks go by position; "
        f"criterion {rule.criterion.name} saw no {seen} there"
    )
    warnings.warn(text, UserWarning, stacklevel=5)
