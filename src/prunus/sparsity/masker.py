"""The masker: the one object of this room with state.

One optimizer step, in the order in which the masker must see it:

    masker.observe(model)     after the last backward (and clipping), before optimizer.step(): scores see the gradient
    optimizer.step()
    masker.step(model)        counts the step, updates the masks when they are due, makes the zeros exact

A mask update: scores of the criterion (``scorer``) -> new masks (``mask_update``).

Between two updates a pruned weight is written to zero after every optimizer step: masking gradients alone does not keep
it there, since the momentum of the optimizer moves it (and decoupled weight decay never sees the mask).

With ``revive`` the masker keeps the dense weights d of a weight w, with m the mask (True = kept):

    after optimizer.step()    d <- w + d * (1 - m)     (where m = 0, w holds just the optimizer's update of a zero)
    after an update of m      w <- d * m

Parameters are looked up by their plain names (``wrappers``) at each use and never stored: a wrapped model is the same model,
and what replaces parameters (sharding, casting) stays correct. Masks, scores and dense weights follow the device of a weight.
"""

from collections.abc import Container, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from prunus.errors import CheckpointError, Problem, TrainingError
from prunus.sparsity.allocation import importance
from prunus.sparsity.continuing import (
    check_shape,
    continued,
    finish_problems,
    read_rules,
    rules_as_tensor,
    state_problems,
)
from prunus.sparsity.mask_update import select_masks
from prunus.sparsity.measure import TensorFacts, is_sharded, measure
from prunus.sparsity.patterns import Pattern
from prunus.sparsity.pruning import Pruning, Rule, resolve
from prunus.sparsity.scorer import Scorer, report_blank
from prunus.sparsity.sharding import SINGLE, here, local, reshard, rows_here, shards_of, undivided, units_here
from prunus.sparsity.structures import pattern_for
from prunus.sparsity.targets import Selection, Targets, select
from prunus.sparsity.wrappers import names_of, parameter
from prunus.sparsity.zeros import masks_by_name, masks_of_zeros

__all__ = ["Masker"]


class Masker:
    """Scores, masks and the step count of a pruning run, all by parameter name.

    ``prunings`` are the rules; ``total_steps`` and ``steps_per_epoch`` count optimizer steps and turn the spans of the
    schedules into steps. ``state`` is what ``state_dict`` returned in an earlier run of the same rules; the masker then
    continues from there, also in a training of another length (``continuing``). ``saved`` are masks (``[out, in]``, bool or 0
    and 1, True = kept) that were saved with the model: a rule that locks zeros keeps those of its mask. Raises ``RecipeError``
    with all problems of all rules, ``CheckpointError`` for a state of other rules or of another model.
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
        saved = None if saved is None else masks_by_name(model, saved, skip_unknown=True)
        self.rules: list[Rule] = resolve(model, several, total_steps, steps_per_epoch or total_steps)
        self._timetables = [rule.timetable for rule in self.rules]  # of this length, had it begun with it
        self.steps = 0
        weights = {name: parameter(model, name) for name in self.patterns}
        self.tied = names_of(model, weights)  # name -> itself and the names that the same weight has beside it
        self._sharding, self._shards = shards_of(weights, self.patterns)
        self._scorer = Scorer(seed, self._sharding, self._shards)
        self._masks: dict[str, Tensor] = {}  # bool [out, in], True where the weight is kept
        self._dense: dict[str, Tensor] = {}  # weights behind the masks, where they may regrow
        self._planned: dict[str, int] = {}  # zeros that the last update made
        if state is not None:
            self._load(weights, state)
        else:
            for index, rule in enumerate(self.rules):
                if rule.pruning.lock:
                    taken, key = rule.selection.taken, f"prune[{index}]"
                    self._lock(masks_of_zeros(model, taken, rule.pattern, rule.pruning.sparsity, saved, key))
                elif rule.timetable.due(0) and rule.timetable.prunes(0):
                    self._update(model, rule)
            self.apply(model)
        self._scorer.add_hooks(model, self.rules, self.steps)

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
        to be (see ``locking.lock``). Raises ``TargetError`` where nothing is zero, or other weights than expected.
        """
        rule = Pruning(sparsity, pattern, targets=targets or Targets(), lock=True)
        shape = pattern_for(model, pattern)
        taken = select(model, rule.targets, shape).taken
        given = None if masks is None else masks_by_name(model, masks, taken if targets is None else None)
        zeros = masks_of_zeros(model, taken, shape, sparsity, given)
        masker = cls(model, rule, total_steps=1, state={})  # which does not look for them again
        masker._lock(zeros)
        return masker

    # What a training loop calls

    @torch.no_grad()
    def observe(self, model: nn.Module, lr_share: float = 1.0) -> None:
        """Shows gradient criteria the gradients in ``.grad``; call once per optimizer step, before it.

        ``lr_share`` is the learning rate as a share of its peak, which the learning rate of trained scores follows.
        """
        self._follow(model)
        for rule in self.rules:
            if not rule.criterion.needs_gradient or not rule.observes_next(self.steps):
                continue
            for name in rule.selection.taken:
                if (gradient := parameter(model, name).grad) is None:
                    continue
                weight, grad = self._rows(name, parameter(model, name)), local(gradient)
                self._scorer.observe(name, rule, self._dense.get(name, weight), grad, self.steps, lr_share)
                if rule.pruning.scores is not None and name in self._masks:
                    grad.mul_(self._masks[name])

    def step(self, model: nn.Module) -> bool:
        """Call once after each optimizer step. True if masks were updated."""
        self._follow(model)
        self._update_dense_weights(model)
        self.steps += 1
        due = [rule for rule in self.rules if rule.timetable.due(self.steps)]
        try:
            for rule in due:
                self._update(model, rule)
                self._scorer.after_update(rule, last=self.steps == rule.timetable.update_steps[-1])
        except BaseException:
            self._scorer.remove_hooks()
            raise
        self.apply(model)
        if self.finished:
            self._scorer.remove_hooks()
        return bool(due)

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Makes the zeros exact. May be called at any time; a second call changes nothing."""
        self._follow(model)
        for name in self._masks:
            for i, weight in enumerate(self._tied_rows(model, name)):
                if i == 0 and name in self._dense:
                    weight.copy_(self._dense[name])
                weight.mul_(self._masks[name])

    def finish(self, model: nn.Module) -> list[TensorFacts]:
        """Masks a last time and counts. Raises ``TrainingError`` where zeros are missing."""
        self._scorer.remove_hooks()
        self._follow(model)
        with torch.no_grad():
            for name in self._masks:
                # Not apply(): dense weights may not overwrite a restored checkpoint, and a product leaves -0.0 of negatives.
                for weight in self._tied_rows(model, name):
                    weight.masked_fill_(~self._masks[name], 0.0)
        facts = self.measure(model)
        problems = finish_problems(self.rules, self._planned, {fact.name: fact.zeros for fact in facts}, self.steps)
        if problems:
            raise TrainingError(*problems)
        return facts

    def collect(self) -> None:
        """Gathers masks of sharded parameters, once training is over and the model is whole; all processes call it."""
        self._masks = self.masks
        self._dense, self._sharding = {}, SINGLE
        self._shards = {name: undivided(shard) for name, shard in self._shards.items()}

    # What a report asks

    @property
    def patterns(self) -> dict[str, Pattern]:
        """Pattern of each weight that a rule prunes, in order."""
        return {name: rule.pattern for rule in self.rules for name in rule.selection.taken}

    @property
    def masks(self) -> dict[str, Tensor]:
        """Masks by name, bool ``[out, in]``, True where a weight is kept; of sharded parameters gathered, in all processes."""
        return {name: self._sharding.gather(mask) for name, mask in self._masks.items()}

    @property
    def sharded(self) -> bool:
        """Whether several processes hold parts of the parameters."""
        return not self._sharding.single

    @property
    def selections(self) -> list[Selection]:
        """What each rule took and skipped."""
        return [rule.selection for rule in self.rules]

    @property
    def planned(self) -> dict[str, int]:
        """Zeros that the latest update made, by name."""
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
        """Bytes in use now, by kind: masks, scores, dense weights."""
        kinds = {"masks": self._masks.values(), "scores": self._scorer.tensors(), "dense_weights": self._dense.values()}
        return {kind: sum(t.numel() * t.element_size() for t in tensors) for kind, tensors in kinds.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that a later masker needs to continue, as a flat dictionary of tensors.

        Of sharded parameters it is that of the whole, and all processes call it.
        """
        state = {"steps": torch.tensor(self.steps), "seed": torch.tensor(self._scorer.seed)}
        state["rules"] = rules_as_tensor(self.rules, self._timetables)
        state |= {f"mask.{name}": mask for name, mask in self.masks.items()}
        state |= {f"dense.{name}": self._sharding.gather(dense) for name, dense in self._dense.items()}
        inputs = {name for rule in self.rules if rule.criterion.needs_input for name in rule.selection.taken}
        for name, key, value in self._scorer.items():
            state[f"{key}.{name}"] = value if name in inputs else self._sharding.gather(value)
        return state | {f"planned.{name}": torch.tensor(value) for name, value in self._planned.items()}

    # How it works

    def masked(
        self, weights: Sequence[tuple[str, Tensor]], wanted: Container[int] | None = None
    ) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Of named weights (all, or those whose ``id`` is ``wanted``): name, rows here (the same memory), rows of the mask.

        ``locking`` finds weights that are no longer in the model. Where they are sharded, all processes call it.
        """
        self._share_out(dict(weights))
        for name, weight in weights:
            if wanted is None or id(weight) in wanted:
                yield name, self._rows(name, weight), self._masks[name]

    def total(self, places: Tensor) -> int:
        """How many of the places (bool) of a weight's rows are True, in all processes that have rows of it."""
        return int(self._sharding.sum(torch.tensor(int(torch.count_nonzero(places)))))

    def _rows(self, name: str, whole: Tensor) -> Tensor:
        """The rows of a weight that this process holds, the same memory; mask, dense weights and scores move to its device."""
        weight = here(name, whole.detach(), self._shards[name])
        for tensors in (self._masks, self._dense):
            if name in tensors and tensors[name].device != weight.device:
                tensors[name] = tensors[name].to(weight.device)
        self._scorer.to_device(name, weight.device)
        return weight

    def _tied_rows(self, model: nn.Module, name: str) -> Iterator[Tensor]:
        """``_rows`` of the weight of that name, then of those that shared it with other layers and no longer do."""
        weights = {id(weight): weight for weight in (parameter(model, each) for each in self.tied[name])}
        return (self._rows(name, weight) for weight in weights.values())

    def _follow(self, model: nn.Module) -> None:
        """Shares out what was made before ``fully_shard``, and lets go of parameters that an evaluation has gathered."""
        name = next(iter(self._shards), None)
        if name is None or is_sharded(parameter(model, name)) != self._sharding.single:
            return
        if self._sharding.single:
            self._share_out({name: parameter(model, name) for name in self._shards})
        else:
            reshard(model.modules())

    def _share_out(self, weights: Mapping[str, Tensor]) -> None:
        """Keeps, of masks, dense weights and scores, those of the rows here, where weights were sharded since."""
        if not self._sharding.single or not any(is_sharded(weight) for weight in weights.values()):
            return
        state = {key: value for key, value in self.state_dict().items() if key.partition(".")[2] in weights}
        self._sharding, self._shards = shards_of(weights, self.patterns)
        self._scorer.share_out(self._sharding, self._shards)
        self._masks, self._dense = {}, {}
        self._load_tensors(weights, state)

    def _lock(self, masks: Mapping[str, Tensor]) -> None:
        for name, mask in masks.items():
            self._masks[name] = rows_here(self._shards[name], mask)
            self._planned[name] = mask.numel() - int(torch.count_nonzero(mask))

    def _final(self, rule: Rule) -> float:
        """Final sparsity of a rule over all of its weights, with the user's values for single tensors."""
        final, taken = rule.pruning.allocation.final, rule.selection.taken
        if rule.pruning.lock or rule.pruning.learns_sparsity:
            return sum(self._planned.get(name, 0) for name in taken) / rule.selection.weights
        zeros = sum(final(name, rule.sparsity) * out * inp for name, (out, inp) in taken.items())
        return zeros / rule.selection.weights

    @torch.no_grad()
    def _update_dense_weights(self, model: nn.Module) -> None:
        for name in self._dense:
            weight = self._rows(name, parameter(model, name))
            self._dense[name].mul_(~self._masks[name]).add_(weight)

    @torch.no_grad()
    def _update(self, model: nn.Module, rule: Rule) -> None:
        """Selects the rule's masks anew, from the scores as they are now."""
        scores = self._scores(model, rule)
        report_blank(rule, scores, self._planned, self._sharding, self.steps)
        for name, score in scores.items():
            in_place = not self._scorer.is_state(name, score)
            scores[name] = importance(score, rule.pruning.allocation.importance, in_place, self._sharding)
        masks, zeros = select_masks(rule, scores, self._masks, self.steps, self._sharding, self._shards)
        self._masks |= masks
        self._planned |= zeros

    def _scores(self, model: nn.Module, rule: Rule) -> dict[str, Tensor]:
        """The criterion's scores by name: of units, or of weights for N:M."""
        scores = {}
        for name in rule.selection.taken:
            weight = self._rows(name, parameter(model, name))
            if weight.is_meta:
                text = "hold numbers when masks are updated"
                raise TrainingError(Problem(name, "the meta device", text, "loading the weights first"))
            if rule.pruning.revive and name not in self._dense:
                self._dense[name] = weight.clone()
            scores[name] = self._scorer.score(name, rule, self._dense.get(name, weight), self.steps)
        return scores

    # Going on from an earlier run

    def _load(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        self.steps = int(state.get("steps", torch.tensor(0)))
        if "rules" in state:
            self.rules = continued(self.rules, read_rules(state["rules"]), self.steps)
        self._load_tensors(weights, state)
        problems = state_problems(self.rules, state, self.steps)
        if problems:
            raise CheckpointError(*problems)

    def _load_tensors(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        rules = {name: rule for rule in self.rules for name in rule.selection.taken}
        for key, value in state.items():
            kind, _, name = key.partition(".")
            if kind in ("steps", "rules"):
                continue
            if kind == "seed":
                self._scorer.seed = int(value)
            elif name not in rules:
                text = "name only tensors that this recipe prunes"
                raise CheckpointError(Problem("masker state", name, text, "the recipe that the state was saved with"))
            elif kind == "planned":
                self._planned[name] = int(value)
            else:
                self._load_tensor(kind, name, rules[name], value, weights[name].device)

    def _load_tensor(self, kind: str, name: str, rule: Rule, value: Tensor, device: torch.device) -> None:
        """A mask, dense weights, or a tensor of the criterion's state."""
        shard = self._shards[name]
        if kind in ("mask", "dense"):
            check_shape(value, shard.shape, name, "the model it was saved with")
            here = rows_here(shard, value.to(device, torch.bool if kind == "mask" else value.dtype, copy=True))
            (self._masks if kind == "mask" else self._dense)[name] = here
        elif kind not in rule.criterion.state:
            text = f"hold only what criterion {rule.criterion.name} needs"
            raise CheckpointError(Problem("masker state", kind, text, "the recipe that the state was saved with"))
        elif rule.criterion.needs_input:
            self._scorer.load(name, kind, value.to(device))
        else:
            fix = "the pattern and the criterion that the state was saved with"
            check_shape(value, rule.score_shape(name), f"the scores of {name}", fix)
            self._scorer.load(name, kind, units_here(shard, value).to(device))
