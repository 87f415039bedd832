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


class Quantization(StrEnum):
    """In which numbers weights are kept. AUTO: the device's own floats if they fit in memory, else fewer bits."""

    AUTO = "auto"
    BF16 = "bf16"
    FP16 = "fp16"
    FP32 = "fp32"
    INT8 = "int8"
    INT4 = "int4"


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
    """What a served name means. name: what it is listed under in memory, `model` or `model:version`.

    quantization: as the caller wants it; None leaves it to the settings.
    """

    name: str
    kind: ModelKind
    version: ModelVersion
    adapter: ModelVersion | None = None
    num_parameters: int = 0
    quantization: Quantization | None = None


class LoadState(StrEnum):
    """How a model in memory stands. The last two only in a watch."""

    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"
    UNLOADED = "unloaded"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What a worker tells of the model in it. note: what the operator should know of how it runs, or empty."""

    device: str
    dtype: str
    context_length: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory, as it stood at one moment.

    expire_time: None if it stays. note: why it runs where it runs, or empty. num_restarts: of workers that died.
    load_s: of the slowest of its workers.
    """

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
    note: str = ""
    num_workers: int = 1
    num_ready_workers: int = 0
    num_restarts: int = 0
    load_s: float = 0.0


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """What the operator allows.

    keep_alive_s: after the last request; negative for ever, 0 not at all. pinned: names of models that are neither
    evicted nor expire. kept: names of models whose worker is replaced even when nobody used it. kv_cache_bytes: of
    one worker; 0 decides by the model.
    """

    max_models: int = 3
    max_waiting: int = 256
    keep_alive_s: float = 300.0
    max_adapters: int = 8
    max_sequences: int = 64
    kv_cache_bytes: int = 0
    workers_per_model: int = 1
    pinned: frozenset[str] = frozenset()
    kept: frozenset[str] = frozenset()
