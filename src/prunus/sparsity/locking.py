"""Locking: the zeros that a model has are its pattern, and stay zero whatever trains it.

    mask = (w != 0), element by element

What is declared of the pattern is checked against what is found, before anything is trained:

    RxC, rows, columns    zeros outside whole units are at most 0.1 % of all zeros
    N:M                   groups with fewer than M - N zeros are at most 0.1 % of all groups
    sparsity              zeros / weights is at most 0.001 away
    masks                 no weight that a saved mask locks is other than zero

A dense model becomes no sparser by it. Zafrir et al. 2021 (arXiv:2111.05754) call it pattern-lock.

A lock goes with the weights, not with the object that was given: it lasts while a locked weight or any module that leads to one
is alive, so a wrapper may be dropped, and the body of a model may be trained on without the rest. A weight that is tied, or
whose module is shared, stays locked under each of its names, also when the model stops sharing it. Copies (``copy.deepcopy``, a
model saved and loaded again) are other models, and are not locked.
"""

import threading
from collections.abc import Container, Iterator, Mapping
from functools import cache
from typing import Any, Final, final
from weakref import ref

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from prunus.errors import Problem, TargetError, TrainingError
from prunus.sparsity.masker import Masker
from prunus.sparsity.measure import TensorFacts, counted
from prunus.sparsity.sharding import reshard
from prunus.sparsity.targets import Targets
from prunus.sparsity.wrappers import child_of, line_of, parameter, unwrapped

__all__ = ["Lock", "lock"]

_LOCKS: Final[dict[int, "Lock"]] = {}
"""The locks whose weights are alive, by id, whether anybody else keeps the lock or not."""
_LISTENING: Final = threading.Lock()


def _after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    # A copy, made in one piece: other threads lock models of theirs meanwhile, and models are collected.
    for each in _LOCKS.copy().values():
        each.apply(trained)


@cache
def _register() -> RemovableHandle:
    return register_optimizer_step_post_hook(_after_step)


def _listen() -> None:
    """Registers the hook of this module with torch, once for the process.

    It is never taken away: torch walks through its hooks while they run, so none may be removed in one, and a model can be
    collected at any moment.
    """
    with _LISTENING:
        _register()


@final
class _Line:
    """The way to one locked weight: the modules from the model down to the one that owns it. It keeps none of them alive."""

    def __init__(self, name: str, modules: list[ref[Any]], made_for: ref[Any]) -> None:
        self._parts, self.modules, self._made_for = name.split("."), modules, made_for
        self.others: list[_Line] = []
        """The lines that lead to the same owner by its other names."""

    def living(self) -> Iterator[Any]:
        """The modules that are alive, from the model down."""
        return (module for each in self.modules if (module := each()) is not None)

    def weights(self) -> Iterator[nn.Parameter]:
        """What the weight is now: that of its owner, and what has taken the owner's place (a quantized layer, a PEFT copy).

        Where the owner is gone and nothing is in its place, the parameter itself, which another layer may have taken over.
        """
        owner, seen = self.modules[-1](), None
        if owner is not None and (seen := owner._parameters.get(self._parts[-1])) is not None:
            yield seen
        for first in range(len(self.modules)):
            weight = self._follow(first)
            if weight is not None:
                if weight is not seen:
                    yield weight
                return
        if owner is None and (weight := self._made_for()) is not None:
            yield weight

    def leads(self) -> bool:
        """Whether the owner is still found by this name."""
        owner = self.modules[-1]()
        for first, each in enumerate(self.modules[:-1]):
            place: Any = each()
            for part in self._parts[first:-1]:
                place = None if place is None else child_of(place, part)
            if owner is not None and place is not None and unwrapped(place) is owner:
                return True
        return False

    def _follow(self, first: int) -> nn.Parameter | None:
        """The weight by its name below one of the modules; None where another module has come in between."""
        place: Any = self.modules[first]()
        copied = False  # by PEFT: what follows are modules of the copy
        for part, each in zip(self._parts[first:-1], self.modules[first + 1 :], strict=True):
            expected = each()
            if place is not None and expected is not None and place._modules.get(part) is expected:
                place = expected  # as it was, which is quicker to see than what a wrapper holds
                continue
            place = None if place is None else child_of(place, part)
            if place is None or (expected is None and not copied and each is not self.modules[-1]):
                return None
            if expected is not None and not copied and unwrapped(place) is not expected:
                # Of a shared module that is still in its other place, this is the copy that ended the sharing.
                copied = any(module is expected for module in place.modules()) or any(
                    other.leads() for other in self.others
                )
                if not copied:
                    return None
        weight: nn.Parameter | None = None if place is None else child_of(place, self._parts[-1], "_parameters")
        return weight


@final
class Lock:
    """Keeps zeros zero after every step of any ``torch.optim`` optimizer that holds parameters of the model.

    It lasts as long as the locked weights or their modules do, even when the model, a wrapper of it, or this object is dropped.
    """

    def __init__(self, model: nn.Module, masker: Masker) -> None:
        self.masker = masker
        known: dict[int, ref[Any]] = {}

        def forget(_: ref[Any], locks: dict[int, Lock] = _LOCKS) -> None:  # outlives the globals when Python ends
            if all(each() is None for each in known.values()):
                locks.pop(id(self), None)

        self._lines: dict[str, _Line] = {}
        # Where weights are tied, every name has a line: a weight that is untied later stays locked under each of them.
        self._masked_as = {name: first for first in masker.planned for name in masker.tied[first]}
        for name in self._masked_as:
            way: list[Any] = [*line_of(model, name), parameter(model, name)]
            for each in way:
                if id(each) not in known:
                    known[id(each)] = ref(each, forget)
            *modules, weight = (known[id(each)] for each in way)
            self._lines[name] = _Line(name, modules, weight)
        for line in self._lines.values():
            line.others = [
                each for each in self._lines.values() if each.modules[-1] is line.modules[-1] and each is not line
            ]
        _LOCKS[id(self)] = self
        _listen()

    @torch.no_grad()
    def apply(self, trained: Container[int] | None = None) -> None:
        """Makes the zeros exact, in the parameters with these ``id`` or in all."""
        weights = self._weights() if trained is not None else self._at_rest()
        self._complain(self._missing(weights, trained))
        if trained is None or any(id(weight) in trained for _, weight in weights):
            for _, weight, mask in self._masked(weights, trained):
                weight.masked_fill_(~mask, 0.0)

    def remove_pruning(self) -> list[TensorFacts]:
        """Lets go; the weights stay as they are. Returns what was counted in them.

        Raises ``TrainingError`` where a locked weight is not zero, because something other than an optimizer has changed it
        (the merge of an adapter, a checkpoint that was loaded). ``apply`` then sets it to zero.
        """
        _LOCKS.pop(id(self), None)
        weights = self._at_rest()
        self._check(weights)
        seen = {self._masked_as[name]: weight for name, weight in weights} | dict(weights)
        return [counted(name, seen[name], each) for name, each in self.masker.patterns.items() if name in seen]

    def _at_rest(self) -> list[tuple[str, Tensor]]:
        """The weights between two steps of training, where FSDP2 may have left some gathered."""
        reshard(module for line in self._lines.values() for module in line.living())
        return self._weights()

    def _weights(self) -> list[tuple[str, Tensor]]:
        return [(name, weight) for name, line in self._lines.items() for weight in line.weights()]

    def _masked(
        self, weights: list[tuple[str, Tensor]], trained: Container[int] | None = None
    ) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Name, rows here and mask of the weights (or of those that are ``trained``), of a tied weight once."""
        once: dict[tuple[str, int], tuple[str, Tensor]] = {}
        for name, weight in weights:
            once.setdefault((self._masked_as[name], id(weight)), (name, weight))
        names = [name for name, weight in once.values() if trained is None or id(weight) in trained]
        masked = self.masker.masked([(self._masked_as[name], weight) for name, weight in once.values()], trained)
        return ((name, rows, mask) for name, (_, rows, mask) in zip(names, masked, strict=True))

    def _missing(self, weights: list[tuple[str, Tensor]], trained: Container[int] | None = None) -> list[Problem]:
        """Weights that are no parameters of their layers any more, as a parametrization makes them, in what is ``trained``."""
        problems = []
        for name in self._lines.keys() - {name for name, _ in weights}:
            modules, owner = list(self._lines[name].living()), self._lines[name].modules[-1]()
            if owner is not None and (trained is None or any(id(each) in trained for each in modules[0].parameters())):
                got = f"no parameter of that name in {type(owner).__name__}"
                fix = "remove_pruning() before a parametrization (weight_norm, spectral_norm), FSDP2 in the place of FSDP1"
                problems.append(Problem(name, got, "stay a parameter of its layer while it is locked", fix))
        return problems

    @staticmethod
    def _complain(problems: list[Problem]) -> None:
        if problems:
            raise TrainingError(*problems)

    @torch.no_grad()
    def _check(self, weights: list[tuple[str, Tensor]]) -> None:
        problems = self._missing(weights)
        for name, weight, mask in self._masked(weights):
            broken, places = (self.masker.total(one) for one in ((weight != 0) & ~mask, ~mask))
            if broken:
                got = f"{broken:,} of {places:,} that are not zero"
                fix = "apply() of the lock, which sets them to zero, or the weights as they were"
                problems.append(Problem(name, got, "keep its locked weights zero", fix))
        self._complain(problems)


def lock(
    model: nn.Module,
    *,
    pattern: str = "unstructured",
    sparsity: float | None = None,
    masks: Mapping[str, Tensor] | None = None,
    targets: Targets | None = None,
) -> Lock:
    """Keeps a sparse model sparse: train it as you like, its zeros stay.

        scheduler = prunus.lock(model)
        ...                                # train; any optimizer, weight decay, accumulation, DDP, FSDP2
        scheduler.remove_pruning()         # or nothing at all

    The lock follows the weights: ``model`` may be wrapped, a wrapper may be dropped, its body may be trained on alone. A copy
    of the model (``copy.deepcopy``, or saved and loaded) is not locked; lock the copy.

    Args:
        model: a model with zeros in its Linear weights, from anywhere. Its parameters are not replaced or renamed.
        pattern: what the zeros are expected to form; ``4x1`` (outputs x inputs), ``2:4``, ...
        sparsity: what share of the targets is expected to be zero.
        masks: saved masks (bool or 0 and 1, True = kept, shaped like the weights) that the zeros must agree with, by the names
            that the weights have in the model, in a wrapper of it, or in the model that it wraps.
        targets: which weights; the Linear weights of the repeated layers of the model's body by default.

    Raises:
        TargetError: no zeros, or others than were declared, and says what was found; masks of unknown weights, of other shapes
            or with other numbers than 0 and 1.

    """
    if not isinstance(model, nn.Module):
        raise TargetError(Problem("model", type(model).__name__, "be a torch.nn.Module", "the model itself"))
    return Lock(model, Masker.lock(model, targets, pattern=pattern, sparsity=sparsity, masks=masks))
