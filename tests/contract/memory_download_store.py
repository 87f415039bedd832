"""`DownloadStore` in memory, for unit tests."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from services.downloader.core.download import Download, DownloadState
from services.downloader.core.ports import Lease


class MemoryDownloadStore:
    def __init__(self) -> None:
        self._downloads: dict[str, Download] = {}
        self._leases: dict[str, Lease] = {}
        self._kept: dict[tuple[str, str], datetime] = {}

    async def save_download(self, download: Download) -> None:
        self._downloads[download.id] = download

    async def download(self, download_id: str) -> Download | None:
        return self._downloads.get(download_id)

    async def download_of_request(self, request_id: str) -> Download | None:
        found = [download for download in self._downloads.values() if download.request_id == request_id]
        return found[0] if found else None

    async def downloads(
        self, states: Sequence[DownloadState], *, before_id: str | None, limit: int
    ) -> Sequence[Download]:
        found = [
            download
            for download_id, download in sorted(self._downloads.items(), reverse=True)
            if (before_id is None or download_id < before_id) and (not states or download.state in states)
        ]
        return found[:limit]

    async def save_lease(self, lease: Lease) -> None:
        self._leases[lease.id] = lease

    async def lease(self, lease_id: str) -> Lease | None:
        return self._leases.get(lease_id)

    async def leases(self) -> Sequence[Lease]:
        return list(self._leases.values())

    async def delete_lease(self, lease_id: str) -> bool:
        return self._leases.pop(lease_id, None) is not None

    async def keep(self, digests: Iterable[str], until: datetime, *, keeper: str) -> None:
        own = {key for key in self._kept if key[1] == keeper} | {(digest, keeper) for digest in digests}
        self._kept |= {key: max(until, self._kept.get(key, until)) for key in own}

    async def let_go(self, keeper: str) -> None:
        self._kept = {key: until for key, until in self._kept.items() if key[1] != keeper}

    async def kept(self, now: datetime) -> frozenset[str]:
        self._kept = {key: until for key, until in self._kept.items() if until > now}
        return frozenset(digest for digest, _ in self._kept)
