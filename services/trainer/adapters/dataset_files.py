"""Datasets' bytes on disk, each under its sha256. No name that a caller gave ever gets here."""

import os
import tempfile
from pathlib import Path

from services.kit.names import parse_digest
from services.trainer.adapters.durable import DiskFullOnWrite, sync_folder


class DatasetFolder:
    """The DatasetFiles port, in a folder that is the Trainer's own."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._drafts = root / "drafts"

    def prepare(self) -> None:
        """Make the folders, and drop the drafts of a service that was killed."""
        self._drafts.mkdir(parents=True, exist_ok=True)
        for path in self._drafts.iterdir():
            path.unlink()

    def draft(self) -> "FileDraft":
        """A new file that nobody sees yet."""
        return FileDraft(self, self._drafts)

    def path(self, digest: str) -> Path:
        """Where the bytes lie."""
        return self._root / f"{parse_digest(digest).removeprefix('sha256:')}.jsonl"

    def remove(self, digest: str) -> None:
        """Delete the bytes, if they are there."""
        self.path(digest).unlink(missing_ok=True)


class FileDraft:
    """The DatasetDraft port: a temporary file beside its target."""

    def __init__(self, folder: DatasetFolder, drafts: Path) -> None:
        self._folder = folder
        descriptor, name = tempfile.mkstemp(dir=drafts)
        self._file = os.fdopen(descriptor, "wb")
        self._path = Path(name)

    def write(self, chunk: bytes) -> None:
        """Raises DiskFull."""
        with DiskFullOnWrite(self._path):
            self._file.write(chunk)

    def commit(self, digest: str) -> None:
        """Make it durable under its digest. Raises DiskFull."""
        target = self._folder.path(digest)
        with DiskFullOnWrite(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()
        # Rename last: a crash must leave no half-written file under its digest.
        self._path.replace(target)
        sync_folder(target.parent)

    def discard(self) -> None:
        """Drop it, if it was not committed."""
        self._file.close()
        self._path.unlink(missing_ok=True)
