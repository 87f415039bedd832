"""What a disk complains of, in the house's own words."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Final

from services.kit.errors import DiskFull, PermissionDenied

# EFBIG is what a file gets that outgrows a quota or the limit of its file system.
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def write_all(file: FileIO, chunk: bytes | memoryview) -> None:
    """Write to an unbuffered file. A buffer that does not fit would be met again, and less clearly, in `close`."""
    rest = memoryview(chunk)
    while rest:
        rest = rest[file.write(rest) or 0 :]


@contextmanager
def translated_disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk into DiskFull and a forbidden one into PermissionDenied; other errors are bugs."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFull(
                f"no room left on the disk of {path.parent}; free some and resume: what has arrived is kept"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise PermissionDenied(f"{path} cannot be written: {error.strerror}") from error
        raise
