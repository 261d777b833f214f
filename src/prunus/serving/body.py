"""The body of a request, read within a size and a time; and work that ends when its client goes.

A client that is still sending does not read, and a connection closed under it loses the answer. So what is too large is read
on (up to ``LINGER`` times the limit, and never kept) before it is refused.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, Final, NoReturn, TypeVar

from starlette.requests import Request

from prunus.errors import Problem
from prunus.serving.options import Options
from prunus.serving.problems import Refused, gone

__all__ = ["parse_json", "read_body", "until_gone"]

LINGER: Final = 16
T = TypeVar("T")


async def read_body(request: Request, options: Options) -> bytes:
    """The whole body, however it is framed.

    Raises:
        Refused: 413 larger than ``max_body_bytes``, 408 slower than ``read_timeout``, 499 the client is gone.

    """
    limit, stated = options.max_body_bytes, request.headers.get("content-length", "0")
    size = int(stated) if stated.isdecimal() and len(stated) < 20 else 0
    large = Refused(413, Problem("body", f"more than {limit} bytes", f"be at most {limit} bytes", "smaller requests"))
    if size > limit and "expect" in request.headers:
        raise large  # the client waits for leave to send
    parts: list[bytes] = []
    read = 0
    try:
        async with asyncio.timeout(options.read_timeout):
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise gone()
                part = message.get("body", b"")
                read += len(part)
                if read <= limit:
                    parts.append(part)
                else:
                    parts.clear()
                if not message.get("more_body", False) or read > LINGER * limit:
                    break
    except TimeoutError:
        if read > limit:
            raise large from None
        rule = f"come whole within {options.read_timeout:g} s"
        raise Refused(408, Problem("body", f"{read} bytes", rule)) from None
    if read > limit:
        raise large
    return b"".join(parts)


def parse_json(body: bytes) -> Any:
    """A JSON value.

    Raises:
        Refused: 400, with the line and the column.

    """

    def constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is no JSON")

    try:
        return json.loads(body.decode("utf-8"), parse_constant=constant)
    except (ValueError, RecursionError) as error:
        where = str(error) if body else "nothing"
        raise Refused(400, Problem("body", where, "be JSON in UTF-8")) from None


async def until_gone(receive: Callable[[], Awaitable[MutableMapping[str, Any]]], work: Coroutine[Any, Any, T]) -> T:
    """What the work returns; it is cancelled when the client goes.

    Raises:
        Refused: 499, the client is gone.

    """

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task, watcher = asyncio.ensure_future(work), asyncio.ensure_future(watch())
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise gone()
    finally:
        task.cancel()
        watcher.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)
