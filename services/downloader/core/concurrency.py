"""Several things at once, but not all."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


async def each(items: Iterable[T], work: Callable[[T], Awaitable[None]], *, at_once: int) -> None:
    """Do `work` on every item, so many at a time. The first error ends the others, and is raised."""
    rest = iter(items)

    async def take_turns() -> None:
        for item in rest:
            await work(item)

    workers = [asyncio.create_task(take_turns()) for _ in range(at_once)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
