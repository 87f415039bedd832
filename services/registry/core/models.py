"""What the registry records: models, their versions, and the files that those are made of."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import IntEnum

from services.kit.names import model_name, version_name

EPOCH = datetime.fromtimestamp(0, UTC)


class ModelKind(IntEnum):
    """What a model does. Numbers as in the contract, as with all enums here; a test compares them."""

    UNSPECIFIED = 0
    TEXT_GENERATION = 1
    EMBEDDING = 2
    SPEECH_TO_TEXT = 3
    TEXT_TO_SPEECH = 4
    RERANKING = 5


class Capability(IntEnum):
    """What can be asked of a model."""

    UNSPECIFIED = 0
    CHAT = 1
    COMPLETION = 2
    EMBEDDING = 3
    TRANSCRIPTION = 4
    STREAMING_RECOGNITION = 5
    SPEECH_TRANSLATION = 6
    TOOLS = 7
    VISION = 8
    SPEECH_SYNTHESIS = 9
    RERANKING = 10
    ADAPTERS = 11


class ModelState(IntEnum):
    """Whether a model can be used."""

    UNSPECIFIED = 0
    PENDING = 1
    AVAILABLE = 2
    QUARANTINED = 3


class VersionKind(IntEnum):
    """Full weights, or an adapter over a base."""

    UNSPECIFIED = 0
    WEIGHTS = 1
    ADAPTER = 2


class VersionState(IntEnum):
    """Whether a version can be used."""

    UNSPECIFIED = 0
    AVAILABLE = 1
    QUARANTINED = 2


class Format(IntEnum):
    """Format of a version's files."""

    UNSPECIFIED = 0
    SAFETENSORS = 1
    GGUF = 2
    CTRANSLATE2 = 3
    VOSK = 4
    PEFT = 5
    ONNX = 6


class ModelChange(IntEnum):
    """What happened to a model."""

    UNSPECIFIED = 0
    CREATED = 1
    UPDATED = 2
    DELETED = 3


class FindingKind(IntEnum):
    """What a finding is about."""

    UNSPECIFIED = 0
    SKIPPED = 1
    PICKLE = 2
    REMOTE_CODE = 3
    UNKNOWN_SETTING = 4
    CHAT_TEMPLATE = 5
    MISSING_LICENSE = 6
    SIGNED = 7
    UNSIGNED = 8


class FindingSeverity(IntEnum):
    """How much a finding matters."""

    UNSPECIFIED = 0
    INFO = 1
    WARNING = 2
    DANGER = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to know about a version's files. path: at the source; empty for what is about all of them."""

    kind: FindingKind
    severity: FindingSeverity
    path: str
    message: str


@dataclass(frozen=True, slots=True)
class File:
    """One file of a version. path: relative, with `/`; digest: `sha256:<hex>`, its name in the blob store."""

    path: str
    size_bytes: int
    digest: str


@dataclass(frozen=True, slots=True)
class Perplexity:
    """How well weights foretell a text: e to the mean negative log probability of a token.

    baseline: of the weights that they were made from, 0 if not measured. text_digest: `sha256:<hex>`.
    """

    value: float
    baseline: float
    text_digest: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Artifact:
    """A derived form of a version's weights, made here and kept so that it is made once.

    perplexity: None if not measured.
    """

    id: str
    format: Format = Format.UNSPECIFIED
    quantization: str = ""
    files: tuple[File, ...] = ()
    producer: str = ""
    create_time: datetime = EPOCH
    perplexity: Perplexity | None = None


@dataclass(frozen=True, slots=True)
class Version:
    """One set of files that never changes. base_version_id: of the same model, for an adapter.

    serial: the number of the change that made it; it orders versions by their creation, across models.
    """

    model_id: str
    id: str
    kind: VersionKind = VersionKind.UNSPECIFIED
    state: VersionState = VersionState.UNSPECIFIED
    revision: str = ""
    source: str = ""
    format: Format = Format.UNSPECIFIED
    quantization: str = ""
    files: tuple[File, ...] = ()
    base_version_id: str = ""
    artifacts: tuple[Artifact, ...] = ()
    findings: tuple[Finding, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    state_reason: str = ""
    # Of files and artifacts, a digest counted once.
    size_bytes: int = 0
    create_time: datetime = EPOCH
    update_time: datetime = EPOCH
    serial: int = 0
    etag: str = ""

    @property
    def name(self) -> str:
        """The resource name."""
        return version_name(self.model_id, self.id)


@dataclass(frozen=True, slots=True)
class Model:
    """A name that answers, whatever the version behind it. Its state and size follow from its versions."""

    id: str
    display_name: str = ""
    description: str = ""
    kind: ModelKind = ModelKind.UNSPECIFIED
    capabilities: tuple[Capability, ...] = ()
    provider: str = ""
    source: str = ""
    license: str = ""
    architecture: str = ""
    num_parameters: int = 0
    context_length: int = 0
    languages: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    default_version_id: str = ""
    state: ModelState = ModelState.PENDING
    size_bytes: int = 0
    create_time: datetime = EPOCH
    update_time: datetime = EPOCH
    etag: str = ""

    @property
    def name(self) -> str:
        """The resource name."""
        return model_name(self.id)

    @property
    def search_text(self) -> str:
        """What a filter's query is looked for in, in one case."""
        return f"{self.id}\n{self.display_name}".casefold()


@dataclass(frozen=True, slots=True)
class ModelFilter:
    """Which models. Empty takes all; what is set must all hold."""

    kinds: tuple[ModelKind, ...] = ()
    capabilities: tuple[Capability, ...] = ()
    providers: tuple[str, ...] = ()
    states: tuple[ModelState, ...] = ()
    query: str = ""

    def takes(self, model: Model) -> bool:
        """Whether the model passes."""
        return (
            (not self.kinds or model.kind in self.kinds)
            and set(self.capabilities) <= set(model.capabilities)
            and (not self.providers or model.provider in self.providers)
            and (not self.states or model.state in self.states)
            and self.query.casefold() in model.search_text
        )


@dataclass(frozen=True, slots=True)
class Event:
    """One change. model: after it, or as it last was."""

    sequence: int
    change: ModelChange
    model: Model
    time: datetime


@dataclass(frozen=True, slots=True)
class Resolution:
    """What a name means: the weights to load, and the adapter to apply if it names one."""

    model: Model
    version: Version
    adapter: Version | None = None
