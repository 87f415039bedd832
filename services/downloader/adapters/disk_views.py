"""Folders in which blobs lie under their own names: what a model library is given to load."""

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from services.downloader.adapters.disk_errors import translated_disk_errors
from services.downloader.core.ids import new_id
from services.downloader.core.models import StoredFile
from services.downloader.core.paths import check_paths
from services.kit.errors import InvalidDigest

_MANIFEST = re.compile(r"[0-9a-f]{64}")


class DiskViews:
    """Views under one folder. path_of: where the blob of a digest lies."""

    def __init__(self, root: Path, path_of: Callable[[str], Path]) -> None:
        self._root = root
        self._path_of = path_of

    def open(self, manifest: str, files: Sequence[StoredFile]) -> Path:
        """The view of these files; made if it is not there, or not whole."""
        view = self.path(manifest)
        check_paths(file.path for file in files)
        if not self._is_whole(view, files):
            with translated_disk_errors(view):
                self._make(view, files)
        return view

    def names(self) -> list[str]:
        """Manifest digests of all views; what a crash left half-made is cleared away."""
        for left_over in self._root.glob(".*"):
            shutil.rmtree(left_over, ignore_errors=True)
        return sorted(entry.name for entry in self._root.iterdir() if _MANIFEST.fullmatch(entry.name))

    def delete(self, manifest: str) -> None:
        """Delete a view. Links go, what they point to stays."""
        shutil.rmtree(self.path(manifest), ignore_errors=True)

    def path(self, manifest: str) -> Path:
        """Where the view of that manifest lies. Raises InvalidDigest."""
        if not _MANIFEST.fullmatch(manifest):
            raise InvalidDigest("a view is named by 64 lower-case hex digits")
        return self._root / manifest

    def _is_whole(self, view: Path, files: Sequence[StoredFile]) -> bool:
        try:
            return all(self._shows(view / file.path, file) for file in files)
        except OSError:
            return False

    def _shows(self, shown: Path, file: StoredFile) -> bool:
        found, blob = shown.stat(), self._path_of(file.digest).stat()
        # A hard link to what was replaced since, because it was damaged, is no view of the blob any more.
        is_it = os.path.samestat(found, blob) or found.st_nlink == 1
        return is_it and found.st_size == file.size_bytes

    def _make(self, view: Path, files: Sequence[StoredFile]) -> None:
        # Renamed when it is whole, so that nobody sees half a view.
        making = self._root / f".{new_id()}"
        try:
            for file in files:
                target = making / file.path
                target.parent.mkdir(parents=True, exist_ok=True)
                _link(self._path_of(file.digest), target)
            if view.exists():
                shutil.rmtree(view)
            making.rename(view)
        finally:
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(making)


def _link(blob: Path, target: Path) -> None:
    """A relative symbolic link, so that the store can be mounted elsewhere; where there are none, the next best."""
    # From its place in the finished view, which is as deep as the one that is being made.
    try:
        target.symlink_to(os.path.relpath(blob, target.parent))
    except (OSError, NotImplementedError):  # The latter where the platform has no links at all.
        try:
            os.link(blob, target)
        except OSError:
            shutil.copyfile(blob, target)
