"""Following the changes: read from the store in pages, woken when there are more.

A watcher that is slow holds one page of events, not a queue that grows: what it has not read waits in the
store. One that falls behind what the store keeps is told so.
"""

import asyncio
from collections.abc import AsyncGenerator
from functools import partial

from services.kit.errors import SequenceExpired
from services.registry.core.models import Event, ModelFilter
from services.registry.core.ports import ModelStore, Records
from services.registry.core.rules import check_filter

_PAGE_EVENTS = 100


class Wakeup:
    """Tells any number of waiters that something happened since they looked."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def ticket(self) -> asyncio.Event:
        """Take it before looking, wait for it after: what happens in between is not missed."""
        return self._next

    def wake(self) -> None:
        """Something happened."""
        self._next.set()
        self._next = asyncio.Event()


class Watcher:
    """Streams events from a store. poll_s: how often to look for changes by other processes; None: never."""

    def __init__(self, store: ModelStore, wakeup: Wakeup, *, poll_s: float | None = None) -> None:
        self._store = store
        self._wakeup = wakeup
        self._poll_s = poll_s

    async def watch(self, models: ModelFilter, *, after_sequence: int | None) -> AsyncGenerator[Event, None]:
        """Events of these models with higher numbers, without end. None: from now on; 0: all that are kept.

        Raises InvalidArgument for the filter, SequenceExpired if the number is not kept or the caller falls
        behind what is.
        """
        check_filter(models)
        sequence = await self._store.read(partial(_start, after_sequence=after_sequence))
        while True:
            ticket = self._wakeup.ticket()
            events = await self._store.read(partial(_page, after=sequence))
            for event in events:
                sequence = event.sequence
                if models.takes(event.model):
                    yield event
            if len(events) < _PAGE_EVENTS:
                await self._wait(ticket)

    async def _wait(self, ticket: asyncio.Event) -> None:
        try:
            async with asyncio.timeout(self._poll_s):
                await ticket.wait()
        except TimeoutError:
            return


def _start(records: Records, after_sequence: int | None) -> int:
    oldest, last = records.kept_events()
    if after_sequence is None:
        return last
    if after_sequence == 0:
        return oldest - 1
    if not oldest - 1 <= after_sequence <= last:
        raise _expired(after_sequence)
    return after_sequence


def _page(records: Records, after: int) -> list[Event]:
    oldest, _ = records.kept_events()
    if after < oldest - 1:
        raise _expired(after)
    return list(records.events(after_sequence=after, limit=_PAGE_EVENTS))


def _expired(sequence: int) -> SequenceExpired:
    return SequenceExpired(
        f"events after {sequence} are not kept; list the models, then watch from now",
        metadata={"after_sequence": str(sequence)},
    )
