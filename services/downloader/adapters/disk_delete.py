"""How files leave the disk: unlinked, or overwritten first.

Overwriting reaches the blocks that the file has now. A flash disk that writes elsewhere, a file system that copies
on write, a snapshot or a backup may keep the old bytes all the same: nobody can promise otherwise from here.
"""

import os
import shutil
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from services.downloader.adapters.disk_errors import write_all
from services.downloader.core.ports import Measure

_ZEROS: Final = bytes(1024 * 1024)


def delete_file(path: Path, *, overwrite: bool) -> int:
    """Returns the bytes freed; 0 if it is not there."""
    try:
        found = path.lstat()
        # Zeros in one name of a file would be zeros in all of them. What another link uses stays as it is.
        if overwrite and stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
            _overwrite(path, found.st_size)
        elif os.name == "nt":
            path.chmod(stat.S_IWRITE)
        path.unlink()
    except FileNotFoundError:
        return 0
    return found.st_size


def drop_folder(folder: Path, *, overwrite: bool) -> int:
    """Delete a folder with all in it. Returns the bytes freed; 0 if it is not there."""
    measure = measure_folder(folder)
    if overwrite:
        for file in folder.rglob("*"):
            if not file.is_dir() or file.is_symlink():
                delete_file(file, overwrite=True)
    shutil.rmtree(folder, ignore_errors=True)
    return measure.size_bytes if measure else 0


def measure_folder(folder: Path) -> Measure | None:
    """Bytes that it alone has on disk, and when anything in it last changed. None if it is not there."""
    size_bytes = 0
    try:
        change_s = folder.stat().st_ctime
        for file in folder.rglob("*"):
            found = file.lstat()
            change_s = max(change_s, found.st_ctime)
            # A second link to a blob, in a view, takes no room of its own.
            if not stat.S_ISDIR(found.st_mode) and found.st_nlink == 1:
                size_bytes += found.st_size
    except FileNotFoundError:
        # It may be on its way out: dropped, or renamed once it is whole.
        return None
    return Measure(size_bytes, datetime.fromtimestamp(change_s, UTC))


def measure_file(path: Path) -> Measure | None:
    """Its length, and when it last changed; not the time of modification, which is a blob's seal."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return Measure(found.st_size, datetime.fromtimestamp(found.st_ctime, UTC))


def _overwrite(path: Path, size_bytes: int) -> None:
    path.chmod(stat.S_IRUSR | stat.S_IWUSR)
    with path.open("r+b", buffering=0) as file:
        for at in range(0, size_bytes, len(_ZEROS)):
            write_all(file, memoryview(_ZEROS)[: size_bytes - at])
        os.fsync(file.fileno())
