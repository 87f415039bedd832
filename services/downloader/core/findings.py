"""What a validation finds, as it is told."""

from dataclasses import dataclass
from enum import IntEnum

from services.downloader.core.ports import Blob


class FileVerdict(IntEnum):
    """What was found of a file. Numbers as in the contract, as with all enums here."""

    UNSPECIFIED = 0
    GOOD = 1
    DAMAGED = 2
    MISSING = 3


class VersionVerdict(IntEnum):
    """How a version stands after its validation."""

    UNSPECIFIED = 0
    WHOLE = 1
    QUARANTINED = 2
    RELEASED = 3
    REPAIRED = 4
    GONE = 5


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is. version: empty for a blob that no version refers to; path: its digest then."""

    version: str
    path: str
    completed_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class ValidatedFile:
    """A file that was read; version and path as in `Progress`."""

    version: str
    path: str
    blob: Blob
    verdict: FileVerdict


@dataclass(frozen=True, slots=True)
class ValidatedVersion:
    """A version whose files were read. download: the name of the one that repaired it, or tried to."""

    name: str
    verdict: VersionVerdict
    reason: str = ""
    download: str = ""


@dataclass(slots=True)
class Summary:
    """What was found, all in all."""

    num_versions: int = 0
    num_quarantined: int = 0
    num_released: int = 0
    num_repaired: int = 0
    num_good: int = 0
    num_damaged: int = 0
    num_missing: int = 0
    read_bytes: int = 0

    def count_version(self, verdict: VersionVerdict) -> None:
        """One more."""
        self.num_versions += 1
        self.num_quarantined += verdict is VersionVerdict.QUARANTINED
        self.num_released += verdict is VersionVerdict.RELEASED
        self.num_repaired += verdict is VersionVerdict.REPAIRED

    def count_file(self, verdict: FileVerdict) -> None:
        """One more."""
        self.num_good += verdict is FileVerdict.GOOD
        self.num_damaged += verdict is FileVerdict.DAMAGED
        self.num_missing += verdict is FileVerdict.MISSING


Event = Progress | ValidatedFile | ValidatedVersion | Summary
