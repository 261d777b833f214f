"""Texts -> token ids, with the tokenizer that lies beside a packed model (the package ``tokenizers``)."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunus.errors import EngineError, Problem
from prunus.runtime.families import read_settings
from prunus.runtime.sentences import Sentences

__all__ = ["Texts", "check_texts"]

Array = NDArray[Any]


class Texts:
    """The tokenizer of a directory; ``sentences`` where texts are read as sentence-transformers reads them.

    Args:
        directory: of the packed model.
        longest: tokens that the model can read.
        sentences: gives the limit and the case of sentences; None for the tokenizer's own.

    """

    def __init__(self, directory: Path | None, longest: int, sentences: Sentences | None) -> None:
        self._directory, self._longest, self._sentences = directory or Path(), longest, sentences
        self._tokenizer: Any = None
        self._lengths: dict[str, int] = {}

    @property
    def tokenizer(self) -> Any:
        """A ``tokenizers.Tokenizer`` that cuts texts to the longest input and does not pad.

        Raises:
            EngineError: no ``tokenizer.json`` in the directory.

        """
        if self._tokenizer is None:
            self._tokenizer = self._load()
        return self._tokenizer

    def _load(self) -> Any:
        from tokenizers import Tokenizer, normalizers

        path = self._directory / "tokenizer.json"
        if not path.is_file():
            raise EngineError(Problem(str(path), "nothing", "be a file of the tokenizer"))
        tokenizer: Any = Tokenizer.from_file(str(path))
        tokenizer.no_padding()
        settings = self._settings()
        stated = self._sentences.max_length if self._sentences else None
        limit = settings.get("model_max_length") if stated is None else stated
        limit = limit if isinstance(limit, int) and 0 < limit <= self._longest else self._longest
        tokenizer.enable_truncation(limit, direction="left" if settings.get("truncation_side") == "left" else "right")
        if self._sentences and self._sentences.lower:
            lower = normalizers.Lowercase()
            tokenizer.normalizer = normalizers.Sequence(
                [lower, tokenizer.normalizer] if tokenizer.normalizer else [lower]
            )
        return tokenizer

    @cached_property
    def types(self) -> bool:
        """Whether the model is given the types of tokens: the tokenizer's settings may leave them out, whatever its template
        says, and transformers then gives none.
        """
        inputs = self._settings().get("model_input_names")
        return not isinstance(inputs, list) or "token_type_ids" in inputs

    def _settings(self) -> dict[str, Any]:
        path = self._directory / "tokenizer_config.json"
        return read_settings(path) if path.is_file() else {}

    def tokenize(self, texts: Sequence[str | tuple[str, str]]) -> tuple[list[Array], list[Array]]:
        """Token ids and types of texts or pairs of texts.

        Raises:
            EngineError: what is neither a text nor a pair of texts, or no tokenizer.

        """
        check_texts(texts)
        encodings = self.tokenizer.encode_batch([text if isinstance(text, str) else tuple(text) for text in texts])
        ids = [np.array(one.ids) for one in encodings]
        typed = self.types
        kinds = [
            np.array(one.type_ids) if typed else np.zeros_like(row) for one, row in zip(encodings, ids, strict=True)
        ]
        return ids, kinds

    def length(self, prompt: str) -> int:
        """Tokens of a prompt alone, without the special token at its end; as sentence-transformers counts them."""
        if prompt not in self._lengths:
            encoding = self.tokenizer.encode(prompt)
            self._lengths[prompt] = len(encoding.ids) - int(encoding.special_tokens_mask[-1:] == [1])
        return self._lengths[prompt]


def check_texts(texts: Any) -> None:
    """Raises ``EngineError`` for what is neither a text nor a pair of texts, each named."""
    if isinstance(texts, str) or not isinstance(texts, Sequence | np.ndarray):
        raise EngineError(Problem("texts", type(texts).__name__, "be a list of texts, or of pairs of texts"))
    problems = []
    for i, text in enumerate(texts):
        pair = isinstance(text, tuple | list) and len(text) == 2
        for part in text if pair else (text,):
            if not isinstance(part, str):
                problems.append(Problem(f"texts[{i}]", type(part).__name__, "be a text, or a pair of texts"))
            elif not part.isascii() and any("\ud800" <= letter <= "\udfff" for letter in part):
                problems.append(Problem(f"texts[{i}]", ascii(part)[:60], "be Unicode text without lone surrogates"))
    if problems:
        raise EngineError(*problems[:20])
