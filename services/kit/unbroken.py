"""What must not be left half-way, even by a task that is being cancelled. Pure asyncio."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def see_through(
    work: Coroutine[Any, Any, T] | asyncio.Future[T], *, on_cancel: Callable[[], None] = lambda: None
) -> T:
    """Await `work` to its end; a cancellation that comes meanwhile, or several, is raised after it.

    on_cancel: told of each, to hasten that end.
    """
    running = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not running.done():
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError as error:
            cancelled = error
            on_cancel()
    if cancelled is not None:
        running.exception()  # Whoever is cancelled has no use for it.
        raise cancelled
    return running.result()
