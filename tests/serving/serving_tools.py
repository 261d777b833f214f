"""Tiny packed models, an engine that waits, a client of a few lines, and a server in a process of its own."""

import asyncio
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)

from prunus.runtime.convert import convert
from prunus.runtime.families import read_checkpoint
from prunus.runtime.store import write_model
from small import TOKENS, WORDS, tiny_tokenizer

CLASSES = {
    "none": BertModel,
    "sequence": BertForSequenceClassification,
    "tokens": BertForTokenClassification,
    "span": BertForQuestionAnswering,
}
LABELS = {0: "bad", 1: "so so", 2: "good"}
LIMIT = 64
"""Tokens that the tiny models read."""


def packed(place: Path, head: str) -> Path:
    """A directory with a random BERT of 16 features, as Hugging Face's and packed, and its tokenizer."""
    config = BertConfig(
        vocab_size=TOKENS,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=LIMIT,
    )
    if head in {"sequence", "tokens"}:
        config.id2label = LABELS
        config.label2id = {name: i for i, name in LABELS.items()}
    torch.manual_seed(0)
    model = CLASSES[head](config)
    with torch.no_grad():  # far from the usual 0.02, so that answers differ
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.ndim == 2 else 1)
    model.save_pretrained(place)
    tiny_tokenizer().save_pretrained(place)
    write_model(convert(read_checkpoint(place)), place)
    return place


def sentence(i: int) -> str:
    """Another one for each number below some thousands."""
    words = [WORDS[(i // len(WORDS) ** k) % len(WORDS)] for k in range(3)]
    return " ".join([*words, *WORDS[: i % 5]])


@dataclass
class Waiting:
    """States that come when ``go`` is set: one number a token, its id. Notes what was asked; refuses the id 13."""

    go: threading.Event = field(default_factory=threading.Event)
    begun: threading.Event = field(default_factory=threading.Event)
    batches: list[list[list[int]]] = field(default_factory=list)

    def states(self, sequences: Sequence[Any], types: Sequence[Any] | None = None) -> list[Any]:
        self.batches.append([list(map(int, one)) for one in sequences])
        self.begun.set()
        if not self.go.wait(10):
            raise TimeoutError("nobody said go")
        if any(13 in one for one in self.batches[-1]):
            raise ValueError("13")
        return [np.asarray(one, np.float32)[:, None] for one in sequences]


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def post_bytes(path: str, payload: Any, *more: str) -> bytes:
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    head = [
        f"POST {path} HTTP/1.1",
        "host: 127.0.0.1",
        "content-type: application/json",
        f"content-length: {len(body)}",
    ]
    return "\r\n".join([*head, *more, "", ""]).encode() + body


async def read_reply(reader: asyncio.StreamReader) -> Reply:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
    return Reply(int(head[0].split()[1]), headers, await reader.readexactly(int(headers["content-length"])))


async def ask(port: int, request: bytes) -> Reply:
    """One request on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        return await asyncio.wait_for(read_reply(reader), 20)
    finally:
        writer.close()


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode()


SLOWLY = """
    import json, sys, time
    from prunus.runtime import load
    from prunus.serving.command import listen, serve_engine
    from prunus.serving.options import Options

    class Slow:
        def __init__(self, engine, seconds):
            self.engine, self.seconds = engine, seconds
            self.settings, self.head, self.tokenizer = engine.settings, engine.head, engine.tokenizer
            self.sentences, self.features, self.token_types = engine.sentences, engine.features, engine.token_types
            self.skipped, self.embed = engine.skipped, engine.embed

        def states(self, sequences, types=None):
            time.sleep(self.seconds)
            return self.engine.states(sequences, types)

    with load(sys.argv[1], threads=1) as engine:
        serve_engine(Slow(engine, float(sys.argv[2])), Options(**json.loads(sys.argv[3])), listen("127.0.0.1", 0))
"""


@contextmanager
def server(place: Path, seconds: float = 0.0, **options: Any) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server in a process; each batch takes ``seconds`` longer. Yields it and its port."""
    command = [sys.executable, "-c", textwrap.dedent(SLOWLY), str(place), str(seconds), json.dumps(options)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        line = process.stderr.readline()  # type: ignore[union-attr]
        if "http://127.0.0.1:" not in line:
            raise RuntimeError(line + process.stderr.read())  # type: ignore[union-attr]
        yield process, int(line.rsplit(":", 1)[1])
    finally:
        process.kill()
        process.wait()
        process.stderr.close()  # type: ignore[union-attr]


def metric(text: str, name: str) -> float:
    """A number of ``/metrics``."""
    return next((float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.rsplit(" ", 1)[0] == name), 0.0)


def until(true: Any, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.005)
