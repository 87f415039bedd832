import asyncio
from collections.abc import AsyncIterator

import pytest

from services.kit.errors import InternalError, InvalidArgument, WorkerLost
from services.speech.core.live import LiveResult, converse
from services.speech.core.messages import (
    Audio,
    Consumed,
    Final,
    Finished,
    Partial,
    WorkerEvent,
    WorkerRequest,
)


class FakeCall:
    """A worker that says what the test puts into `events`; an error ends it."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.is_closed = asyncio.Event()
        self.events: asyncio.Queue[WorkerEvent | Exception | None] = asyncio.Queue()

    async def send(self, message: WorkerRequest) -> None:
        assert isinstance(message, Audio)
        self.heard.append(message.samples)

    async def done_sending(self) -> None:
        self.is_closed.set()

    async def __aiter__(self) -> AsyncIterator[WorkerEvent]:
        while (event := await self.events.get()) is not None:
            if isinstance(event, Exception):
                raise event
            yield event


class Microphone:
    """Audio that counts what was taken of it."""

    def __init__(self, *chunks: bytes, error: Exception | None = None) -> None:
        self.num_taken = 0
        self._chunks = chunks
        self._error = error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            self.num_taken += 1
            yield chunk
        if self._error is not None:
            raise self._error


async def hear(call: FakeCall, audio: Microphone, max_pending_bytes: int = 100) -> list[LiveResult]:
    return [result async for result in converse(call, aiter(audio), max_pending_bytes=max_pending_bytes)]


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_results_come_in_order_and_the_last_ends_the_stream() -> None:
    call = FakeCall()
    said: list[LiveResult] = [Partial("a"), Final("a b", []), Finished(1.0)]
    call.events.put_nowait(Consumed(2))
    for event in said:
        call.events.put_nowait(event)
    assert await hear(call, Microphone(b"12")) == said


async def test_end_of_audio_is_passed_on() -> None:
    call = FakeCall()
    hearing = asyncio.create_task(hear(call, Microphone(b"12", b"34")))
    await asyncio.wait_for(call.is_closed.wait(), 5)
    assert call.heard == [b"12", b"34"]
    call.events.put_nowait(Finished(1.0))
    assert await hearing == [Finished(1.0)]


async def test_slow_worker_holds_up_the_microphone() -> None:
    call, audio = FakeCall(), Microphone(*[b"1234"] * 50)
    hearing = asyncio.create_task(hear(call, audio, max_pending_bytes=10))
    await settle()
    assert len(call.heard) == 3
    call.events.put_nowait(Consumed(4))
    await settle()
    assert len(call.heard) == 4
    assert audio.num_taken <= 5
    hearing.cancel()
    await asyncio.wait([hearing])


@pytest.mark.parametrize("error", [WorkerLost("gone"), InvalidArgument.at("config.phrases[0]", "no")])
async def test_error_of_the_worker_is_raised(error: Exception) -> None:
    call = FakeCall()
    call.events.put_nowait(error)
    with pytest.raises(type(error)):
        await hear(call, Microphone())


async def test_error_in_the_audio_is_raised_while_the_worker_says_nothing() -> None:
    with pytest.raises(InvalidArgument):
        await hear(FakeCall(), Microphone(b"12", error=InvalidArgument.at("audio", "no")))


async def test_worker_that_ends_without_a_last_result_is_a_bug() -> None:
    call = FakeCall()
    call.events.put_nowait(None)
    with pytest.raises(InternalError):
        await hear(call, Microphone())
