"""One transfer per digest: whoever wants what another download brings waits for it, and takes over where that fails.

Nobody waits in a circle. A transfer under way waits for nobody; what has arrived is stored for others at once if they
ask, until its download has all of its files; from then on that one waits for nobody either.
"""

import asyncio
from collections.abc import Awaitable, Callable

from services.kit.unbroken import see_through

Store = Callable[[], Awaitable[None]]


class Transfer:
    """One digest that one download brings. wanted: somebody else waits for it; over: nobody need wait any more."""

    def __init__(self, download_id: str) -> None:
        self.download_id = download_id
        self.over = asyncio.Event()
        self.wanted = asyncio.Event()
        self._store: Store | None = None
        self._storing: asyncio.Task[None] | None = None

    def want(self) -> None:
        """Somebody else waits for it."""
        self.wanted.set()
        if self._store is not None and self._storing is None:
            self._storing = asyncio.create_task(self._put(self._store))

    def arrived(self, store: Store) -> None:
        """It is here, and whole. store: makes it a blob, for others."""
        self._store = store
        if self.wanted.is_set():
            self.want()

    async def settle(self) -> None:
        """It is used where it lies now, so it is stored for others only with the rest. Raises what storing it did."""
        self._store = None
        if self._storing is not None:
            await see_through(self._storing)

    async def end(self) -> None:
        """Its download has ended, or does not need it."""
        self._store = None
        if self._storing is not None:
            await see_through(asyncio.gather(self._storing, return_exceptions=True))
        self.over.set()

    async def _put(self, store: Store) -> None:
        await store()
        self.over.set()


class Transfers:
    """All that are under way."""

    def __init__(self) -> None:
        self._under_way: dict[str, Transfer] = {}

    async def begin(self, digest: str, download_id: str) -> Transfer:
        """Wait while another brings it. Then it is in the store, or the caller's to bring.

        digest: empty if nobody knows it, so that nobody can wait for it.
        """
        while (other := self._under_way.get(digest)) is not None and not other.over.is_set():
            other.want()
            await other.over.wait()
        return self._begun(digest, download_id)

    def take(self, digest: str, download_id: str) -> Transfer | None:
        """As `begin`, but None where another brings it."""
        other = self._under_way.get(digest)
        return self._begun(digest, download_id) if other is None or other.over.is_set() else None

    async def settle(self, download_id: str) -> None:
        """All of a download's files are here. Raises what storing one for others did."""
        for transfer in self._of(download_id).values():
            await transfer.settle()

    async def end(self, download_id: str) -> None:
        """A download has ended; who waits for one of its files goes on."""
        for digest, transfer in self._of(download_id).items():
            await transfer.end()
            if self._under_way.get(digest) is transfer:
                del self._under_way[digest]

    def _begun(self, digest: str, download_id: str) -> Transfer:
        transfer = Transfer(download_id)
        if digest:
            self._under_way[digest] = transfer
        return transfer

    def _of(self, download_id: str) -> dict[str, Transfer]:
        return {
            digest: transfer
            for digest, transfer in self._under_way.items()
            if transfer.download_id == download_id
        }
