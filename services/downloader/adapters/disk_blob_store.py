"""Bytes on disk, by their sha256.

    <root>/lock                          held by the one process that writes here
    <root>/ingest/<id>/                  on its way; survives a restart
    <root>/blobs/sha256/<2>/<64 hex>     verified, read only, never changed
    <root>/views/<manifest>/...          folders of links to blobs under their own names
    <root>/quarantine/<64 hex>           what lay under that digest and did not have it; nothing reads it
    <root>/erasing/<id>                  deleted, and about to be overwritten

A blob's modification time is a constant, its seal: it is set once the digest was checked. Whoever writes into a
blob later, by accident or by a failing tool, breaks the seal, and the blob is read again before it is trusted.
"""

import asyncio
import contextlib
import hashlib
import os
import shutil
import threading
from collections.abc import AsyncGenerator, Collection, Iterator, Sequence
from pathlib import Path
from typing import Final

from services.downloader.adapters.disk_delete import (
    delete_file,
    drop_folder,
    measure_file,
    measure_folder,
)
from services.downloader.adapters.disk_errors import translated_disk_errors, write_all
from services.downloader.adapters.disk_sync import sync_files, sync_folders
from services.downloader.adapters.disk_views import DiskViews
from services.downloader.core.ids import new_id
from services.downloader.core.models import StoredFile
from services.downloader.core.ports import Area, Arrival, Blob, Disk, Measure
from services.kit.errors import BlobNotFound, CorruptBlob, DigestMismatch, OffsetPastEnd
from services.kit.names import parse_digest, parse_id

# A chunk is copied a few times on its way to a client: larger ones fall out of the processor's cache, smaller ones
# wait for threads. Measured through the gateway.
CHUNK_BYTES: Final = 256 * 1024
# 2001-09-09T01:46:40Z: whole, in the past, and representable on every file system.
_SEAL_NS: Final = 1_000_000_000 * 1_000_000_000
_READ_ONLY: Final = 0o444


class DiskBlobStore:
    """See `BlobStore`. All of it belongs to one process; `FolderLock` sees to that.

    secure_delete: overwrite what is deleted.
    """

    def __init__(self, root: Path, *, secure_delete: bool = False) -> None:
        self._root = root
        self._secure_delete = secure_delete
        self._ingest = root / "ingest"
        self._blobs = root / "blobs" / "sha256"
        self._views_folder = root / "views"
        self._quarantine = root / "quarantine"
        self._erasing = root / "erasing"
        self._views = DiskViews(self._views_folder, self.blob_path)
        # Changes in threads: the number is only right if each change of it goes with the change on disk.
        self._changing = threading.Lock()
        self._stored_bytes = 0

    def open(self) -> None:
        """Make its folders, and count once what is stored. Raises DiskFull, PermissionDenied."""
        for folder in (self._ingest, self._blobs, self._views_folder, self._quarantine, self._erasing):
            with translated_disk_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
        self._stored_bytes = sum(blob.size_bytes for blob in (*self._all(), *self._put_aside()))

    @property
    def stored_bytes(self) -> int:
        """Bytes of blobs and of what was put aside."""
        return self._stored_bytes

    def disk(self) -> Disk:
        """The disk that the store is on."""
        found = shutil.disk_usage(self._root)
        return Disk(found.free, found.total)

    async def measure(self, area: Area, name: str) -> Measure | None:
        """How large something is, and when it last changed."""
        return await asyncio.to_thread(self._measure, area, name)

    def ingest(self, name: str) -> Path:
        """The folder of what is on its way under that id."""
        folder = self._ingest / parse_id(name)
        folder.mkdir(exist_ok=True)
        return folder

    async def ingests(self) -> Sequence[str]:
        """Ids of all ingest folders."""
        return await asyncio.to_thread(lambda: sorted(entry.name for entry in self._ingest.iterdir()))

    async def drop_ingest(self, name: str) -> int:
        """Delete an ingest folder. Returns the bytes freed."""
        return await asyncio.to_thread(
            drop_folder, self._ingest / parse_id(name), overwrite=self._secure_delete
        )

    async def move_ingest(self, name: str, to: str) -> None:
        """Give what has arrived under one id to another."""
        old, new = self._ingest / parse_id(name), self._ingest / parse_id(to)
        with contextlib.suppress(FileNotFoundError):
            await asyncio.to_thread(old.rename, new)

    async def create(self, name: str) -> "DiskIngestFile":
        """Begin to write a file."""
        return DiskIngestFile(self.ingest(name) / "blob")

    async def examine(self, files: Sequence[Arrival]) -> list[Blob]:
        """Sync, check sizes, check digests."""
        return await asyncio.to_thread(self._examine, files)

    async def adopt(self, files: Sequence[tuple[Path, Blob]]) -> None:
        """Rename, sync the folders."""
        await asyncio.to_thread(self._adopt, files)

    async def size(self, digest: str) -> int | None:
        """Length of a blob, or None."""
        path = self.blob_path(digest)
        return await asyncio.to_thread(_size, path)

    async def sizes(self, digests: Collection[str]) -> dict[str, int]:
        """Lengths of those that are there."""
        paths = {digest: self.blob_path(digest) for digest in digests}
        return await asyncio.to_thread(
            lambda: {digest: size for digest, path in paths.items() if (size := _size(path)) is not None}
        )

    async def check(self, blob: Blob) -> None:
        """Stat it; read it only if its seal is broken."""
        await asyncio.to_thread(self._check, blob)

    async def verify(self, blob: Blob) -> None:
        """Read all of it."""
        await asyncio.to_thread(self._verify, blob)

    def blob_path(self, digest: str) -> Path:
        """Where a blob lies. Raises InvalidDigest."""
        hex_digits = parse_digest(digest).removeprefix("sha256:")
        return self._blobs / hex_digits[:2] / hex_digits

    async def read(
        self, digest: str, offset_bytes: int = 0, max_bytes: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Its bytes in chunks."""
        path = self.blob_path(digest)
        try:
            # Not in a thread, which would leave it open for a reader that is cancelled meanwhile.
            file = path.open("rb")
        except FileNotFoundError:
            raise BlobNotFound.named(digest) from None
        try:
            size_bytes = os.fstat(file.fileno()).st_size
            if offset_bytes > size_bytes:
                raise OffsetPastEnd.at("offset_bytes", f"lies past the end: the blob has {size_bytes} bytes")
            file.seek(offset_bytes)
            num_left = size_bytes - offset_bytes
            if max_bytes is not None:
                num_left = min(num_left, max_bytes)
            while chunk := await asyncio.to_thread(file.read, min(CHUNK_BYTES, num_left)):
                num_left -= len(chunk)
                yield chunk
        finally:
            file.close()

    async def blobs(self) -> Sequence[Blob]:
        """All that is stored."""
        return await asyncio.to_thread(lambda: list(self._all()))

    async def delete(self, digest: str) -> int:
        """Delete a blob. Returns the bytes freed."""
        return await asyncio.to_thread(self._delete, digest)

    async def purge(self) -> None:
        """Overwrite what was deleted."""
        await asyncio.to_thread(self._purge)

    async def quarantine(self, digest: str) -> bool:
        """Put a blob aside. Returns whether it was there."""
        return await asyncio.to_thread(self._put_away, digest)

    async def quarantined(self) -> Sequence[Blob]:
        """What was put aside."""
        return await asyncio.to_thread(lambda: list(self._put_aside()))

    async def drop_quarantined(self, digest: str) -> int:
        """Delete what was put aside. Returns the bytes freed."""
        return await asyncio.to_thread(self._drop_put_aside, digest)

    async def open_view(self, manifest: str, files: Sequence[StoredFile]) -> Path:
        """A folder in which these blobs lie under their own names."""
        return await asyncio.to_thread(self._views.open, manifest, files)

    def view_path(self, manifest: str) -> Path:
        """Where the view of that manifest lies."""
        return self._views.path(manifest)

    async def views(self) -> Sequence[str]:
        """Manifest digests of all views."""
        return await asyncio.to_thread(self._views.names)

    async def delete_view(self, manifest: str) -> None:
        """Delete a view; the blobs stay."""
        await asyncio.to_thread(self._views.delete, manifest)

    def _examine(self, files: Sequence[Arrival]) -> list[Blob]:
        with translated_disk_errors(self._ingest):
            sync_files([file.path for file in files])
            return [_examined(file) for file in files]

    def _adopt(self, files: Sequence[tuple[Path, Blob]]) -> None:
        changed: set[Path] = set()
        with translated_disk_errors(self._blobs):
            for file, blob in files:
                path = self.blob_path(blob.digest)
                if not path.parent.exists():
                    path.parent.mkdir(exist_ok=True)
                    changed.add(self._blobs)
                _seal(file)
                with self._changing:
                    before = _size(path) or 0
                    # Rename last: a crash must leave no half-written blob under its digest.
                    file.replace(path)
                    self._stored_bytes += blob.size_bytes - before
                changed.add(path.parent)
            sync_folders(*sorted(changed))

    def _delete(self, digest: str) -> int:
        path = self.blob_path(digest)
        with self._changing:
            freed_bytes = _size(path) or 0
            if not self._secure_delete:
                delete_file(path, overwrite=False)
            elif freed_bytes:
                # Elsewhere first: a crash half-way would leave zeros under a digest.
                path.replace(self._erasing / new_id())
            self._stored_bytes -= freed_bytes
        return freed_bytes

    def _purge(self) -> None:
        for file in self._erasing.iterdir():
            delete_file(file, overwrite=True)

    def _put_away(self, digest: str) -> bool:
        path = self.blob_path(digest)
        aside = self._aside_path(digest)
        with translated_disk_errors(path), self._changing:
            before = _size(aside) or 0
            try:
                path.replace(aside)
            except FileNotFoundError:
                return False
            self._stored_bytes -= before
            sync_folders(path.parent, self._quarantine)
        return True

    def _drop_put_aside(self, digest: str) -> int:
        freed_bytes = delete_file(self._aside_path(digest), overwrite=self._secure_delete)
        with self._changing:
            self._stored_bytes -= freed_bytes
        return freed_bytes

    def _aside_path(self, digest: str) -> Path:
        return self._quarantine / parse_digest(digest).removeprefix("sha256:")

    def _measure(self, area: Area, name: str) -> Measure | None:
        match area:
            case Area.BLOB:
                return measure_file(self.blob_path(name))
            case Area.QUARANTINE:
                return measure_file(self._aside_path(name))
            case Area.INGEST:
                return measure_folder(self._ingest / parse_id(name))
            case Area.VIEW:
                return measure_folder(self._views.path(name))

    def _check(self, blob: Blob) -> None:
        path = self.blob_path(blob.digest)
        try:
            found = path.stat()
        except FileNotFoundError:
            raise CorruptBlob(f"{blob.digest} is missing from the store") from None
        if found.st_size != blob.size_bytes:
            raise CorruptBlob(
                f"{blob.digest} has {found.st_size} bytes in the store instead of {blob.size_bytes}"
            )
        if found.st_mtime_ns != _SEAL_NS:
            self._verify(blob)
            # A copy of the store loses its seals; a blob that is whole gets its own back.
            with contextlib.suppress(OSError):
                _seal(path)

    def _verify(self, blob: Blob) -> None:
        path = self.blob_path(blob.digest)
        try:
            whole = path.stat().st_size == blob.size_bytes and sha256_of(path) == blob.digest
        except OSError as error:
            raise CorruptBlob(f"{blob.digest} cannot be read from the store: {error.strerror}") from error
        if not whole:
            raise CorruptBlob(f"{blob.digest} is damaged in the store")

    def _all(self) -> Iterator[Blob]:
        for folder in self._blobs.iterdir():
            for file in folder.iterdir():
                yield Blob(f"sha256:{file.name}", file.stat().st_size)

    def _put_aside(self) -> Iterator[Blob]:
        for file in self._quarantine.iterdir():
            yield Blob(f"sha256:{file.name}", file.stat().st_size)


class DiskIngestFile:
    """See `IngestFile`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb", buffering=0)

    async def write(self, chunk: bytes) -> None:
        """Append."""
        await asyncio.to_thread(self._write, chunk)

    async def close(self) -> None:
        """No more will be written."""
        self._file.close()

    def _write(self, chunk: bytes) -> None:
        with translated_disk_errors(self.path):
            write_all(self._file, chunk)


def sha256_of(file: Path) -> str:
    """`sha256:<hex>` of a file's bytes."""
    with file.open("rb") as opened:
        return f"sha256:{hashlib.file_digest(opened, 'sha256').hexdigest()}"


def _examined(file: Arrival) -> Blob:
    sha256 = sha256_of(file.path) if file.sha256 is None else f"sha256:{file.sha256}"
    found = Blob(sha256, file.path.stat().st_size)
    if file.size_bytes not in (None, found.size_bytes):
        raise DigestMismatch(f"{file.path.name} has {found.size_bytes} bytes instead of {file.size_bytes}")
    if file.digest not in (None, found.digest):
        raise DigestMismatch(f"{file.path.name} has the digest {found.digest} instead of {file.digest}")
    return found


def _seal(file: Path) -> None:
    file.chmod(_READ_ONLY)
    os.utime(file, ns=(_SEAL_NS, _SEAL_NS))


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None
