"""A file on its way: what has arrived, and what it is a part of. It survives a kill of the process.

    <name>          the bytes, each at its place
    <name>.json     what they are said to be: identity, validator
    <name>.map      where there are gaps: of each segment how many bytes are here, 4 bytes each, little-endian

Bytes are written before they are counted, so a kill loses what was not counted and nothing else. A power cut may lose
more than the counts say; the digest of the whole tells.

A large file goes past the system's page cache where the file system allows it (O_DIRECT): nobody reads it soon, and to
find memory for its pages would cost more than the write (measured on a virtual machine: 370 MB/s against 2,100).
"""

import contextlib
import errno
import hashlib
import json
import mmap
import os
import shutil
import struct
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from services.downloader.adapters.disk_errors import translated_disk_errors
from services.downloader.core.parts import SEGMENT_BYTES, Parts, Range
from services.kit.errors import DataLoss, DiskFull

_READ_BYTES: Final = 1024 * 1024
# Of one call of `hash`: a moment, so that whoever cancels need not wait for all of a large file.
_HASH_BYTES: Final = 64 * 1024**2
_COUNT: Final = struct.Struct("<I")

BLOCK_BYTES: Final = 4096
"""What is written past the page cache is so aligned, in the file and in memory; the rest takes the usual way."""


class PartialFile:
    """Its methods block: call them in threads; `write` in several at once, each with a range of its own.

    identity: what the bytes are said to be; a partial file of another identity is begun anew.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self._path = path
        self._note_path = path.with_name(f"{path.name}.json")
        self._map_path = path.with_name(f"{path.name}.map")
        self._identity = identity
        self._lock = threading.Lock()
        self._hash_lock = threading.Lock()
        self._sha256 = hashlib.sha256()
        self._num_hashed = 0
        self._file = -1
        self._direct = -1
        self._is_direct = False
        self._map = -1
        self.parts = Parts(None)
        self.validator = ""

    def open(self, size_bytes: int | None) -> None:
        """Find what has arrived. size_bytes: of the whole file, if it is known."""
        note = self._note()
        if note.get("identity") != self._identity:
            self._path.unlink(missing_ok=True)
            self._map_path.unlink(missing_ok=True)
        else:
            self.validator = str(note.get("validator", ""))
        with translated_disk_errors(self._path):
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
            num_bytes = os.fstat(self._file).st_size
            if size_bytes is not None and size_bytes > SEGMENT_BYTES:
                self._open_direct()
            counts = self._counts()
            if counts is not None and num_bytes < Parts(size_bytes, counts).extent:
                # A power cut took bytes that were counted: which ones, nobody knows.
                os.ftruncate(self._file, 0)
                self._drop_map()
                counts, num_bytes = None, 0
        self.parts = Parts.contiguous(size_bytes, num_bytes) if counts is None else Parts(size_bytes, counts)

    def begin(self, validator: str, size_bytes: int | None) -> None:
        """Begin anew with what is now at the source. validator: its ETag or date, or empty."""
        with translated_disk_errors(self._path):
            os.ftruncate(self._file, 0)
            self._drop_map()
            self._note_path.write_text(json.dumps({"identity": self._identity, "validator": validator}))
        with self._hash_lock:
            self._sha256 = hashlib.sha256()
            self._num_hashed = 0
            self.parts = Parts(size_bytes)
        self.validator = validator

    def take(self) -> Range | None:
        """A range to fetch: what nobody fetches, or half of what somebody does. None if there is nothing to do."""
        with self._lock:
            taken = self.parts.take()
            if taken is None and (taken := self.parts.split()) is not None and self._map < 0:
                self._make_map()
            return taken

    def give_back(self, taken: Range) -> None:
        """Its connection ended."""
        with self._lock:
            self.parts.give_back(taken)

    def write(self, taken: Range, chunk: memoryview) -> bool:
        """Put bytes where they belong; those behind the range's end are dropped. Whether there is more to fetch.

        Raises DiskFull; what fitted is kept.
        """
        # The end may come nearer while this is written, but never so near: `Parts.split` sees to that.
        chunk = chunk[: taken.room(len(chunk))]
        while chunk:
            with translated_disk_errors(self._path):
                num_bytes = self._put(chunk, taken.next)
            # Read back later where they are not the next ones, or somebody reads back just now.
            if self._hash_lock.acquire(blocking=False):
                if taken.next == self._num_hashed:
                    self._sha256.update(chunk[:num_bytes])
                    self._num_hashed += num_bytes
                self._hash_lock.release()
            chunk = chunk[num_bytes:]
            with self._lock:
                changed = self.parts.wrote(taken, num_bytes)
                if self._map >= 0:
                    self._count(changed)
        return not taken.is_done

    def check_room(self) -> None:
        """Raises DiskFull if the rest cannot fit."""
        if self.parts.size_bytes is None:
            return
        free = shutil.disk_usage(self._path.parent).free
        missing = self.parts.size_bytes - self.parts.num_bytes
        if missing > free:
            raise DiskFull(
                f"{missing} more bytes are needed and {free} are free on the disk of {self._path.parent};"
                " free some and resume: what has arrived is kept"
            )

    def hash(self) -> bool:
        """Go on with the hash of what is here without a gap, for a while. Whether there is more to read."""
        with self._hash_lock:
            end = min(self.parts.frontier, self._num_hashed + _HASH_BYTES)
            buffer = memoryview(mmap.mmap(-1, _READ_BYTES)) if self._num_hashed < end else memoryview(b"")
            while self._num_hashed < end:
                num_bytes = min(self._get(buffer, self._num_hashed), end - self._num_hashed)
                if not num_bytes:
                    raise DataLoss(f"{self._path.name} is shorter on disk than what was written to it")
                self._sha256.update(buffer[:num_bytes])
                self._num_hashed += num_bytes
            return self.is_behind

    @property
    def is_behind(self) -> bool:
        """Whether there is something to hash."""
        return self._num_hashed < self.parts.frontier

    @property
    def sha256(self) -> str:
        """64 hex digits of what `hash` has read."""
        return self._sha256.hexdigest()

    def drop(self) -> None:
        """Forget what has arrived."""
        self.close()
        for path in (self._path, self._note_path, self._map_path):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Keep what has arrived."""
        for descriptor in (self._file, self._direct, self._map):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._direct = self._map = -1
        self._is_direct = False

    def _open_direct(self) -> None:
        if sys.platform == "linux":
            with contextlib.suppress(OSError):  # A file system that has no such way.
                self._direct = os.open(self._path, os.O_RDWR | os.O_DIRECT)
                self._is_direct = True

    def _put(self, chunk: memoryview, offset: int) -> int:
        """Write some of it. Returns how many bytes."""
        num_whole = len(chunk) - len(chunk) % BLOCK_BYTES
        if self._is_direct and num_whole and offset % BLOCK_BYTES == 0:
            try:
                return _write_at(self._direct, chunk[:num_whole], offset)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._is_direct = False  # Its blocks are larger than ours.
        num_odd = -offset % BLOCK_BYTES if self._is_direct else 0
        return _write_at(self._file, chunk[: num_odd or len(chunk)], offset)

    def _get(self, buffer: memoryview, offset: int) -> int:
        """Fill it with what lies there. Returns how many bytes."""
        if sys.platform == "linux" and self._is_direct and offset % BLOCK_BYTES == 0:
            return os.preadv(self._direct, [buffer], offset)
        chunk = _read_at(self._file, len(buffer), offset)
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def _make_map(self) -> None:
        # Renamed when it is whole: half a map would say that nothing is here.
        making = self._map_path.with_name(f"{self._map_path.name}.new")
        with translated_disk_errors(self._path):
            making.write_bytes(b"".join(_COUNT.pack(count) for count in self.parts.counts))
            making.replace(self._map_path)
            self._map = os.open(self._map_path, os.O_WRONLY | getattr(os, "O_BINARY", 0))

    def _count(self, segments: Iterable[int]) -> None:
        with translated_disk_errors(self._path):
            for index in segments:
                _write_at(self._map, _COUNT.pack(self.parts.counts[index]), index * _COUNT.size)

    def _counts(self) -> list[int] | None:
        try:
            content = self._map_path.read_bytes()
        except FileNotFoundError:
            return None
        self._map = os.open(self._map_path, os.O_WRONLY | getattr(os, "O_BINARY", 0))
        whole = content[: len(content) - len(content) % _COUNT.size]
        return [count for (count,) in _COUNT.iter_unpack(whole)]

    def _drop_map(self) -> None:
        if self._map >= 0:
            os.close(self._map)
        self._map = -1
        self._map_path.unlink(missing_ok=True)

    def _note(self) -> dict[str, Any]:
        try:
            note = json.loads(self._note_path.read_text())
        except (OSError, ValueError):
            return {}
        return note if isinstance(note, dict) else {}


if sys.platform == "win32":
    # There a descriptor has one position, which threads would take from each other.
    _position = threading.Lock()

    def _write_at(descriptor: int, chunk: bytes | memoryview, offset: int) -> int:
        with _position:
            os.lseek(descriptor, offset, os.SEEK_SET)
            return os.write(descriptor, chunk)

    def _read_at(descriptor: int, num_bytes: int, offset: int) -> bytes:
        with _position:
            os.lseek(descriptor, offset, os.SEEK_SET)
            return os.read(descriptor, num_bytes)

else:

    def _write_at(descriptor: int, chunk: bytes | memoryview, offset: int) -> int:
        return os.pwrite(descriptor, chunk, offset)

    def _read_at(descriptor: int, num_bytes: int, offset: int) -> bytes:
        return os.pread(descriptor, num_bytes, offset)
