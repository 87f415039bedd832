"""Bytes on disk, by their sha256.

    <root>/lock                          held by the one process that writes here
    <root>/ingest/<id>/                  on its way; survives a restart
    <root>/blobs/sha256/<2>/<64 hex>     verified, read only, never changed
    <root>/views/<manifest>/...          folders of links to blobs under their own names

A blob's modification time is a constant, its seal: it is set once the digest was checked. Whoever writes into a
blob later, by accident or by a failing tool, breaks the seal, and the blob is read again before it is trusted.
"""

import asyncio
import contextlib
import hashlib
import os
import shutil
import stat
from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path
from typing import Final

from services.downloader.adapters.disk_errors import translated_disk_errors, write_all
from services.downloader.adapters.disk_views import DiskViews
from services.downloader.core.models import StoredFile
from services.downloader.core.ports import Blob
from services.kit.errors import BlobNotFound, CorruptBlob, DigestMismatch, OffsetPastEnd
from services.kit.names import parse_digest, parse_id

# A chunk is copied a few times on its way to a client: larger ones fall out of the processor's cache, smaller ones
# wait for threads. Measured through the gateway.
CHUNK_BYTES: Final = 256 * 1024
# 2001-09-09T01:46:40Z: whole, in the past, and representable on every file system.
_SEAL_NS: Final = 1_000_000_000 * 1_000_000_000
_READ_ONLY: Final = 0o444


class DiskBlobStore:
    """See `BlobStore`. All of it belongs to one process; `LockedFolder` sees to that."""

    def __init__(self, root: Path) -> None:
        self._ingest = root / "ingest"
        self._blobs = root / "blobs" / "sha256"
        self._views_folder = root / "views"
        self._views = DiskViews(self._views_folder, self.blob_path)

    def open(self) -> None:
        """Make its folders. Raises DiskFull, PermissionDenied."""
        for folder in (self._ingest, self._blobs, self._views_folder):
            with translated_disk_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)

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
        return await asyncio.to_thread(_drop_folder, self._ingest / parse_id(name))

    async def move_ingest(self, name: str, to: str) -> None:
        """Give what has arrived under one id to another."""
        old, new = self._ingest / parse_id(name), self._ingest / parse_id(to)
        with contextlib.suppress(FileNotFoundError):
            await asyncio.to_thread(old.rename, new)

    async def create(self, name: str) -> "DiskIngestFile":
        """Begin to write a file."""
        return DiskIngestFile(self.ingest(name) / "blob")

    async def examine(
        self,
        file: Path,
        *,
        size_bytes: int | None = None,
        digest: str | None = None,
        sha256: str | None = None,
    ) -> Blob:
        """Sync, check size, check digest."""
        return await asyncio.to_thread(_examine, file, size_bytes, digest, sha256)

    async def adopt(self, file: Path, blob: Blob) -> None:
        """Rename, sync the folder."""
        await asyncio.to_thread(self._adopt, file, blob)

    async def size(self, digest: str) -> int | None:
        """Length of a blob, or None."""
        path = self.blob_path(digest)
        return await asyncio.to_thread(_size, path)

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
            file = await asyncio.to_thread(path.open, "rb")
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
        path = self.blob_path(digest)
        return await asyncio.to_thread(_delete_file, path)

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

    def _adopt(self, file: Path, blob: Blob) -> None:
        path = self.blob_path(blob.digest)
        with translated_disk_errors(path):
            if not path.parent.exists():
                path.parent.mkdir(exist_ok=True)
                _sync_folder(self._blobs)
            _seal(file)
            # Rename last: a crash must leave no half-written blob under its digest.
            file.replace(path)
            _sync_folder(path.parent)

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


def _examine(file: Path, size_bytes: int | None, digest: str | None, sha256: str | None) -> Blob:
    with translated_disk_errors(file):
        _sync(file)
        found = Blob(sha256_of(file) if sha256 is None else f"sha256:{sha256}", file.stat().st_size)
    if size_bytes is not None and found.size_bytes != size_bytes:
        raise DigestMismatch(f"{file.name} has {found.size_bytes} bytes instead of {size_bytes}")
    if digest is not None and found.digest != digest:
        raise DigestMismatch(f"{file.name} has the digest {found.digest} instead of {digest}")
    return found


def _seal(file: Path) -> None:
    file.chmod(_READ_ONLY)
    os.utime(file, ns=(_SEAL_NS, _SEAL_NS))


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _sync(file: Path) -> None:
    # Windows syncs only what is open for writing. Elsewhere the file may be read only already: sealed by an
    # adoption that was killed.
    descriptor = os.open(file, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """Make a rename in it survive a power cut. Windows has no such call, and needs none for NTFS."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _delete_file(path: Path) -> int:
    try:
        size_bytes = path.stat().st_size
        if os.name == "nt":
            path.chmod(stat.S_IWRITE)
        path.unlink()
    except FileNotFoundError:
        return 0
    return size_bytes


def _drop_folder(folder: Path) -> int:
    if not folder.exists():
        return 0
    size_bytes = sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir())
    shutil.rmtree(folder, ignore_errors=True)
    return size_bytes
