"""Files of this machine, copied in: their owner may change them, so they are neither linked nor trusted."""

import asyncio
import hashlib
from pathlib import Path
from typing import BinaryIO, Final
from urllib.parse import urlsplit
from urllib.request import url2pathname

from services.downloader.adapters.disk_errors import translated_disk_errors
from services.downloader.core.ports import OnBytes
from services.kit.errors import DigestMismatch, PermissionDenied, SourceNotFound

_COPY_BYTES: Final = 4 * 1024 * 1024


def path_of_url(url: str) -> Path:
    """The path in a `file:` URL."""
    return Path(url2pathname(urlsplit(url).path))


async def copy_file(source: Path, target: Path, on_bytes: OnBytes, *, sha256: str | None = None) -> None:
    """Copy from the beginning. Raises SourceNotFound, PermissionDenied, DigestMismatch, DiskFull."""
    hashed = hashlib.sha256()
    with await asyncio.to_thread(_open, source) as opened, await asyncio.to_thread(target.open, "wb") as copy:
        num_bytes, size_bytes = 0, source.stat().st_size
        while num := await asyncio.to_thread(_copy_chunk, opened, copy, target, hashed):
            num_bytes += num
            on_bytes(num_bytes, max(size_bytes, num_bytes))
    if sha256 not in (None, hashed.hexdigest()):
        target.unlink(missing_ok=True)
        raise DigestMismatch(f"{source.name} has the sha256 {hashed.hexdigest()} instead of {sha256}")


def _open(source: Path) -> BinaryIO:
    try:
        return source.open("rb")
    except PermissionError as error:
        raise PermissionDenied(f"{source} may not be read by this service") from error
    except OSError as error:
        raise SourceNotFound(f"{source} cannot be opened: {error.strerror}") from error


def _copy_chunk(source: BinaryIO, copy: BinaryIO, target: Path, hashed: "hashlib._Hash") -> int:
    chunk = source.read(_COPY_BYTES)
    hashed.update(chunk)
    with translated_disk_errors(target):
        copy.write(chunk)
    return len(chunk)
