"""What the downloader knows of a model: its files, and what they turned out to be."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import IntEnum
from pathlib import Path
from typing import Final

# As the registry takes them.
_MAX_PATH_CHARS: Final = 1024
_MAX_MESSAGE_CHARS: Final = 256


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


class Format(IntEnum):
    """Format of a version's files."""

    UNSPECIFIED = 0
    SAFETENSORS = 1
    GGUF = 2
    CTRANSLATE2 = 3
    VOSK = 4
    PEFT = 5
    ONNX = 6


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
    """Something to know about a model's files. Make it with `of`."""

    kind: FindingKind
    severity: FindingSeverity
    path: str
    message: str

    @classmethod
    def of(cls, kind: FindingKind, severity: FindingSeverity, path: str, message: str) -> "Finding":
        """path, message: may quote what a stranger wrote; it becomes one line that can be shown and recorded."""
        return cls(kind, severity, _line(path, _MAX_PATH_CHARS), _line(message, _MAX_MESSAGE_CHARS))


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of a version. path: relative, with `/`; digest: `sha256:<hex>`, its name in the blob store."""

    path: str
    size_bytes: int
    digest: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What a model's own files say about it. Zero and empty mean that they do not say."""

    kind: ModelKind
    format: Format
    capabilities: tuple[Capability, ...] = ()
    architecture: str = ""
    num_parameters: int = 0
    context_length: int = 0
    quantization: str = ""
    license: str = ""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file that may run code when it is loaded, and that is therefore no model's. path: at the source.

    local: where it lies, if it came with the rest, and can be scanned; with `member` it is in that archive.
    """

    path: str
    local: Path | None = None
    member: str = ""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What files are, and what was noticed about them. left_out: of the archives that they came in."""

    facts: Facts
    findings: tuple[Finding, ...] = ()
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True, slots=True)
class About:
    """What a source that knows the model says of it. provider: where it came from in the first place.

    A kind that is UNSPECIFIED, and capabilities that are none, are left to the model's own files.
    """

    provider: str
    kind: ModelKind
    capabilities: tuple[Capability, ...]
    description: str
    license: str
    languages: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """What is recorded of a model when its first version has arrived."""

    model_id: str
    provider: str
    source: str
    facts: Facts
    display_name: str = ""
    description: str = ""
    license: str = ""
    languages: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """What is recorded of a version: files that are all verified and in the store."""

    model_id: str
    version_id: str
    revision: str
    source: str
    facts: Facts
    files: tuple[StoredFile, ...]
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class KnownModel:
    """What the registry says of a model that is there already."""

    model_id: str
    source: str


@dataclass(frozen=True, slots=True)
class ListedVersion:
    """A version as the registry lists it. name: its resource name. artifacts: their files, by id."""

    name: str
    source: str
    is_adapter: bool
    base: str
    files: tuple[StoredFile, ...]
    artifacts: Mapping[str, tuple[StoredFile, ...]]
    is_quarantined: bool
    state_reason: str
    labels: Mapping[str, str]
    create_time: datetime
    etag: str

    @property
    def size_bytes(self) -> int:
        """Bytes of all files; a blob that several of them are is counted once."""
        return sum({file.digest: file.size_bytes for file in self.all_files}.values())

    @property
    def all_files(self) -> Iterator[StoredFile]:
        """Its own and those of its artifacts, whose paths then begin with the artifact's id."""
        yield from self.files
        for artifact_id, files in self.artifacts.items():
            for file in files:
                yield replace(file, path=f"{artifact_id}/{file.path}")


def _line(text: str, max_chars: int) -> str:
    spelled = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text[:max_chars])
    return spelled if len(spelled) <= max_chars else f"{spelled[: max_chars - 3]}..."
