"""A server in a process of its own: signals, crowds, and clients with bad manners. Loopback only."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving_tools import Reply, ask, get, metric, post_bytes, read_reply, sentence, server, until

from prunus.errors import EngineError
from prunus.runtime import Engine
from prunus.serving.command import listen, serve

PATH = "/v1/embeddings"


@pytest.fixture(scope="module")
def quick(models: dict[str, Path]) -> Iterator[int]:
    """The port of a server that answers at once, and waits for clients for half a second."""
    with server(models["none"], read_timeout=0.5, max_body_bytes=100_000) as (_, port):
        yield port


def embed(text: str, *more: str) -> bytes:
    return post_bytes(PATH, {"input": text}, *more)


def asked(port: int, request: bytes) -> Reply:
    return asyncio.run(ask(port, request))


def gauge(port: int, name: str) -> float:
    return metric(asked(port, get("/metrics")).body.decode(), name)


def crowd(port: int, texts: list[str]) -> list[Reply]:
    """All at once, each on a connection of its own."""

    async def story() -> list[Reply]:
        return await asyncio.gather(*[ask(port, embed(text)) for text in texts])

    return asyncio.run(story())


def vector(reply: Reply) -> Any:
    return np.array(reply.json["data"][0]["embedding"], np.float32)


def test_a_thousand_at_once_lose_nothing(models: dict[str, Path], engines: dict[str, Engine]) -> None:
    texts = [sentence(i) for i in range(1000)]
    with server(models["none"]) as (_, port):
        replies = crowd(port, texts)
        text = asked(port, get("/metrics")).body.decode()
    assert {reply.status for reply in replies} == {200}
    expected = engines["none"].encode(texts)
    np.testing.assert_allclose(np.stack([vector(reply) for reply in replies]), expected, atol=1e-6)
    assert metric(text, f'prunus_requests_total{{endpoint="{PATH}",status="200"}}') == 1000
    assert metric(text, "prunus_batch_tokens_count") < 900  # batches did form
    assert metric(text, "prunus_queue_requests") == metric(text, "prunus_queue_tokens") == 0


def test_a_crowd_before_a_short_queue_is_answered_or_refused(
    models: dict[str, Path], engines: dict[str, Engine]
) -> None:
    texts = [sentence(i) for i in range(300)]
    with server(models["none"], 0.02, queue_requests=20, max_batch_tokens=32) as (_, port):
        replies = crowd(port, texts)
        text = asked(port, get("/metrics")).body.decode()
    kinds = [reply.status for reply in replies]
    assert set(kinds) == {200, 429}
    assert kinds.count(200) >= 20
    assert metric(text, 'prunus_rejected_total{reason="queue_full"}') == kinds.count(429)
    assert metric(text, f'prunus_requests_total{{endpoint="{PATH}",status="200"}}') == kinds.count(200)
    assert all(int(reply.headers["retry-after"]) >= 1 for reply in replies if reply.status == 429)
    pairs = [(vector(r), row) for r, row in zip(replies, engines["none"].encode(texts), strict=True) if r.status == 200]
    np.testing.assert_allclose([a for a, _ in pairs], [b for _, b in pairs], atol=1e-6)


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_answers_what_was_accepted(sign: int, models: dict[str, Path]) -> None:
    with server(models["none"], 0.25, max_batch_tokens=32) as (process, port):

        async def story() -> tuple[list[Reply], Reply, Reply]:
            tasks = [asyncio.create_task(ask(port, embed(sentence(i)))) for i in range(12)]
            while gauge_of(await ask(port, get("/metrics")), "prunus_open_requests") < 13:
                await asyncio.sleep(0.01)
            process.send_signal(sign)
            await asyncio.sleep(0.3)  # the port stays open for those who are to be told
            late, health = await ask(port, embed("good")), await ask(port, get("/health"))
            return await asyncio.gather(*tasks), late, health

        replies, late, health = asyncio.run(story())
        assert [reply.status for reply in replies] == [200] * 12
        assert (late.status, late.json["error"]["code"], health.status) == (503, "stopping", 503)
        assert process.wait(5) == 0
        assert process.stderr.read() == ""  # type: ignore[union-attr]
        with pytest.raises(ConnectionRefusedError):
            asked(port, get("/health"))


def test_below_nohup_a_hangup_stops_nothing(models: dict[str, Path]) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # which the server inherits
    try:
        with server(models["none"]) as (process, port):
            process.send_signal(signal.SIGHUP)
            assert asked(port, embed("good")).status == 200
            process.terminate()
            assert process.wait(5) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def gauge_of(reply: Reply, name: str) -> float:
    return metric(reply.body.decode(), name)


def test_a_stop_does_not_wait_for_ever(models: dict[str, Path]) -> None:
    with server(models["none"], 1.5, grace=0.2) as (process, port):
        with socket.create_connection(("127.0.0.1", port)) as one:
            one.sendall(embed("good"))
            until(lambda: gauge(port, "prunus_open_requests") == 2)
            process.terminate()
            assert process.wait(8) == 1
        assert "be answered within the 0.2 s of a stop" in process.stderr.read()  # type: ignore[union-attr]


def test_an_idle_server_stops_at_once(models: dict[str, Path]) -> None:
    with server(models["none"]) as (process, port):
        with socket.create_connection(("127.0.0.1", port)):  # who is connected and silent holds up nothing
            asked(port, embed("good"))
            start = time.monotonic()
            process.terminate()
            assert process.wait(5) == 0
        assert time.monotonic() - start < 2


def received(one: socket.socket) -> bytes:
    one.settimeout(5)
    parts = []
    while part := one.recv(65536):
        parts.append(part)
    return b"".join(parts)


def test_a_slow_body_is_refused_and_blocks_nobody(quick: int) -> None:
    whole = embed("good film")
    with socket.create_connection(("127.0.0.1", quick)) as slow:
        slow.sendall(whole[:-10])
        start = time.monotonic()
        assert asked(quick, whole).status == 200
        assert time.monotonic() - start < 0.4
        slow.sendall(whole[-10:-9])  # a byte now and then is not enough
        answer = received(slow)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in answer
    assert 0.4 < time.monotonic() - start < 3


@pytest.mark.parametrize("before", [0, 1])
def test_a_slow_head_is_closed(before: int, quick: int) -> None:
    with socket.create_connection(("127.0.0.1", quick)) as slow:
        slow.settimeout(5)
        for _ in range(before):
            slow.sendall(get("/health"))
            answer = b""
            while not answer.endswith(b"}"):
                answer += slow.recv(65536)
        start = time.monotonic()
        slow.sendall(b"POST /v1/embeddings HTTP/1.1\r\nhost: ")
        assert received(slow) == b""
        assert 0.4 < time.monotonic() - start < 3


def test_a_connection_is_used_again(quick: int) -> None:
    async def story() -> list[Reply]:
        reader, writer = await asyncio.open_connection("127.0.0.1", quick)
        found = []
        for pause in (0.0, 0.0, 0.7):  # longer than a head may take: between requests a client may rest
            await asyncio.sleep(pause)
            writer.write(embed("good"))
            found.append(await read_reply(reader))
        writer.write(embed("good") * 2)  # pipelined
        found += [await read_reply(reader), await read_reply(reader)]
        writer.close()
        return found

    assert [reply.status for reply in asyncio.run(story())] == [200] * 5


def test_an_answer_does_not_wait_for_an_acknowledgement(quick: int) -> None:
    async def story() -> list[float]:
        reader, writer = await asyncio.open_connection("127.0.0.1", quick)
        found = []
        for _ in range(31):
            start = time.perf_counter()
            writer.write(embed("good"))
            await read_reply(reader)
            found.append(time.perf_counter() - start)
        writer.close()
        return found

    assert float(np.median(asyncio.run(story()))) < 0.03  # Nagle's algorithm would make it 0.04


def test_who_takes_no_answer_is_dropped(quick: int) -> None:
    name = f'prunus_requests_total{{endpoint="{PATH}",status="200"}}'
    before, large = gauge(quick, name), post_bytes(PATH, {"input": [[5]] * 2048})
    with socket.create_connection(("127.0.0.1", quick)) as one:
        one.sendall(large * 40)  # answers of 400 KB each: more than the kernel keeps
        until(lambda: gauge(quick, "prunus_open_requests") == 2)
        # between two answers it may be 1 for a moment
        until(lambda: all(gauge(quick, "prunus_open_requests") == 1 for _ in range(5)), 8)
        assert gauge(quick, name) < before + 40
        assert ends(one)


def ends(one: socket.socket) -> bool:
    """Whether nothing more comes after what is on its way."""
    one.settimeout(5)
    with suppress(ConnectionResetError):
        while one.recv(2**20):
            pass
    return True


def chunked(size: int) -> bytes:
    head = b"POST /v1/embeddings HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + b"".join([b"400\r\n" + b"x" * 1024 + b"\r\n"] * (size // 1024)) + b"0\r\n\r\n"


@pytest.mark.parametrize("request_", [post_bytes(PATH, b"x" * 600_000), chunked(600_000)], ids=["length", "chunked"])
def test_a_large_body_is_refused_and_the_client_hears_it(request_: bytes, quick: int) -> None:
    with socket.create_connection(("127.0.0.1", quick)) as one:
        one.sendall(request_)
        answer = received(one)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "too_large"


def test_who_asks_before_sending_is_told_before(quick: int) -> None:
    head = b"POST /v1/embeddings HTTP/1.1\r\nhost: a\r\ncontent-length: 600000\r\nexpect: 100-continue\r\n\r\n"
    with socket.create_connection(("127.0.0.1", quick)) as one:
        one.sendall(head)
        assert received(one).startswith(b"HTTP/1.1 413 ")


def test_who_hangs_up_is_not_computed(models: dict[str, Path]) -> None:
    with server(models["none"], 0.3, max_batch_tokens=32) as (_, port):
        with socket.create_connection(("127.0.0.1", port)) as stays:
            stays.sendall(embed("good"))
            until(lambda: gauge(port, "prunus_open_requests") == 2)
            for i in range(10):
                with socket.create_connection(("127.0.0.1", port)) as goes:
                    goes.sendall(embed(sentence(i)))
            until(lambda: gauge(port, "prunus_open_requests") == 2 and gauge(port, "prunus_queue_requests") == 0)
            stays.settimeout(5)
            assert stays.recv(65536).startswith(b"HTTP/1.1 200 ")
        text = asked(port, get("/metrics")).body.decode()
        assert metric(text, "prunus_batch_tokens_count") == 1
        assert metric(text, f'prunus_requests_total{{endpoint="{PATH}",status="499"}}') == 10


def test_what_is_no_http_is_refused(quick: int) -> None:
    with socket.create_connection(("127.0.0.1", quick)) as one:
        one.sendall(b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n")
        assert received(one).startswith(b"HTTP/1.1 400 ")


def test_a_port_that_is_taken_and_a_directory_that_is_no_model(tmp_path: Path) -> None:
    with listen("127.0.0.1", 0) as place, pytest.raises(EngineError, match="be free to listen on"):
        listen("127.0.0.1", place.getsockname()[1])
    with pytest.raises(EngineError, match="be 0 to 65535"):
        listen("127.0.0.1", 70000)
    with pytest.raises(EngineError, match=r"packed\.safetensors"):
        serve(tmp_path, port=0)


def test_the_server_needs_no_torch() -> None:
    code = "import sys, prunus.serving.command as c; print(c.serve.__name__, *{'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["serve"]


def test_serve_is_the_whole_of_it(models: dict[str, Path]) -> None:
    code = "import sys; from prunus.serving.command import serve; serve(sys.argv[1], port=0, threads=1, name='mine')"
    process = subprocess.Popen([sys.executable, "-c", code, str(models["none"])], stderr=subprocess.PIPE, text=True)
    try:
        line = process.stderr.readline()  # type: ignore[union-attr]
        assert line.startswith("prunus serve: mine (float32, ")
        port = int(line.rsplit(":", 1)[1])
        assert asked(port, get("/v1/models")).json["data"][0]["id"] == "mine"
        process.terminate()
        assert process.wait(5) == 0
    finally:
        process.kill()
        process.communicate()
