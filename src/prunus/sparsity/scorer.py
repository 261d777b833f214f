"""The scores of one masker: shows criteria what they ask to see, and keeps their states by parameter name."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import ne
from typing import Any, final
from weakref import finalize, ref

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from prunus.errors import Problem, TrainingError
from prunus.sparsity.criteria import Context, State
from prunus.sparsity.pruning import Rule
from prunus.sparsity.sharding import Shard, Sharding, count
from prunus.sparsity.wrappers import submodule

__all__ = ["Scorer", "report_blank"]


@final
class Scorer:
    """States of criteria by parameter name. ``seed`` is that of criterion random."""

    def __init__(self, seed: int, sharding: Sharding, shards: Mapping[str, Shard]) -> None:
        self.seed = seed
        self._sharding, self._shards = sharding, shards
        self._states: dict[str, State] = {}
        self._buffers: State = {}
        self._hooks: list[RemovableHandle] = []

    def add_hooks(self, model: nn.Module, rules: Sequence[Rule], steps: int) -> None:
        """Observes the inputs of layers where a criterion asks for it and a mask update is still to come.

        The hooks leave the model with ``remove_hooks``, and with this object: nothing stays where a training was broken off.
        """
        layers = {
            name: submodule(model, name.rpartition(".")[0])
            for rule in rules
            if rule.criterion.needs_input and steps < rule.timetable.update_steps[-1]
            for name in rule.selection.taken
        }
        for rule in rules:
            for name in rule.selection.taken:
                if name in layers:
                    hook = _InputHook(ref(self), name, rule)
                    self._hooks.append(layers[name].register_forward_pre_hook(hook))
        finalize(self, _remove, self._hooks).atexit = False

    def share_out(self, sharding: Sharding, shards: Mapping[str, Shard]) -> None:
        """Starts anew with weights that were sharded since; the states are to be loaded again."""
        self._sharding, self._shards = sharding, shards
        self._states, self._buffers = {}, {}

    def remove_hooks(self) -> None:
        """Observes inputs no more."""
        _remove(self._hooks)

    @torch.no_grad()
    def observe_input(self, name: str, rule: Rule, inputs: Tensor) -> None:
        """The input of the layer of a weight in a forward pass of training."""
        context = self._context(name, rule)
        rule.criterion.observe_input(self._state(context, rule, inputs.device), context, inputs.detach().float())

    def observe(self, name: str, rule: Rule, weight: Tensor, gradient: Tensor, steps: int, lr_share: float) -> None:
        """The gradient of the next step after ``steps``; ``weight`` and ``gradient`` are the rows of this process."""
        context = self._context(name, rule, steps, lr_share)
        state = self._state(context, rule, weight.device)
        rule.criterion.observe(state, context, weight.float(), gradient.float())

    def score(self, name: str, rule: Rule, weight: Tensor, steps: int) -> Tensor:
        """Scores of the units here (of the weights here, for N:M) after ``steps`` steps, before importance.

        Raises ``TrainingError`` where no gradient or input was seen, and for NaN.
        """
        if rule.criterion.state and name not in self._states:
            raise TrainingError(_unseen(name, rule))
        score = rule.criterion.score(self._states.get(name, {}), self._context(name, rule, steps), weight.float())
        if score.numel() and not all(torch.isfinite(extreme) for extreme in torch.aminmax(score)):
            fix = "a lower learning rate, gradient clipping, or fp32"
            raise TrainingError(Problem(name, "NaN or infinite scores", "have finite weights and gradients", fix))
        return score

    def is_state(self, name: str, score: Tensor) -> bool:
        """Whether a score is part of a state, so that it must not be changed in place."""
        return any(score is value for value in self._states.get(name, {}).values())

    def after_update(self, rule: Rule, last: bool) -> None:
        """Drops the states that a mask update ends; after the ``last`` update of a rule nothing is read any more."""
        for name in rule.selection.taken:
            if last or rule.criterion.restarts:
                self._states.pop(name, None)
            if last:
                self._buffers.pop(name, None)

    def to_device(self, name: str, device: torch.device) -> None:
        """Moves the state of a weight to the device where the weight is."""
        state = self._states.get(name, {})
        for key, value in state.items():
            if value.device != device:
                state[key] = value.to(device)

    def tensors(self) -> Iterator[Tensor]:
        """All tensors in memory."""
        yield from self._buffers.values()
        for state in self._states.values():
            yield from state.values()

    def items(self) -> Iterator[tuple[str, str, Tensor]]:
        """Everything that is saved: (name of the weight, name of the state's tensor, the part of it that is here)."""
        for name, state in self._states.items():
            for key, value in state.items():
                yield name, key, value

    def load(self, name: str, key: str, value: Tensor) -> None:
        """One of ``items``."""
        self._states.setdefault(name, {})[key] = value.to(torch.float32, copy=True)

    def _state(self, context: Context, rule: Rule, device: torch.device) -> State:
        if context.name not in self._states:
            self._states[context.name] = rule.criterion.init(context, device)
        return self._states[context.name]

    def _context(self, name: str, rule: Rule, step: int = 0, lr_share: float = 1.0) -> Context:
        return Context(
            name,
            self._shards[name],
            rule.score_shape(name),
            rule.pruning.reduce,
            self._sharding,
            self.seed,
            step,
            lr_share,
            rule.timetable.share(step),
            len(rule.selection.taken),
            self._buffers,
        )


def _remove(hooks: list[RemovableHandle]) -> None:
    while hooks:
        hooks.pop().remove()


@final
class _InputHook:
    """Shows a scorer, which it does not keep alive, the inputs of one layer. A copy of the layer is not observed."""

    def __init__(
        self, scorer: Callable[[], Scorer | None] = lambda: None, name: str = "", rule: Rule | None = None
    ) -> None:
        self._scorer, self._name, self._rule = scorer, name, rule

    def __reduce__(self) -> Any:
        return _InputHook, ()  # of a model that is copied or saved as a whole

    def __call__(self, module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        scorer = self._scorer()
        if scorer is not None and self._rule is not None and module.training:
            scorer.observe_input(self._name, self._rule, arguments[0])


def _unseen(name: str, rule: Rule) -> Problem:
    if rule.criterion.needs_input:
        text = f"have seen inputs for criterion {rule.criterion.name}"
        return Problem(name, "no input seen", text, "training steps before the first update")
    text = f"have a gradient for criterion {rule.criterion.name}"
    return Problem(name, "no gradient seen", text, "unfreezing it, or criterion: magnitude")


def report_blank(
    rule: Rule, scores: Mapping[str, Tensor], planned: Mapping[str, int], sharding: Sharding, steps: int
) -> None:
    """Reports weights whose scores are all zero after ``steps`` steps: their masks would go by position.

    A warning where it is some of a rule's tensors, ``TrainingError`` where it is all of them. ``planned`` says how many zeros
    each weight has: of one that is pruned whole, no score matters.
    """
    names = [
        name
        for name, (out, inp) in rule.selection.taken.items()
        if planned.get(name) != out * inp and not count(sharding, scores[name], ne, 0.0)
    ]
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
