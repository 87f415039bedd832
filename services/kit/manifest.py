"""What stands for a set of files: one digest over their names, sizes and digests."""

import hashlib
from collections.abc import Iterable
from typing import Protocol


class ManifestFile(Protocol):
    """One file of a set: the downloader's own, or the contract's."""

    @property
    def path(self) -> str:
        """Relative, with `/`."""

    @property
    def size_bytes(self) -> int:
        """Length."""

    @property
    def digest(self) -> str:
        """`sha256:<hex>`."""


def manifest_digest(files: Iterable[ManifestFile]) -> str:
    """64 hex digits that stand for exactly these files under these names, whatever their order."""
    sha256 = hashlib.sha256()
    for file in sorted(files, key=lambda each: each.path):
        sha256.update(f"{file.digest} {file.size_bytes} {file.path}\n".encode())
    return sha256.hexdigest()
