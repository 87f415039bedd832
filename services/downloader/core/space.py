"""Room in the store: how much there is, who has been promised some, and who is refused.

What is on its way claims its room before its first byte. What turns out larger than it was said to be claims more
as it comes, and is stopped where it does not fit. The store itself counts its blobs; only the ingest folders that
nobody has a claim on are measured, when a claim is made or ends.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from services.downloader.core.ports import Area, BlobStore
from services.kit.errors import DiskFull, LaresError, StoreFull


@dataclass(frozen=True, slots=True)
class SpaceLimits:
    """max_store_bytes: 0 for no limit. min_free_bytes: what is to stay free on the disk."""

    max_store_bytes: int = 0
    min_free_bytes: int = 0


class Claim:
    """Room for what is on its way in one ingest folder."""

    def __init__(self, space: "Space", arrived_bytes: int) -> None:
        self._space = space
        self._arrived_bytes = arrived_bytes
        self._expected_bytes = arrived_bytes
        self._shared_bytes = 0

    @property
    def held_bytes(self) -> int:
        """What lies there, or will."""
        return self._expected_bytes + self._shared_bytes

    @property
    def missing_bytes(self) -> int:
        """What has yet to come."""
        return self._expected_bytes - self._arrived_bytes

    async def expect(self, num_bytes: int, *, shared_bytes: int = 0) -> None:
        """So much will lie there in the end, what lies there already included. Raises StoreFull, DiskFull.

        shared_bytes: so much besides, which other programs have on the disk already. It counts towards the limit alone.
        """
        await self._space.measure()
        try:
            self._space.check_limit(shared_bytes)
            self._shared_bytes = shared_bytes
            self._grow(num_bytes)
        except (StoreFull, DiskFull) as error:
            raise await self._space.explained(error) from None

    def arrived(self, num_bytes: int) -> None:
        """So much lies there now. Raises StoreFull, DiskFull where that is more than was expected and does not fit."""
        self._grow(num_bytes)
        self._arrived_bytes = num_bytes

    def unpacked(self, num_bytes: int) -> None:
        """So much of what lies there now is to be stored. Raises StoreFull where that is more than was expected."""
        if num_bytes > self.held_bytes:
            self._space.check_limit(num_bytes - self.held_bytes)
        self._arrived_bytes = self._expected_bytes = num_bytes
        self._shared_bytes = 0

    def settle(self, num_bytes: int) -> None:
        """So much of it has become a blob."""
        self._arrived_bytes = max(0, self._arrived_bytes - num_bytes)
        self._expected_bytes = max(self._arrived_bytes, self._expected_bytes - num_bytes)

    def _grow(self, num_bytes: int) -> None:
        if num_bytes > self._expected_bytes:
            self._space.check(num_bytes - self._expected_bytes)
            self._expected_bytes = num_bytes


class Space:
    """See `claim`. reclaimable: asked what garbage collection would free, to tell whoever is refused."""

    def __init__(self, store: BlobStore, limits: SpaceLimits) -> None:
        self.limits = limits
        self.reclaimable: Callable[[], Awaitable[int]] | None = None
        self._store = store
        self._claims: dict[str, Claim] = {}
        self._unclaimed_bytes = 0

    @asynccontextmanager
    async def claim(self, name: str) -> AsyncGenerator[Claim]:
        """Room for the ingest folder of that id, as long as the block lasts; for what lies there, to begin with."""
        present = await self._store.measure(Area.INGEST, name)
        self._claims[name] = Claim(self, present.size_bytes if present else 0)
        try:
            yield self._claims[name]
        finally:
            del self._claims[name]
            await self.measure()

    def settle(self, name: str, num_bytes: int) -> None:
        """So much of a claim has become a blob, which the store counts from now on."""
        if name in self._claims:
            self._claims[name].settle(num_bytes)

    def check(self, num_bytes: int) -> None:
        """That so much more fits, beside what others have been promised. Raises StoreFull, DiskFull."""
        self.check_limit(num_bytes)
        free_bytes, reserve = self._store.disk().free_bytes, self.reserve_bytes
        promised_bytes = sum(claim.missing_bytes for claim in self._claims.values())
        if num_bytes + promised_bytes + reserve > free_bytes:
            raise DiskFull(
                f"it needs {num_bytes} bytes, and {free_bytes} are free on the disk, of which {promised_bytes} are"
                f" promised to other downloads and {reserve} are to stay free",
                metadata={
                    "needs_bytes": str(num_bytes),
                    "free_bytes": str(free_bytes),
                    "promised_bytes": str(promised_bytes),
                    "reserve_bytes": str(reserve),
                },
            )

    def check_limit(self, num_bytes: int) -> None:
        """That the store may have so much more, wherever it lies by now. Raises StoreFull."""
        limit, used_bytes = self.limits.max_store_bytes, self._used_bytes()
        if limit and used_bytes + num_bytes > limit:
            raise StoreFull(
                f"it needs {num_bytes} bytes, and {used_bytes} are used of the {limit} that the store may have",
                metadata={
                    "needs_bytes": str(num_bytes),
                    "used_bytes": str(used_bytes),
                    "limit_bytes": str(limit),
                },
            )

    async def explained(self, error: LaresError) -> LaresError:
        """A refusal that also tells what garbage collection would free."""
        if self.reclaimable is None:
            return error
        with suppress(LaresError):  # The registry may be away; the refusal stands without that number.
            freeable_bytes = await self.reclaimable()
            metadata = error.metadata | {"reclaimable_bytes": str(freeable_bytes)}
            return type(error)(f"{error.message}; `lares gc` would free {freeable_bytes}", metadata=metadata)
        return error

    @property
    def reserve_bytes(self) -> int:
        """What is to stay free: of a small disk no more than a twentieth, or nothing would ever fit."""
        return min(self.limits.min_free_bytes, self._store.disk().size_bytes // 20)

    async def used_bytes(self) -> int:
        """What the limit counts: all that is in the store, and what claims will bring."""
        await self.measure()
        return self._used_bytes()

    async def measure(self) -> None:
        """Find what lies in ingest folders without a claim: what is paused, has failed, or was left behind."""
        found_bytes = 0
        for name in await self._store.ingests():
            found = await self._store.measure(Area.INGEST, name)
            # Asked afterwards: it may have been claimed meanwhile.
            if found is not None and name not in self._claims:
                found_bytes += found.size_bytes
        self._unclaimed_bytes = found_bytes

    def _used_bytes(self) -> int:
        claimed_bytes = sum(claim.held_bytes for claim in self._claims.values())
        return self._store.stored_bytes + claimed_bytes + self._unclaimed_bytes
