"""Bytes that are on the disk when we say so."""

import errno
import os
from pathlib import Path
from types import TracebackType
from typing import Final

from services.kit.errors import DiskFull

_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)


def sync_file(path: Path) -> None:
    """Wait until a file's bytes are on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until a folder's names are on the disk. Windows has no such call, and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class DiskFullOnWrite:
    """A block in which "no space left" is a DiskFull. path: what is written, for the message."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(exc, OSError) and exc.errno in _NO_ROOM:
            raise DiskFull(
                f"no room left on the disk of {self._path.parent}; free some, then try again"
            ) from exc
