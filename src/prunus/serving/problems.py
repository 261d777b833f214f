"""Why a request is not answered: one error, which carries its HTTP status, and its JSON.

    {"error": {"message", "type", "param", "code", "problems": [{"key", "value", "rule", "fix"}]}}

the layout of OpenAI's errors, with all problems of the request at once.
"""

from collections.abc import Mapping
from typing import Any, Final

from prunus.errors import Problem, PrunusError

__all__ = ["Refused", "error_body", "gone"]

SHOWN: Final = 80
CODES: Final[Mapping[int, str]] = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    408: "too_slow",
    413: "too_large",
    422: "too_many_tokens",
    429: "queue_full",
    499: "client_gone",
    500: "internal",
    503: "stopping",
}


class Refused(PrunusError):
    """A request that gets an answer of this status instead of the one it asked for."""

    def __init__(self, status: int, *problems: Problem, retry_after: int = 0) -> None:
        super().__init__(*problems)
        self.status, self.retry_after = status, retry_after

    @property
    def code(self) -> str:
        """The status in a word."""
        return CODES.get(self.status, "error")

    @property
    def headers(self) -> dict[str, str]:
        """Of the answer: when to come again, and whether the connection can be used again."""
        headers = {"retry-after": str(self.retry_after)} if self.retry_after else {}
        # Of these requests the rest may still be on its way, or the server is about to end.
        return headers | ({"connection": "close"} if self.status in {408, 413, 503} else {})


def gone() -> Refused:
    """The client closed its connection; nobody reads this."""
    return Refused(499, Problem("connection", "closed", "stay open until the answer"))


def shown(value: object) -> str | int | float | bool | None:
    """A value of a request, short enough to send back."""
    if value is None or isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 2**53):
        return value
    text = value if isinstance(value, str) else repr(value)
    text = text.encode("utf-8", "replace").decode()  # a lone surrogate is no text
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def error_body(error: Refused) -> dict[str, Any]:
    """The JSON of an error."""
    kind = {429: "rate_limit_error"}.get(error.status, "invalid_request_error")
    problems = [Problem(p.key, shown(p.value), p.rule, p.fix) for p in error.problems]
    return {
        "error": {
            "message": str(PrunusError(*problems)),
            "type": "server_error" if error.status >= 500 else kind,
            "param": problems[0].key if problems else None,
            "code": error.code,
            "problems": [{"key": p.key, "value": p.value, "rule": p.rule, "fix": p.fix} for p in problems],
        }
    }
