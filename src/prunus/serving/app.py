"""The application: which endpoint does what.

    request -> body -> requests -> tokens -> batcher -> postprocessing -> JSON

An endpoint that the model has no head for is there and says so (404). The event loop reads, parses and writes; tokens of long
texts are made in a thread, and the engine runs in the batcher's.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any, Final, ParamSpec, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from prunus._version import __version__
from prunus.errors import Problem
from prunus.serving import postprocessing, requests
from prunus.serving.batcher import Batcher
from prunus.serving.body import parse_json, read_body, until_gone
from prunus.serving.metrics import CONTENT_TYPE, Metrics
from prunus.serving.middleware import RequestMiddleware, ServerState, refusal
from prunus.serving.options import Array, Options, Served
from prunus.serving.problems import Refused
from prunus.serving.tokens import Tokens

__all__ = ["create_app"]

P = ParamSpec("P")
T = TypeVar("T")
SHORT: Final = 4096
"""Characters (or bytes of a body) below which a hop to a thread costs more than the work."""
HEADS: Final = {
    "none": "no head (sentence embeddings)",
    "sequence": "sequence classification",
    "tokens": "token classification",
    "span": "question answering",
}


@dataclass(frozen=True)
class Endpoint:
    """A line of ``GET /``."""

    method: str
    path: str
    about: str
    head: str = ""
    """The kind of head that it needs; empty where any will do."""


ENDPOINTS: Final = (
    Endpoint("POST", "/v1/embeddings", "sentence embeddings, as OpenAI's: {input, model?, encoding_format?}", "none"),
    Endpoint("POST", "/classify", "classes of texts or pairs: {inputs}", "sequence"),
    Endpoint("POST", "/answer", "the answer's place in a context: {question, context}, or a list", "span"),
    Endpoint("GET", "/v1/models", "the one model"),
    Endpoint("GET", "/health", "live and ready"),
    Endpoint("GET", "/metrics", "counts, for Prometheus"),
    Endpoint("GET", "/", "this list"),
)


async def aside(size: int, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls it: here where it is short, else in a thread, so that others are served meanwhile."""
    if size <= SHORT:
        return call(*args, **kwargs)
    return await asyncio.to_thread(call, *args, **kwargs)


class Service:
    """One engine and its endpoints."""

    def __init__(self, engine: Served, options: Options) -> None:
        self.engine, self.options = engine, options
        self.metrics = Metrics()
        self.server_state = ServerState(options, self.metrics, frozenset(endpoint.path for endpoint in ENDPOINTS))
        self.tokens = Tokens(engine, options)
        self.batcher = Batcher(engine, options, self._saw_batch)
        settings, self.kind = engine.settings, engine.head.kind
        self.words = int(settings.get("vocab_size") or 2**24)
        self.features = engine.features if self.kind == "none" else 0
        self.prompt = engine.sentences.prompt() if self.kind == "none" else ""
        classes = len(engine.head.layers[-1][0]) if self.kind == "sequence" else 0
        postprocessing.cross_encoder_activation(settings)  # one that is not served is refused before the first request
        self.names = postprocessing.class_names(settings, classes)
        self.created = int(time.time())

    def _saw_batch(self, tokens: int, seconds: float) -> None:
        self.metrics.observe("prunus_batch_tokens", tokens)
        self.metrics.observe("prunus_batch_seconds", seconds)

    async def _json_body(self, request: Request, head: str) -> tuple[Any, int]:
        """The JSON of a request to an endpoint that needs this head, and its bytes."""
        if self.kind != head:
            fits = [f"{e.method} {e.path}" for e in ENDPOINTS if e.head == self.kind]
            rule = f"have the head for {request.url.path}: {HEADS[head]}"
            raise Refused(404, Problem("model", f"{self.options.name} has {HEADS[self.kind]}", rule, ", ".join(fits)))
        body = await read_body(request, self.options)
        return await aside(len(body), parse_json, body), len(body)

    async def embeddings(self, request: Request) -> Response:
        """``POST /v1/embeddings``."""
        raw, size = await self._json_body(request, "none")
        name = self.options.name
        wanted = requests.read_embeddings(raw, name, self.features, self.words, self.options.max_inputs)

        async def work() -> Response:
            if wanted.ids:
                ids, types = self.tokens.of_ids(wanted.ids, wanted.truncate, "input")
                skip = 0
            else:
                texts = [self.prompt + text for text in wanted.texts]
                ids, types = await aside(size, self.tokens.of_texts, texts, wanted.truncate, "input")
                skip = self.engine.skipped(self.prompt)
            vectors = await self.batcher.compute(ids, types, lambda states: self.engine.embed(states, skip))
            count = sum(map(len, ids))
            body = await aside(len(vectors) * self.features, embeddings_body, vectors, wanted.base64, name, count)
            return Response(body, media_type="application/json")

        return await until_gone(request.receive, work())

    async def classify(self, request: Request) -> Response:
        """``POST /classify``."""
        raw, size = await self._json_body(request, "sequence")
        wanted = requests.read_classify(raw, self.options.max_inputs)

        async def work() -> Response:
            ids, types = await aside(size, self.tokens.of_texts, wanted.texts, wanted.truncate, "inputs")
            found = await self.batcher.compute(ids, types, lambda states: self.engine.head(states[:1])[0])
            scores = [postprocessing.class_scores(z, self.engine.settings) for z in found]
            return JSONResponse([postprocessing.ranked(score, self.names) for score in scores])

        return await until_gone(request.receive, work())

    async def answer(self, request: Request) -> Response:
        """``POST /answer``."""
        raw, size = await self._json_body(request, "span")
        wanted = requests.read_answer(raw, self.options.max_inputs)

        def cut() -> list[list[postprocessing.Window]]:
            keys = ["question" if wanted.single else f"[{i}].question" for i in range(len(wanted.pairs))]
            pairs = zip(wanted.pairs, keys, strict=True)
            return [self.tokens.of_question(*pair, wanted.truncate, key) for pair, key in pairs]

        def find(windows: list[list[postprocessing.Window]], logits: list[Array]) -> list[dict[str, Any]]:
            rest, answers = iter(logits), []
            for (_, context), parts in zip(wanted.pairs, windows, strict=True):
                span = postprocessing.answer(context, parts, [next(rest) for _ in parts], self.options.answer_longest)
                answers.append({"answer": span.text} | {k: v for k, v in asdict(span).items() if k != "text"})
            return answers

        async def work() -> Response:
            windows = await aside(size, cut)
            flat = [window for parts in windows for window in parts]
            logits = await self.batcher.compute([w.ids for w in flat], [w.types for w in flat], self.engine.head)
            answers = await aside(size, find, windows, logits)
            return JSONResponse(answers[0] if wanted.single else answers)

        return await until_gone(request.receive, work())

    async def models(self, request: Request) -> Response:
        """``GET /v1/models``."""
        model = {"id": self.options.name, "object": "model", "created": self.created, "owned_by": "prunus"}
        return JSONResponse({"object": "list", "data": [model]})

    async def health(self, request: Request) -> Response:
        """``GET /health``: 200 where it is ready, else 503; who answers at all is live."""
        ready = self.batcher.ready and not self.server_state.stopping
        body = {"live": True, "ready": ready, "model": self.options.name, "head": self.kind, "version": __version__}
        return JSONResponse(body, 200 if ready else 503)

    async def counts(self, request: Request) -> Response:
        """``GET /metrics``."""
        requests, tokens = self.batcher.waiting
        gauges = {
            "prunus_queue_requests": requests,
            "prunus_queue_tokens": tokens,
            "prunus_open_requests": self.server_state.open_requests,
        }
        return PlainTextResponse(self.metrics.text(gauges), media_type=CONTENT_TYPE)

    async def listed(self, request: Request) -> Response:
        """``GET /``."""
        endpoints = [asdict(e) | {"fits": e.head in {"", self.kind}} for e in ENDPOINTS]
        return JSONResponse(endpoints)


def embeddings_body(vectors: list[Array], base64: bool, name: str, tokens: int) -> bytes:
    """OpenAI's answer. Written by hand: a JSON library spends most of a short request's time on the digits."""
    row = '{"object":"embedding","index":%d,"embedding":%s}'
    texts = (f'"{postprocessing.as_base64(v)}"' for v in vectors) if base64 else map(postprocessing.as_text, vectors)
    rows = ",".join(row % pair for pair in enumerate(texts))
    usage = f'{{"prompt_tokens":{tokens},"total_tokens":{tokens}}}'
    # JSONResponse knows how to write a name
    model = bytes(JSONResponse(name).body).decode()
    return f'{{"object":"list","data":[{rows}],"model":{model},"usage":{usage}}}'.encode()


def create_app(engine: Served, options: Options | None = None) -> Starlette:
    """The ASGI application of one engine, which stays the caller's: it is closed by who opened it.

    ``app.state.service`` holds its parts. The worker starts with the first request and ends with the application's lifespan;
    where none is run, with ``app.state.service.batcher.close()``.

    Raises:
        EngineError: a tokenizer that is missing, or a model too short for windows.

    """
    service = Service(engine, options or Options())
    handlers: dict[str, Callable[[Request], Awaitable[Response]]] = {
        "/v1/embeddings": service.embeddings,
        "/classify": service.classify,
        "/answer": service.answer,
        "/v1/models": service.models,
        "/health": service.health,
        "/metrics": service.counts,
        "/": service.listed,
    }

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.batcher.close)

    def misplaced(request: Request, error: Exception) -> Response:
        status, path = getattr(error, "status_code", 404), request.url.path
        methods = ", ".join(e.method for e in ENDPOINTS if e.path == path)
        rule = f"be {methods}" if methods else "be one of this server's"
        paths = ", ".join(e.path for e in ENDPOINTS)
        problem = Problem("method" if methods else "path", request.method if methods else path, rule, paths)
        return refusal(Refused(status, problem))

    routes = [Route(e.path, handlers[e.path], methods=[e.method]) for e in ENDPOINTS]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(RequestMiddleware, server_state=service.server_state)],
        exception_handlers={HTTPException: misplaced},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # a redirected POST loses its body in some clients
    app.state.service = service
    return app
