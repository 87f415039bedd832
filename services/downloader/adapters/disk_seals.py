"""Seals: how the store knows, without reading a blob, that nobody has written into it since it was verified.

    <root>/seals/<64 hex>    of a blob that is shared: its modification time when it was verified, in nanoseconds
    <name>.seal              beside a file on its way: which file that is, and the same of it

A blob that is the store's alone becomes read only, and its modification time a constant. One that was taken over by
a hard link is another program's file too: its mode and its time are left as they are, and the time is written down.
Whoever writes into either moves the time, and the blob is read again before it is trusted.
"""

import contextlib
import os
import time
from pathlib import Path
from typing import Final

# 2001-09-09T01:46:40Z: whole, in the past, and representable on every file system.
_SEAL_NS: Final = 1_000_000_000 * 1_000_000_000
_READ_ONLY: Final = 0o444
_NOTE_SUFFIX: Final = ".seal"
# A second change within one tick of the file system's clock would not show; FAT has the longest, of two seconds.
_SETTLED_NS: Final = 2 * 1_000_000_000


def note_shared(file: Path, found: os.stat_result) -> None:
    """That a file on its way is another program's too. found: from before it was verified."""
    _note_path(file).write_text(f"{found.st_ino}:{_noted(found.st_mtime_ns)}")


def forget_shared(file: Path) -> None:
    """Its bytes are not on their way any more."""
    _note_path(file).unlink(missing_ok=True)


class DiskSeals:
    """folder: of the times of what is shared."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, digest: str, file: Path) -> None:
        """Seal a file that was verified and is about to lie under that digest."""
        note = f"{file}{_NOTE_SUFFIX}"
        # Asked in the quickest way: of thousands of files hardly one is shared.
        inode, _, noted = (_read(Path(note)) if os.path.lexists(note) else "").partition(":")
        if inode and inode == str(file.stat().st_ino):
            self._path(digest).write_text(noted)
        else:
            self.drop(digest)
            _seal(file)

    def holds(self, digest: str, mtime_ns: int) -> bool:
        """Whether a blob with that modification time was not touched since it was verified."""
        return mtime_ns == _SEAL_NS or _read(self._path(digest)) == str(mtime_ns)

    def renew(self, digest: str, blob: Path, mtime_ns: int) -> None:
        """Seal a blob that was just verified again. mtime_ns: from before that."""
        # Where there is no room for that, or no right to it, the blob is verified each time.
        with contextlib.suppress(OSError):
            if self._path(digest).exists() or blob.stat().st_nlink > 1:
                self._path(digest).write_text(_noted(mtime_ns))
            else:
                _seal(blob)

    def drop(self, digest: str) -> None:
        """The blob goes."""
        path = f"{self._folder}{os.sep}{digest.removeprefix('sha256:')}"
        if os.path.lexists(path):
            Path(path).unlink()

    def _path(self, digest: str) -> Path:
        return self._folder / digest.removeprefix("sha256:")


def _noted(mtime_ns: int) -> str:
    """Empty, which no time equals, where the file changed so lately that a further change might not show."""
    return str(mtime_ns) if time.time_ns() - mtime_ns > _SETTLED_NS else ""


def _read(path: Path) -> str:
    """Empty where there is nothing."""
    try:
        return path.read_text()
    except (FileNotFoundError, UnicodeDecodeError):
        return ""


def _note_path(file: Path) -> Path:
    return file.with_name(f"{file.name}{_NOTE_SUFFIX}")


def _seal(file: Path) -> None:
    file.chmod(_READ_ONLY)
    os.utime(file, ns=(_SEAL_NS, _SEAL_NS))
