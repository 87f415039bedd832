"""What must not be left half-way, even by a task that is being cancelled."""

import asyncio
from collections.abc import Coroutine
from typing import Any


async def see_through(work: Coroutine[Any, Any, None]) -> None:
    """Await `work` to its end; a cancellation that comes meanwhile, or several, is raised after it."""
    task = asyncio.create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        task.exception()  # Whoever is cancelled has no use for it.
        raise cancelled
    task.result()
