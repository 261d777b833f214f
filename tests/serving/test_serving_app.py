"""Every endpoint and every status, through the application alone."""

import asyncio
import base64
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from serving_tools import LABELS, metric, sentence
from starlette.testclient import TestClient
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from prunus.runtime import Engine
from prunus.serving.app import create_app
from prunus.serving.options import Options
from prunus.serving.problems import Refused
from prunus.serving.requests import read_answer, read_classify

TEXTS = ["good film", "the book is very short .", "bad"]
CONTEXT = "the film is long . the book is red . one two three ."


@contextmanager
def client(engine: Any, **options: Any) -> Iterator[TestClient]:
    with TestClient(create_app(engine, Options(name="tiny", **options))) as found:
        yield found


@pytest.fixture(scope="module")
def embedder(engines: dict[str, Engine]) -> Iterator[TestClient]:
    with client(engines["none"]) as found:
        yield found


@pytest.fixture(scope="module")
def classifier(engines: dict[str, Engine]) -> Iterator[TestClient]:
    with client(engines["sequence"]) as found:
        yield found


@pytest.fixture(scope="module")
def reader(engines: dict[str, Engine]) -> Iterator[TestClient]:
    with client(engines["span"], answer_tokens=32) as found:
        yield found


def problems(reply: Any, status: int) -> list[dict[str, Any]]:
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/json"
    error = reply.json()["error"]
    assert error["param"] == error["problems"][0]["key"]
    return error["problems"]  # type: ignore[no-any-return]


# embeddings


def test_embeddings_are_the_engines(embedder: TestClient, engines: dict[str, Engine]) -> None:
    reply = embedder.post("/v1/embeddings", json={"input": TEXTS, "model": "tiny", "user": "me", "dimensions": 16})
    assert reply.status_code == 200
    body = reply.json()
    assert [row["index"] for row in body["data"]] == [0, 1, 2]
    assert (body["object"], body["model"], {row["object"] for row in body["data"]}) == ("list", "tiny", {"embedding"})
    expected = engines["none"].encode(TEXTS)
    np.testing.assert_allclose([row["embedding"] for row in body["data"]], expected, atol=1e-6)
    count = sum(map(len, engines["none"].tokenize(TEXTS)[0]))
    assert body["usage"] == {"prompt_tokens": count, "total_tokens": count}


def test_embeddings_of_one_text_in_base64(embedder: TestClient, engines: dict[str, Engine]) -> None:
    reply = embedder.post("/v1/embeddings", json={"input": TEXTS[0], "encoding_format": "base64"})
    (row,) = reply.json()["data"]
    found = np.frombuffer(base64.b64decode(row["embedding"]), "<f4")
    np.testing.assert_allclose(found, engines["none"].encode(TEXTS[0]), atol=1e-6)


def test_embeddings_of_token_ids(embedder: TestClient, engines: dict[str, Engine]) -> None:
    ids = [one.tolist() for one in engines["none"].tokenize(TEXTS)[0]]
    many = embedder.post("/v1/embeddings", json={"input": ids}).json()["data"]
    one = embedder.post("/v1/embeddings", json={"input": ids[1]}).json()["data"]
    expected = engines["none"].encode(TEXTS)
    np.testing.assert_allclose([row["embedding"] for row in many], expected, atol=1e-6)
    np.testing.assert_allclose([row["embedding"] for row in one], expected[1:2], atol=1e-6)


@pytest.mark.parametrize("kind", ["text", "ids"])
def test_what_is_too_long_is_cut_or_refused(kind: str, embedder: TestClient, engines: dict[str, Engine]) -> None:
    text = "good " * 100
    ids = [5] * 100
    value = text if kind == "text" else ids
    reply = embedder.post("/v1/embeddings", json={"input": value})
    assert reply.json()["usage"]["prompt_tokens"] == 64
    states = engines["none"].states([np.array(ids[:64])])[0].mean(0)
    expected = engines["none"].encode(text) if kind == "text" else states / np.linalg.norm(states)
    np.testing.assert_allclose(reply.json()["data"][0]["embedding"], expected, atol=1e-6)
    refused = embedder.post("/v1/embeddings", json={"input": value, "truncate": False})
    (problem,) = problems(refused, 422)
    assert problem["key"] == "input[0]"
    assert "at most 64 tokens" in problem["rule"]
    assert embedder.post("/v1/embeddings", json={"input": "good", "truncate": False}).status_code == 200


@pytest.mark.parametrize(
    ("payload", "keys"),
    [
        ({}, ["input"]),
        ({"input": []}, ["input"]),
        ({"input": 3}, ["input"]),
        ({"input": ["a", 3, None]}, ["input[1]", "input[2]"]),
        ({"input": [[1, 2], "a"]}, ["input[1]"]),
        ({"input": [1, 40]}, ["input[0]"]),
        ({"input": [1, -1]}, ["input[0]"]),
        ({"input": [True]}, ["input[0]"]),
        ({"input": [[]]}, ["input[0]"]),
        ({"input": [1.0, 2.0]}, ["input[0]", "input[1]"]),
        ({"input": [[10**400]]}, ["input[0]"]),
        ({"input": "\ud800"}, ["input[0]"]),
        ({"input": "a", "dimensions": 8}, ["dimensions"]),
        ({"input": "a", "dimensions": True}, ["dimensions"]),
        ({"input": "a", "user": 3}, ["user"]),
        ({"input": "a", "model": 3}, ["model"]),
        ({"input": "a", "truncate": "no"}, ["truncate"]),
        ({"input": "a", "encoding_format": "int8", "trunkate": True}, ["trunkate", "encoding_format"]),
        (["a"], ["body", "input"]),
    ],
)
def test_a_wrong_request_is_told_all_of_its_mistakes(payload: Any, keys: list[str], embedder: TestClient) -> None:
    found = problems(embedder.post("/v1/embeddings", content=json.dumps(payload)), 400)
    assert [problem["key"] for problem in found] == keys
    assert all(problem["rule"] for problem in found)


@pytest.mark.parametrize("payload", [{"input": "\ud800"}, {"input": ["good", "a \ud800 b"]}])
def test_half_a_character_is_told_as_such(payload: Any, embedder: TestClient) -> None:
    (problem,) = problems(embedder.post("/v1/embeddings", content=json.dumps(payload)), 400)
    assert problem["value"] == "half a character, U+D800"
    assert problem["rule"] == "hold whole characters: no surrogate without its pair"


@pytest.mark.parametrize("read", [read_classify, read_answer])
def test_half_a_character_of_a_pair_is_told_as_such(read: Callable[[Any, int], Any]) -> None:
    pair = {"inputs": [["a", "\udc00"]]} if read is read_classify else {"question": "a", "context": "b \udc00"}
    with pytest.raises(Refused, match="half a character, U\\+DC00"):
        read(pair, 10)


def test_a_wrong_key_is_told_the_nearest(embedder: TestClient) -> None:
    (problem,) = problems(embedder.post("/v1/embeddings", json={"input": "a", "trunkate": True}), 400)
    assert problem["fix"] == "truncate"


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"input": NaN}', b"\xff\xfe", b"[" * 100_000, b"1" * 5000, b'{"input": "a"} 1']
)
def test_what_is_no_json_is_refused(body: bytes, embedder: TestClient) -> None:
    (problem,) = problems(embedder.post("/v1/embeddings", content=body), 400)
    assert (problem["key"], problem["rule"]) == ("body", "be JSON in UTF-8")


def test_another_model_is_not_here(embedder: TestClient) -> None:
    (problem,) = problems(embedder.post("/v1/embeddings", json={"input": "a", "model": "ada"}), 404)
    assert (problem["key"], problem["fix"]) == ("model", "tiny")


def test_a_long_value_is_not_sent_back_whole(embedder: TestClient) -> None:
    reply = embedder.post("/v1/embeddings", json={"input": ["a", ["x" * 10_000]]})
    assert problems(reply, 400)[0]["key"] == "input[1]"
    assert len(reply.content) < 1000


# sizes


def test_bodies_inputs_and_tokens_are_bounded(engines: dict[str, Engine]) -> None:
    options = {"max_body_bytes": 500, "max_inputs": 3, "max_batch_tokens": 32, "queue_tokens": 64}
    with client(engines["none"], **options) as to:
        whole = json.dumps({"input": "a" * 600}).encode()
        assert problems(to.post("/v1/embeddings", content=whole), 413)[0]["key"] == "body"

        def parts() -> Iterator[bytes]:
            yield from (b'{"input": "', *[b"a" * 100] * 6, b'"}')

        chunked = to.post("/v1/embeddings", content=parts())
        assert "content-length" not in chunked.request.headers
        assert problems(chunked, 413)[0]["key"] == "body"
        assert chunked.headers["connection"] == "close"
        assert problems(to.post("/v1/embeddings", json={"input": ["a"] * 4}), 413)[0]["key"] == "input"
        assert problems(to.post("/v1/embeddings", json={"input": [[5] * 30] * 3}), 413)[0]["key"] == "request"
        assert to.post("/v1/embeddings", json={"input": [[5] * 32] * 2}).status_code == 200
        text = to.get("/metrics").text
    assert metric(text, 'prunus_rejected_total{reason="too_large"}') == 4
    assert metric(text, 'prunus_requests_total{endpoint="/v1/embeddings",status="413"}') == 4


# classes


def test_classes_are_the_pipelines(classifier: TestClient, models: dict[str, Path]) -> None:
    model, tokenizer = models["sequence"], AutoTokenizer.from_pretrained(models["sequence"])
    loaded = AutoModelForSequenceClassification.from_pretrained(model)
    reference = pipeline("text-classification", model=loaded, tokenizer=tokenizer, device="cpu")(TEXTS, top_k=None)
    found = classifier.post("/classify", json={"inputs": TEXTS}).json()
    assert [[row["label"] for row in rows] for rows in found] == [[row["label"] for row in rows] for rows in reference]
    scores = [[row["score"] for row in rows] for rows in found]
    np.testing.assert_allclose(scores, [[row["score"] for row in rows] for rows in reference], atol=1e-5)
    assert {row["label"] for row in found[0]} == set(LABELS.values())
    np.testing.assert_allclose(np.sum(scores, axis=1), 1, atol=1e-12)
    (alone,) = classifier.post("/classify", json={"inputs": TEXTS[0]}).json()
    assert [row["score"] for row in alone] == pytest.approx(scores[0], abs=1e-6)


def test_pairs_are_read_as_pairs(classifier: TestClient, engines: dict[str, Engine]) -> None:
    engine = engines["sequence"]
    found = classifier.post("/classify", json={"inputs": [["who is good ?", "the film"], "the film"]}).json()
    ids, types = engine.tokenize([("who is good ?", "the film")])
    assert types[0].sum() == 3
    logits = engine.head(engine.states(ids, types)[0][:1])[0]
    expected = np.exp(logits) / np.exp(logits).sum()
    assert [row["score"] for row in found[0]] == pytest.approx(sorted(expected.tolist(), reverse=True), abs=1e-6)
    assert found[0] != found[1]


def test_independent_classes_are_sigmoids(engines: dict[str, Engine]) -> None:
    engine = engines["sequence"]
    logits = engine.head(engine.states(*engine.tokenize(TEXTS[:1]))[0][:1])[0]
    settings = dict(engine.settings)
    engine.settings["problem_type"] = "multi_label_classification"
    try:
        with client(engine) as to:
            (found,) = to.post("/classify", json={"inputs": TEXTS[:1]}).json()
    finally:
        engine.settings.clear()
        engine.settings.update(settings)
    expected = {LABELS[i]: 1 / (1 + np.exp(-float(z))) for i, z in enumerate(logits)}
    assert {row["label"]: row["score"] for row in found} == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("payload", "keys"),
    [
        ({"input": "a"}, ["input", "inputs"]),
        ({"inputs": ["a", ["b"], ["a", 1], {}]}, ["inputs[1]", "inputs[2]", "inputs[3]"]),
        ({"inputs": {}}, ["inputs"]),
    ],
)
def test_wrong_inputs_of_classify(payload: Any, keys: list[str], classifier: TestClient) -> None:
    assert [problem["key"] for problem in problems(classifier.post("/classify", json=payload), 400)] == keys


def test_long_inputs_of_classify(classifier: TestClient) -> None:
    payload = {"inputs": ["a", "good " * 100], "truncate": False}
    assert problems(classifier.post("/classify", json=payload), 422)[0]["key"] == "inputs[1]"
    assert len(classifier.post("/classify", json=payload | {"truncate": True}).json()) == 2


# answers


def reference_answer(place: Path, question: str, context: str, longest: int = 30) -> tuple[str, float]:
    """The best span by its definition, in torch, for a context that fits in one window."""
    tokenizer = AutoTokenizer.from_pretrained(place)
    model = AutoModelForQuestionAnswering.from_pretrained(place).eval()
    batch = tokenizer(question, context, return_tensors="pt", return_offsets_mapping=True)
    offsets = batch.pop("offset_mapping")[0].tolist()
    inside = [i for i, part in enumerate(batch.sequence_ids(0)) if part == 1]
    with torch.no_grad():
        output = model(**batch)
    start, end = (z[0, inside].double().softmax(0) for z in (output.start_logits, output.end_logits))
    score, i, j = max(
        (float(start[i] * end[j]), i, j) for i in range(len(inside)) for j in range(i, min(len(inside), i + longest))
    )
    return context[offsets[inside[i]][0] : offsets[inside[j]][1]], score


def test_an_answer_is_the_best_span(models: dict[str, Path], engines: dict[str, Engine]) -> None:
    with client(engines["span"]) as to:
        for question in ("what is the book ?", "who is red ?", "is one long ?"):
            found = to.post("/answer", json={"question": question, "context": CONTEXT}).json()
            text, score = reference_answer(models["span"], question, CONTEXT)
            assert found["answer"] == text == CONTEXT[found["start"] : found["end"]]
            assert found["score"] == pytest.approx(score, rel=1e-4)


def test_a_list_of_questions_has_a_list_of_answers(reader: TestClient) -> None:
    one = {"question": "what is red ?", "context": CONTEXT}
    other = {"question": "who ?", "context": "good film"}
    alone = [reader.post("/answer", json=each).json() for each in (one, other)]
    found = reader.post("/answer", json=[one, other]).json()
    assert [row["answer"] for row in found] == [row["answer"] for row in alone]
    assert [row["score"] for row in found] == pytest.approx([row["score"] for row in alone], rel=1e-4)


def test_a_long_context_is_read_in_windows_that_cover_it(reader: TestClient, engines: dict[str, Engine]) -> None:
    context = " ".join(sentence(i) for i in range(60))
    question = "what is the book ?"
    windows = reader.app.state.service.tokens.of_question(question, context, True, "question")  # type: ignore[attr-defined]
    assert len(windows) > 3
    assert max(len(window.ids) for window in windows) == 32
    places = [tuple(place) for window in windows for place in window.characters.tolist()]
    words = engines["span"].tokenizer.encode(question, add_special_tokens=False)
    assert {context[a:b] for a, b in places} == set(context.split())
    covered = sorted(set(places))
    assert len(covered) == len(context.split())
    shared = {tuple(p) for p in windows[0].characters.tolist()} & {tuple(p) for p in windows[1].characters.tolist()}
    assert len(shared) == 16
    engine = engines["span"]
    logits = [engine.head(engine.states([w.ids], [w.types])[0])[w.places].astype(float) for w in windows]
    best = max(
        (z[i, 0] + z[j, 1], w.characters[i, 0], w.characters[j, 1])
        for w, z in zip(windows, logits, strict=True)
        for i in range(len(z))
        for j in range(i, min(len(z), i + 30))
    )
    found = reader.post("/answer", json={"question": question, "context": context}).json()
    assert (found["start"], found["end"]) == best[1:]
    assert 0 < found["score"] < 1
    assert len(words.ids) == 5


def test_a_long_question_is_cut_or_refused(reader: TestClient) -> None:
    payload = {"question": "good " * 40, "context": CONTEXT}
    assert reader.post("/answer", json=payload).status_code == 200
    (problem,) = problems(reader.post("/answer", json=[payload | {"truncate": False}]), 422)
    assert problem["key"] == "[0].question"


@pytest.mark.parametrize(
    ("payload", "keys"),
    [
        ({"question": "who ?"}, ["context"]),
        ({"question": " ", "context": 3}, ["question", "context"]),
        ([{"question": "who ?", "context": "a"}, {"context": "a", "c": 1}], ["[1].c", "[1].question"]),
        ([3], ["[0]"]),
        ([], ["body"]),
        (3, ["body"]),
    ],
)
def test_wrong_questions(payload: Any, keys: list[str], reader: TestClient) -> None:
    assert [problem["key"] for problem in problems(reader.post("/answer", json=payload), 400)] == keys


# all others


@pytest.mark.parametrize(
    ("head", "path", "says"),
    [
        ("none", "/classify", "no head"),
        ("none", "/answer", "no head"),
        ("sequence", "/v1/embeddings", "sequence classification"),
        ("tokens", "/v1/embeddings", "token classification"),
        ("span", "/classify", "question answering"),
    ],
)
def test_an_endpoint_without_its_head_says_so(head: str, path: str, says: str, engines: dict[str, Engine]) -> None:
    with client(engines[head]) as to:
        (problem,) = problems(to.post(path, json={"input": "a"}), 404)
        assert says in problem["value"]
        assert path in problem["rule"]
        fits = {row["path"] for row in to.get("/").json() if row["fits"] and row["method"] == "POST"}
        assert (
            fits == {"none": {"/v1/embeddings"}, "sequence": {"/classify"}, "tokens": set(), "span": {"/answer"}}[head]
        )
        assert problem["fix"] == "".join(f"POST {one}" for one in fits)


def test_the_model_the_health_and_the_list(embedder: TestClient) -> None:
    (model,) = embedder.get("/v1/models").json()["data"]
    assert (model["id"], model["object"], model["owned_by"]) == ("tiny", "model", "prunus")
    health = embedder.get("/health")
    assert health.status_code == 200
    assert {key: health.json()[key] for key in ("live", "ready", "head")} == {
        "live": True,
        "ready": True,
        "head": "none",
    }
    assert {row["path"] for row in embedder.get("/").json()} > {"/", "/health", "/metrics", "/answer"}


def test_unknown_paths_and_methods(embedder: TestClient) -> None:
    assert problems(embedder.get("/nowhere"), 404)[0]["key"] == "path"
    (problem,) = problems(embedder.get("/v1/embeddings"), 405)
    assert (problem["key"], problem["rule"]) == ("method", "be POST")


def test_metrics_count_what_was_answered(engines: dict[str, Engine]) -> None:
    with client(engines["none"]) as to:
        for _ in range(3):
            to.post("/v1/embeddings", json={"input": [[5] * 20, [6] * 20]})
        to.post("/v1/embeddings", json={})
        to.get("/some/path")
        text = to.get("/metrics").text
    path = "/v1/embeddings"
    assert metric(text, f'prunus_requests_total{{endpoint="{path}",status="200"}}') == 3
    assert metric(text, f'prunus_requests_total{{endpoint="{path}",status="400"}}') == 1
    assert metric(text, 'prunus_requests_total{endpoint="other",status="404"}') == 1
    assert metric(text, f'prunus_request_seconds_bucket{{endpoint="{path}",le="+Inf"}}') == 4
    assert metric(text, f'prunus_request_seconds_count{{endpoint="{path}"}}') == 4
    assert metric(text, 'prunus_batch_tokens_bucket{le="32"}') == 0
    assert metric(text, 'prunus_batch_tokens_bucket{le="64"}') == 3
    assert metric(text, "prunus_batch_tokens_sum") == 120
    assert metric(text, "prunus_open_requests") == 1


def test_a_server_that_stops_refuses(engines: dict[str, Engine]) -> None:
    with client(engines["none"]) as to:
        to.app.state.service.server_state.stopping = True  # type: ignore[attr-defined]
        reply = to.post("/v1/embeddings", json={"input": "a"})
        assert problems(reply, 503)[0]["key"] == "server"
        assert (reply.headers["retry-after"], reply.headers["connection"]) == ("1", "close")
        health = to.get("/health")
        assert (health.status_code, health.json()["live"], health.json()["ready"]) == (503, True, False)


class Broken:
    """An engine whose states are an error."""

    def __init__(self, engine: Engine, error: Exception) -> None:
        self.settings, self.head, self.tokenizer, self.error = engine.settings, engine.head, engine.tokenizer, error
        self.sentences, self.features, self.token_types = engine.sentences, engine.features, engine.token_types
        self.skipped, self.embed = engine.skipped, engine.embed

    def states(self, sequences: Any, types: Any = None) -> Any:
        raise self.error


def test_an_error_of_the_engine_is_no_traceback_for_the_client(engines: dict[str, Engine]) -> None:
    with client(Broken(engines["none"], ZeroDivisionError("secret"))) as to:
        reply = to.post("/v1/embeddings", json={"input": "a"})
        assert problems(reply, 500)[0]["key"] == "request"
        assert "secret" not in reply.text
        assert to.get("/health").status_code == 200


def test_an_answer_that_is_no_number_is_an_error(engines: dict[str, Engine]) -> None:
    class Nan(Broken):
        def states(self, sequences: Any, types: Any = None) -> Any:
            return [np.full((len(one), 16), np.nan, np.float32) for one in sequences]

    with client(Nan(engines["none"], ValueError())) as to:
        problems(to.post("/v1/embeddings", json={"input": "a"}), 500)


# clients that are slow, or go: messages of ASGI by hand


def call(app: Any, path: str, *messages: dict[str, Any], then: float = 60.0) -> list[dict[str, Any]]:
    """What the application sends to a client whose messages are these; after them nothing comes for ``then`` seconds."""
    scope = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b"", "http_version": "1.1"}
    rest, sent = list(messages), []

    async def receive() -> dict[str, Any]:
        if not rest:
            await asyncio.sleep(then)
            return {"type": "http.disconnect"}
        return rest.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(asyncio.wait_for(app(scope, receive, send), 10))
    return sent


def test_a_body_that_trickles_is_refused(engines: dict[str, Engine]) -> None:
    app = create_app(engines["none"], Options(read_timeout=0.1))
    part = {"type": "http.request", "body": b"{", "more_body": True}
    start, *_ = call(app, "/v1/embeddings", part)
    assert start["status"] == 408
    assert (b"connection", b"close") in start["headers"]


def test_who_goes_while_sending_is_forgotten(engines: dict[str, Engine]) -> None:
    app = create_app(engines["none"])
    start, *_ = call(app, "/v1/embeddings", {"type": "http.disconnect"})
    assert start["status"] == 499
    assert app.state.service.server_state.open_requests == 0


def test_who_goes_while_waiting_leaves_the_queue(engines: dict[str, Engine]) -> None:
    app = create_app(engines["none"], Options(max_wait_ms=5000))
    whole = {"type": "http.request", "body": b'{"input": "good"}', "more_body": False}
    start, *_ = call(app, "/v1/embeddings", whole, then=0.1)
    assert start["status"] == 499
    assert app.state.service.batcher.waiting == (0, 0)
    app.state.service.batcher.close()
    assert "prunus_batch_tokens_count" not in app.state.service.metrics.text({})


def test_too_many_at_a_time_are_refused_unread(engines: dict[str, Engine]) -> None:
    app = create_app(engines["none"], Options(open_requests=2))
    app.state.service.server_state.open_requests = 2
    start, *_ = call(app, "/v1/embeddings")
    assert start["status"] == 429
    assert (b"retry-after", b"1") in start["headers"]
