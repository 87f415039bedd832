"""What the core needs from outside, beside sources: the store, the registry, what must survive a restart.

Each port is fulfilled by an adapter, and by a fake in the tests.
"""

from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Collection,
    Iterable,
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto
from pathlib import Path
from typing import Protocol

from services.downloader.core.download import Download, DownloadState
from services.downloader.core.models import (
    KnownModel,
    ListedVersion,
    ModelRecord,
    StoredFile,
    VersionRecord,
)


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes in the store. digest: `sha256:<hex>`."""

    digest: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Arrival:
    """A file in an ingest folder, and what it is to be. digest: `sha256:<hex>`.

    sha256: in hex, where somebody has computed it from these very bytes: they are not read again.
    """

    path: Path
    size_bytes: int | None = None
    digest: str | None = None
    sha256: str | None = None


class Area(Enum):
    """The parts of a blob store."""

    BLOB = auto()
    INGEST = auto()
    VIEW = auto()
    QUARANTINE = auto()


@dataclass(frozen=True, slots=True)
class Measure:
    """Bytes that something has on disk, and when it last changed."""

    size_bytes: int
    change_time: datetime


@dataclass(frozen=True, slots=True)
class Disk:
    """What the store is kept on."""

    free_bytes: int
    size_bytes: int


class IngestFile(Protocol):
    """A file on its way into the store."""

    path: Path

    async def write(self, chunk: bytes) -> None:
        """Append. Raises DiskFull."""

    async def close(self) -> None:
        """No more will be written."""


class BlobStore(Protocol):
    """Bytes by their sha256. What `size` finds was verified on its way in."""

    @property
    def stored_bytes(self) -> int:
        """Bytes of all blobs and of what was put aside: a running total, counted when the store was opened."""

    def disk(self) -> Disk:
        """The disk that it is on. One quick question to the system."""

    async def measure(self, area: Area, name: str) -> Measure | None:
        """How large something is, by its digest, id or manifest digest. None if it is not there."""

    def ingest(self, name: str) -> Path:
        """The folder of what is on its way under that id, made if need be. It survives a restart."""

    async def ingests(self) -> Sequence[str]:
        """Ids of all ingest folders."""

    async def drop_ingest(self, name: str) -> int:
        """Delete an ingest folder. Returns the bytes freed; 0 if it is not there."""

    async def move_ingest(self, name: str, to: str) -> None:
        """Give what has arrived under one id to another. Nothing happens if there is none."""

    async def create(self, name: str) -> IngestFile:
        """Begin to write a file into the ingest folder of that id."""

    async def examine(self, files: Sequence[Arrival]) -> list[Blob]:
        """Put ingested files onto the disk for good, and check sizes and digests. Raises DigestMismatch, DiskFull."""

    async def adopt(self, files: Sequence[tuple[Path, Blob]]) -> None:
        """Move examined files to their digests' paths, and put that onto the disk too.

        What is there already is replaced, which repairs it. Raises DiskFull.
        """

    async def size(self, digest: str) -> int | None:
        """Length of a blob, or None if it is not there."""

    async def sizes(self, digests: Collection[str]) -> dict[str, int]:
        """Lengths of those of many blobs that are there."""

    async def check(self, blob: Blob) -> None:
        """That it is there, has its size, and was not touched since it was verified. Raises CorruptBlob."""

    async def verify(self, blob: Blob) -> None:
        """Read all of it. Raises CorruptBlob."""

    def blob_path(self, digest: str) -> Path:
        """Where a blob lies, or would lie, to be read in place."""

    def read(
        self, digest: str, offset_bytes: int = 0, max_bytes: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Its bytes in chunks, to the end or at most so many. Raises BlobNotFound, OffsetPastEnd."""

    async def blobs(self) -> Sequence[Blob]:
        """All that is stored."""

    async def delete(self, digest: str) -> int:
        """Delete a blob: quick, whatever its size. Returns the bytes freed; 0 if it is not there."""

    async def purge(self) -> None:
        """Overwrite what was deleted, where that is set. It takes as long as that; a crash loses none of it."""

    async def quarantine(self, digest: str) -> bool:
        """Put a blob aside, where nothing reads it. Returns whether it was there."""

    async def quarantined(self) -> Sequence[Blob]:
        """What was put aside. digest: what it lay under, and does not have."""

    async def drop_quarantined(self, digest: str) -> int:
        """Delete what was put aside. Returns the bytes freed; 0 if it is not there."""

    async def open_view(self, manifest: str, files: Sequence[StoredFile]) -> Path:
        """A folder in which these blobs lie under their own names, to read. Made once per manifest digest."""

    def view_path(self, manifest: str) -> Path:
        """Where the view of that manifest lies, or would lie."""

    async def views(self) -> Sequence[str]:
        """Manifest digests of all views."""

    async def delete_view(self, manifest: str) -> None:
        """Delete a view; the blobs stay."""


class ModelRegistry(Protocol):
    """The Registry, as far as the downloader needs it. Every call raises Unavailable if nobody answers."""

    async def find_model(self, model_id: str) -> KnownModel | None:
        """The model of that id."""

    async def find_version(self, model_id: str, version_id: str) -> VersionRecord | None:
        """The version, if it is recorded and was not quarantined."""

    async def record(self, model: ModelRecord, version: VersionRecord, *, request_id: str) -> None:
        """Record both, and make the version the one that answers. To repeat it changes nothing."""

    async def lease_files(self, version: str, artifact_id: str) -> tuple[StoredFile, ...]:
        """Files of a version, or of one of its artifacts.

        Raises ModelNotFound, VersionNotFound, ModelNotAvailable for what is quarantined.
        """

    def referenced(self) -> AsyncIterator[str]:
        """Digests of all files of all versions and artifacts."""

    def list_versions(self) -> AsyncIterator[ListedVersion]:
        """Those of all models, oldest first; the quarantined too."""

    async def current_versions(self) -> Mapping[str, str]:
        """Resource name of each model -> that of the version that answers to its name, or empty if it has none."""

    async def quarantine(self, version: str, reason: str) -> None:
        """Have it served no more. Raises ModelNotFound, VersionNotFound."""

    async def release(self, version: str, etag: str) -> None:
        """Have it served again. Raises ModelNotFound, VersionNotFound, EtagMismatch."""

    async def delete_version(self, version: str, etag: str) -> None:
        """Raises ModelNotFound, VersionNotFound, EtagMismatch, ModelInUse."""


@dataclass(frozen=True, slots=True)
class Lease:
    """Somebody's hold on a version's files. manifest: names the view."""

    id: str
    version: str
    artifact_id: str
    holder: str
    manifest: str
    digests: tuple[str, ...]
    expire_time: datetime


class DownloadStore(Protocol):
    """What must survive a restart: downloads, leases, and until when fresh blobs are kept."""

    async def save_download(self, download: Download) -> None:
        """Insert or replace."""

    async def download(self, download_id: str) -> Download | None:
        """One of them."""

    async def download_of_request(self, request_id: str) -> Download | None:
        """The download that a request made."""

    async def downloads(
        self, states: Sequence[DownloadState], *, before_id: str | None, limit: int
    ) -> Sequence[Download]:
        """Newest first, older than `before_id`; in any state if `states` is empty."""

    async def download_of_version(self, version: str) -> Download | None:
        """The newest that became that version, by its resource name."""

    async def save_lease(self, lease: Lease) -> None:
        """Insert or replace."""

    async def lease(self, lease_id: str) -> Lease | None:
        """One of them, expired or not."""

    async def leases(self) -> Sequence[Lease]:
        """All of them, expired or not."""

    async def delete_lease(self, lease_id: str) -> bool:
        """Whether it was there."""

    async def keep(self, digests: Iterable[str], until: datetime, *, keeper: str) -> None:
        """Keep blobs from garbage collection for a download or a writer, with all it keeps, at least until then."""

    async def let_go(self, keeper: str) -> None:
        """What was kept for it alone is kept no more."""

    async def kept(self, now: datetime) -> frozenset[str]:
        """Digests of blobs that are kept now; what has run out is forgotten."""
