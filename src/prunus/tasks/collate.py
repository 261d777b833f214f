"""Tokenised rows, packed while they wait and padded when they are used.

A row of Python lists costs about 50 bytes a token; ``TokenizedRows`` keeps the same row in typed arrays (6 bytes a token) and
hands it out as the dictionary of lists that ``prunus.tasks.base`` describes. ``Collate`` pads a batch to its longest
row.

Padding is always on the right, whatever the tokenizer prefers: answer positions count from the start of a row, and the
attention mask keeps padding out of bidirectional models as causality keeps it out of decoders.
"""

from array import array
from collections.abc import Sequence
from itertools import pairwise
from typing import Final, overload

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prunus.tasks.base import Feature

__all__ = ["IGNORED", "TOKEN_KEYS", "Collate", "TokenizedRows"]

TOKEN_KEYS: Final = {"input_ids": "i", "attention_mask": "b", "token_type_ids": "b"}
"""Lists with one entry a token that a model takes -> the array type that holds them."""

IGNORED: Final = -100
"""The label of a token that is not predicted."""

_OFFSETS: Final = "offsets"
_NOTHING: Final = -1


class TokenizedRows(Sequence[Feature]):
    """A sequence of features with the same keys, in little memory.

    Lists are those of ``TOKEN_KEYS`` and ``offsets`` (character ranges, or None outside the context); every other value
    is a number.
    """

    def __init__(self) -> None:
        self._ends = array("q", [0])
        self._tokens: dict[str, array[int]] = {}
        self._offsets: array[int] | None = None
        self._numbers: dict[str, list[int | float]] = {}

    def append(self, feature: Feature) -> None:
        """Add a row. All rows have the keys of the first one, and lists as long as its ``input_ids``."""
        length = len(feature["input_ids"])
        if len(self) == 0:
            self._tokens = {key: array(code) for key, code in TOKEN_KEYS.items() if key in feature}
            self._offsets = array("i") if _OFFSETS in feature else None
            self._numbers = {key: [] for key in feature if key not in TOKEN_KEYS and key != _OFFSETS}
        keys = {*self._tokens, *self._numbers, *([_OFFSETS] if self._offsets is not None else [])}
        if feature.keys() != keys:
            raise ValueError(f"a row has the keys {sorted(feature)}, the first one {sorted(keys)}")
        for key in (*self._tokens, *([_OFFSETS] if self._offsets is not None else [])):
            if len(feature[key]) != length:
                raise ValueError(f"{key} has {len(feature[key])} entries, input_ids has {length}")
        for key, tokens in self._tokens.items():
            tokens.extend(feature[key])
        if self._offsets is not None:
            for span in feature[_OFFSETS]:
                self._offsets.extend((_NOTHING, _NOTHING) if span is None else span)
        for key, numbers in self._numbers.items():
            numbers.append(feature[key])
        self._ends.append(self._ends[-1] + length)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> Feature: ...

    @overload
    def __getitem__(self, index: slice) -> list[Feature]: ...

    def __getitem__(self, index: int | slice) -> Feature | list[Feature]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        first, last = self._ends[position], self._ends[position + 1]
        feature: Feature = {key: tokens[first:last].tolist() for key, tokens in self._tokens.items()}
        feature.update({key: numbers[position] for key, numbers in self._numbers.items()})
        if self._offsets is not None:
            flat = self._offsets[2 * first : 2 * last].tolist()
            pairs = zip(flat[::2], flat[1::2], strict=True)
            feature[_OFFSETS] = [None if pair[0] == _NOTHING else pair for pair in pairs]
        return feature

    def lengths(self) -> list[int]:
        """Tokens of each row, for a sampler that groups rows of similar length."""
        return [last - first for first, last in pairwise(self._ends)]


class Collate:
    """Features -> a batch of tensors for a model; the ``data_collator`` of a trainer.

    ``input_ids``, ``attention_mask`` and ``token_type_ids`` become int64 ``[rows, longest row]``, padded on the right;
    ``labels`` int64 (float32 if they are floats), ``start_positions`` / ``end_positions`` and ``row_id`` (of numbered rows)
    int64, all ``[rows]``; labels of tokens, which are lists, ``[rows, longest row]``, padded with ``IGNORED``.
    Every other key is left out. A tokenizer without a padding token pads with its end-of-text token, or with id 0.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, pad_to_multiple_of: int | None = None) -> None:
        candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        pad_id = next(int(candidate) for candidate in candidates if candidate is not None)
        self._padding = {"input_ids": pad_id, "attention_mask": 0, "token_type_ids": int(tokenizer.pad_token_type_id)}
        self._multiple = pad_to_multiple_of or 1

    def __call__(self, features: Sequence[Feature]) -> dict[str, Tensor]:
        """The batch of at least one feature."""
        longest = max(len(feature["input_ids"]) for feature in features)
        width = -(-longest // self._multiple) * self._multiple
        batch: dict[str, Tensor] = {}
        for key, padding in self._padding.items():
            if key in features[0]:
                rows = [feature[key] + [padding] * (width - len(feature[key])) for feature in features]
                batch[key] = torch.tensor(rows, dtype=torch.int64)
        for key in ("labels", "start_positions", "end_positions", "row_id"):
            if key in features[0]:
                values = [feature[key] for feature in features]
                if isinstance(values[0], list):
                    values = [ids + [IGNORED] * (width - len(ids)) for ids in values]
                    batch[key] = torch.tensor(values, dtype=torch.int64)
                    continue
                kind = torch.float32 if isinstance(values[0], float) else torch.int64
                batch[key] = torch.tensor(values, dtype=kind)
        return batch
