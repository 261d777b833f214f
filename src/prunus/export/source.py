"""The directory that an export or a compaction starts from: settings, weights, tokenizer, whatever their form.

``config.json`` leaves out what equals the default of its class, and each class has its own defaults. They are asked of
transformers here, so that the runtime, which does not know transformers, reads complete settings.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from transformers import CONFIG_MAPPING, AutoTokenizer

from prunus.checkpoint.sentence_files import SentenceFiles, find_sentence_files
from prunus.checkpoint.staged import copy_files
from prunus.checkpoint.weights import read_weights
from prunus.errors import CheckpointError, EngineError, Problem, first_line
from prunus.models.checkpoints import read_config
from prunus.runtime.families import DenseEncoder, Settings, canonical, read_settings, shape_of
from prunus.runtime.heads import head_kind, head_of, head_of_settings

__all__ = ["carry_sentence_files", "carry_tokenizer", "full_settings", "read_dense"]

TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "bpe.codes",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "chat_template.jinja",
)
"""Files of tokenizers of every kind."""
PROBES: Final = (
    "a good film",
    "The Quick brown fox, jumped over 12 lazy dogs!",
    "  naïve   café — Größe\tİstanbul\n東京 😀 ",
    "don't [MASK] <mask> re-entry e-mail@example.org",
)
"""Texts that a tokenizer has to read alike before and after: case, accents, spaces, special tokens, other scripts."""


def full_settings(directory: Path) -> Settings:
    """``config.json`` with the defaults of its class for what it leaves out."""
    stated = read_settings(directory / "config.json")
    if stated.get("model_type") not in CONFIG_MAPPING:  # told by name where its family is looked up
        return stated
    config = read_config(directory)
    complete: Settings = json.loads(config.to_json_string(use_diff=False))
    complete.pop("_name_or_path", None)
    return complete | stated


def read_dense(directory: Path, more: Mapping[str, Any] | None = None, *, embeds: bool = False) -> DenseEncoder:
    """The encoder of a Hugging Face directory and its head, from weights of any form.

    Args:
        directory: with ``config.json`` and weights.
        more: settings beside those of ``config.json``.
        embeds: the modules of sentence-transformers read the encoder alone, whatever head it was trained with.

    Raises:
        PrunusError: a file that is missing or damaged, or a model or a head that the fused engine does not have.

    """
    if not (directory / "config.json").is_file():
        raise EngineError(Problem(str(directory / "config.json"), "nothing", "be a file"))
    settings = full_settings(directory) | dict(more or {})
    config = settings.get("quantization_config")
    method = config.get("quant_method") if isinstance(config, Mapping) else None
    if config and method != "prunus":
        rule = "be absent: its numbers are not those of the model"
        fix = "exporting the model as it was before that quantization"
        raise EngineError(Problem("config.json: quantization_config", method or str(config)[:60], rule, fix))
    # What the engine does not have is told before weights are read.
    shape_of(settings)
    name = head_of_settings(settings, embeds)
    head_kind(name)
    weights = read_weights(directory)
    arrays = {name: (value.float() if value.is_floating_point() else value).numpy() for name, value in weights.items()}
    dense = canonical(settings, arrays)
    head_of(name, dense.shape.family, dense.tensors, dense.shape.hidden)
    return dense


def carry_sentence_files(directory: Path, output: Path, files: SentenceFiles | None = None) -> bool:
    """Copies the modules of a sentence-transformers directory, so that the output is one too; whether there were any."""
    files = files or find_sentence_files(directory)
    if files is not None:
        files.copy(output)
    return files is not None


def carry_tokenizer(directory: Path, output: Path, console: Console | None = None) -> Any:
    """Writes the tokenizer of ``directory`` into ``output`` by its own saving, and reads texts with both.

    ``tokenizer.json`` is always among what a fast tokenizer writes, whatever files it came from. Where transformers cannot
    make a tokenizer of the directory its files are copied as they are, and a line on ``console`` says so.

    Returns:
        The tokenizer; None where there is none, or none that transformers reads.

    Raises:
        CheckpointError: the saved one does not give the same ids.

    """
    if not any((directory / name).is_file() for name in TOKENIZER_FILES):
        return None
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(directory)
        reason = "it is empty" if len(tokenizer) <= len(tokenizer.all_special_ids) else ""
    except Exception as error:  # whatever files from outside lack
        tokenizer, reason = None, first_line(error)
    if tokenizer is None or reason:
        copy_files(directory, output, TOKENIZER_FILES)
        if console is not None:
            console.print(f"tokenizer files copied unread: transformers cannot use them ({reason})", highlight=False)
        return None
    tokenizer.save_pretrained(output)
    settings = output / "tokenizer_config.json"
    if (
        settings.is_file()
    ):  # what the class of the tokenizer knows, written down for who reads the files without transformers
        changed = read_settings(settings) | {"model_input_names": list(tokenizer.model_input_names)}
        settings.write_text(json.dumps(changed, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _check_same(tokenizer, output)
    return tokenizer


def _check_same(tokenizer: Any, output: Path) -> None:
    """Compares the saved tokenizer's ids with the original's, in transformers and in ``tokenizers``."""
    again: Any = AutoTokenizer.from_pretrained(output)
    readers: list[tuple[str, Callable[..., Sequence[int]]]] = [("transformers", lambda *texts: ids_of(again, *texts))]
    if (output / "tokenizer.json").is_file():
        from tokenizers import Tokenizer

        raw: Any = Tokenizer.from_file(str(output / "tokenizer.json"))
        raw.no_truncation()
        raw.no_padding()
        readers.append(("tokenizers", lambda *texts: raw.encode(*texts).ids))
    for texts in [(probe,) for probe in PROBES] + [PROBES[:2]]:
        expected = ids_of(tokenizer, *texts)
        for name, read in readers:
            ids = list(read(*texts))
            if ids != expected:
                rule = f"give the same ids after it was saved: {expected[:12]} for {texts[0]!r}, read by {name}"
                fix = "a tokenizer that save_pretrained keeps"
                raise CheckpointError(Problem("the tokenizer", str(ids[:12]), rule, fix))


def ids_of(tokenizer: Any, *texts: str) -> list[int]:
    """Ids of a text or a pair, whole."""
    return list(tokenizer(*texts, truncation=False, padding=False, verbose=False)["input_ids"])
