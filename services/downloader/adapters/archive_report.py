"""What is said of a model in the archive that it came in, and what of that archive is no model's."""

import io
from pathlib import Path
from typing import BinaryIO, Final

from services.downloader.adapters.zip_archive import ZipArchive
from services.downloader.core.licenses import (
    MAX_TEXT_BYTES,
    is_license,
    license_of_metadata,
    license_of_text,
)
from services.downloader.core.selection import left_out

_MAX_SCANNED_BYTES: Final = 64 * 1024 * 1024


def report_archive(path: Path) -> tuple[str, list[str]]:
    """(the licence that it states, or empty; members that may run code when they are loaded).

    Raises UnsupportedFormat, DigestMismatch.
    """
    archive = ZipArchive(path)
    try:
        return _license(archive), left_out(archive.names)
    finally:
        archive.close()


def read_member(path: Path, member: str) -> BinaryIO | None:
    """A member in memory; None if it is too large for that. Raises UnsupportedFormat, DigestMismatch."""
    archive = ZipArchive(path)
    try:
        if archive.size_bytes(member) > _MAX_SCANNED_BYTES:
            return None
        return io.BytesIO(b"".join(archive.read(member)))
    finally:
        archive.close()


def _license(archive: ZipArchive) -> str:
    metadata = [
        name for name in archive.names if name.endswith(".dist-info/METADATA") and name.count("/") == 1
    ]
    for member in metadata:
        if stated := license_of_metadata(_beginning(archive, member)):
            return stated
    # The nearest to the top first.
    for member in sorted(archive.names, key=lambda name: (name.count("/"), name)):
        if is_license(member.rpartition("/")[2]):
            return license_of_text(_beginning(archive, member))
    return ""


def _beginning(archive: ZipArchive, member: str) -> bytes:
    return next(archive.read(member), b"")[:MAX_TEXT_BYTES]
