"""The queue and its worker, before an engine that waits until it is told."""

import asyncio
from collections.abc import Coroutine, Iterator
from typing import Any

import numpy as np
import pytest
from serving_tools import Waiting, until

from prunus.errors import EngineError, PrunusError
from prunus.serving.batcher import Batcher
from prunus.serving.options import Options
from prunus.serving.problems import Refused

Asked = Coroutine[Any, Any, list[Any]]


@pytest.fixture
def engine() -> Iterator[Waiting]:
    waiting = Waiting()
    yield waiting
    waiting.go.set()


def batcher(engine: Waiting, **options: Any) -> Batcher:
    return Batcher(engine, Options(**{"max_batch_tokens": 8, "queue_tokens": 20, "queue_requests": 4} | options))  # type: ignore[arg-type]


def ask(to: Batcher, *sequences: list[int]) -> Asked:
    arrays = [np.array(one) for one in sequences]
    return to.compute(arrays, [np.zeros_like(one) for one in arrays], lambda states: states.sum(0))


async def begin(work: Asked) -> "asyncio.Task[list[Any]]":
    task = asyncio.create_task(work)
    await asyncio.sleep(0)
    return task


async def busy(to: Batcher, engine: Waiting) -> "asyncio.Task[list[Any]]":
    """A first request, which the engine has begun: all others wait."""
    task = await begin(ask(to, [1]))
    await asyncio.to_thread(engine.begun.wait, 5)
    return task


def close(to: Batcher, engine: Waiting) -> None:
    engine.go.set()
    to.close()


def test_batches_form_while_the_engine_is_busy(engine: Waiting) -> None:
    async def story() -> list[Any]:
        to = batcher(engine)
        tasks = [await busy(to, engine)]
        tasks += [
            await begin(ask(to, [2, 2], [3])),
            await begin(ask(to, [4] * 4, [5] * 3)),
            await begin(ask(to, [6] * 9)),
        ]
        assert to.waiting == (3, 19)
        engine.go.set()
        found = await asyncio.gather(*tasks)
        await asyncio.to_thread(to.close)
        return found

    found = asyncio.run(story())
    assert [[int(v[0]) for v in one] for one in found] == [[1], [4, 3], [16, 15], [54]]
    # up to 8 tokens, in order, a request cut between its sequences; one that is longer goes alone
    assert engine.batches == [[[1]], [[2, 2], [3], [4] * 4], [[5] * 3], [[6] * 9]]


def test_an_idle_engine_waits_for_others_if_it_should(engine: Waiting) -> None:
    async def story() -> None:
        to = batcher(engine, max_wait_ms=300)
        engine.go.set()
        await asyncio.gather(ask(to, [1]), ask(to, [2]))
        start = asyncio.get_running_loop().time()
        await asyncio.gather(ask(to, [3] * 4), ask(to, [4] * 4))  # a full batch need not wait
        assert asyncio.get_running_loop().time() - start < 0.25
        await asyncio.to_thread(to.close)

    asyncio.run(story())
    assert engine.batches == [[[1], [2]], [[3] * 4, [4] * 4]]


def test_a_full_queue_refuses_by_tokens_and_by_requests(engine: Waiting) -> None:
    async def story() -> None:
        to = batcher(engine)
        tasks = [await busy(to, engine), await begin(ask(to, [2] * 8, [3] * 8))]
        with pytest.raises(Refused) as error:
            await ask(to, [4] * 5)
        assert (error.value.status, error.value.retry_after) == (429, 1)
        assert "1 requests with 16 tokens before 5 more" in str(error.value)
        tasks += [await begin(ask(to, [4])) for _ in range(3)]
        with pytest.raises(Refused) as error:
            await ask(to, [5])
        assert error.value.status == 429
        with pytest.raises(Refused) as error:
            await ask(to, [5] * 21)
        assert error.value.status == 413
        engine.go.set()
        assert len(await asyncio.gather(*tasks)) == 5
        await asyncio.to_thread(to.close)

    asyncio.run(story())


def test_who_is_gone_leaves_the_queue(engine: Waiting) -> None:
    wrong: list[Any] = []

    async def story() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: wrong.append(context))
        to = batcher(engine)
        first = await busy(to, engine)
        gone, stays = await begin(ask(to, [7] * 8)), await begin(ask(to, [8]))
        gone.cancel()
        first.cancel()  # is being computed: its answer goes nowhere
        await asyncio.gather(gone, first, return_exceptions=True)
        assert to.waiting == (1, 1)
        engine.go.set()
        assert [int(v[0]) for v in await stays] == [8]
        await asyncio.to_thread(to.close)

    asyncio.run(story())
    assert not wrong
    assert engine.batches == [[[1]], [[8]]]


def test_who_goes_half_way_leaves_the_rest(engine: Waiting) -> None:
    async def story() -> None:
        to = batcher(engine)
        gone = await begin(ask(to, [1] * 8, [2] * 8))
        await asyncio.to_thread(engine.begun.wait, 5)
        assert to.waiting == (1, 8)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        assert to.waiting == (0, 0)
        engine.go.set()
        assert [int(v[0]) for v in await ask(to, [3])] == [3]
        await asyncio.to_thread(to.close)

    asyncio.run(story())
    assert engine.batches == [[[1] * 8], [[3]]]


def test_one_bad_request_fails_alone(engine: Waiting) -> None:
    async def story() -> list[Any]:
        to = batcher(engine)
        tasks = [await busy(to, engine), await begin(ask(to, [2])), await begin(ask(to, [13, 1], [5] * 8))]
        tasks += [await begin(ask(to, [3]))]
        engine.go.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert to.ready
        assert to.waiting == (0, 0)
        await asyncio.to_thread(to.close)
        return found

    found = asyncio.run(story())
    assert [int(found[i][0][0]) for i in (0, 1, 3)] == [1, 2, 3]
    assert isinstance(found[2], ValueError)


def test_a_mistake_while_finishing_is_that_requests_own(engine: Waiting) -> None:
    def wrong(states: Any) -> Any:
        raise EngineError

    async def story() -> list[Any]:
        to = batcher(engine)
        tasks = [await busy(to, engine), await begin(to.compute([np.array([2])], [np.array([0])], wrong))]
        tasks += [await begin(ask(to, [3]))]
        engine.go.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(to.close)
        return found

    found = asyncio.run(story())
    assert isinstance(found[1], EngineError)
    assert int(found[2][0][0]) == 3


def test_closing_computes_what_was_accepted(engine: Waiting) -> None:
    async def story() -> list[Any]:
        to = batcher(engine)
        tasks = [await busy(to, engine), await begin(ask(to, [2] * 8)), await begin(ask(to, [3] * 8))]
        closing = asyncio.create_task(asyncio.to_thread(to.close))
        await asyncio.to_thread(until, lambda: not to.ready)
        with pytest.raises(Refused) as error:
            await ask(to, [4])
        assert error.value.status == 503
        engine.go.set()
        await closing
        return await asyncio.gather(*tasks)

    assert [int(one[0][0]) for one in asyncio.run(story())] == [1, 16, 24]


def test_retry_after_grows_with_what_waits(engine: Waiting) -> None:
    async def story() -> None:
        to = batcher(engine, queue_tokens=2000)
        engine.go.set()
        await ask(to, [1] * 8)
        engine.go.clear()
        engine.begun.clear()
        to._rate = 100.0  # tokens a second
        tasks = [await busy(to, engine), await begin(ask(to, *[[2] * 8] * 125))]
        tasks += [await begin(ask(to, *[[2] * 8] * 125))]
        with pytest.raises(Refused) as error:
            await ask(to, [3])
        assert error.value.retry_after == 20
        engine.go.set()
        await asyncio.gather(*tasks)
        await asyncio.to_thread(to.close)

    asyncio.run(story())


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"max_batch_tokens": 0}, "max_batch_tokens (--max-batch-tokens)"),
        ({"queue_requests": True}, "queue_requests"),
        ({"max_wait_ms": -1}, "max_wait_ms (--max-wait-ms)"),
        ({"read_timeout": float("nan")}, "read_timeout"),
        ({"name": ""}, "name (--name)"),
        ({"queue_tokens": 100}, "queue_tokens (--queue-tokens)"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], key: str) -> None:
    with pytest.raises(PrunusError) as error:
        Options(**options)
    assert [problem.key for problem in error.value.problems] == [key]


def test_the_room_of_the_queue_is_told_with_flags() -> None:
    with pytest.raises(
        PrunusError, match=r"be at least max_batch_tokens \(--max-batch-tokens\), 4096, got 100"
    ) as error:
        Options(queue_tokens=100)
    assert error.value.problems[0].fix == "--queue-tokens 4096, or a smaller --max-batch-tokens"
