"""Files of this machine: found, and copied in."""

import asyncio
import hashlib
import stat
from contextlib import ExitStack
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit
from urllib.request import url2pathname

from services.downloader.adapters.disk_errors import translated_disk_errors, write_all
from services.downloader.core.sources import OnBytes
from services.kit.errors import DigestMismatch, PermissionDenied, SourceNotFound, UnsupportedFormat

_COPY_BYTES: Final = 4 * 1024 * 1024


def plain_file(root: Path, entry: Path) -> Path:
    """The file that `entry` is or leads to. root: the folder, without links, out of which it must not lead.

    Raises SourceNotFound, UnsupportedFormat, PermissionDenied.
    """
    try:
        target = entry.resolve(strict=True)
        is_file = stat.S_ISREG(target.stat().st_mode)
    except PermissionError as error:
        raise PermissionDenied(f"{entry} may not be read by this service") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise SourceNotFound(f"{entry} is not there, or a link that leads nowhere") from error
    if not target.is_relative_to(root):
        raise UnsupportedFormat(
            f"{entry} is a link out of its folder; copy what it points to into the folder"
        )
    if not is_file:
        raise UnsupportedFormat(f"{entry} is no plain file")
    return target


def path_of_url(url: str) -> Path:
    """The path in a `file:` URL."""
    return Path(url2pathname(urlsplit(url).path))


async def copy_file(source: Path, target: Path, on_bytes: OnBytes, *, sha256: str | None = None) -> str:
    """Copy from the beginning. Returns the sha256, in hex.

    Raises SourceNotFound, PermissionDenied, DigestMismatch, DiskFull.
    """
    copy = _Copy(source, target)
    await asyncio.to_thread(copy.open)
    try:
        while await asyncio.to_thread(copy.step):
            on_bytes(copy.num_bytes, max(copy.size_bytes, copy.num_bytes))
    finally:
        copy.close()
    found = copy.sha256.hexdigest()
    if sha256 not in (None, found):
        raise DigestMismatch(f"{source.name} has the sha256 {found} instead of {sha256}")
    return found


class _Copy:
    """A copy in steps. Its methods block."""

    def __init__(self, source: Path, target: Path) -> None:
        self._source_path = source
        self._target_path = target
        self._files = ExitStack()
        self.num_bytes = 0
        self.size_bytes = 0
        self.sha256 = hashlib.sha256()

    def open(self) -> None:
        try:
            self._source = self._files.enter_context(self._source_path.open("rb"))
        except PermissionError as error:
            raise PermissionDenied(f"{self._source_path} may not be read by this service") from error
        except OSError as error:
            raise SourceNotFound(f"{self._source_path} cannot be opened: {error.strerror}") from error
        self.size_bytes = self._source_path.stat().st_size
        with translated_disk_errors(self._target_path):
            # Never written over: a run before this one may have left a hard link there.
            self._target_path.unlink(missing_ok=True)
            self._target = self._files.enter_context(self._target_path.open("xb", buffering=0))

    def step(self) -> bool:
        """Whether there may be more."""
        chunk = self._source.read(_COPY_BYTES)
        self.sha256.update(chunk)
        with translated_disk_errors(self._target_path):
            write_all(self._target, chunk)
        self.num_bytes += len(chunk)
        return bool(chunk)

    def close(self) -> None:
        self._files.close()
