"""Work that is seen through although its task is cancelled."""

import asyncio

import pytest

from services.kit.unbroken import see_through


async def test_work_is_finished_before_a_second_cancellation_gets_through() -> None:
    may_end, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        await may_end.wait()
        ended.set()

    task = asyncio.create_task(see_through(work()))
    for _ in range(2):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


async def test_each_cancellation_is_told_to_whoever_can_hasten_the_end() -> None:
    may_end = asyncio.Event()
    task = asyncio.create_task(see_through(may_end.wait(), on_cancel=may_end.set))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert may_end.is_set()


async def test_an_error_of_the_work_is_raised() -> None:
    async def work() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await see_through(work())
