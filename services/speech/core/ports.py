"""What the core needs from outside."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

from services.speech.core.domain import Engine, SpeechModel
from services.speech.core.messages import WorkerEvent, WorkerRequest


class ModelCatalog(Protocol):
    """Knows models by name."""

    async def resolve(self, name: str) -> SpeechModel:
        """Raises InvalidReference, ModelNotFound, VersionNotFound, ModelNotAvailable, WrongModelKind."""


class Lease(Protocol):
    """A version's files, held for as long as the lease is not released."""

    @property
    def path(self) -> Path:
        """Folder with the files under their own names."""

    async def release(self) -> None:
        """Give the files back. Never raises: a lease that cannot be given back runs out by itself."""


class LeaseBroker(Protocol):
    """Gives leases on the files of versions."""

    async def lease(self, version: str) -> Lease:
        """version: `models/{m}/versions/{v}`. Raises VersionNotFound, CorruptBlob, Unavailable."""


class WorkerCall(Protocol):
    """One request at a worker."""

    async def send(self, message: WorkerRequest, /) -> None:
        """Send more on it. Once the call has ended this does nothing: its events tell why."""

    async def done_sending(self) -> None:
        """Nothing more follows; events still come."""

    def __aiter__(self) -> AsyncIterator[WorkerEvent]:
        """Its events, until it is done. Raises the worker's error, or WorkerLost."""


class RecognizerWorker(Protocol):
    """A child process with one model in its memory."""

    @property
    def pid(self) -> int:
        """Its process id."""

    @property
    def device(self) -> str:
        """What it runs on: `cpu`, `cuda:0`."""

    def memory_bytes(self) -> int:
        """Its resident set; 0 once it is dead."""

    def call(self, request: WorkerRequest) -> AbstractAsyncContextManager[WorkerCall]:
        """Ask it. Leaving the block before the end cancels the request."""

    async def wait_dead(self) -> None:
        """Return once it has ended, however it did."""

    async def stop(self) -> None:
        """End it and give its memory back. Never raises."""


class WorkerLauncher(Protocol):
    """Starts workers."""

    async def start(self, model_id: str, engine: Engine, folder: Path) -> RecognizerWorker:
        """Return once the model is in memory. Raises what the worker raised, or WorkerLost."""


class SpoolFile(Protocol):
    """A file of the service's own, on its way in."""

    @property
    def path(self) -> Path:
        """Where a worker reads it."""

    async def write(self, chunk: bytes) -> None:
        """Append. Raises DiskFull."""


class Spool(Protocol):
    """A place for files that come in chunks."""

    def file(self) -> AbstractAsyncContextManager[SpoolFile]:
        """A new, empty file that is deleted when the block is left."""
