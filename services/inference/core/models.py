"""What Inference knows of models: where they are recorded, and how they stand in memory."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class ModelKind(StrEnum):
    """What a model does, as far as it matters here."""

    TEXT_GENERATION = "text generation"
    EMBEDDING = "embedding"
    RERANKING = "reranking"
    OTHER = "other"


class Format(StrEnum):
    """Format of a version's files, as far as it matters here."""

    SAFETENSORS = "safetensors"
    GGUF = "gguf"
    PEFT = "peft"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A set of files that never changes.

    name: `models/{m}/versions/{v}`; fingerprint: over its files' digests.
    """

    name: str
    format: Format
    size_bytes: int
    fingerprint: str
    artifact_ids: frozenset[str] = frozenset()

    @property
    def version_id(self) -> str:
        """The last part of its name."""
        return self.name.rpartition("/")[2]

    @property
    def key(self) -> str:
        """Differs when a version of the same name was deleted and made anew of other files."""
        return f"{self.name}@{self.fingerprint}"


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """What a served name means. name: what it is listed under in memory, `model` or `model:version`."""

    name: str
    kind: ModelKind
    version: ModelVersion
    adapter: ModelVersion | None = None
    num_parameters: int = 0


class LoadState(StrEnum):
    """How a model in memory stands. The last two only in a watch."""

    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"
    UNLOADED = "unloaded"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What a worker tells of the model in it."""

    device: str
    dtype: str
    context_length: int


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory, as it stood at one moment. expire_time: None if it stays."""

    name: str
    version: str
    state: LoadState
    facts: WorkerFacts | None
    memory_bytes: int
    adapters: tuple[str, ...]
    num_active_requests: int
    num_waiting_requests: int
    load_time: datetime
    last_use_time: datetime
    expire_time: datetime | None
    load_progress: float
    failure_message: str
    worker_pid: int


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """memory_bytes:

    of all models together. keep_alive_s: after the last request; negative for ever, 0 not at all.
    """

    max_models: int = 3
    memory_bytes: int = 2**63
    max_waiting: int = 256
    keep_alive_s: float = 300.0
    max_adapters: int = 8
