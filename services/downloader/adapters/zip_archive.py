"""A zip that may be hostile: what is in it, and a member's bytes; of a wheel, checked against its RECORD.

Caps are checked on what the archive declares before anything is read, and on what really comes while it is.
RECORD after https://packaging.python.org/en/latest/specifications/recording-installed-packages/.
"""

import base64
import csv
import hashlib
import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from services.downloader.core.paths import check_path
from services.kit.errors import DigestMismatch, UnsupportedFormat

MAX_MEMBERS: Final = 20_000
MAX_RATIO: Final = 200

# The list of members is parsed into memory as a whole, so its length is capped before.
_MAX_DIRECTORY_BYTES: Final = 8 * 1024 * 1024
_MAX_RECORD_BYTES: Final = 4 * 1024 * 1024
# Small texts compress well; a ratio says something about large ones only.
_ALWAYS_BYTES: Final = 16 * 1024 * 1024
_READ_BYTES: Final = 1024 * 1024
_ENCRYPTED: Final = 0x1

# https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, 4.3.14 to 4.3.16.
_END: Final = struct.Struct("<4s4H2LH")
_END_MAGIC: Final = b"PK\x05\x06"
_END64_LOCATOR: Final = struct.Struct("<4sLQL")
_END64_LOCATOR_MAGIC: Final = b"PK\x06\x07"
_END64: Final = struct.Struct("<4sQ2H2L4Q")
_MAX_COMMENT_BYTES: Final = 65_535


class ZipArchive:
    """One zip, open. Raises UnsupportedFormat for what is no zip that can be trusted."""

    def __init__(self, path: Path) -> None:
        self._name = path.name
        self._file = path.open("rb")
        try:
            _check_directory(self._file)
            self._zip = zipfile.ZipFile(self._file)
            self._members = self._checked_members(path.stat().st_size)
            self._open()
        # NotImplementedError is zipfile's word for a version or a compression that it cannot read.
        except (zipfile.BadZipFile, NotImplementedError, struct.error) as error:
            self._file.close()
            raise UnsupportedFormat(f"{path.name} is no archive that can be read: {error}") from error
        except BaseException:
            self._file.close()
            raise

    def _open(self) -> None:
        """What a kind of zip reads before its members are asked for."""

    @property
    def names(self) -> list[str]:
        """Paths of all files in it."""
        return list(self._members)

    def size_bytes(self, member: str) -> int:
        """What a member declares."""
        return self._members[member].file_size

    def read(self, member: str) -> Iterator[bytes]:
        """A member's bytes, in chunks. Raises DigestMismatch, at the latest at the end, if they are damaged."""
        declared = self._members[member].file_size
        num_bytes = 0
        try:
            with self._zip.open(self._members[member]) as opened:
                while chunk := opened.read(_READ_BYTES):
                    num_bytes += len(chunk)
                    if num_bytes > declared:
                        raise UnsupportedFormat(f"{member} in {self._name} is longer than it declares")
                    yield chunk
        # NotImplementedError, as above: a member may differ from what the directory says of it.
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise DigestMismatch(f"{member} in {self._name} is damaged: {error}") from error

    def close(self) -> None:
        """Close the file."""
        self._zip.close()
        self._file.close()

    def _checked_members(self, num_archive_bytes: int) -> dict[str, zipfile.ZipInfo]:
        members: dict[str, zipfile.ZipInfo] = {}
        num_bytes = 0
        for info in self._zip.infolist():
            # Not is_dir(), which fails on a name that is empty.
            if info.filename.endswith("/"):
                continue
            # The name as it is written: zipfile cuts it at a NUL byte.
            check_path(info.orig_filename)
            if info.filename in members:
                raise UnsupportedFormat(f"{self._name} holds {info.filename} twice")
            if info.flag_bits & _ENCRYPTED:
                raise UnsupportedFormat(f"{self._name} is encrypted")
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG):
                raise UnsupportedFormat(f"{info.filename} in {self._name} is a link or a device")
            num_bytes += info.file_size
            members[info.filename] = info
        if num_bytes > max(_ALWAYS_BYTES, MAX_RATIO * num_archive_bytes):
            raise UnsupportedFormat(
                f"{self._name} would unpack to {num_bytes} bytes, more than {MAX_RATIO} times its size; it was refused"
            )
        return members


class WheelArchive(ZipArchive):
    """One wheel, open: every byte of it is vouched for by its RECORD. Raises UnsupportedFormat as above."""

    def _open(self) -> None:
        self._digests = self._read_record()

    def read(self, member: str) -> Iterator[bytes]:
        """As above. Raises DigestMismatch at the end if the bytes are not what RECORD says."""
        expected = self._digests.get(member)
        if expected is None:
            raise UnsupportedFormat(
                f"{self._name} has no sha256 for {member} in its RECORD; nothing was taken"
            )
        sha256 = hashlib.sha256()
        for chunk in super().read(member):
            sha256.update(chunk)
            yield chunk
        if sha256.digest() != expected:
            raise DigestMismatch(f"{member} in {self._name} is not what its RECORD says; nothing was taken")

    def _read_record(self) -> dict[str, bytes]:
        """Path -> sha256 of every member that RECORD vouches for."""
        records = [
            name for name in self._members if name.endswith(".dist-info/RECORD") and name.count("/") == 1
        ]
        if len(records) != 1 or self._members[records[0]].file_size > _MAX_RECORD_BYTES:
            raise UnsupportedFormat(f"{self._name} has no RECORD that can be read, so it is no wheel")
        text = self._zip.read(records[0]).decode("utf-8", "replace")
        digests = {}
        try:
            for row in csv.reader(io.StringIO(text)):
                if len(row) == 3 and row[1].startswith("sha256="):
                    digests[row[0]] = _unpadded(row[1].removeprefix("sha256="))
        except csv.Error as error:
            raise UnsupportedFormat(f"{self._name} has a RECORD that is no table: {error}") from error
        return digests


def _unpadded(text: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        return b""


def _check_directory(file: BinaryIO) -> None:
    """Cap the list of members by what the archive says of it, before zipfile reads all of it."""
    size = file.seek(0, 2)
    file.seek(max(0, size - _END.size - _MAX_COMMENT_BYTES - _END64_LOCATOR.size))
    tail = file.read()
    at = tail.rfind(_END_MAGIC)
    if at < 0 or at + _END.size > len(tail):
        raise UnsupportedFormat("the archive has no list of members, so it is not whole")
    _, _, _, _, num_members, num_bytes, _, _ = _END.unpack_from(tail, at)
    if at >= _END64_LOCATOR.size:
        magic, _, offset, _ = _END64_LOCATOR.unpack_from(tail, at - _END64_LOCATOR.size)
        if magic == _END64_LOCATOR_MAGIC:
            file.seek(min(offset, size))
            end64 = file.read(_END64.size)
            if len(end64) < _END64.size:
                raise UnsupportedFormat("the archive's list of members is damaged")
            num_members, num_bytes = _END64.unpack(end64)[7:9]
    if num_members > MAX_MEMBERS or num_bytes > _MAX_DIRECTORY_BYTES:
        raise UnsupportedFormat(
            f"the archive claims to hold {num_members} files; {MAX_MEMBERS} are the most that are read"
        )
    file.seek(0)
