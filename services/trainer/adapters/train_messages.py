"""What crosses between the service and the training worker."""

import msgspec

from services.trainer.core.model import DatasetFormat, JobSpec, Progress


class DataFile(msgspec.Struct, frozen=True):
    """A dataset's file."""

    path: str
    format: DatasetFormat


class TrainInit(msgspec.Struct, frozen=True):
    """All that a worker is told. Paths are text; base_version is what the adapter names as its base."""

    attempt: int
    spec: JobSpec
    base_version: str
    model_folder: str
    dataset: DataFile
    validation: DataFile | None
    total_steps: int
    checkpoint_folder: str
    resume_from: str | None
    num_threads: int
    niceness: int
    micro_batch_tokens: int


class Begin(msgspec.Struct, frozen=True):
    """Train."""


class Stepped(msgspec.Struct, frozen=True, tag=True):
    """An optimizer step was done."""

    progress: Progress


class Drafted(msgspec.Struct, frozen=True, tag=True):
    """A checkpoint is sealed under this name."""

    draft: str


class Remarked(msgspec.Struct, frozen=True, tag=True):
    """Something that people should know."""

    message: str


class Alive(msgspec.Struct, frozen=True, tag=True):
    """Still at work within a long step."""


TrainEvent = Stepped | Drafted | Remarked | Alive
