"""What the Trainer is about: datasets, jobs, their progress and their events. Plain frozen values."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, StrEnum


class DatasetFormat(StrEnum):
    """Form of a dataset's examples, one JSON object a line."""

    CHAT = "chat"
    PROMPT_COMPLETION = "prompt_completion"
    INSTRUCTION = "instruction"
    TEXT = "text"


@dataclass(frozen=True, slots=True)
class Dataset:
    """A file of examples, every one of them checked. digest: `sha256:<hex>`, which is also where its bytes
    lie.
    """

    dataset_id: str
    file_name: str
    format: DatasetFormat
    size_bytes: int
    digest: str
    num_examples: int
    create_time: datetime


class JobState(StrEnum):
    """How a job stands.

    QUEUED ──claim──> RUNNING ──succeed──> SUCCEEDED
       │                 ├──────fail─────> FAILED
       └────cancel───────┴─────cancel────> CANCELLED
    """

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether the job has ended."""
        return self not in (JobState.QUEUED, JobState.RUNNING)


@dataclass(frozen=True, slots=True)
class Lora:
    """LoRA (arXiv 2106.09685). No target_modules: every linear of attention and MLP."""

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """How long and how fast. max_steps, where it is set, overrides num_epochs."""

    num_epochs: float = 1.0
    max_steps: int | None = None
    batch_size: int = 4
    learning_rate: float = 2e-4
    warmup_ratio: float = 0.03
    max_sequence_tokens: int = 512
    save_steps: int = 50
    seed: int = 0


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What the caller asked for. An empty adapter_id: one is made. Datasets are ids."""

    base_model: str
    dataset_id: str
    validation_dataset_id: str | None = None
    adapter_id: str = ""
    lora: Lora = field(default_factory=Lora)
    hyperparameters: Hyperparameters = field(default_factory=Hyperparameters)
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BaseModel:
    """The model to teach, as the registry resolved it. context_length: 0 if unknown."""

    reference: str
    model_id: str
    version: str
    context_length: int
    has_chat_template: bool


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is. loss: nats a token; tokens are those that are learned from."""

    step: int = 0
    total_steps: int = 0
    epoch: float = 0.0
    loss: float = 0.0
    learning_rate: float = 0.0
    tokens_per_second: float = 0.0
    num_tokens: int = 0
    eta_s: float | None = None
    validation_loss: float | None = None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that is whole. is_last: it holds the result of the job."""

    step: int
    loss: float
    size_bytes: int
    create_time: datetime
    is_last: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a job failed. reason: as in an ErrorInfo."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Claim:
    """Who is at work on a job, and until when it is theirs unless they renew it."""

    owner: str
    expire_time: datetime


@dataclass(frozen=True, slots=True)
class Job:
    """A job. attempt grows with each taking up and fences off whoever held an earlier one.

    num_fruitless_restarts counts the workers lost since the checkpoint at checkpoint_step, or since the
    beginning.
    """

    job_id: str
    spec: JobSpec
    base: BaseModel
    create_time: datetime
    state: JobState = JobState.QUEUED
    progress: Progress = field(default_factory=Progress)
    attempt: int = 0
    claim: Claim | None = None
    num_restarts: int = 0
    num_fruitless_restarts: int = 0
    checkpoint_step: int = 0
    result_version: str = ""
    failure: Failure | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    last_sequence: int = 0

    @property
    def served_name(self) -> str:
        """What to chat with, empty until the job succeeded."""
        return f"{self.base.model_id}:{self.spec.adapter_id}" if self.result_version else ""


class EventLevel(Enum):
    """How much an event matters."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One event of a job, numbered from 1 without gaps. At most one of state, progress and checkpoint is
    set.
    """

    sequence: int
    time: datetime
    level: EventLevel
    message: str
    state: JobState | None = None
    progress: Progress | None = None
    checkpoint: Checkpoint | None = None
