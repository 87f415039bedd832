"""Garbage collection: what nobody refers to, nobody holds, and nobody is about to record."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from services.downloader.core.blobs import Blobs
from services.downloader.core.download import DownloadState
from services.downloader.core.ports import Blob, ModelRegistry

KEEP_PARTIAL: Final = timedelta(days=1)
"""How long what has arrived of a failed download is kept, for a resume."""

# Blobs looked at under the lock in one go: enough to be quick, few enough to hold up nobody.
_BATCH: Final = 64


@dataclass(frozen=True, slots=True)
class Collected:
    """What went, or would go."""

    num_blobs: int = 0
    freed_bytes: int = 0


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
        async with self._blobs.collecting:
            return await self._collect(dry_run=dry_run)

    async def _collect(self, *, dry_run: bool) -> Collected:
        referenced = {digest async for digest in self._registry.referenced()}
        num_blobs = freed_bytes = 0
        candidates = [blob for blob in await self._blobs.store.blobs() if blob.digest not in referenced]
        for start in range(0, len(candidates), _BATCH):
            gone = await self._delete_unheld(candidates[start : start + _BATCH], dry_run=dry_run)
            num_blobs += len(gone)
            freed_bytes += sum(blob.size_bytes for blob in gone)
        if not dry_run:
            await self._drop_views()
            freed_bytes += await self._drop_ingests()
        return Collected(num_blobs, freed_bytes)

    async def _delete_unheld(self, blobs: Sequence[Blob], *, dry_run: bool) -> list[Blob]:
        store, records = self._blobs.store, self._blobs.records
        async with self._blobs.lock:
            now = self._blobs.now()
            held = set(await records.kept(now))
            for lease in await records.leases():
                if lease.expire_time > now:
                    held.update(lease.digests)
            unheld = [blob for blob in blobs if blob.digest not in held]
            for blob in unheld:
                if not dry_run:
                    await store.delete(blob.digest)
        return unheld

    async def _drop_views(self) -> None:
        store, records = self._blobs.store, self._blobs.records
        async with self._blobs.lock:
            now = self._blobs.now()
            held = set()
            for lease in await records.leases():
                if lease.expire_time > now:
                    held.add(lease.manifest)
                else:
                    await records.delete_lease(lease.id)
            for manifest in await store.views():
                if manifest not in held:
                    await store.delete_view(manifest)

    async def _drop_ingests(self) -> int:
        freed_bytes = 0
        for name in await self._blobs.store.ingests():
            if name not in self._blobs.writing and not await self._is_resumable(name):
                freed_bytes += await self._blobs.store.drop_ingest(name)
        return freed_bytes

    async def _is_resumable(self, download_id: str) -> bool:
        download = await self._blobs.records.download(download_id)
        if download is None:
            return False
        if download.state is DownloadState.FAILED and download.end_time is not None:
            return self._blobs.now() - download.end_time < KEEP_PARTIAL
        return download.state.is_active or download.state is DownloadState.PAUSED
