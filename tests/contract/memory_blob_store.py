"""`BlobStore` in memory, for unit tests. Only what is on its way lies on disk, for adapters write there."""

import hashlib
import shutil
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path

from services.downloader.core.models import StoredFile
from services.downloader.core.paths import check_paths
from services.downloader.core.ports import Area, Arrival, Blob, Disk, Measure
from services.kit.errors import BlobNotFound, CorruptBlob, DigestMismatch, OffsetPastEnd
from services.kit.names import parse_digest, parse_id


class MemoryIngestFile:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.write_bytes(b"")

    async def write(self, chunk: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(chunk)

    async def close(self) -> None:
        """Nothing is open."""


class MemoryBlobStore:
    def __init__(self, root: Path, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._root = root
        self._now = now
        self.bytes_of: dict[str, bytes] = {}
        self.damaged: set[str] = set()
        self.open_views: dict[str, tuple[StoredFile, ...]] = {}
        self.put_aside: dict[str, bytes] = {}
        self.change_times: dict[str, datetime] = {}
        self.pretended_disk = Disk(10**12, 10**12)

    @property
    def stored_bytes(self) -> int:
        return sum(map(len, (*self.bytes_of.values(), *self.put_aside.values())))

    def disk(self) -> Disk:
        return self.pretended_disk

    async def measure(self, area: Area, name: str) -> Measure | None:
        if area in (Area.BLOB, Area.QUARANTINE):
            contents = self.bytes_of if area is Area.BLOB else self.put_aside
            content = contents.get(parse_digest(name))
            return None if content is None else Measure(len(content), self.change_times[name])
        folder = self._root / "ingest" / parse_id(name) if area is Area.INGEST else self.view_path(name)
        if not folder.exists():
            return None
        size_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        return Measure(size_bytes if area is Area.INGEST else 0, self._now())

    def ingest(self, name: str) -> Path:
        folder = self._root / "ingest" / parse_id(name)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    async def ingests(self) -> Sequence[str]:
        folder = self._root / "ingest"
        return sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []

    async def drop_ingest(self, name: str) -> int:
        folder = self._root / "ingest" / parse_id(name)
        if not folder.exists():
            return 0
        size_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        shutil.rmtree(folder)
        return size_bytes

    async def move_ingest(self, name: str, to: str) -> None:
        folder = self._root / "ingest" / parse_id(name)
        if folder.exists():
            folder.rename(self._root / "ingest" / parse_id(to))

    async def create(self, name: str) -> MemoryIngestFile:
        return MemoryIngestFile(self.ingest(name) / "blob")

    async def examine(self, files: Sequence[Arrival]) -> list[Blob]:
        found = []
        for file in files:
            content = file.path.read_bytes()
            blob = Blob(f"sha256:{file.sha256 or hashlib.sha256(content).hexdigest()}", len(content))
            if file.size_bytes not in (None, blob.size_bytes) or file.digest not in (None, blob.digest):
                raise DigestMismatch(f"{file.path.name} is not what was promised")
            found.append(blob)
        return found

    async def adopt(self, files: Sequence[tuple[Path, Blob]]) -> None:
        for file, blob in files:
            self.bytes_of[parse_digest(blob.digest)] = file.read_bytes()
            self.damaged.discard(blob.digest)
            self.change_times[blob.digest] = self._now()
            file.unlink()

    async def size(self, digest: str) -> int | None:
        content = self.bytes_of.get(parse_digest(digest))
        return None if content is None else len(content)

    async def sizes(self, digests: Collection[str]) -> dict[str, int]:
        return {digest: size for digest in digests if (size := await self.size(digest)) is not None}

    async def check(self, blob: Blob) -> None:
        content = self.bytes_of.get(parse_digest(blob.digest))
        if content is None or len(content) != blob.size_bytes or blob.digest in self.damaged:
            raise CorruptBlob(f"{blob.digest} is not whole")
        if f"sha256:{hashlib.sha256(content).hexdigest()}" != blob.digest:
            raise CorruptBlob(f"{blob.digest} is damaged")

    async def verify(self, blob: Blob) -> None:
        await self.check(blob)

    def blob_path(self, digest: str) -> Path:
        path = self._root / parse_digest(digest).replace(":", "-")
        if digest in self.bytes_of:
            path.write_bytes(self.bytes_of[digest])
        return path

    async def read(
        self, digest: str, offset_bytes: int = 0, max_bytes: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        content = self.bytes_of.get(parse_digest(digest))
        if content is None:
            raise BlobNotFound.named(digest)
        if offset_bytes > len(content):
            raise OffsetPastEnd.at("offset_bytes", "lies past the end")
        end = len(content) if max_bytes is None else offset_bytes + max_bytes
        if wanted := content[offset_bytes:end]:
            yield wanted

    async def blobs(self) -> Sequence[Blob]:
        return [Blob(digest, len(content)) for digest, content in self.bytes_of.items()]

    async def delete(self, digest: str) -> int:
        return len(self.bytes_of.pop(parse_digest(digest), b""))

    async def purge(self) -> None:
        """Nothing is left of what was deleted."""

    async def quarantine(self, digest: str) -> bool:
        content = self.bytes_of.pop(parse_digest(digest), None)
        if content is None:
            return False
        self.put_aside[digest] = content
        self.change_times[digest] = self._now()
        self.damaged.discard(digest)
        return True

    async def quarantined(self) -> Sequence[Blob]:
        return [Blob(digest, len(content)) for digest, content in self.put_aside.items()]

    async def drop_quarantined(self, digest: str) -> int:
        return len(self.put_aside.pop(parse_digest(digest), b""))

    async def open_view(self, manifest: str, files: Sequence[StoredFile]) -> Path:
        check_paths(file.path for file in files)
        view = self.view_path(manifest)
        for file in files:
            target = view / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(self.bytes_of[file.digest])
        self.open_views[manifest] = tuple(files)
        return view

    def view_path(self, manifest: str) -> Path:
        return self._root / "views" / manifest

    async def views(self) -> Sequence[str]:
        return sorted(self.open_views)

    async def delete_view(self, manifest: str) -> None:
        if self.open_views.pop(manifest, None) is not None:
            shutil.rmtree(self.view_path(manifest))
