"""Texts -> token ids, with the model's own tokenizer; and contexts -> windows that share tokens.

A text longer than the model reads is cut at its end, or refused where the request says ``truncate: false``. A context is never
cut: it becomes windows of up to ``answer_tokens``

    [CLS] question [SEP] context tokens i ... j [SEP]        [CLS] question [SEP] context tokens j - stride ... [SEP]

and its question has at most a quarter of a window, as in training. Nothing here changes a tokenizer after it was made, so
threads may share one.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from prunus.errors import EngineError, Problem
from prunus.serving.options import Array, Options, Served
from prunus.serving.postprocessing import Window
from prunus.serving.problems import Refused
from prunus.serving.requests import Text

__all__ = ["Tokens"]

LEAST = 16
"""Tokens of a window that leave room for a question, a context, and a step."""


class Tokens:
    """The tokenizer of an engine, twice: one cuts texts, one cuts contexts into windows."""

    def __init__(self, engine: Served, options: Options) -> None:
        tokenizer = engine.tokenizer
        self._types = engine.token_types
        self.limit = int(
            (tokenizer.truncation or {}).get("max_length") or engine.settings.get("max_position_embeddings") or 512
        )
        self._texts: Any = Tokenizer.from_str(tokenizer.to_str())
        self._texts.no_padding()
        self._texts.enable_truncation(self.limit, direction=(tokenizer.truncation or {}).get("direction", "right"))
        window = min(options.answer_tokens, self.limit)
        self._question = window // 4
        self._windows: Any = None
        if engine.head.kind == "span":
            if window < LEAST:
                raise EngineError(Problem("answer_tokens", window, f"be at least {LEAST}, as the model's limit"))
            self._windows = Tokenizer.from_str(tokenizer.to_str())
            self._windows.no_padding()
            stride = min(options.answer_stride, window // 2)
            self._windows.enable_truncation(window, stride=stride, strategy="only_second")

    def of_texts(self, texts: Sequence[Text], truncate: bool, key: str) -> tuple[list[Array], list[Array]]:
        """Ids and types of texts or pairs.

        Raises:
            Refused: 400 a text without a token; 422 too many tokens, and ``truncate`` is false.

        """
        encodings = self._texts.encode_batch(list(texts))
        long = [i for i, one in enumerate(encodings) if one.overflowing]
        if long and not truncate:
            rule = f"have at most {self.limit} tokens where truncate is false"
            problems = [Problem(f"{key}[{i}]", f"more than {self.limit} tokens", rule, "truncate: true") for i in long]
            raise Refused(422, *problems[:20])
        empty = [
            Problem(f"{key}[{i}]", texts[i], "hold at least one token")
            for i, one in enumerate(encodings)
            if not one.ids
        ]
        if empty:
            raise Refused(400, *empty[:20])
        return [np.array(one.ids) for one in encodings], [self._kinds(one) for one in encodings]

    def of_ids(self, ids: Sequence[Sequence[int]], truncate: bool, key: str) -> tuple[list[Array], list[Array]]:
        """Ids as they were sent, cut at the end.

        Raises:
            Refused: 422 too many tokens, and ``truncate`` is false.

        """
        long = [i for i, one in enumerate(ids) if len(one) > self.limit]
        if long and not truncate:
            rule = f"have at most {self.limit} tokens where truncate is false"
            problems = [Problem(f"{key}[{i}]", f"{len(ids[i])} tokens", rule, "truncate: true") for i in long]
            raise Refused(422, *problems[:20])
        arrays = [np.array(one[: self.limit], np.int64) for one in ids]
        return arrays, [np.zeros_like(one) for one in arrays]

    def of_question(self, question: str, context: str, truncate: bool, key: str) -> list[Window]:
        """Windows of one question.

        Raises:
            Refused: 422 a question that is too long, and ``truncate`` is false.

        """
        alone = self._texts.encode(question.strip(), add_special_tokens=False)
        if len(alone.ids) > self._question:
            if not truncate:
                rule = f"have at most {self._question} tokens where truncate is false"
                raise Refused(422, Problem(key, f"more than {self._question} tokens", rule, "truncate: true"))
            question = question.strip()[: alone.offsets[self._question - 1][1]]
        encoding = self._windows.encode(question.strip(), context)
        return [window_of(one, self._kinds(one)) for one in (encoding, *encoding.overflowing)]

    def _kinds(self, encoding: Any) -> Array:
        return np.array(encoding.type_ids if self._types else [0] * len(encoding.ids), np.int64)


def window_of(encoding: Any, types: Array) -> Window:
    places = np.array([i for i, part in enumerate(encoding.sequence_ids) if part == 1], np.int64)
    characters = np.array(encoding.offsets, np.int64).reshape(-1, 2)[places]
    return Window(np.array(encoding.ids), types, places, characters)
