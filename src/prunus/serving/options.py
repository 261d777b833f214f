"""What a server may hold and how long it waits: every bound in one place, and what an engine has to have."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, Protocol

from numpy.typing import NDArray

from prunus.errors import EngineError, Problem
from prunus.runtime.heads import Head
from prunus.runtime.sentences import Sentences

__all__ = ["Array", "Options", "Served"]

Array = NDArray[Any]


class Served(Protocol):
    """The part of ``prunus.runtime.Engine`` that the server uses."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """``config.json``."""

    @property
    def head(self) -> Head:
        """What the model's task does with the states."""

    @property
    def tokenizer(self) -> Any:
        """A ``tokenizers.Tokenizer`` that truncates to the longest input."""

    @property
    def token_types(self) -> bool:
        """Whether the tokenizer gives the model types of tokens; zeros where not."""

    @property
    def sentences(self) -> Sentences:
        """How a sentence becomes an embedding."""

    @property
    def features(self) -> int:
        """Features of an embedding."""

    def skipped(self, prompt: str) -> int:
        """Tokens of a prompt that are left out of the pooling."""

    def embed(self, states: Array, skip: int = 0) -> Array:
        """``[tokens, hidden]`` -> ``[features]``: the embedding of one sentence."""

    def states(self, sequences: Sequence[Array], types: Sequence[Array] | None = None) -> list[Array]:
        """Hidden states ``[tokens, hidden]`` of each sequence of token ids."""


_FLAGS: Final = {
    name: "--" + name.replace("_", "-")
    for name in ("name", "max_batch_tokens", "queue_tokens", "max_wait_ms", "max_body_bytes")
}
"""Options that ``prunus serve`` has flags for."""


@dataclass(frozen=True)
class Options:
    """Bounds of one server; times are in seconds unless the name says otherwise."""

    name: str = "model"
    """Of the model, as clients see it."""
    max_batch_tokens: int = 4096
    """Tokens that one pass of the engine computes, unless one sequence is longer."""
    max_wait_ms: float = 0.0
    """How long a lone request waits for others. 0: batches form while the engine is busy, an idle one starts at once."""
    queue_tokens: int = 65536
    """Tokens that may wait; also the most that one request may have."""
    queue_requests: int = 1024
    """Requests that may wait."""
    open_requests: int = 2048
    """Requests that may be read, wait, or be answered at a time: bounds the memory of their bodies."""
    max_body_bytes: int = 2**20
    max_inputs: int = 2048
    """Texts in one request."""
    read_timeout: float = 10.0
    """For the head of a request, and again for its body."""
    grace: float = 30.0
    """How long a stop waits for what was accepted."""
    answer_tokens: int = 384
    """Of a window of question and context; shorter where the model is."""
    answer_stride: int = 128
    """Tokens that neighbouring windows share."""
    answer_longest: int = 30
    """Tokens of an answer."""

    def __post_init__(self) -> None:
        problems = []
        for entry in fields(self):
            value, least = getattr(self, entry.name), 1 if entry.type is int else 0
            if entry.type is str:
                fine, rule = isinstance(value, str) and bool(value), "be a name"
            else:
                kinds = int if entry.type is int else (int, float)
                fine = isinstance(value, kinds) and not isinstance(value, bool) and least <= value < 2**40
                rule = "be a whole number of at least 1" if least else "be a number of at least 0"
            if not fine:
                key = f"{entry.name} ({_FLAGS[entry.name]})" if entry.name in _FLAGS else entry.name
                problems.append(Problem(key, value, rule, "" if entry.type is str else f"{entry.default}, the default"))
        if problems:
            raise EngineError(*problems)
        if self.queue_tokens < self.max_batch_tokens:
            rule = f"be at least max_batch_tokens (--max-batch-tokens), {self.max_batch_tokens}"
            fix = f"--queue-tokens {self.max_batch_tokens}, or a smaller --max-batch-tokens"
            raise EngineError(Problem("queue_tokens (--queue-tokens)", self.queue_tokens, rule, fix))
