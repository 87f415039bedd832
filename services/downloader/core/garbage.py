"""Garbage collection: what nobody refers to, nobody holds, and nobody is about to record."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import IntEnum
from typing import Final

from services.downloader.core.blobs import Blobs
from services.downloader.core.download import DownloadState
from services.downloader.core.ports import Area, Blob, ModelRegistry
from services.kit.names import resource_name

KEEP_PARTIAL: Final = timedelta(days=1)
"""How long what has arrived of a failed download is kept, for a resume."""

KEEP_QUARANTINED: Final = timedelta(days=7)
"""How long a damaged blob is kept, for whoever wants to know what happened to it."""

MAX_ITEMS: Final = 1000
"""How many things are named one by one."""

# Blobs looked at under the lock in one go: enough to be quick, few enough to hold up nobody.
_BATCH: Final = 64


class Reason(IntEnum):
    """Why something goes. Numbers as in the contract."""

    UNSPECIFIED = 0
    UNREFERENCED = 1
    EXPIRED_PARTIAL = 2
    ORPHANED_INGEST = 3
    UNUSED_VIEW = 4
    EXPIRED_QUARANTINE = 5


@dataclass(frozen=True, slots=True)
class Garbage:
    """One thing that goes. name: a digest, a download's resource name or an ingest folder's id, a manifest digest."""

    name: str
    reason: Reason
    size_bytes: int
    age: timedelta


@dataclass(frozen=True, slots=True)
class Collected:
    """What went, or would go. The numbers count all of it; items names the first `MAX_ITEMS`."""

    num_blobs: int = 0
    freed_bytes: int = 0
    num_partials: int = 0
    num_views: int = 0
    num_quarantined: int = 0
    items: tuple[Garbage, ...] = ()

    def plus(self, item: Garbage) -> "Collected":
        """With one more."""
        is_partial = item.reason in (Reason.EXPIRED_PARTIAL, Reason.ORPHANED_INGEST)
        return replace(
            self,
            num_blobs=self.num_blobs + (item.reason is Reason.UNREFERENCED),
            freed_bytes=self.freed_bytes + item.size_bytes,
            num_partials=self.num_partials + is_partial,
            num_views=self.num_views + (item.reason is Reason.UNUSED_VIEW),
            num_quarantined=self.num_quarantined + (item.reason is Reason.EXPIRED_QUARANTINE),
            items=(*self.items, item) if len(self.items) < MAX_ITEMS else self.items,
        )


class GarbageCollector:
    """See `collect`."""

    def __init__(self, blobs: Blobs, registry: ModelRegistry) -> None:
        self._blobs = blobs
        self._registry = registry

    async def collect(self, *, dry_run: bool = False) -> Collected:
        """Delete what is not needed. Raises Unavailable, and deletes nothing, if the registry does not answer.

        References are read before anything else. A version that is recorded meanwhile has blobs that are kept
        since they were stored, and until this is over: that its references are not seen does not matter.
        """
        collected = Collected()
        async with self._blobs.collecting:
            referenced = {digest async for digest in self._registry.referenced()}
            async for item in self._sweep(referenced, dry_run=dry_run):
                collected = collected.plus(item)
        if not dry_run:
            await self._blobs.space.measure()
        return collected

    async def reclaimable_bytes(self) -> int:
        """What a collection would free now. Raises Unavailable."""
        return (await self.collect(dry_run=True)).freed_bytes

    async def _sweep(self, referenced: set[str], *, dry_run: bool) -> AsyncIterator[Garbage]:
        # Views first: where they are hard links, a blob has its bytes to itself only without them.
        for item in await self._views(dry_run=dry_run):
            yield item
        candidates = [blob for blob in await self._blobs.store.blobs() if blob.digest not in referenced]
        for start in range(0, len(candidates), _BATCH):
            for item in await self._unheld(candidates[start : start + _BATCH], dry_run=dry_run):
                yield item
        if not dry_run:
            # Without the lock: this takes as long as writing all of it.
            await self._blobs.store.purge()
        async for item in self._ingests():
            yield item
            if not dry_run:
                await self._blobs.store.drop_ingest(item.name.removeprefix("downloads/"))
        for blob in await self._blobs.store.quarantined():
            item = await self._described(Area.QUARANTINE, blob.digest, Reason.EXPIRED_QUARANTINE)
            if item.age >= KEEP_QUARANTINED:
                yield item
                if not dry_run:
                    await self._blobs.store.drop_quarantined(blob.digest)

    async def _unheld(self, blobs: Sequence[Blob], *, dry_run: bool) -> list[Garbage]:
        async with self._blobs.lock:
            held = await self._blobs.held()
            unheld = [blob for blob in blobs if blob.digest not in held]
            items = [await self._described(Area.BLOB, blob.digest, Reason.UNREFERENCED) for blob in unheld]
            for blob in unheld:
                if not dry_run:
                    await self._blobs.store.delete(blob.digest)
        return items

    async def _views(self, *, dry_run: bool) -> list[Garbage]:
        store, records = self._blobs.store, self._blobs.records
        items = []
        async with self._blobs.lock:
            now = self._blobs.now()
            held = set()
            for lease in await records.leases():
                if lease.expire_time > now:
                    held.add(lease.manifest)
                elif not dry_run:
                    await records.delete_lease(lease.id)
            for manifest in await store.views():
                if manifest not in held:
                    items.append(await self._described(Area.VIEW, manifest, Reason.UNUSED_VIEW))
                    if not dry_run:
                        await store.delete_view(manifest)
        return items

    async def _ingests(self) -> AsyncIterator[Garbage]:
        for name in await self._blobs.store.ingests():
            if name in self._blobs.writing:
                continue
            download = await self._blobs.records.download(name)
            if download is None:
                yield await self._described(Area.INGEST, name, Reason.ORPHANED_INGEST)
                continue
            if download.state is DownloadState.FAILED and download.end_time is not None:
                is_resumable = self._blobs.now() - download.end_time < KEEP_PARTIAL
            else:
                is_resumable = download.state.is_active or download.state is DownloadState.PAUSED
            if not is_resumable:
                item = await self._described(Area.INGEST, name, Reason.EXPIRED_PARTIAL)
                yield replace(item, name=resource_name("downloads/{download}", name))

    async def _described(self, area: Area, name: str, reason: Reason) -> Garbage:
        measure = await self._blobs.store.measure(area, name)
        if measure is None:
            return Garbage(name, reason, 0, timedelta())
        age = max(timedelta(), self._blobs.now() - measure.change_time)
        return Garbage(name, reason, measure.size_bytes, age)
