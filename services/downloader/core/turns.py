"""Turns: so many may work at once, and who waits goes by rank, not by who came first."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any


class Turns:
    """At most `num_turns` at once. A rank is asked for when a turn is free, so it may change while somebody waits."""

    def __init__(self, num_turns: int) -> None:
        self._num_free = num_turns
        self._waiting: dict[asyncio.Future[None], Callable[[], Any]] = {}

    @asynccontextmanager
    async def turn(self, rank: Callable[[], Any]) -> AsyncIterator[None]:
        """A turn, for as long as the block runs. The least rank is the next."""
        await self._take(rank)
        try:
            yield
        finally:
            self._give_back()

    async def _take(self, rank: Callable[[], Any]) -> None:
        if self._num_free:
            self._num_free -= 1
            return
        given = asyncio.get_running_loop().create_future()
        self._waiting[given] = rank
        try:
            await given
        except asyncio.CancelledError:
            if self._waiting.pop(given, None) is None:
                # It got its turn in the very moment in which it left.
                self._give_back()
            raise

    def _give_back(self) -> None:
        if not self._waiting:
            self._num_free += 1
            return
        first = min(self._waiting, key=lambda given: self._waiting[given]())
        del self._waiting[first]
        first.set_result(None)
