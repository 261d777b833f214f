"""The middleware around the application: counts and times every request, and answers errors in JSON.

stopping, or too many open      an answer at once, the body unread
an error of our own             its status, its problems
any other error                 500; the traceback goes to the log, not to the client
"""

import logging
import time
from typing import Final

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prunus.errors import EngineError, Problem
from prunus.serving.metrics import Metrics
from prunus.serving.options import Options
from prunus.serving.problems import Refused, error_body

__all__ = ["RequestMiddleware", "ServerState", "refusal"]

LOG: Final = logging.getLogger("prunus.serving")
ALWAYS: Final = frozenset({"/health", "/metrics"})
"""What is answered also by a server that stops."""


class ServerState:
    """What the middleware shares with the server: how many requests are open, and whether it is stopping."""

    def __init__(self, options: Options, metrics: Metrics, paths: frozenset[str]) -> None:
        self.options, self.metrics, self.paths = options, metrics, paths
        self.open_requests = 0
        self.stopping = False


def refusal(error: Refused) -> JSONResponse:
    """The answer to a request that is refused."""
    return JSONResponse(error_body(error), error.status, error.headers)


class RequestMiddleware:
    """An ASGI application around another."""

    def __init__(self, app: ASGIApp, server_state: ServerState) -> None:
        self.app, self.server_state = app, server_state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        server_state, start, status = self.server_state, time.perf_counter(), 0
        path = scope["path"] if scope["path"] in server_state.paths else "other"

        async def out(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        closed = self._closed(path)
        server_state.open_requests += 1
        try:
            if closed is not None:
                raise closed
            await self.app(scope, receive, out)
        except Exception as error:
            if status:  # the answer has begun; the connection ends with it
                raise
            await refusal(self._refused(error, path))(scope, receive, out)
        finally:
            server_state.open_requests -= 1
            server_state.metrics.count("prunus_requests_total", endpoint=path, status=str(status or 499))
            server_state.metrics.observe("prunus_request_seconds", time.perf_counter() - start, endpoint=path)

    def _closed(self, path: str) -> Refused | None:
        if path in ALWAYS:
            return None
        if self.server_state.stopping:
            return Refused(503, Problem("server", "stopping", "be ready", "another server"), retry_after=1)
        most = self.server_state.options.open_requests
        if self.server_state.open_requests >= most:
            rule = f"have at most {most} open requests"
            return Refused(
                429, Problem("server", f"{self.server_state.open_requests} requests", rule, "later"), retry_after=1
            )
        return None

    def _refused(self, error: Exception, path: str) -> Refused:
        if isinstance(error, EngineError):  # an input that the engine does not take
            error = Refused(400, *error.problems)
        if not isinstance(error, Refused):
            LOG.error("a request to %s failed", path, exc_info=error)
            error = Refused(500, Problem("request", "an error of the server", "be answered", "the server's log"))
        if error.status in {408, 413, 429, 503}:
            self.server_state.metrics.count("prunus_rejected_total", reason=error.code)
        return error
