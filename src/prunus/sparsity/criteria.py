"""Criteria: how much a weight matters. Higher scores are kept.

A criterion is an object that does not change. What it remembers of one weight is a ``State``, a dictionary of tensors that the
masker keeps, moves to the weight's device, saves and loads:

    init       the state before the first observation
    observe    one optimizer step: updates the state from the weight w and its gradient g = dL/dw
    score      scores of the weight's units now

R pools the values of weights to units of the pattern (``reduce``; N:M has one score per weight, so R does nothing there). Many
criteria are a *contribution* c(w, g), element by element, and a *history* h in [0, 1]:

    s_t = h * s_{t-1} + R(c(w_t, g_t))          s_0 = 0

==============  ===========  ====  ==========================================================================
criterion       c(w, g)      h     source
==============  ===========  ====  ==========================================================================
gradient        |g|          0     the last step's gradient
snip            |w * g|      0     SNIP, Lee et al. 2019, arXiv:1810.02340, equation 3
snip_momentum   |w * g|      0.9   Intel Neural Compressor 2.x: 0.9 on the history, 1 on the new term
movement        -w * g       1     Movement pruning, Sanh et al. 2020, arXiv:2005.07683, equation 3, learning rate 1
==============  ===========  ====  ==========================================================================

magnitude       R |w|; no gradient. Han et al. 2015, arXiv:1506.02626
random          u(0, 1), drawn once from a seed, so that masks grow and do not jump; a control
wanda           R(|w| * ||x||), x the layer's inputs since the last update. Sun et al. 2023, arXiv:2306.11695, equation 1
first_order     |sum over the unit of w * g|, summed since the last update. Michel et al. 2019, arXiv:1905.10650, equation 2
platon          mean sensitivity x mean uncertainty, see ``Platon``. Zhang et al. 2022, arXiv:2206.12562
movement        with ``scores``: scores are trained by Adam, see ``LearnedMovement``

A new criterion is a function (of w and g, with a history) or a small class, and an entry in ``CRITERIA``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Final
from zlib import crc32

import torch
from torch import Tensor

from prunus.errors import Problem, TargetError, nearest
from prunus.sparsity.patterns import Reduce
from prunus.sparsity.sharding import SINGLE, Shard, Sharding, pool, units_here

__all__ = [
    "CRITERIA",
    "Context",
    "Criterion",
    "Scores",
    "State",
    "criterion",
    "learn",
    "least_kept",
    "regularizer_gradient",
]

State = dict[str, Tensor]
"""What a criterion remembers of one weight: float32 tensors by name. Of sharded weights, the units of this process."""


@dataclass(frozen=True)
class Context:
    """One pruned weight at one step of the training: what scores may depend on besides the weight and its gradient."""

    name: str
    shard: Shard
    score_shape: tuple[int, int]
    """Of the scores of the whole weight: one per unit, or one per weight for N:M."""
    reduce: Reduce = "mean"
    sharding: Sharding = SINGLE
    seed: int = 0
    step: int = 0
    """Optimizer steps done, in ``observe`` and ``score``."""
    lr_share: float = 1.0
    """The learning rate, as a share of its peak, in ``observe``."""
    progress: float = 0.0
    """How far the schedule has gone on its way from 0 to the final sparsity, in [0, 1]."""
    tensors: int = 1
    """How many weights the rule prunes."""
    buffers: State = field(default_factory=dict)
    """Memory that is used again at the next update, and not saved."""

    def pool(self, values: Tensor) -> Tensor:
        """R: scores of the units here from values of the weights here; for N:M the values themselves."""
        if self.shard.pattern.needs_element_scores:
            return values
        return pool(self.sharding, self.shard, values, self.reduce)

    def zeros(self, device: torch.device) -> Tensor:
        """A zero for each score that belongs to this process."""
        full = torch.empty(self.score_shape, device="meta")
        return torch.zeros(units_here(self.shard, full).shape, device=device)

    def buffer(self, like: Tensor) -> Tensor:
        """Float32 memory of the shape and device of ``like``; fresh memory costs more than computing magnitudes does."""
        if self.name not in self.buffers or self.buffers[self.name].device != like.device:
            self.buffers[self.name] = torch.empty_like(like, dtype=torch.float32)
        return self.buffers[self.name]


@dataclass(frozen=True)
class Criterion(ABC):
    """How much the units of a weight matter; the attributes say what the masker has to show it, and when.

    Weights and gradients come as float32 ``[out, in]``, of sharded weights the rows of this process.
    """

    name: str
    state: ClassVar[tuple[str, ...]] = ()
    """Names of the tensors of its state: those of ``score_shape``, or of any shape where ``needs_input``."""
    needs_gradient: ClassVar[bool] = False
    needs_input: ClassVar[bool] = False
    """Whether it observes what comes into the layers, in the place of gradients."""
    of_units: ClassVar[bool] = False
    """Whether it scores whole units, so that N:M, whose units choose among their own weights, has no use for it."""
    restarts: ClassVar[bool] = False
    """Whether each mask update begins a new state."""

    @property
    def needs_every_step(self) -> bool:
        """Whether it observes every step; if not, only the one before a mask update."""
        return self.needs_gradient

    def init(self, context: Context, device: torch.device) -> State:
        """The state before the first observation."""
        return {name: context.zeros(device) for name in self.state}

    def observe(self, state: State, context: Context, weight: Tensor, gradient: Tensor) -> None:
        """Updates ``state`` with the gradient of one optimizer step. Called where ``needs_gradient``."""
        raise NotImplementedError

    def observe_input(self, state: State, context: Context, inputs: Tensor) -> None:
        """Updates ``state`` with inputs ``[..., in]`` of the layer, float32. Called where ``needs_input``."""
        raise NotImplementedError

    @abstractmethod
    def score(self, state: State, context: Context, weight: Tensor) -> Tensor:
        """Scores of the units here (of the weights here, for N:M), float32."""


@dataclass(frozen=True)
class Magnitude(Criterion):
    """|w|."""

    def score(self, state: State, context: Context, weight: Tensor) -> Tensor:
        """R |w|."""
        return context.pool(torch.abs(weight, out=context.buffer(weight)))


@dataclass(frozen=True)
class Random(Criterion):
    """The same draw at every update; of a sharded weight the same as of the whole one."""

    def score(self, state: State, context: Context, weight: Tensor) -> Tensor:
        """u(0, 1), from the seed and the weight's name."""
        generator = torch.Generator().manual_seed(context.seed ^ crc32(context.name.encode()))
        return units_here(context.shard, torch.rand(context.score_shape, generator=generator)).to(weight.device)


@dataclass(frozen=True)
class History(Criterion):
    """s <- h s + R(c(w, g))."""

    contribution: Callable[[Tensor, Tensor], Tensor]
    history: float
    state = ("score",)
    needs_gradient = True

    @property
    def needs_every_step(self) -> bool:
        """Not without a history."""
        return self.history > 0

    def observe(self, state: State, context: Context, weight: Tensor, gradient: Tensor) -> None:
        """Adds this step's contribution."""
        new = context.pool(self.contribution(weight, gradient))
        state["score"] = state["score"].mul_(self.history).add_(new) if self.history else new

    def score(self, state: State, context: Context, weight: Tensor) -> Tensor:
        """The history of contributions."""
        return state["score"]


@dataclass(frozen=True)
class FirstOrder(Criterion):
    """s <- s + |sum over the unit of w g|, from each mask update to the next."""

    state = ("score",)
    needs_gradient = of_units = restarts = True

    def observe(self, state: State, context: Context, weight: Tensor, gradient: Tensor) -> None:
        """Adds this step's sums."""
        state["score"].add_(pool(context.sharding, context.shard, weight * gradient, "sum").abs())

    def score(self, state: State, context: Context, weight: Tensor) -> Tensor:
        """The sum so far."""
        return state["score"]


@dataclass(frozen=True)
class Wanda(Criterion):
    """|w| times the L2 norm of what has come into it since the last mask update, over all processes."""

    state = ("input",)
    needs_input = restarts = True

    def init(self, context: Context, device: torch.device) -> State:
        """Sums of squares ``[in]``."""
        return {"input": torch.zeros(context.shard.shape[1], device=device)}

    def observe_input(self, state: State, context: Context, inputs: Tensor) -> None:
        """Adds the squares of one batch."""
        squares = inputs.flatten(0, -2).square().sum(0)
        state["input"] = state["input"].to(squares.device).add_(squares)

    def score(self, state: State, context: Context, weight: Tensor) -> Tensor:
        """R(|w| ||x||)."""
        squares = state["input"]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            squares = squares.clone()
            torch.distributed.all_reduce(squares)
        return context.pool((weight * squares.sqrt()).abs_())


@dataclass(frozen=True)
class Platon(Criterion):
    """PLATON, Zhang et al. 2022, arXiv:2206.12562: weights whose importance is uncertain are kept, too.

    With I = R |w g| of this step, from I' = U' = 0,

        I' <- beta1 I' + (1 - beta1) I
        U' <- beta2 U' + (1 - beta2) |I - I'|          with the new I'
        score = I' U'
    """

    beta1: float = 0.85
    beta2: float = 0.95
    state = ("importance", "uncertainty")
    needs_gradient = True

    def observe(self, state: State, context: Context, weight: Tensor, gradient: Tensor) -> None:
        """Updates both averages."""
        sensitivity = context.pool(_sensitivity(weight, gradient))
        state["importance"].lerp_(sensitivity, 1 - self.beta1)
        state["uncertainty"].lerp_((sensitivity - state["importance"]).abs_(), 1 - self.beta2)

    def score(self, state: State, context: Context, weight: Tensor) -> Tensor:
        """I' U'."""
        return state["importance"] * state["uncertainty"]


# Movement with scores that are trained


@dataclass(frozen=True)
class Scores:
    """How the scores of ``LearnedMovement`` are trained."""

    learning_rate: float = 0.01
    """Learning rate of the trained scores."""
    threshold: float | None = None
    """Soft movement: a weight is pruned if the sigmoid of its score is at or below this value. Leave out `sparsity`,
    because the sparsity is then a result of the training."""
    regularization: float = 0.0
    """Soft movement: final weight of the penalty on the scores; higher means more zeros."""

    def problems(self, key: str) -> list[Problem]:
        """What is wrong with these numbers."""
        problems = []
        if not self.learning_rate > 0:
            problems.append(Problem(f"{key}.learning_rate", self.learning_rate, "be above 0", "0.01"))
        if self.threshold is not None and not 0 < self.threshold < 1:
            problems.append(Problem(f"{key}.threshold", self.threshold, "be in (0, 1)", "0.1"))
        if not self.regularization >= 0:
            problems.append(Problem(f"{key}.regularization", self.regularization, "be 0 or above", "190"))
        if self.regularization and self.threshold is None:
            rule = "come with threshold: hard movement goes by its schedule"
            problems.append(Problem(f"{key}.regularization", self.regularization, rule, "threshold: 0.1"))
        return problems


@dataclass(frozen=True)
class LearnedMovement(Criterion):
    """Movement pruning with trained scores, hard and soft (Sanh et al. 2020, arXiv:2005.07683).

    With w the dense weight behind the mask, g = dL/d(w m) and n the units of a tensor, of M tensors

        G_t  = R(w g) + l_t / (M n) sigma'(s)          straight through the mask; the second term is soft movement's regularizer
        s   <- Adam(s, G_t), learning rate = learning_rate x the share of the peak that the weights' own rate has now

        hard    m keeps the k highest s, k by the schedule's sparsity
        soft    m keeps sigma(s) > tau_t, and at least 0.5 % of a tensor's units;
                tau_t = threshold x progress, l_t = regularization x progress

    progress is that part of the way which the schedule has gone (1 - (1 - x)^3 of ``polynomial``). Scores begin at 0. A masked
    weight gets no gradient, as in the paper; its score does, and brings it back.
    """

    scores: Scores = Scores()
    state = ("score", "first_moment", "second_moment")
    needs_gradient = True

    def observe(self, state: State, context: Context, weight: Tensor, gradient: Tensor) -> None:
        """One step of Adam."""
        of_score = -context.pool(_movement(weight, gradient))
        score, first, second = (state[name] for name in self.state)
        if self.scores.regularization:
            strength = self.scores.regularization * context.progress
            units = context.score_shape[0] * context.score_shape[1]
            of_score = of_score + regularizer_gradient(score, strength, context.tensors, units)
        learn(score, first, second, of_score, self.scores.learning_rate * context.lr_share, context.step + 1)

    def score(self, state: State, context: Context, weight: Tensor) -> Tensor:
        """The trained scores."""
        return state["score"]


_BETAS: Final = (0.9, 0.999)
_EPSILON: Final = 1e-8


def regularizer_gradient(score: Tensor, strength: float, tensors: int, units: int | None = None) -> Tensor:
    """d/ds of ``strength`` x the mean over ``tensors`` of the mean of sigma(s), for one of them.

    ``units`` is how many scores the tensor has, where ``score`` is a part of them.
    """
    sigma = torch.sigmoid(score)
    return sigma * (1 - sigma) * (strength / (tensors * (units or score.numel())))


def learn(score: Tensor, first: Tensor, second: Tensor, gradient: Tensor, rate: float, step: int) -> None:
    """One step of Adam (Kingma & Ba 2015, algorithm 1), in place; ``step`` counts from 1."""
    first.lerp_(gradient, 1 - _BETAS[0])
    second.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
    size = (second / (1 - _BETAS[1] ** step)).sqrt_().add_(_EPSILON)
    score.addcdiv_(first, size, value=-rate / (1 - _BETAS[0] ** step))


def least_kept(units: int) -> int:
    """How many units of a tensor soft movement keeps whatever their scores."""
    return min(units, int(0.005 * units) + 1)


# The table


def _gradient(weight: Tensor, gradient: Tensor) -> Tensor:
    return gradient.abs()


def _sensitivity(weight: Tensor, gradient: Tensor) -> Tensor:
    return (weight * gradient).abs_()


def _movement(weight: Tensor, gradient: Tensor) -> Tensor:
    return (weight * gradient).neg_()


_ALL: Final = (
    Magnitude("magnitude"),
    History("gradient", _gradient, 0.0),
    History("snip", _sensitivity, 0.0),
    History("snip_momentum", _sensitivity, 0.9),
    FirstOrder("first_order"),
    History("movement", _movement, 1.0),
    Platon("platon"),
    Wanda("wanda"),
    Random("random"),
)
CRITERIA: Final[dict[str, Criterion]] = {criterion.name: criterion for criterion in _ALL}


def criterion(name: str, scores: Scores | None = None, key: str = "criterion") -> Criterion:
    """The criterion of that name, with ``scores`` the one that trains them; a ``TargetError`` names the nearest."""
    if name not in CRITERIA:
        rule = "be one of " + ", ".join(CRITERIA)
        raise TargetError(Problem(key, name, rule, nearest(name, CRITERIA)))
    return CRITERIA[name] if scores is None else LearnedMovement(name, scores)
