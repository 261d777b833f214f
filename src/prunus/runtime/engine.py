"""A packed model that answers like the one it was made from.

    engine = prunus.runtime.load("out/packed")
    engine(**tokenizer("A fine film.", return_tensors="pt")).logits          torch in, torch out; numpy in, numpy out
    engine.encode(["first sentence", "second one"])                          sentence embeddings [2, hidden]

Sequences of a batch are packed: padding is not computed. What stands at a padded place of an output is 0; of start and end
logits -10000, so that no answer begins there.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunus.errors import EngineError, Problem
from prunus.runtime.convert import Model, chunks
from prunus.runtime.encoder import Encoder
from prunus.runtime.families import read_settings
from prunus.runtime.heads import Head, head_of
from prunus.runtime.isa import choose
from prunus.runtime.store import read_model

__all__ = ["Engine", "Output", "load"]

Array = NDArray[Any]
AT_ONCE = 4096
"""Tokens that one pass computes at most, unless one sequence is longer: bounds the memory of a large batch."""
NOWHERE = -10000.0


class Output(dict[str, Any]):
    """What a model returns: by name, by attribute, or by position."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __getitem__(self, key: Any) -> Any:
        return list(self.values())[key] if isinstance(key, int | slice) else super().__getitem__(key)

    def to_tuple(self) -> tuple[Any, ...]:
        """The values, in order."""
        return tuple(self.values())


class Engine:
    """A packed encoder with its head, its threads and its tokenizer's directory.

    One engine computes one call at a time; calls from several threads wait for each other.
    """

    def __init__(
        self, model: Model, directory: Path | None = None, threads: int | None = None, isa: str | None = None
    ) -> None:
        count = processors() if threads is None else threads
        if not 1 <= count <= 256:
            raise EngineError(Problem("threads", count, "be 1 to 256"))
        self.model, self.directory = model, directory
        self.settings = model.settings
        architectures = model.settings.get("architectures") or [""]
        self.architecture = str(architectures[0]) if isinstance(architectures, list) else str(architectures)
        self.head: Head = head_of(self.architecture, model.shape.family, model.tensors, model.shape.hidden)
        self.encoder = Encoder(model, choose(isa), count)
        self._tokenizer: Any = None

    @property
    def threads(self) -> int:
        """Of this engine."""
        return self.encoder.team.threads

    @property
    def longest(self) -> int:
        """Tokens that a sequence may have."""
        return self.model.shape.positions - self.model.shape.first_position

    def facts(self) -> dict[str, Any]:
        """What was loaded: precision, kinds of layers, bytes, instruction set, threads."""
        kinds: dict[str, int] = {}
        for layer in self.model.layers:
            for packed in layer.values():
                kinds[packed.kind] = kinds.get(packed.kind, 0) + 1
        tensors = sum(tensor.nbytes for tensor in self.model.tensors.values())
        return {
            "architecture": self.architecture,
            "precision": "int8" if self.model.integers else "float32",
            "isa": self.encoder.isa.name,
            "threads": self.threads,
            "kinds": kinds,
            "bytes": {
                "layers": sum(packed.bytes for layer in self.model.layers for packed in layer.values()),
                "embeddings and head": tensors,
                "working memory": self.encoder.bytes,
            },
        }

    def states(
        self, sequences: Sequence[Array], types: Sequence[Array] | None = None, positions: Sequence[Array] | None = None
    ) -> list[Array]:
        """Hidden states ``[tokens, hidden]`` of each sequence of token ids.

        Raises:
            EngineError: an empty or too long sequence, or ids outside the vocabulary.

        """
        first = self.model.shape.first_position
        ids = [whole_numbers(f"input_ids[{i}]", one, 1) for i, one in enumerate(sequences)]
        kinds = [np.zeros_like(one) for one in ids]
        if types is not None:
            kinds = [whole_numbers(f"token_type_ids[{i}]", one, 1) for i, one in enumerate(types)]
        places = [np.arange(first, first + len(one)) for one in ids]
        if positions is not None:
            places = [whole_numbers(f"positions[{i}]", one, 1) for i, one in enumerate(positions)]
        lengths = np.array([len(one) for one in ids], np.int64)
        for name, given in (("token_type_ids", kinds), ("positions", places)):
            if [len(one) for one in given] != lengths.tolist():
                got = f"{len(given)} sequences of {[len(one) for one in given[:8]]} tokens"
                raise EngineError(Problem(name, got, f"fit input_ids: {len(ids)} sequences"))
        if not ids:
            raise EngineError(Problem("input_ids", "an empty batch", "hold at least one sequence"))
        flat = np.stack([np.concatenate(parts) for parts in (ids, places, kinds)])
        return np.split(self._run(lengths, flat), np.cumsum(lengths)[:-1])

    def _run(self, lengths: Array, flat: Array) -> Array:
        """Hidden states ``[tokens, hidden]``; ``flat`` is ``[3, tokens]``: ids, positions, types, one after the other."""
        shape = self.model.shape
        if shape.types == 1:
            flat[2] = 0
        limits = (shape.words, shape.positions, shape.types)
        fine = lengths.size and lengths.min() > 0 and lengths.max() <= self.longest and flat.min() >= 0
        if not fine or any(most >= limit for most, limit in zip(flat.max(1).tolist(), limits, strict=True)):
            self._explain(lengths, flat, limits)
        if lengths.sum() <= AT_ONCE:
            return self.encoder.run(lengths, flat)
        found, done = [], np.concatenate([[0], np.cumsum(lengths)])
        for chunk in chunks(lengths.tolist(), AT_ONCE):
            begin, end = done[chunk[0]], done[chunk[-1] + 1]
            found.append(self.encoder.run(lengths[chunk], np.ascontiguousarray(flat[:, begin:end])))
        return np.concatenate(found)

    def _explain(self, lengths: Array, flat: Array, limits: tuple[int, int, int]) -> None:
        """Raises what is wrong with each sequence."""
        problems = []
        if not lengths.size:
            problems.append(Problem("input_ids", "an empty batch", "hold at least one sequence"))
        for i, part in enumerate(np.split(flat, np.cumsum(lengths)[:-1], axis=1) if lengths.size else ()):
            name, tokens = f"input_ids[{i}]", part.shape[1]
            if not tokens:
                problems.append(Problem(name, "no token", "hold at least one token"))
                continue
            if tokens > self.longest:
                problems.append(Problem(name, f"{tokens} tokens", f"hold at most {self.longest}", "truncation=True"))
                continue
            for what, row, limit in zip((name, f"positions[{i}]", f"token_type_ids[{i}]"), part, limits, strict=True):
                if row.min() < 0 or row.max() >= limit:
                    problems.append(Problem(what, f"{row.min()} .. {row.max()}", f"hold numbers 0 .. {limit - 1}"))
        raise EngineError(*problems[:20])

    def __call__(self, input_ids: Any, attention_mask: Any = None, token_type_ids: Any = None, **others: Any) -> Output:
        """What the Hugging Face model returns for ``[batch, tokens]``: logits, start and end logits, or hidden states.

        Raises:
            EngineError: inputs that do not fit the model, or an option that the engine does not have.

        """
        unknown = [name for name, v in others.items() if v is not None and v is not False and name != "return_dict"]
        if unknown:
            raise EngineError(Problem(", ".join(unknown), "given", "be left out: the engine has no such option"))
        torch: Any = sys.modules.get("torch")  # who passes a tensor has imported it
        wants_torch = torch is not None and isinstance(input_ids, torch.Tensor)
        ids = whole_numbers("input_ids", input_ids, 2)
        mask = None if attention_mask is None else whole_numbers("attention_mask", attention_mask, 2, floats=True) != 0
        kinds = None if token_type_ids is None else whole_numbers("token_type_ids", token_type_ids, 2)
        for name, given in (("attention_mask", mask), ("token_type_ids", kinds)):
            if given is not None and given.shape != ids.shape:
                raise EngineError(Problem(name, given.shape, f"have the shape of input_ids, {ids.shape}"))
        if mask is not None and mask.all():
            mask = None  # the usual case has a path of few steps
        shape = self.model.shape
        if shape.first_position:  # counted over what is no padding, as these families do
            places = np.cumsum(ids != shape.padding, axis=1) * (ids != shape.padding) + shape.padding
        else:
            places = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
        lengths = np.full(len(ids), ids.shape[1], np.int64) if mask is None else mask.sum(1)
        flat = np.zeros((3, int(lengths.sum())), np.int64)
        for row, values in zip(flat, (ids, places, kinds), strict=True):
            if values is not None:
                row[:] = values.reshape(-1) if mask is None else values[mask]
        output = self._output(self._run(lengths, flat), lengths, ids.shape, mask)
        if wants_torch:
            output = Output({name: torch.from_numpy(value) for name, value in output.items()})
        return output

    def _output(self, states: Array, lengths: Array, shape: tuple[int, ...], mask: Array | None) -> Output:
        def spread(values: Array, empty: float) -> Array:
            if mask is None:
                return values.reshape(*shape, *values.shape[1:])
            whole = np.full((*shape, *values.shape[1:]), empty, np.float32)
            whole[mask] = values
            return whole

        firsts = np.cumsum(lengths) - lengths
        if self.head.kind == "sequence":
            return Output(logits=self.head(states[firsts]))
        if self.head.kind == "tokens":
            return Output(logits=spread(self.head(states), 0.0))
        if self.head.kind == "span":
            both = spread(self.head(states), NOWHERE)
            return Output(
                start_logits=np.ascontiguousarray(both[..., 0]), end_logits=np.ascontiguousarray(both[..., 1])
            )
        output = Output(last_hidden_state=spread(states, 0.0))
        if self.head.layers:
            output["pooler_output"] = self.head(states[firsts])
        return output

    @property
    def tokenizer(self) -> Any:
        """The tokenizer beside the model (the package ``tokenizers``)."""
        if self._tokenizer is None:
            from tokenizers import Tokenizer

            path = (self.directory or Path()) / "tokenizer.json"
            if not path.is_file():
                raise EngineError(Problem(str(path), "nothing", "be a file of the tokenizer"))
            self._tokenizer = Tokenizer.from_file(str(path))
            self._tokenizer.no_padding()
            self._tokenizer.enable_truncation(min(self.longest, self._limit()))
        return self._tokenizer

    def _limit(self) -> int:
        """The longest input that the tokenizer's own settings allow."""
        path = (self.directory or Path()) / "tokenizer_config.json"
        limit = read_settings(path).get("model_max_length") if path.is_file() else None
        return limit if isinstance(limit, int) and 0 < limit <= self.longest else self.longest

    def tokenize(self, texts: Sequence[str | tuple[str, str]]) -> tuple[list[Array], list[Array]]:
        """Token ids and types of texts or pairs of texts."""
        encodings = self.tokenizer.encode_batch(list(texts))
        return [np.array(e.ids) for e in encodings], [np.array(e.type_ids) for e in encodings]

    def encode(self, sentences: str | Sequence[str], normalize_embeddings: bool = True) -> Array:
        """Sentence embeddings ``[sentences, hidden]``: the mean of the last hidden states, of length one if asked.

        The call of sentence-transformers; one sentence as a plain string gives one embedding ``[hidden]``.
        """
        texts = [sentences] if isinstance(sentences, str) else list(sentences)
        if not texts:
            return np.zeros((0, self.model.shape.hidden), np.float32)
        means = np.stack([state.mean(0) for state in self.states(*self.tokenize(texts))])
        if normalize_embeddings:
            means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
        return means[0] if isinstance(sentences, str) else means

    def close(self) -> None:
        """Ends the engine's threads."""
        self.encoder.team.close()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()


def whole_numbers(name: str, value: Any, dimensions: int, floats: bool = False) -> Array:
    """An int64 array of one or two dimensions; a single sequence stands for a batch of one."""
    rule = "hold whole numbers, " + ("[sequences, tokens]" if dimensions == 2 else "one dimension")
    try:
        given = np.asarray(value)
        kind = given.dtype.kind if given.size else "i"
        if kind not in ("iub" + "f" * floats) or given.ndim > dimensions:
            raise EngineError(Problem(name, f"{given.dtype} {given.shape}", rule))
        given = given.astype(np.int64, copy=False)
        return given.reshape(-1) if dimensions == 1 else given if given.ndim == 2 else np.atleast_2d(given)
    except (ValueError, TypeError, OverflowError, RuntimeError) as error:
        raise EngineError(Problem(name, str(error), rule)) from None


def processors() -> int:
    """Processors of this process, or ``PRUNUS_THREADS``."""
    stated = os.environ.get("PRUNUS_THREADS", "")
    if stated:
        return int(stated) if stated.isdecimal() else 0
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load(directory: str | Path, threads: int | None = None, isa: str | None = None) -> Engine:
    """Loads a packed model.

    Args:
        directory: what ``prunus export --to prunus`` wrote.
        threads: of this engine; all processors of this process without it (or ``PRUNUS_THREADS``).
        isa: forces a path of instructions (or ``PRUNUS_ISA``).

    Raises:
        EngineError: a file that is missing, damaged or of another version; a processor without the instructions.

    """
    place = Path(directory)
    return Engine(read_model(place), place, threads, isa)
