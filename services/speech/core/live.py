"""One live stream at a worker: audio goes in no faster than the worker takes it, results come out as they are heard."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from typing import Any, Final

from services.kit.errors import InternalError
from services.speech.core.messages import (
    Audio,
    Consumed,
    Finished,
    Partial,
    WorkerEvent,
)
from services.speech.core.messages import (
    Final as FinalResult,
)
from services.speech.core.ports import WorkerCall

# Results that a client has not read yet. Past it the stream is held up, and with it the client's own audio.
_MAX_UNREAD_RESULTS: Final = 64

LiveResult = Partial | FinalResult | Finished


async def converse(
    call: WorkerCall, audio: AsyncIterator[bytes], *, max_pending_bytes: int
) -> AsyncGenerator[LiveResult, None]:
    """Feed audio to a call and yield what it hears; `Finished` is last.

    max_pending_bytes: audio that the worker may have and not have heard yet. Past it no more is read from the client,
    whom flow control then holds up. Raises what `audio` raises and what the call raises.
    """
    window = _Window(max_pending_bytes)
    results: asyncio.Queue[LiveResult | Exception] = asyncio.Queue(_MAX_UNREAD_RESULTS)
    tasks = [
        asyncio.create_task(_tell_errors(_feed(call, audio, window), results)),
        asyncio.create_task(_tell_errors(_listen(call, window, results), results)),
    ]
    try:
        while True:
            result = await results.get()
            if isinstance(result, Exception):
                raise result
            yield result
            if isinstance(result, Finished):
                return
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Window:
    """Bytes that are on their way and not worked through."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_pending = 0
        self._has_room = asyncio.Event()
        self._has_room.set()

    async def take(self, num_bytes: int) -> None:
        """Wait for room. One message may overshoot, so that one larger than the window passes at all."""
        await self._has_room.wait()
        self._add(num_bytes)

    def give_back(self, num_bytes: int) -> None:
        self._add(-num_bytes)

    def _add(self, num_bytes: int) -> None:
        self._num_pending += num_bytes
        if self._num_pending < self._max_bytes:
            self._has_room.set()
        else:
            self._has_room.clear()


async def _feed(call: WorkerCall, audio: AsyncIterator[bytes], window: _Window) -> None:
    async for samples in audio:
        await window.take(len(samples))
        await call.send(Audio(samples))
    await call.done_sending()


async def _listen(call: WorkerCall, window: _Window, results: asyncio.Queue[LiveResult | Exception]) -> None:
    async for event in call:
        if isinstance(event, Consumed):
            window.give_back(event.num_bytes)
        else:
            await results.put(_live_result(event))
            if isinstance(event, Finished):
                return
    raise InternalError("the recogniser ended its stream without a last result")


def _live_result(event: WorkerEvent) -> LiveResult:
    if isinstance(event, Partial | FinalResult | Finished):
        return event
    raise InternalError(f"the recogniser sent a {type(event).__name__} on a live stream")


async def _tell_errors(
    work: Coroutine[Any, Any, None], results: asyncio.Queue[LiveResult | Exception]
) -> None:
    try:
        await work
    except Exception as error:  # Raised again where the results are read.
        await results.put(error)
