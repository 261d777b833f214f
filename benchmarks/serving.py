"""What a server answers a second, and how long a client waits: prunus, and ONNX Runtime behind the same server code.

    python benchmarks/serving.py --packed PACKED --source HUGGING_FACE_DIR --texts sentences.txt [--quick]

Every arm is a process with the same HTTP code, tokenizer, queue and batches; only what computes the states differs:

    prunus              the packed model of --packed
    onnxruntime         --source exported by torch.onnx, all graph optimizations; each batch padded to its longest sequence
    onnxruntime-int8    the same after onnxruntime's dynamic quantization, per channel

Clients are closed loops on loopback, each with one connection: it asks, waits for the answer, asks the next. They live in this
process and share the processors with the server, for all arms alike. Arms take turns within each round, in an order that
rotates; ``ratio`` is the median over the rounds of (arm / prunus) within a round, so that a drift falls on all of them alike.

Before anything is timed, the arms answer the same texts; how far they differ is in the results. Results go to standard output
and, with --output, to a JSON file without names of directories. Run by hand on a quiet machine.
"""

import argparse
import asyncio
import base64
import hashlib
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from prunus.environment import package_versions, processor

PACKAGES = (
    "prunus",
    "numpy",
    "llvmlite",
    "onnxruntime",
    "onnx",
    "torch",
    "transformers",
    "tokenizers",
    "starlette",
    "uvicorn",
    "h11",
)
ARMS = ("prunus", "onnxruntime", "onnxruntime-int8")
QUESTION = "What is it about?"
SEED = 0


@dataclass(frozen=True)
class Size:
    """How much to run."""

    clients: tuple[int, ...] = (1, 8, 64)
    rounds: int = 5
    seconds: float = 15.0
    """Of one arm in one round."""
    warm_up: float = 3.0
    compared: int = 32
    """Texts that all arms answer first."""


QUICK = Size((1, 4), 2, 0.5, 0.2, 4)


# The peer: the same interface as prunus.runtime.Engine, as far as the server uses it


class OnnxEngine:
    """ONNX Runtime computes the states; the tokenizer and the head are those that prunus uses."""

    def __init__(self, file: Path, source: Path, threads: int) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        from prunus.runtime.families import read_checkpoint, read_settings
        from prunus.runtime.heads import head_of

        dense = read_checkpoint(source)
        self.settings = dense.settings
        self.head = head_of(self.settings["architectures"][0], dense.shape.family, dense.tensors, dense.shape.hidden)
        longest = dense.shape.positions - dense.shape.first_position
        stated = read_settings(source / "tokenizer_config.json").get("model_max_length", longest)
        self.tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(min(longest, int(min(stated, longest))))
        self.padding = dense.shape.padding
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.names = {node.name for node in self.session.get_inputs()}

    def states(self, sequences: Sequence[Any], types: Sequence[Any] | None = None) -> list[Any]:
        lengths = [len(one) for one in sequences]
        shape = (len(lengths), max(lengths))
        batch = {"input_ids": np.full(shape, self.padding, np.int64)}
        batch |= {name: np.zeros(shape, np.int64) for name in ("attention_mask", "token_type_ids")}
        for i, one in enumerate(sequences):
            batch["input_ids"][i, : lengths[i]] = one
            batch["attention_mask"][i, : lengths[i]] = 1
            if types is not None:
                batch["token_type_ids"][i, : lengths[i]] = types[i]
        (states,) = self.session.run(None, {name: batch[name] for name in self.names})
        return [states[i, :length] for i, length in enumerate(lengths)]


def export(source: Path, place: Path, arms: Sequence[str]) -> None:
    """The encoder of a Hugging Face directory as ``onnxruntime.onnx``, and quantized. Runs in a process of its own."""
    import warnings

    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(source, dtype=torch.float32, attn_implementation="sdpa").eval()
    typed = int(getattr(model.config, "type_vocab_size", 0) or 0) > 1

    class States(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            more = {"token_type_ids": token_type_ids} if typed else {}
            return self.model(input_ids=input_ids, attention_mask=attention_mask, **more).last_hidden_state

    example = (torch.full((2, 16), 5), torch.ones(2, 16, dtype=torch.int64), torch.zeros(2, 16, dtype=torch.int64))
    longest = model.config.max_position_embeddings - 2
    shape = {0: torch.export.Dim("batch", min=1, max=4096), 1: torch.export.Dim("tokens", min=2, max=longest)}
    path = place / "onnxruntime.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            States(),
            example,
            path,
            input_names=["input_ids", "attention_mask", "token_type_ids"],
            output_names=["states"],
            dynamic_shapes=(shape, shape, shape),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    if "onnxruntime-int8" in arms:
        from onnxruntime.quantization import QuantType, quantize_dynamic
        from onnxruntime.quantization.shape_inference import quant_pre_process

        quant_pre_process(path, place / "ready.onnx", skip_symbolic_shape=True)
        target = place / "onnxruntime-int8.onnx"
        quantize_dynamic(place / "ready.onnx", target, weight_type=QuantType.QInt8, per_channel=True)


def serve_arm(arm: str, given: argparse.Namespace) -> None:
    """A server process."""
    from prunus.runtime import load
    from prunus.serving.command import listen, serve_engine
    from prunus.serving.options import Options

    options = Options(name="benchmark", max_batch_tokens=given.max_batch_tokens)
    if arm == "prunus":
        with load(given.packed, given.threads) as engine:
            sys.stderr.write("facts " + json.dumps(engine.facts()) + "\n")
            serve_engine(engine, options, listen("127.0.0.1", 0))
        return
    peer = OnnxEngine(given.place / f"{arm}.onnx", given.source, given.threads)
    sys.stderr.write("facts {}\n")
    serve_engine(peer, options, listen("127.0.0.1", 0))


@contextmanager
def running(arm: str, given: argparse.Namespace, place: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """A server process: its port, and what its engine says of itself."""
    command = [sys.executable, __file__, "--serve", arm, "--packed", given.packed, "--source", given.source]
    command += ["--place", place, "--threads", given.threads, "--max-batch-tokens", given.max_batch_tokens]
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, text=True, env=environment)
    try:
        facts, port = {}, 0
        for line in process.stderr:
            if line.startswith("facts "):
                facts = json.loads(line.removeprefix("facts "))
            if "http://127.0.0.1:" in line:
                port = int(line.rsplit(":", 1)[1])
                break
        if not port:
            raise SystemExit(f"the server of {arm} did not start")
        yield port, facts
        process.terminate()
        if process.wait(30) != 0:
            raise SystemExit(f"the server of {arm} did not stop cleanly: {process.stderr.read()}")
    finally:
        process.kill()
        process.communicate()


# Clients


class Client:
    """One connection of HTTP/1.1, kept open."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def __aenter__(self) -> "Client":
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self

    async def __aexit__(self, *reason: object) -> None:
        self.writer.close()
        await self.writer.wait_closed()

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        self.writer.write(request)
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return int(head[9:12]), await self.reader.readexactly(length)


def request_of(kind: str, text: str) -> bytes:
    """The request of the endpoint that a head has."""
    path, payload = {
        "none": ("/v1/embeddings", {"input": text, "encoding_format": "base64"}),
        "sequence": ("/classify", {"inputs": text}),
        "span": ("/answer", {"question": QUESTION, "context": text}),
    }[kind]
    body = json.dumps(payload).encode()
    return f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


def numbers_of(kind: str, body: bytes) -> Any:
    """An answer as a vector, to compare."""
    found = json.loads(body)
    if kind == "none":
        return np.frombuffer(base64.b64decode(found["data"][0]["embedding"]), "<f4")
    if kind == "sequence":
        return np.array([row["score"] for row in sorted(found[0], key=lambda row: str(row["label"]))])
    return np.array([found["start"], found["end"]], float)


async def load_test(port: int, requests: Sequence[bytes], clients: int, seconds: float, seed: int) -> dict[str, Any]:
    """Closed loops for some seconds. An answer counts if it came before the end."""
    end = time.perf_counter() + seconds
    waits: list[float] = []
    statuses: dict[int, int] = {}

    async def loop(number: int) -> None:
        draw = random.Random(seed * 1000 + number)
        async with Client(port) as client:
            while (start := time.perf_counter()) < end:
                status, _ = await client.ask(draw.choice(requests))
                now = time.perf_counter()
                if now <= end:
                    statuses[status] = statuses.get(status, 0) + 1
                    if status == 200:
                        waits.append(now - start)

    await asyncio.gather(*map(loop, range(clients)))
    p50, p99 = np.percentile(waits, [50, 99]) if waits else (float("nan"), float("nan"))
    return {
        "per_second": len(waits) / seconds,
        "p50_ms": 1e3 * float(p50),
        "p99_ms": 1e3 * float(p99),
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
    }


async def one(port: int, request: bytes) -> bytes:
    async with Client(port) as client:
        status, body = await client.ask(request)
        if status != 200:
            raise SystemExit(f"status {status}: {body[:500]!r}")
        return body


def difference(kind: str, first: int, other: int, requests: Sequence[bytes]) -> float:
    """The largest difference of two servers' numbers over some requests."""

    async def both() -> float:
        pairs = [(await one(first, r), await one(other, r)) for r in requests]
        return max(float(np.abs(numbers_of(kind, a) - numbers_of(kind, b)).max()) for a, b in pairs)

    return asyncio.run(both())


# The whole of it


def summary(rounds: Sequence[Mapping[str, Any]], arms: Sequence[str], clients: int) -> dict[str, Any]:
    """Medians over the rounds."""
    own = [row["arms"] for row in rounds if row["clients"] == clients]
    found: dict[str, Any] = {}
    for arm in arms:
        found[arm] = {key: median(row[arm][key] for row in own) for key in ("per_second", "p50_ms", "p99_ms")}
        ratios = [row[arm]["per_second"] / row["prunus"]["per_second"] for row in own if row["prunus"]["per_second"]]
        found[arm]["ratio"] = median(ratios) if ratios else None
    return found


def versions() -> dict[str, str]:
    found = package_versions(PACKAGES)
    return {"python": platform.python_version()} | {name: found.get(name, "none") for name in PACKAGES}


def measure(given: argparse.Namespace, size: Size) -> dict[str, Any]:
    texts = [line.strip() for line in given.texts.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not texts:
        raise SystemExit("--texts holds no text")
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        peers = [arm for arm in given.arms if arm != "prunus"]
        if peers:
            command = [sys.executable, __file__, "--export", *given.arms, "--source", given.source, "--place", place]
            subprocess.run([*map(str, command)], check=True, stdout=subprocess.DEVNULL)
        started = {arm: stack.enter_context(running(arm, given, place)) for arm in given.arms}
        ports, facts = {arm: port for arm, (port, _) in started.items()}, started["prunus"][1]
        kind = str(json.loads(asyncio.run(one(ports["prunus"], b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n")))["head"])
        requests = [request_of(kind, text) for text in texts]
        sample = random.Random(SEED).sample(requests, min(size.compared, len(requests)))
        apart = {arm: difference(kind, ports["prunus"], ports[arm], sample) for arm in peers}
        rounds: list[dict[str, Any]] = []
        for number in range(size.rounds):
            for clients in size.clients:
                order = [given.arms[(i + number) % len(given.arms)] for i in range(len(given.arms))]
                row: dict[str, Any] = {}
                for arm in order:
                    if size.warm_up:
                        asyncio.run(load_test(ports[arm], requests, clients, size.warm_up, SEED))
                    row[arm] = asyncio.run(load_test(ports[arm], requests, clients, size.seconds, 1 + number))
                    line = "  ".join(f"{key} {row[arm][key]:9.2f}" for key in ("per_second", "p50_ms", "p99_ms"))
                    print(f"round {number + 1}  clients {clients:3}  {arm:<18} {line}", flush=True)
                rounds.append({"round": number + 1, "clients": clients, "order": order, "arms": row})
    return {
        "benchmark": "serving",
        "command": f"python benchmarks/serving.py --packed PACKED --source DIR --texts FILE --threads {given.threads}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": processor(),
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "versions": versions(),
        "threads": given.threads,
        "seed": SEED,
        "size": asdict(size),
        "max_batch_tokens": given.max_batch_tokens,
        "head": kind,
        "model": facts,
        "texts": {
            "lines": len(texts),
            "mean_characters": sum(map(len, texts)) / len(texts),
            "sha256": hashlib.sha256("\n".join(texts).encode()).hexdigest(),
        },
        "largest_difference_from_prunus": apart,
        "summary": {str(clients): summary(rounds, given.arms, clients) for clients in size.clients},
        "rounds": rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packed", type=Path, help="what prunus export --to prunus wrote")
    parser.add_argument("--source", type=Path, help="the Hugging Face directory of the same model")
    parser.add_argument("--texts", type=Path, help="a file with a text a line")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["prunus", "onnxruntime"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-batch-tokens", type=int, default=4096)
    parser.add_argument("--clients", type=int, nargs="+")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see that it works")
    parser.add_argument("--serve", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--export", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve_arm(given.serve, given)
        return
    if given.export:
        export(given.source, given.place, given.export)
        return
    if not (given.packed and given.texts) or "prunus" not in given.arms:
        parser.error("--packed and --texts are needed, and prunus among --arms")
    if not given.source and len(given.arms) > 1:
        parser.error("--source is needed for onnxruntime")
    base = QUICK if given.quick else Size()
    clients = tuple(given.clients or base.clients)
    size = Size(clients, given.rounds or base.rounds, given.seconds or base.seconds, base.warm_up, base.compared)
    results = measure(given, size)
    print(json.dumps(results["summary"], indent=2))
    if given.output:
        given.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
