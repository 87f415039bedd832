"""What the Trainer needs from outside, as nouns. Adapters implement them; fakes pass the same suites."""

from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from services.trainer.core.jobs import Change, Step
from services.trainer.core.model import (
    BaseModel,
    Checkpoint,
    Dataset,
    DatasetFormat,
    Job,
    JobEvent,
    JobSpec,
    JobState,
    Progress,
)


class DatasetStore(Protocol):
    """Records of datasets. Ids sort by age."""

    async def add_dataset(self, dataset: Dataset, *, request_id: str) -> Dataset:
        """Record it; of an earlier request with this id (if not empty), return that one's instead."""
        ...

    async def get_dataset(self, dataset_id: str) -> Dataset:
        """Raises DatasetNotFound."""
        ...

    async def list_datasets(self, *, before: str | None, limit: int) -> list[Dataset]:
        """Newest first, those older than the id `before`."""
        ...

    async def remove_dataset(self, dataset_id: str) -> bool:
        """Forget it. Returns whether no other record has its digest.

        Raises DatasetNotFound, FailedPrecondition while a job that has not ended needs it.
        """
        ...


class JobStore(Protocol):
    """Jobs and their events. Ids sort by age."""

    async def add_job(self, change: Change, *, request_id: str) -> Job:
        """Record a new job; of an earlier request with this id (if not empty), return that one's instead.

        Raises DatasetNotFound, and VersionExists if a job that has not ended makes a version of the same
        name.
        """
        ...

    async def find_job(self, request_id: str) -> Job | None:
        """The job of an earlier request."""
        ...

    async def get_job(self, job_id: str) -> Job:
        """Raises JobNotFound."""
        ...

    async def list_jobs(self, *, states: Collection[JobState], before: str | None, limit: int) -> list[Job]:
        """Newest first, those older than the id `before`; of any state if none is named."""
        ...

    async def unfinished_jobs(self) -> list[Job]:
        """Those that wait or run, oldest first."""
        ...

    async def update_job(self, job_id: str, step: Step) -> Job:
        """Apply a step in one transaction, its events with it. Raises JobNotFound and what the step
        raises.
        """
        ...

    async def list_events(self, job_id: str, *, after_sequence: int, limit: int) -> list[JobEvent]:
        """Oldest first. Raises JobNotFound."""
        ...


class DatasetFiles(Protocol):
    """The bytes of datasets, each under its digest."""

    def draft(self) -> "DatasetDraft":
        """A new file that nobody sees yet."""
        ...

    def path(self, digest: str) -> Path:
        """Where the bytes lie. digest: `sha256:<hex>`, from our own records."""
        ...

    def remove(self, digest: str) -> None:
        """Delete the bytes, if they are there."""
        ...


class DatasetDraft(Protocol):
    """A dataset's file while it arrives."""

    def write(self, chunk: bytes) -> None:
        """Raises DiskFull."""
        ...

    def commit(self, digest: str) -> None:
        """Make it durable under its digest. Raises DiskFull."""
        ...

    def discard(self) -> None:
        """Drop it, if it was not committed."""
        ...


class ModelSource(Protocol):
    """Base models, as the house knows them."""

    async def resolve(self, reference: str) -> BaseModel:
        """Raises ModelNotFound, VersionNotFound, WrongModelKind, ModelNotAvailable, UnsupportedFormat."""
        ...

    def hold(self, base: BaseModel) -> AbstractAsyncContextManager[Path]:
        """A folder with the weights as safetensors, which stays until the block is left."""
        ...


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file whose bytes are in the house's store. path: its name in the version."""

    path: str
    size_bytes: int
    digest: str


class AdapterSink(Protocol):
    """Where adapters go. Every call may be repeated: the same job makes the same version."""

    async def exists(self, model_id: str, adapter_id: str) -> bool:
        """Whether the model has a version of that name."""
        ...

    async def upload(self, folder: Path) -> Sequence[StoredFile]:
        """Bring the adapter's files into the store."""
        ...

    async def record(self, job: Job, files: Sequence[StoredFile]) -> str:
        """Make them a version of the base model. Returns `models/{model}/versions/{version}`. Raises
        VersionExists.
        """
        ...

    async def discard(self, version: str) -> None:
        """Forget a version that was recorded."""
        ...


class CheckpointStore(Protocol):
    """The checkpoints of jobs, on disk."""

    def folder(self, job_id: str) -> Path:
        """Where a worker puts its drafts; made if it is not there."""
        ...

    def clean(self, job_id: str) -> None:
        """Drop what is not whole: drafts of workers that are gone."""
        ...

    def commit(self, job_id: str, draft: str) -> Checkpoint:
        """Give a finished draft its name, and drop the oldest beyond two. Raises DataLoss if it is not
        whole.
        """
        ...

    def list_checkpoints(self, job_id: str) -> list[Checkpoint]:
        """Those that have their name, oldest first."""
        ...

    def latest(self, job_id: str) -> tuple[Checkpoint, Path] | None:
        """The newest that is whole, every byte of it checked."""
        ...


@dataclass(frozen=True, slots=True)
class TrainingTask:
    """All that a worker needs. resume_from: a checkpoint's folder. attempt goes into the drafts' names."""

    job_id: str
    attempt: int
    spec: JobSpec
    base_version: str
    model_folder: Path
    dataset_path: Path
    dataset_format: DatasetFormat
    num_examples: int
    validation: tuple[Path, DatasetFormat] | None
    checkpoint_folder: Path
    resume_from: Path | None


@dataclass(frozen=True, slots=True)
class StepDone:
    """An optimizer step was done."""

    progress: Progress


@dataclass(frozen=True, slots=True)
class DraftWritten:
    """A checkpoint is complete under `draft`, a folder's name in the task's checkpoint folder."""

    draft: str


@dataclass(frozen=True, slots=True)
class Remark:
    """Something that people should know."""

    message: str


Report = StepDone | DraftWritten | Remark


class TrainWorker(Protocol):
    """A process that trains."""

    def train(self, task: TrainingTask) -> AsyncGenerator[Report, None]:
        """Train to the last step, whose draft is the result. Closing the iterator ends the process within
        seconds.

        Raises WorkerLost, InvalidDataset, InvalidArgument, InsufficientMemory, DiskFull.
        """
        ...
