"""Audio files on their way in, in a folder that only this user can read."""

import asyncio
import contextlib
import errno
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from services.kit.errors import DiskFull

_SUFFIX = ".audio"


class FileSpool:
    """A folder of files that live as long as their requests."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def prepare(self) -> None:
        """Make the folder, and clear what a killed process left in it."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in self._folder.glob(f"*{_SUFFIX}"):
            left.unlink(missing_ok=True)

    @contextlib.asynccontextmanager
    async def file(self) -> AsyncIterator["SpooledFile"]:
        """A new, empty file; it is deleted when the block is left."""
        # mkstemp makes it 0600; its name is ours, whatever the client calls the file.
        descriptor, name = tempfile.mkstemp(dir=self._folder, suffix=_SUFFIX)
        file = SpooledFile(Path(name), descriptor)
        try:
            yield file
        finally:
            file.delete()


class SpooledFile:
    """One of them."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    async def write(self, chunk: bytes) -> None:
        """Append. Raises DiskFull."""
        try:
            await asyncio.to_thread(_write_all, self._descriptor, chunk)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull(
                    f"no space is left for the file in {self.path.parent}; free some and send it again"
                ) from error
            raise

    def delete(self) -> None:
        """Close and forget it."""
        os.close(self._descriptor)
        self.path.unlink(missing_ok=True)


def _write_all(descriptor: int, chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
