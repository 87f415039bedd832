"""Onto the disk for good: what is synced survives a power cut."""

import ctypes
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

# From so many files or folders on, one sync of their whole file system is quicker than one for each.
_MANY: Final = 32


def sync_files(files: Sequence[Path]) -> None:
    """Return when the bytes of all are on the disk. Raises OSError."""
    if len(files) < _MANY or not _sync_file_system(files[0].parent):
        for file in files:
            # Windows syncs only what is open for writing. Elsewhere the file may be read only already: sealed by an
            # adoption that was killed.
            _sync(file, os.O_RDWR if os.name == "nt" else os.O_RDONLY)


def sync_folders(*folders: Path) -> None:
    """Make renames in them survive a power cut. Windows has no such call, and needs none for NTFS."""
    if os.name == "posix" and (len(folders) < _MANY or not _sync_file_system(folders[0])):
        for folder in folders:
            _sync(folder, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_file_system(folder: Path) -> bool:
    """By syncfs(2), which tells errors since Linux 5.8. False where there is no such call."""
    if sys.platform != "linux":
        return False
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(folder))
    finally:
        os.close(descriptor)
    return True
