"""Several things at once, but not all."""

import asyncio

import pytest

from services.downloader.core.concurrency import each


async def test_no_more_than_so_many_are_under_way() -> None:
    under_way = most = 0
    done: list[int] = []

    async def work(item: int) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        done.append(item)

    await each(range(20), work, at_once=3)
    assert sorted(done) == list(range(20))
    assert most == 3


async def test_the_first_error_ends_the_others_and_is_raised() -> None:
    ended: list[int] = []

    async def work(item: int) -> None:
        if item == 1:
            raise ValueError("one")
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(item)

    with pytest.raises(ValueError, match="one"):
        await each(range(9), work, at_once=3)
    assert sorted(ended) == [0, 2]
