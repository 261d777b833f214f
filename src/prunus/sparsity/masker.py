"""The masker: the one object of this room that remembers anything.

One optimizer step, in the order in which the masker must see it:

    masker.observe(model)     after the last backward (and clipping), before optimizer.step(): scores see the gradient
    optimizer.step()
    masker.step(model)        counts the step, updates the masks when they are due, makes the zeros exact

Between two updates a pruned weight is written to zero after every optimizer step: masking gradients alone does not keep
it there, since the momentum of the optimizer moves it (and decoupled weight decay never sees the mask).

With ``allow_regrowth`` the dense weights S of a weight w live on, with m the mask (True = kept):

    after optimizer.step()    S <- w + S * (1 - m)     (where m = 0, w holds just the optimizer's update of a zero)
    after an update of m      w <- S * m

Parameters are looked up by their plain names (``wrappers``) at each use and never kept: a wrapped model is the same model, and
what replaces parameters (sharding, casting) stays correct. Masks, scores and dense weights follow their weight to its device.
"""

from collections.abc import Mapping, Sequence
from operator import le, ne

import torch
from torch import Tensor, nn

from prunus.errors import CheckpointError, Problem, TrainingError
from prunus.sparsity.allocation import global_cuts, importance, in_multiples, lowest, on_one_device
from prunus.sparsity.measure import TensorFacts, measure
from prunus.sparsity.patterns import Pattern
from prunus.sparsity.pruning import Pruning, Rule, resolve
from prunus.sparsity.scorer import KINDS, Scorer, tell_blank
from prunus.sparsity.scores import least_kept
from prunus.sparsity.selection import Cut, count_of, kept
from prunus.sparsity.structures import pattern_for
from prunus.sparsity.targets import Selection, Targets, select
from prunus.sparsity.sharding import LOCAL, local, world_of
from prunus.sparsity.wrappers import parameter
from prunus.sparsity.zeros import found_zeros

__all__ = ["Masker"]


class Masker:
    """Scores, masks and the step count of a pruning run, all by parameter name.

    ``prunings`` are the rules; ``total_steps`` and ``steps_per_epoch`` count optimizer steps and turn the spans of the
    schedules into steps. ``state`` is what ``state_dict`` returned in an earlier run of the same recipe; the masker then
    goes on where that one was. ``saved`` are masks (bool ``[out, in]``, True = kept) that were saved with the model: a rule
    that locks zeros keeps those of its mask. Raises ``RecipeError`` with all problems of all rules.
    """

    def __init__(
        self,
        model: nn.Module,
        prunings: Pruning | Sequence[Pruning],
        total_steps: int,
        steps_per_epoch: float | None = None,
        *,
        seed: int = 0,
        state: Mapping[str, Tensor] | None = None,
        saved: Mapping[str, Tensor] | None = None,
    ) -> None:
        several = [prunings] if isinstance(prunings, Pruning) else list(prunings)
        self.rules: list[Rule] = resolve(model, several, total_steps, steps_per_epoch or total_steps)
        self.steps = 0
        self._world = world_of(model, self.patterns)
        self._scorer = Scorer(seed, self._world)
        self._masks: dict[str, Tensor] = {}  # bool [out, in], True where the weight is kept
        self._dense: dict[str, Tensor] = {}
        self._planned: dict[str, int] = {}  # zeros that the last update asked for
        if state is not None:
            self._load(model, state)
        else:
            for index, rule in enumerate(self.rules):
                if rule.pruning.lock:
                    taken, key = rule.selection.taken, f"prune[{index}]"
                    self._hold(found_zeros(model, taken, rule.pattern, rule.pruning.sparsity, saved, key))
                elif rule.timetable.due(0) and rule.timetable.prunes(0):
                    self._update(model, rule)
            self.apply(model)
        self._scorer.watch(model, self.rules, self.steps)

    @classmethod
    def lock(
        cls,
        model: nn.Module,
        targets: Targets | None = None,
        *,
        pattern: str = "unstructured",
        sparsity: float | None = None,
        masks: Mapping[str, Tensor] | None = None,
    ) -> "Masker":
        """A masker that keeps every weight of the targets that is zero now at zero, element by element.

        For fine-tuning a model that is sparse already; ``pattern``, ``sparsity`` and ``masks`` say what its zeros are expected
        to be. Raises ``TargetError`` where nothing is zero, or other weights than expected.
        """
        rule = Pruning(sparsity, pattern, targets=targets or Targets(), lock=True)
        shape = pattern_for(model, pattern)
        taken = select(model, rule.targets, shape).taken
        zeros = found_zeros(model, taken, shape, sparsity, masks)
        masker = cls(model, rule, total_steps=1, state={})  # which does not look for them again
        masker._hold(zeros)
        return masker

    # What a training loop calls

    @torch.no_grad()
    def observe(self, model: nn.Module, rate: float = 1.0) -> None:
        """Updates the scores of gradient criteria from ``.grad``; call once per optimizer step, before it.

        ``rate`` is the share of its peak that the learning rate has now, which that of learning scores follows.
        """
        for rule in self.rules:
            remaining = rule.timetable.update_steps[-1] - self.steps
            # A criterion without history looks only at the step before an update; none is looked at after the last one.
            wanted = remaining > 0 if rule.criterion.history else rule.timetable.due(self.steps + 1)
            for name in rule.selection.taken if rule.criterion.needs_gradient and wanted else ():
                gradient = parameter(model, name).grad
                if gradient is not None:
                    weight, grad = self._weight(model, name), local(gradient)
                    dense = self._dense.get(name, weight)
                    self._scorer.see(name, rule, dense, grad, self.steps, rate)
                    if rule.pruning.scores is not None and name in self._masks:
                        grad.mul_(self._masks[name])

    def step(self, model: nn.Module) -> bool:
        """Call once after each optimizer step. True if masks were updated."""
        self._absorb(model)
        self.steps += 1
        due = [rule for rule in self.rules if rule.timetable.due(self.steps)]
        for rule in due:
            self._update(model, rule)
            self._scorer.updated(rule, self.steps == rule.timetable.update_steps[-1])
        self.apply(model)
        if self.finished:
            self._scorer.unwatch()
        return bool(due)

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Makes the zeros exact. May be called at any time; a second call changes nothing."""
        for name in self._masks:
            weight = self._weight(model, name)
            if name in self._dense:
                weight.copy_(self._dense[name])
            weight.mul_(self._masks[name])

    def finish(self, model: nn.Module) -> list[TensorFacts]:
        """Masks a last time and counts. Raises ``TrainingError`` where the zeros asked for are not there."""
        self._scorer.unwatch()
        with torch.no_grad():
            for name in self._masks:
                # Not apply(): the weights may be those of a restored checkpoint, which no dense weights may overwrite. And a
                # product would leave -0.0 where the weight was negative.
                weight = self._weight(model, name)
                weight.masked_fill_(~self._masks[name], 0.0)
        facts = self.measure(model)
        found = [
            Problem(
                "steps",
                self.steps,
                f"reach the last mask update, step {rule.timetable.update_steps[-1]}",
                "a longer training",
            )
            for rule in self.rules
            if self.steps < rule.timetable.update_steps[-1]
        ]
        found += [
            Problem(fact.name, fact.zeros, f"hold the {self._planned[fact.name]} zeros asked for", "a bug report")
            for fact in facts
            if fact.zeros < self._planned.get(fact.name, 0)
        ]
        if found:
            raise TrainingError(*found)
        return facts

    def collect(self) -> None:
        """Puts masks of sharded parameters together, once training is over and the model is whole; all processes call it."""
        self._masks = self.masks
        self._dense, self._world = {}, LOCAL

    # What a report asks

    @property
    def patterns(self) -> dict[str, Pattern]:
        """Pattern of each tensor that is held, in order."""
        return {name: rule.pattern for rule in self.rules for name in rule.selection.taken}

    @property
    def masks(self) -> dict[str, Tensor]:
        """Masks by name, bool ``[out, in]``, True where a weight is kept; of sharded parameters put together, by all."""
        return {name: self._world.whole(name, mask) for name, mask in self._masks.items()}

    @property
    def sharded(self) -> bool:
        """Whether processes hold parts of the parameters."""
        return self._world is not LOCAL

    @property
    def selections(self) -> list[Selection]:
        """What each rule took and skipped."""
        return [rule.selection for rule in self.rules]

    @property
    def planned(self) -> dict[str, int]:
        """Zeros that the latest update asked for, by name."""
        return dict(self._planned)

    @property
    def finished(self) -> bool:
        """True when every rule has had its last update."""
        return all(self.steps >= rule.timetable.update_steps[-1] for rule in self.rules)

    def due(self, ahead: int = 0) -> float:
        """Sparsity that the schedules ask for now, or so many steps from now, over all targets."""
        weights, step = sum(rule.selection.weights for rule in self.rules), self.steps + ahead
        zeros = sum(
            (self._final(rule) if rule.pruning.learns_sparsity else rule.timetable.sparsity(step, self._final(rule)))
            * rule.selection.weights
            for rule in self.rules
        )
        return zeros / weights if weights else 0.0

    @property
    def prunes_next(self) -> bool:
        """Whether the next step may ask for more zeros than there are now."""
        return self.due(1) > self.due() or any(
            rule.pruning.learns_sparsity and rule.timetable.due(self.steps + 1) for rule in self.rules
        )

    def measure(self, model: nn.Module) -> list[TensorFacts]:
        """Zeros counted in the weights of the targets."""
        return measure(model, self.patterns)

    def bytes(self) -> dict[str, int]:
        """Memory held now, by kind: masks, scores, dense weights."""
        kinds = {"masks": self._masks.values(), "scores": self._scorer.tensors(), "dense_weights": self._dense.values()}
        return {kind: sum(t.numel() * t.element_size() for t in held) for kind, held in kinds.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that a later masker needs to go on, as a flat dictionary of tensors.

        Of sharded parameters it is that of the whole, and all processes call it.
        """
        state = {"steps": torch.tensor(self.steps), "seed": torch.tensor(self._scorer.seed)}
        whole = self._world.whole
        state |= {f"mask.{name}": whole(name, value) for name, value in self._masks.items()}
        state |= {f"dense.{name}": whole(name, value) for name, value in self._dense.items()}
        for key, value in self._scorer.state_dict().items():
            kind, _, name = key.partition(".")
            state[key] = value if kind == "input" else whole(name, value, units=True)
        return state | {f"planned.{name}": torch.tensor(value) for name, value in self._planned.items()}

    # How it works

    def _weight(self, model: nn.Module, name: str) -> Tensor:
        """The part of a weight that this process holds, the same memory; what is kept of it moves to its device."""
        weight = local(parameter(model, name).detach())
        for kept_ in (self._masks, self._dense):
            if name in kept_ and kept_[name].device != weight.device:
                kept_[name] = kept_[name].to(weight.device)
        self._scorer.follow(name, weight.device)
        return weight

    def _hold(self, masks: Mapping[str, Tensor]) -> None:
        for name, mask in masks.items():
            self._masks[name] = mask
            self._planned[name] = mask.numel() - int(torch.count_nonzero(mask))

    def _final(self, rule: Rule) -> float:
        """Final sparsity of a rule over all of its weights, the user's per-tensor values counted in."""
        final, taken = rule.pruning.allocation.final, rule.selection.taken
        if rule.pruning.lock or rule.pruning.learns_sparsity:
            return sum(self._planned.get(name, 0) for name in taken) / rule.selection.weights
        zeros = sum(final(name, rule.sparsity) * out * inp for name, (out, inp) in taken.items())
        return zeros / rule.selection.weights

    def _absorb(self, model: nn.Module) -> None:
        with torch.no_grad():
            for name in self._dense:
                weight = self._weight(model, name)
                self._dense[name].mul_(~self._masks[name]).add_(weight)

    @torch.no_grad()
    def _update(self, model: nn.Module, rule: Rule) -> None:
        pattern, pruning, shapes = rule.pattern, rule.pruning, rule.selection.taken
        elements: dict[str, Tensor] = {}
        units: dict[str, Tensor] = {}
        blank = []
        for name in shapes:
            weight = self._weight(model, name)
            if weight.is_meta:
                rule_ = "hold numbers when masks are updated"
                raise TrainingError(Problem(name, "the meta device", rule_, "loading the weights first"))
            if pruning.allow_regrowth and name not in self._dense:
                self._dense[name] = weight.clone()
            dense = self._dense.get(name, weight)
            score = self._scorer.score(name, rule, dense)
            whole = self._planned.get(name) == shapes[name][0] * shapes[name][1]  # all of it is zero already
            if not whole and not self._world.count(name, score, ne, 0.0):
                blank.append(name)
            kind = pruning.allocation.importance
            score = importance(score, kind, self._scorer.own(name, score), name, self._world)
            held = None if pruning.allow_regrowth else self._masks.get(name)
            if pattern.needs_element_scores:
                elements[name] = score if held is None else score.masked_fill(~held, -torch.inf)
                units[name] = self._world.pool(name, pattern, elements[name], pruning.reduce)
            else:
                kept_units = None if held is None else self._kept_units(name, held, pattern, shapes[name])
                units[name] = score if kept_units is None else score.masked_fill(~kept_units, -torch.inf)
        tell_blank(rule, blank, self.steps)
        cuts = self._cuts(rule, units)
        if pruning.allocation.multiple > 1:
            cuts = in_multiples(units, cuts, pruning.allocation.multiple, self._world)
        for name, cut in cuts.items():
            keep = kept(units[name], self._world.own(name, units[name], cut))
            self._masks[name] = self._world.expand(name, pattern, keep, elements.get(name), shapes[name]).contiguous()
            self._planned[name] = cut.k * pattern.zeros_per_unit(shapes[name])

    def _kept_units(self, name: str, mask: Tensor, pattern: Pattern, shape: tuple[int, int]) -> Tensor:
        rows, columns = pattern.units(shape)
        if not self._world.crosses(name):
            return mask[:: shape[0] // rows, :: shape[1] // columns]
        return self._world.pool(name, pattern, mask.float(), "max") > 0

    def _cuts(self, rule: Rule, units: Mapping[str, Tensor]) -> dict[str, Cut]:
        scores = rule.pruning.scores
        if scores is not None and scores.threshold is not None:
            edge = scores.threshold * rule.timetable.share(self.steps)
            cuts = {}
            for name, score in units.items():
                size = self._world.size(name, score)
                below = self._world.count(name, torch.sigmoid(score), le, edge)
                cuts[name] = lowest(name, score, min(below, size - least_kept(size)), self._world)
            return cuts
        allocation, most = rule.pruning.allocation, rule.pattern.max_sparsity
        if allocation.scope == "global":
            sizes = {name: rule.pattern.zeros_per_unit(shape) for name, shape in rule.selection.taken.items()}
            fraction = rule.fraction_of_units(self.steps, rule.sparsity)
            units = on_one_device(units)
            return global_cuts(units, fraction, min(1.0, allocation.max_per_tensor / most), sizes, self._world)
        cuts = {}
        for name, score in units.items():
            fraction = rule.fraction_of_units(self.steps, allocation.final(name, rule.sparsity))
            cuts[name] = lowest(name, score, count_of(fraction, self._world.size(name, score)), self._world)
        return cuts

    def _load(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        shapes = {name: shape for rule in self.rules for name, shape in rule.selection.taken.items()}
        scores = {name: rule.score_shape(name) for rule in self.rules for name in rule.selection.taken}
        for key, value in state.items():
            kind, _, name = key.partition(".")
            if name and name not in shapes:
                rule = "name only tensors that this recipe prunes"
                raise CheckpointError(Problem("masker state", name, rule, "the recipe that the state was saved with"))
            if kind in ("mask", "dense") and tuple(value.shape) != shapes[name]:
                rule = f"have the shape {list(shapes[name])} of {name}"
                raise CheckpointError(Problem("masker state", list(value.shape), rule, "the model it was saved with"))
            if kind in KINDS and kind != "input" and tuple(value.shape) != scores[name]:
                rule = f"have the shape {list(scores[name])} of the scores of {name}"
                fix = "the pattern and the criterion that the state was saved with"
                raise CheckpointError(Problem("masker state", list(value.shape), rule, fix))
            device = parameter(model, name).device if name else torch.device("cpu")
            if kind == "steps":
                self.steps = int(value)
            elif kind == "seed":
                self._scorer.seed = int(value)
            elif kind == "planned":
                self._planned[name] = int(value)
            elif kind == "mask":
                self._masks[name] = self._world.part(name, value.to(device, torch.bool, copy=True))
            elif kind in KINDS:
                own = value if kind == "input" else self._world.units(name, value)
                self._scorer.load(kind, name, own.to(device))
            elif kind == "dense":
                self._dense[name] = self._world.part(name, value.to(device, copy=True))
