"""A file on its way: what has arrived, and what it is a part of. It survives a kill of the process."""

import hashlib
import json
import shutil
from io import FileIO
from pathlib import Path
from typing import Any, Final

from services.downloader.adapters.disk_errors import translated_disk_errors, write_all
from services.kit.errors import DiskFull

_READ_BYTES: Final = 1024 * 1024


class PartialFile:
    """`path`, and beside it `path.json` with the validator under which it was begun.

    Its methods block: call them in a thread. identity: what the bytes are said to be; a partial file of another
    identity is begun anew.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self._path = path
        self._note_path = path.with_name(f"{path.name}.json")
        self._identity = identity
        self._sha256 = hashlib.sha256()
        self._file: FileIO | None = None
        self.num_bytes = 0
        self.validator = ""

    def open(self) -> None:
        """Find what has arrived; its hash is computed anew from the disk."""
        note = self._note()
        if note.get("identity") != self._identity:
            self._path.unlink(missing_ok=True)
        else:
            self.validator = str(note.get("validator", ""))
        with translated_disk_errors(self._path):
            self._file = self._path.open("ab+", buffering=0)
        self._file.seek(0)
        while chunk := self._file.read(_READ_BYTES):
            self._sha256.update(chunk)
            self.num_bytes += len(chunk)

    def begin(self, validator: str) -> None:
        """Begin anew with what is now at the source. validator: its ETag or date, or empty."""
        with translated_disk_errors(self._path):
            self._opened.truncate(0)
            self._note_path.write_text(json.dumps({"identity": self._identity, "validator": validator}))
        self._sha256 = hashlib.sha256()
        self.num_bytes = 0
        self.validator = validator

    def append(self, chunk: bytes) -> None:
        """Add bytes at the end. Raises DiskFull; what fitted is kept."""
        with translated_disk_errors(self._path):
            write_all(self._opened, chunk)
        self._sha256.update(chunk)
        self.num_bytes += len(chunk)

    def check_room(self, num_more_bytes: int) -> None:
        """Raises DiskFull if they cannot fit."""
        free = shutil.disk_usage(self._path.parent).free
        if num_more_bytes > free:
            raise DiskFull(
                f"{num_more_bytes} more bytes are needed and {free} are free on the disk of {self._path.parent};"
                " free some and resume: what has arrived is kept"
            )

    @property
    def sha256(self) -> str:
        """64 hex digits of what has arrived."""
        return self._sha256.hexdigest()

    def drop(self) -> None:
        """Forget what has arrived."""
        self.close()
        self._path.unlink(missing_ok=True)
        self._note_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Keep what has arrived."""
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def _opened(self) -> FileIO:
        assert self._file is not None, "open() comes first"
        return self._file

    def _note(self) -> dict[str, Any]:
        try:
            note = json.loads(self._note_path.read_text())
        except (OSError, ValueError):
            return {}
        return note if isinstance(note, dict) else {}
