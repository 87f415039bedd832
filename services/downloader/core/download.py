"""A download's life.

                 ┌────────────── resume ─────────────┐
                 v                                   │
    QUEUED ─> RUNNING ─> SUCCEEDED       PAUSED, FAILED, CANCELLED
      │          │                                   ^
      └──────────┴───── pause, failure, cancel ──────┘

All values are frozen: a step makes a new one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import IntEnum
from typing import Final

from services.kit.errors import JobFinished, LaresError
from services.kit.names import resource_name


class DownloadState(IntEnum):
    """How a download stands. Numbers as in the contract."""

    UNSPECIFIED = 0
    QUEUED = 1
    RUNNING = 2
    PAUSED = 3
    SUCCEEDED = 4
    FAILED = 5
    CANCELLED = 6

    @property
    def is_final(self) -> bool:
        """Whether a watch ends here."""
        return self in (DownloadState.SUCCEEDED, DownloadState.FAILED, DownloadState.CANCELLED)

    @property
    def is_active(self) -> bool:
        """Whether it goes on by itself, also after a restart."""
        return self in (DownloadState.QUEUED, DownloadState.RUNNING)


class DownloadPhase(IntEnum):
    """What a running download is doing. Numbers as in the contract."""

    UNSPECIFIED = 0
    RESOLVING = 1
    FETCHING = 2
    UNPACKING = 3
    VERIFYING = 4
    COMMITTING = 5


@dataclass(frozen=True, slots=True)
class FileProgress:
    """Progress of one file, as its source names it. total_bytes: None while unknown."""

    path: str
    completed_bytes: int = 0
    total_bytes: int | None = None


def changed_files(before: Sequence[FileProgress], now: Sequence[FileProgress]) -> Sequence[FileProgress]:
    """Those of `now` that are not as they were; all of them if they are others altogether."""
    if len(before) != len(now):
        return now
    # What did not change is the same object, so that thousands of files cost little.
    return [new for old, new in zip(before, now, strict=True) if new is not old]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why it failed. reason: stable, of the error's class; message: for people."""

    reason: str
    message: str

    @classmethod
    def of(cls, error: LaresError) -> "Failure":
        """As a caller would have been told."""
        return cls(error.reason, error.message)


@dataclass(frozen=True, slots=True)
class PullOptions:
    """How a model is to be pulled. Globs as in the contract; timeout_s: None for the service's setting.

    local_folder: of this machine, has the files already; empty: they are fetched.
    """

    allow_patterns: tuple[str, ...] = ()
    ignore_patterns: tuple[str, ...] = ()
    priority: int = 0
    timeout_s: float | None = None
    local_folder: str = ""


DEFAULT_OPTIONS: Final = PullOptions()


@dataclass(frozen=True, slots=True)
class Download:
    """One download as it stands. version: its resource name, empty until it succeeded."""

    id: str
    source: str
    model_id: str
    create_time: datetime
    resolved_source: str = ""
    version: str = ""
    state: DownloadState = DownloadState.QUEUED
    phase: DownloadPhase = DownloadPhase.UNSPECIFIED
    files: tuple[FileProgress, ...] = ()
    bytes_per_second: int = 0
    eta_s: float | None = None
    failure: Failure | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    request_id: str = ""
    options: PullOptions = DEFAULT_OPTIONS

    @property
    def name(self) -> str:
        """The resource name."""
        return resource_name("downloads/{download}", self.id)

    @property
    def completed_bytes(self) -> int:
        """Bytes that have arrived, over all files."""
        return sum(file.completed_bytes for file in self.files)

    @property
    def total_bytes(self) -> int | None:
        """Bytes in all; None while the size of a file is unknown."""
        sizes = [file.total_bytes for file in self.files]
        return sum(size for size in sizes if size is not None) if sizes and None not in sizes else None

    def started(self, now: datetime) -> "Download":
        """It goes on."""
        return replace(
            self,
            state=DownloadState.RUNNING,
            phase=DownloadPhase.RESOLVING,
            failure=None,
            start_time=now,
            end_time=None,
        )

    def in_phase(self, phase: DownloadPhase) -> "Download":
        """It has come to the next thing to do."""
        return replace(self, phase=phase, bytes_per_second=0, eta_s=None)

    def queued(self) -> "Download":
        """It waits for its turn, again. Raises JobFinished if it has succeeded."""
        if self.state is DownloadState.SUCCEEDED:
            raise JobFinished(f"{self.name} has succeeded; there is nothing left to fetch")
        if self.state.is_active:
            return self
        return replace(self._halted(DownloadState.QUEUED), failure=None)

    def interrupted(self) -> "Download":
        """The service ended in the middle of it; it waits for its turn again."""
        return self._halted(DownloadState.QUEUED)

    def paused(self) -> "Download":
        """It stops and keeps what has arrived. Raises JobFinished if it has ended."""
        if self.state.is_final:
            raise JobFinished(f"{self.name} has ended ({self.state.name.lower()}); it cannot be paused")
        return self._halted(DownloadState.PAUSED)

    def cancelled(self, now: datetime) -> "Download":
        """It ends, and what has arrived is dropped. Raises JobFinished if it has ended."""
        if self.state.is_final:
            raise JobFinished(f"{self.name} has ended already ({self.state.name.lower()})")
        ended = self._halted(DownloadState.CANCELLED)
        return replace(ended, files=(), end_time=now)

    def failed(self, failure: Failure, now: datetime) -> "Download":
        """It cannot go on."""
        return replace(self._halted(DownloadState.FAILED), failure=failure, end_time=now)

    def succeeded(self, version: str, now: datetime) -> "Download":
        """Every byte is verified, stored and recorded."""
        return replace(self._halted(DownloadState.SUCCEEDED), version=version, end_time=now)

    def _halted(self, state: DownloadState) -> "Download":
        return replace(
            self, state=state, phase=DownloadPhase.UNSPECIFIED, bytes_per_second=0, eta_s=None, end_time=None
        )
