"""What other programs have on this machine, taken over without a copy where the file system allows it.

A clone (reflink) is the store's alone, and shares only blocks. A hard link is the same file under another name, and is
made only of a file that this service owns. It is left as it is, mode and time included (see `disk_seals`). When the
other program deletes its name, ours stays; when it writes into the file, the seal breaks and the blob is refused.

Either way every byte is read and its digest compared before the file counts as fetched. One that fails leaves nothing
here and nothing changed there.
"""

import asyncio
import functools
import hashlib
import os
import shutil
import stat
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import structlog

from services.downloader.adapters.disk_errors import translated_disk_errors, write_all
from services.downloader.adapters.disk_seals import forget_shared, note_shared
from services.downloader.adapters.local_files import path_of_url
from services.downloader.core.sources import LocalFile, OnBytes, PullRequest, RemoteFile, Resolved
from services.kit.errors import (
    DigestMismatch,
    DiskFull,
    InvalidArgument,
    PermissionDenied,
    SourceNotFound,
    UnsupportedFormat,
)
from services.kit.unbroken import see_through

_READ_BYTES: Final = 4 * 1024 * 1024

_log = structlog.get_logger(__name__)


class Takeover:
    """folder: of the store, on the file system that files are taken to."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def can_share(self, file: Path) -> bool:
        """Whether it can be had without a copy. Nothing is tried on the file itself. Raises OSError."""
        found = file.stat()
        if found.st_dev != self._folder.stat().st_dev:
            return False
        return self.clones or (_owns(found) and _mount_of(file) == _mount_of(self._folder))

    async def take(self, file: RemoteFile, target: Path, on_bytes: OnBytes) -> str:
        """Bring a file of this machine to `target`. Returns its sha256, in hex.

        Raises SourceNotFound, PermissionDenied, UnsupportedFormat, DigestMismatch, DiskFull.
        """
        taking = _Taking(file, target)
        try:
            await see_through(asyncio.to_thread(taking.open))
            while await see_through(asyncio.to_thread(taking.step)):
                on_bytes(taking.num_bytes, taking.size_bytes)
            sha256 = taking.checked()
        except BaseException:
            forget_fetched(target)
            raise
        finally:
            taking.close()
        return sha256

    @functools.cached_property
    def clones(self) -> bool:
        """Whether its file system has reflinks. Tried with two files of our own."""
        try:
            with (
                tempfile.TemporaryFile(dir=self._folder) as one,
                tempfile.TemporaryFile(dir=self._folder) as other,
            ):
                return _clone(one.fileno(), other.fileno())
        except OSError:  # No room for them: there are still hard links.
            return False


class LocalSide(ABC):
    """What the sources of local files have in common. See `Source`."""

    def __init__(self, takeover: Takeover) -> None:
        self._takeover = takeover

    async def resolve(self, request: PullRequest) -> Resolved:
        """Find what lies in the folder that the request names. Asks nothing of the network."""
        return await asyncio.to_thread(self._look, request)

    async def latest(self, request: PullRequest) -> None:
        """None: a folder does not know what is newer."""
        return None

    async def fetch(self, file: RemoteFile, target: Path, on_bytes: OnBytes) -> str:
        """Take a file over."""
        return await self._takeover.take(file, target, on_bytes)

    async def unpack(
        self, request: PullRequest, fetched: Mapping[str, Path], folder: Path
    ) -> Sequence[LocalFile]:
        """They are what they are."""
        return [LocalFile(path, local) for path, local in fetched.items()]

    @abstractmethod
    def _resolve(self, request: PullRequest) -> Resolved:
        """As `resolve`, blocking. Raises what that does, and OSError."""

    def _look(self, request: PullRequest) -> Resolved:
        try:
            return self._resolve(request)
        except PermissionError as error:
            raise PermissionDenied(f"{error.filename} may not be read by this service") from error
        except OSError as error:
            raise SourceNotFound(f"{request.refs[0]} cannot be read here: {error}") from error

    def _remote_file(
        self,
        request: PullRequest,
        path: str,
        local: Path,
        *,
        sha256: str | None = None,
        git_id: str | None = None,
    ) -> RemoteFile:
        is_shared = not request.options.copy_local_files and self._takeover.can_share(local)
        size_bytes = local.stat().st_size
        return RemoteFile(path, local.as_uri(), size_bytes, sha256, git_id, is_shared=is_shared)


def local_root(request: PullRequest) -> Path:
    """The folder that the request names, without links. Raises InvalidArgument, SourceNotFound, PermissionDenied."""
    folder = Path(request.options.local_folder)
    if not folder.is_absolute():
        raise InvalidArgument.at("options.local_folder", "must be an absolute path")
    try:
        root = folder.resolve(strict=True)
        is_folder = stat.S_ISDIR(root.stat().st_mode)
    except PermissionError as error:
        raise PermissionDenied(f"{folder} may not be read by this service") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise SourceNotFound(f"there is no {folder} on the machine of this service") from error
    if not is_folder:
        raise SourceNotFound(f"{folder} is no folder")
    return root


def forget_fetched(target: Path) -> None:
    """Drop what a fetch, of whatever source, has left there, and what was noted of it."""
    for suffix in ("", ".json", ".map"):
        target.with_name(f"{target.name}{suffix}").unlink(missing_ok=True)
    forget_shared(target)


class _Taking:
    """One file on its way. Its methods block."""

    def __init__(self, file: RemoteFile, target: Path) -> None:
        self._file = file
        self._source = path_of_url(file.url)
        self._target = target
        self._files = ExitStack()
        self._is_copy = False
        self._sha256 = hashlib.sha256()
        self._git_id = hashlib.sha1(b"blob %d\0" % (file.size_bytes or 0), usedforsecurity=False)
        self.num_bytes = 0
        self.size_bytes = 0

    def open(self) -> None:
        self._open_source()
        self._check_size()
        # Never written into: a run before this one may have left a hard link there.
        forget_fetched(self._target)
        with translated_disk_errors(self._target):
            if self._file.is_shared and (self._clone() or self._link()):
                return
            self._begin_copy()

    def step(self) -> bool:
        """Whether there may be more."""
        chunk = self._reading.read(_READ_BYTES)
        self._sha256.update(chunk)
        if self._file.git_id is not None:
            self._git_id.update(chunk)
        if self._is_copy:
            with translated_disk_errors(self._target):
                write_all(self._writing, chunk)
        self.num_bytes += len(chunk)
        return bool(chunk)

    def checked(self) -> str:
        """The sha256 of what was taken, which is what it is said to be. Raises DigestMismatch."""
        now = os.fstat(self._source_fd)
        if (now.st_size, now.st_mtime_ns) != (self._found.st_size, self._found.st_mtime_ns):
            raise DigestMismatch(f"{self._source} was changed while it was read; nothing of it was kept")
        sha256 = self._sha256.hexdigest()
        is_it = self._file.sha256 in (None, sha256)
        if not is_it or self._file.git_id not in (None, self._git_id.hexdigest()):
            raise DigestMismatch(
                f"{self._source} is damaged: its bytes do not have the digest by which {self._file.path} is kept"
                " there; nothing of it was taken"
            )
        return sha256

    def close(self) -> None:
        self._files.close()

    def _open_source(self) -> None:
        # Not through a link that took the file's place since it was found, and not waiting for who writes to a pipe.
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        try:
            self._source_fd = os.open(self._source, flags | getattr(os, "O_BINARY", 0))
        except PermissionError as error:
            raise PermissionDenied(f"{self._source} may not be read by this service") from error
        except OSError as error:
            raise SourceNotFound(f"{self._source} cannot be opened: {error.strerror}") from error
        self._reading = self._files.enter_context(os.fdopen(self._source_fd, "rb", buffering=0))
        self._found = os.fstat(self._source_fd)
        if not stat.S_ISREG(self._found.st_mode):
            raise UnsupportedFormat(f"{self._source} is no plain file")

    def _check_size(self) -> None:
        self.size_bytes = self._found.st_size
        if self.size_bytes != self._file.size_bytes:
            raise DigestMismatch(
                f"{self._source} has {self.size_bytes} bytes instead of {self._file.size_bytes}; nothing was taken"
            )

    def _clone(self) -> bool:
        """Our own blocks from here on: they are what is read."""
        cloned = self._files.enter_context(self._target.open("xb+", buffering=0))
        if _clone(self._source_fd, cloned.fileno()):
            self._reading = cloned
            return True
        self._target.unlink()
        return False

    def _link(self) -> bool:
        if not _owns(self._found):
            return False
        try:
            os.link(self._source, self._target, follow_symlinks=False)
        except (OSError, NotImplementedError) as error:  # The latter where the platform has no links at all.
            _log.info("cannot be linked", file=str(self._source), why=str(error))
            return False
        if not os.path.samestat(self._target.lstat(), self._found):
            self._target.unlink()
            raise SourceNotFound(f"{self._source} was replaced while it was taken; try again")
        note_shared(self._target, self._found)
        return True

    def _begin_copy(self) -> None:
        free_bytes = shutil.disk_usage(self._target.parent).free
        if self.size_bytes > free_bytes:
            raise DiskFull(
                f"{self._source} cannot be had without a copy, which needs {self.size_bytes} bytes; {free_bytes} are"
                " free on the store's disk"
            )
        _log.info("copied into the store", file=str(self._source), size_bytes=self.size_bytes)
        self._writing = self._files.enter_context(self._target.open("xb", buffering=0))
        self._is_copy = True


def _owns(found: os.stat_result) -> bool:
    return sys.platform != "win32" and found.st_uid == os.geteuid()


if sys.platform == "linux":
    import fcntl

    # linux/fs.h: _IOW(0x94, 9, int).
    _FICLONE: Final = 0x40049409

    def _clone(source: int, target: int) -> bool:
        try:
            fcntl.ioctl(target, _FICLONE, source)
        except OSError:
            return False
        return True

    def _mount_of(path: Path) -> str:
        """No link leads from one mount to another, though both be of one disk: a container's volumes are such."""
        descriptor = os.open(path, os.O_PATH)
        try:
            told = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
        except OSError:
            return ""  # Without /proc only the attempt will tell.
        finally:
            os.close(descriptor)
        return next((line for line in told.splitlines() if line.startswith("mnt_id:")), "")

else:

    def _clone(source: int, target: int) -> bool:
        return False

    def _mount_of(path: Path) -> str:
        return ""
