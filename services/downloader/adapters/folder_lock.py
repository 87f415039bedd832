"""One process a folder. The operating system holds the lock, so it is free the moment that its holder dies."""

import asyncio
import os
import sys
import time
from pathlib import Path

from services.kit.errors import FailedPrecondition

_RETRY_S = 0.1


class FolderLock:
    """A file named `lock` in the folder, locked from `acquire` to `release`."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "lock"
        self._descriptor: int | None = None

    async def acquire(self, *, timeout_s: float = 10.0) -> None:
        """Wait for the holder to go, for it may be a predecessor that drains. Raises FailedPrecondition."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + timeout_s
        while not self._try():
            if time.monotonic() > deadline:
                raise FailedPrecondition(
                    f"another process uses the store in {self._path.parent}; stop it, or give this one its own home"
                )
            await asyncio.sleep(_RETRY_S)

    def release(self) -> None:
        """Let the next one in."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _try(self) -> bool:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if sys.platform == "win32":
                import msvcrt

                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True
