"""``prunus serve``: one process, one engine, one port.

    SIGTERM, Ctrl-C, SIGHUP    new requests get 503, open ones are answered (at most ``grace`` seconds), the process ends with 0
    again                      it ends at once

The line that says where it listens goes to standard error, as do errors; nothing is written of what clients ask.
"""

import os
import socket
import sys
from pathlib import Path

from uvicorn import Config

from prunus.errors import EngineError, Problem
from prunus.runtime.engine import load
from prunus.serving.app import create_app
from prunus.serving.options import Options, Served
from prunus.serving.uvicorn_server import GracefulServer, protocol

__all__ = ["listen", "serve", "serve_engine"]

BACKLOG = 2048


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 is any free one.

    Raises:
        EngineError: the address cannot be had.

    """
    if not 0 <= port < 2**16:
        raise EngineError(Problem("port", port, "be 0 to 65535"))
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise EngineError(
            Problem("host and port", f"{host}:{port}", f"be free to listen on ({error.strerror})")
        ) from None


def serve_engine(engine: Served, options: Options, place: socket.socket, about: str = "") -> None:
    """Serves until a signal, then closes the socket; the engine stays open.

    Raises:
        EngineError: requests were still open when the time of a stop was over.

    """
    app = create_app(engine, options)
    config = Config(
        app,
        http=protocol(options),
        ws="none",
        lifespan="on",
        interface="asgi3",
        loop="asyncio",
        backlog=BACKLOG,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=1,  # our own wait is over when uvicorn's begins
    )
    server = GracefulServer(config, app.state.service.server_state, options.grace)
    host, port = place.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    sys.stderr.write(f"prunus serve: {options.name}{about} at http://{shown}:{port}\n")
    sys.stderr.flush()
    with place:
        server.run(sockets=[place])
    if server.lost:
        rule = f"be answered within the {options.grace:g} s of a stop"
        raise EngineError(Problem("requests", f"{server.lost} that were not", rule))


def serve(
    directory: str | Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    threads: int | None = None,
    isa: str | None = None,
    max_batch_tokens: int = 4096,
    queue_tokens: int = 65536,
    max_wait_ms: float = 0.0,
    max_body_bytes: int = 2**20,
    name: str | None = None,
) -> None:
    """Serves a packed model until SIGTERM, SIGINT or SIGHUP.

    Args:
        directory: what ``prunus export --to prunus`` wrote.
        host: address to listen on; there is no password and no TLS, so others than loopback need a proxy before it.
        port: 0 is any free one.
        threads: of the engine; all processors without it.
        isa: forces a path of instructions.
        max_batch_tokens: that one pass computes.
        queue_tokens: that may wait.
        max_wait_ms: how long a lone request waits for others.
        max_body_bytes: of a request.
        name: of the model, as clients see it; without it that of the directory.

    Raises:
        EngineError: options, a model or an address that do not fit; requests lost at a stop.

    """
    options = Options(
        name=name or Path(directory).resolve().name or "model",
        max_batch_tokens=max_batch_tokens,
        queue_tokens=queue_tokens,
        max_wait_ms=max_wait_ms,
        max_body_bytes=max_body_bytes,
    )
    # The engine has the processors; a tokenizer that spreads over them too would only slow it down.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    place = listen(host, port)
    with place, load(directory, threads, isa) as engine:
        facts = engine.facts()
        serve_engine(engine, options, place, f" ({facts['precision']}, {facts['isa']}, {engine.threads} threads)")
