"""A packed model that answers like the one it was made from.

    engine = prunus.runtime.load("out/packed")
    engine(**tokenizer("A fine film.", return_tensors="pt")).logits          torch in, torch out; numpy in, numpy out
    engine.encode(["first sentence", "second one"])                          sentence embeddings [2, hidden]

Sequences of a batch are packed: padding is not computed. What stands at a padded place of an output is 0; of start and end
logits -10000, so that no answer begins there.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunus.errors import EngineError, Problem
from prunus.runtime.convert import Model, chunks
from prunus.runtime.encoder import Encoder
from prunus.runtime.families import places
from prunus.runtime.heads import Head, head_of, head_of_settings
from prunus.runtime.isa import choose
from prunus.runtime.processors import processors
from prunus.runtime.sentences import MEAN, unit
from prunus.runtime.store import read_model
from prunus.runtime.texts import Texts, check_texts

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
        self.architecture = head_of_settings(model.settings)
        self.sentences = model.sentences or MEAN
        named = head_of_settings(model.settings, model.sentences is not None)
        self.head: Head = head_of(named, model.shape.family, model.tensors, model.shape.hidden)
        self.encoder = Encoder(model, choose(isa), count)
        self._read = Texts(directory, self.longest, self.sentences)
        self._texts = self._read if self.head.kind == "none" else Texts(directory, self.longest, None)

    @property
    def threads(self) -> int:
        """Of this engine."""
        return self.encoder.pool.threads

    @property
    def longest(self) -> int:
        """Tokens that a sequence may have."""
        return self.model.shape.positions - self.model.shape.first_position

    def facts(self) -> dict[str, Any]:
        """What was loaded: precision, layers of each weight format, bytes, instruction set, threads."""
        formats: dict[str, int] = {}
        for layer in self.model.layers:
            for packed in layer.values():
                formats[packed.weight_format] = formats.get(packed.weight_format, 0) + 1
        tensors = sum(tensor.nbytes for tensor in self.model.tensors.values())
        return {
            "architecture": self.architecture,
            "precision": "int8" if self.model.integers else "float32",
            "isa": self.encoder.isa.name,
            "threads": self.threads,
            "weight_formats": formats,
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
        ids = [whole_numbers(f"input_ids[{i}]", one, 1) for i, one in enumerate(sequences)]
        kinds = [np.zeros_like(one) for one in ids]
        if types is not None:
            kinds = [whole_numbers(f"token_type_ids[{i}]", one, 1) for i, one in enumerate(types)]
        at = [places(self.model.shape, one) for one in ids]
        if positions is not None:
            at = [whole_numbers(f"positions[{i}]", one, 1) for i, one in enumerate(positions)]
        lengths = np.array([len(one) for one in ids], np.int64)
        for name, given in (("token_type_ids", kinds), ("positions", at)):
            if [len(one) for one in given] != lengths.tolist():
                got = f"{len(given)} sequences of {[len(one) for one in given[:8]]} tokens"
                raise EngineError(Problem(name, got, f"fit input_ids: {len(ids)} sequences"))
        if not ids:
            raise EngineError(Problem("input_ids", "an empty batch", "hold at least one sequence"))
        flat = np.stack([np.concatenate(parts) for parts in (ids, at, kinds)])
        return np.split(self._run(lengths, flat), np.cumsum(lengths)[:-1])

    def _run(self, lengths: Array, flat: Array) -> Array:
        """Hidden states ``[tokens, hidden]``; ``flat`` is ``[3, tokens]``: ids, positions, types, one after the other."""
        shape = self.model.shape
        if shape.types == 1:
            flat[2] = 0
        limits = (shape.vocab_size, shape.positions, shape.types)
        fine = lengths.size and lengths.min() > 0 and lengths.max() <= self.longest and flat.min() >= 0
        if not fine or any(most >= limit for most, limit in zip(flat.max(1).tolist(), limits, strict=True)):
            self._explain(lengths, flat, limits)
        if lengths.sum() <= AT_ONCE:
            return self.encoder.run(lengths, flat)
        outputs, done = [], np.concatenate([[0], np.cumsum(lengths)])
        for chunk in chunks(lengths.tolist(), AT_ONCE):
            begin, end = done[chunk[0]], done[chunk[-1] + 1]
            outputs.append(self.encoder.run(lengths[chunk], np.ascontiguousarray(flat[:, begin:end])))
        return np.concatenate(outputs)

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
        if mask is not None:
            self._check_mask(mask)
        at = places(self.model.shape, ids)
        lengths = np.full(len(ids), ids.shape[1], np.int64) if mask is None else mask.sum(1)
        flat = np.zeros((3, int(lengths.sum())), np.int64)
        for row, values in zip(flat, (ids, at, kinds), strict=True):
            if values is not None:
                row[:] = values.reshape(-1) if mask is None else values[mask]
        output = self._output(self._run(lengths, flat), lengths, ids.shape, mask)
        if wants_torch:
            output = Output({name: torch.from_numpy(value) for name, value in output.items()})
        return output

    def _check_mask(self, mask: Array) -> None:
        """Refuses masks with which the packed tokens would not give what the model gives.

        Raises:
            EngineError: gaps, where attention depends on distances; padding on the left, where a head reads the first token.

        """
        problems = []
        if self.model.shape.max_distance:
            changes = np.diff(mask.astype(np.int8), axis=1, prepend=0)
            rule = "have no gap within a row: this model's attention depends on the distance of tokens"
            problems += [
                Problem(f"attention_mask[{i}]", "zeros between ones", rule, "input_ids without those tokens")
                for i in np.flatnonzero((changes == 1).sum(1) > 1).tolist()
            ]
        if self.head.kind == "sequence":
            rule = "begin with 1: the head reads the first token of the row"
            problems += [
                Problem(f"attention_mask[{i}]", "a zero at the first token", rule, "padding on the right")
                for i in np.flatnonzero(~mask[:, 0]).tolist()
            ]
        if problems:
            raise EngineError(*problems[:20])

    def _output(self, states: Array, lengths: Array, shape: tuple[int, ...], mask: Array | None) -> Output:
        def spread(values: Array, empty: float) -> Array:
            if mask is None:
                return values.reshape(*shape, *values.shape[1:])
            padded = np.full((*shape, *values.shape[1:]), empty, np.float32)
            padded[mask] = values
            return padded

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
        if self.head.layers and (mask is None or mask[:, 0].all()):
            # The pooler reads the first token of the row; where that is padding there is nothing to give.
            output["pooler_output"] = self.head(states[firsts])
        return output

    @property
    def tokenizer(self) -> Any:
        """The tokenizer beside the model (the package ``tokenizers``)."""
        return self._texts.tokenizer

    @property
    def token_types(self) -> bool:
        """Whether the tokenizer gives the model types of tokens."""
        return self._texts.types

    def tokenize(self, texts: Sequence[str | tuple[str, str]]) -> tuple[list[Array], list[Array]]:
        """Token ids and types of texts or pairs of texts.

        Raises:
            EngineError: something else than texts or pairs of texts, or no tokenizer beside the model.

        """
        return self._texts.tokenize(texts)

    @property
    def features(self) -> int:
        """Features of a sentence's embedding."""
        return self.sentences.width(self.model.shape.hidden, self.model.tensors)

    def skipped(self, prompt: str) -> int:
        """Tokens of a prompt that are left out of the pooling; 0 where they are pooled too."""
        return 0 if not prompt or self.sentences.include_prompt else self._read.length(prompt)

    def embed(self, states: Array, skip: int = 0, normalize: bool | None = None) -> Array:
        """The embedding ``[features]`` of one sentence's states ``[tokens, hidden]``; ``encode`` has the rules.

        ``skip`` counts the tokens of a prompt that are left out (``skipped``).
        """
        vector = self.sentences.embed(states, self.model.tensors, skip)
        plain = self.model.sentences is None
        return unit(vector) if (plain if normalize is None else normalize) else vector

    def encode(
        self,
        sentences: str | Sequence[str],
        normalize_embeddings: bool | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
    ) -> Array:
        """Sentence embeddings ``[sentences, features]``: the call of sentence-transformers, and its result.

        A model that was exported from a directory of sentence-transformers has its modules (pooling, dense layers,
        normalization), its longest input and its prompts. Any other model gives the mean of the last hidden states, of
        length one. One sentence as a plain string gives one embedding ``[features]``.

        Args:
            sentences: texts.
            normalize_embeddings: True: embeddings of length one; False: as the modules leave them, and plain means of a model
                without modules; None: as the modules leave them, and length one for a model without modules.
            prompt: text to put before each sentence.
            prompt_name: name of a prompt of the model; without either the model's default prompt, if it has one.

        Raises:
            EngineError: what is no text, a prompt that the model does not have, or no tokenizer beside the model.

        """
        texts = [sentences] if isinstance(sentences, str) else sentences
        check_texts(texts)
        if not len(texts):
            return np.zeros((0, self.features), np.float32)
        before = self.sentences.prompt(prompt, prompt_name)
        skip = self.skipped(before)
        if before:
            texts = [before + text if isinstance(text, str) else (before + text[0], text[1]) for text in texts]
        states = self.states(*self._read.tokenize(texts))
        embeddings = np.stack([self.embed(state, skip, normalize_embeddings) for state in states])
        return embeddings[0] if isinstance(sentences, str) else embeddings

    def close(self) -> None:
        """Ends the engine's threads."""
        self.encoder.pool.close()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Threads and machine code stay in their process."""
        fix = "prunus.runtime.load, in the process that needs another"
        raise EngineError(Problem("an engine", "to be copied or pickled", "stay as it is", fix))

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


def load(directory: str | Path, threads: int | None = None, isa: str | None = None) -> Engine:
    """Loads a packed model.

    Args:
        directory: what ``prunus export --to prunus`` wrote.
        threads: of this engine; without it ``PRUNUS_THREADS``, or as many as this process has processors or quota for.
        isa: forces a path of instructions (or ``PRUNUS_ISA``).

    Raises:
        EngineError: a file that is missing, damaged or of another version; a processor without the instructions.

    """
    place = Path(directory)
    return Engine(read_model(place), place, threads, isa)
