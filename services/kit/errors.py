"""Everything that can go wrong, as one tree.

Pure Python: cores, adapters and workers raise these; `status.py` translates.

    LaresError
    ├── InvalidArgument            what was asked makes no sense; the violations say which field and why
    │   ├── InvalidReference       a model reference or a resource name does not parse
    │   ├── InvalidDigest
    │   ├── UnsupportedParameter   a known knob that this model or engine does not have
    │   ├── ContextLengthExceeded
    │   ├── InvalidDataset
    │   ├── InvalidAudio
    │   ├── InvalidPageToken
    │   ├── OffsetPastEnd          a place in a blob or file that lies behind its last byte
    │   └── InvalidTemplate        a chat template that does not compile or breaks its limits
    ├── Unauthenticated
    ├── PermissionDenied
    ├── NotFound
    │   ├── ModelNotFound, VersionNotFound, EntryNotFound, DownloadNotFound
    │   ├── BlobNotFound, LeaseNotFound, DatasetNotFound, JobNotFound
    │   └── SourceNotFound         nothing lies at that address
    ├── AlreadyExists
    │   └── ModelExists, VersionExists
    ├── FailedPrecondition         well-formed, but not in this state
    │   ├── WrongModelKind         a chat with an embedding model
    │   ├── ModelNotAvailable      its bytes are not all here and verified
    │   ├── ModelInUse
    │   ├── JobFinished
    │   ├── Unpinned               a source whose content changes, without a word on which is meant
    │   └── UnsupportedFormat      a file that Lares does not load, such as a pickle
    ├── EtagMismatch               somebody else changed it first
    ├── SequenceExpired            events up to that number are no longer kept
    ├── ResourceExhausted
    │   └── PayloadTooLarge, QueueFull, InsufficientMemory, DiskFull, StoreFull
    ├── Unavailable                try again after `retry_after_s`
    │   ├── WorkerLost             a child process died with the work in it
    │   ├── ServiceStarting, ServiceDraining, ServiceUnreachable
    │   └── SourceUnavailable      a hub or a remote endpoint does not answer
    ├── DataLoss
    │   ├── DigestMismatch         what arrived is not what was promised
    │   └── CorruptBlob            what was stored is not what is read
    ├── DeadlineExceeded
    │   └── DownloadTimeout        a download ran for as long as it may
    ├── Cancelled
    ├── Unsupported                not built, or not built yet
    └── InternalError              a bug of ours

A message says what happened and what to do about it, for the person who reads it in a terminal. Every class
has the one constructor of `LaresError`, so that an error can be rebuilt from its parts after a pipe or a
wire; shorthands are classmethods.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Self


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One thing wrong with a request. field: its path in the request, such as `messages[2].content`."""

    field: str
    description: str


class LaresError(Exception):
    """The root. `reason` is the class's stable name on the wire: UPPER_SNAKE of its Python name."""

    reason: ClassVar[str] = "LARES_ERROR"
    default_retry_after_s: ClassVar[float | None] = None
    _by_reason: ClassVar[dict[str, type["LaresError"]]] = {}

    message: str
    violations: tuple[FieldViolation, ...]
    metadata: dict[str, str]
    retry_after_s: float | None

    def __init__(
        self,
        message: str,
        *,
        violations: Iterable[FieldViolation] = (),
        metadata: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.violations = tuple(violations)
        self.metadata = dict(metadata or {})
        self.retry_after_s = self.default_retry_after_s if retry_after_s is None else retry_after_s

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.reason = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).upper()
        LaresError._by_reason.setdefault(cls.reason, cls)

    def __str__(self) -> str:
        return self.message


def error_class(reason: str) -> type[LaresError] | None:
    """The class whose wire name is `reason`, or None: a newer peer may know errors that we do not."""
    return LaresError._by_reason.get(reason)


class InvalidArgument(LaresError):
    """The request makes no sense, whatever the state of the house."""

    @classmethod
    def at(cls, field: str, description: str) -> Self:
        """One wrong field. description reads on from its name: `must be between 0 and 2`."""
        return cls(f"{field}: {description}", violations=[FieldViolation(field, description)])


class InvalidReference(InvalidArgument):
    """A model reference or a resource name that does not parse."""


class InvalidDigest(InvalidArgument):
    """Not `sha256:` and 64 lower-case hex digits."""


class UnsupportedParameter(InvalidArgument):
    """A parameter that is known, but not offered by this model, engine or release."""


class ContextLengthExceeded(InvalidArgument):
    """Prompt and answer do not fit the model's context window."""

    @classmethod
    def of(cls, *, num_prompt_tokens: int, max_tokens: int, context_length: int) -> Self:
        """Tell the three numbers that matter, in the message and as metadata."""
        return cls(
            f"the prompt has {num_prompt_tokens} tokens and asks for {max_tokens} more, but the model's"
            f" context holds {context_length}; shorten the messages or lower max_tokens",
            violations=[FieldViolation("messages", f"{num_prompt_tokens} tokens")],
            metadata={
                "num_prompt_tokens": str(num_prompt_tokens),
                "max_tokens": str(max_tokens),
                "context_length": str(context_length),
            },
        )


class InvalidDataset(InvalidArgument):
    """A training file whose lines cannot be used; the violations name them."""


class InvalidAudio(InvalidArgument):
    """Bytes that are not audio, or audio of a kind that is not read."""


class InvalidPageToken(InvalidArgument):
    """A page token that this listing did not give out."""


class OffsetPastEnd(InvalidArgument):
    """A place in a blob or file that lies behind its last byte."""


class InvalidTemplate(InvalidArgument):
    """A chat template that does not compile, or that broke its limits."""


class Unauthenticated(LaresError):
    """No key, or one that is not known."""


class PermissionDenied(LaresError):
    """Known, but not allowed; also a Host or Origin that is refused."""


class NotFound(LaresError):
    """There is no such thing."""


class ModelNotFound(NotFound):
    """No model of that name is registered."""

    @classmethod
    def named(cls, name: str) -> Self:
        """name: what was asked for, as it was asked for."""
        return cls(
            f"model '{name}' is not here; `lares list` shows what is, `lares pull` fetches more",
            violations=[FieldViolation("model", "is not here")],
            metadata={"model": name},
        )


class VersionNotFound(NotFound):
    """The model is here, that version of it is not."""

    @classmethod
    def named(cls, model_id: str, version_id: str) -> Self:
        """Both as ids, without their collections."""
        return cls(
            f"model '{model_id}' has no version '{version_id}'; `lares show {model_id}` lists those it has",
            violations=[FieldViolation("model", "has no such version")],
            metadata={"model": model_id, "version": version_id},
        )


class EntryNotFound(NotFound):
    """The version is here, that file is not one of its."""


class DownloadNotFound(NotFound):
    """No download job of that name."""

    @classmethod
    def named(cls, name: str) -> Self:
        """name: `downloads/{d}`."""
        return cls(f"there is no {name}; `lares downloads` lists them", metadata={"name": name})


class BlobNotFound(NotFound):
    """The blob store holds nothing under that digest."""

    @classmethod
    def named(cls, digest: str) -> Self:
        """digest: `sha256:<hex>`."""
        return cls(f"no blob {digest} is stored", metadata={"digest": digest})


class LeaseNotFound(NotFound):
    """The lease was never given, or has run out."""

    @classmethod
    def named(cls, name: str) -> Self:
        """name: `leases/{l}`."""
        return cls(f"{name} was never given or has expired; ask for a new lease", metadata={"name": name})


class DatasetNotFound(NotFound):
    """No dataset of that name."""

    @classmethod
    def named(cls, name: str) -> Self:
        """name: `datasets/{d}`."""
        return cls(f"there is no {name}; `lares datasets` lists them", metadata={"name": name})


class JobNotFound(NotFound):
    """No training or benchmark job of that name."""

    @classmethod
    def named(cls, name: str) -> Self:
        """name: `jobs/{j}`."""
        return cls(f"there is no {name}; `lares jobs` lists them", metadata={"name": name})


class SourceNotFound(NotFound):
    """The provider answers, but has nothing at that address."""

    @classmethod
    def named(cls, ref: str) -> Self:
        """ref: the reference as it was given."""
        return cls(f"nothing lies at {ref}; check its spelling and revision", metadata={"source": ref})


class AlreadyExists(LaresError):
    """The name is taken."""


class ModelExists(AlreadyExists):
    """A model of that id is registered."""


class VersionExists(AlreadyExists):
    """The model has a version of that id."""


class FailedPrecondition(LaresError):
    """Well-formed, but it cannot be done in this state."""


class WrongModelKind(FailedPrecondition):
    """The model cannot do this kind of work."""


class ModelNotAvailable(FailedPrecondition):
    """The model is known, but not every byte of it is here and verified."""


class ModelInUse(FailedPrecondition):
    """The model is loaded or leased, so it cannot be removed now."""


class JobFinished(FailedPrecondition):
    """The job or download has ended and cannot be changed any more."""


class Unpinned(FailedPrecondition):
    """A source whose content changes, asked for without the revision that is meant."""


class UnsupportedFormat(FailedPrecondition):
    """The model's files are of a kind that is not loaded."""


class EtagMismatch(LaresError):
    """It was changed since it was read: read it again, then decide."""


class SequenceExpired(LaresError):
    """A stream cannot be resumed there: read the present state, then watch from now."""


class ResourceExhausted(LaresError):
    """A limit was reached."""


class PayloadTooLarge(ResourceExhausted):
    """The request is bigger than it may be."""


class QueueFull(ResourceExhausted):
    """Too many are waiting already."""

    default_retry_after_s = 1.0


class InsufficientMemory(ResourceExhausted):
    """The model does not fit beside what must stay loaded."""


class DiskFull(ResourceExhausted):
    """The disk cannot take what would be written."""


class StoreFull(ResourceExhausted):
    """The store may not have as many bytes as it would have."""


class Unavailable(LaresError):
    """Not now; the same call may succeed later."""

    default_retry_after_s = 1.0


class WorkerLost(Unavailable):
    """The child process that did the work died, or was stopped, before it was done."""


class ServiceStarting(Unavailable):
    """The port is open, the service behind it is not ready yet."""


class ServiceDraining(Unavailable):
    """The service is going down; another, or its successor, will answer."""


class ServiceUnreachable(Unavailable):
    """Nothing answers at the service's address."""


class SourceUnavailable(Unavailable):
    """A hub or a remote endpoint does not answer, or answers with a failure of its own."""


class DataLoss(LaresError):
    """Bytes are not what they should be."""


class DigestMismatch(DataLoss):
    """What arrived does not have the digest or size that was promised."""


class CorruptBlob(DataLoss):
    """What was stored under a digest no longer has it."""


class DeadlineExceeded(LaresError):
    """The time that the caller gave was not enough."""


class DownloadTimeout(DeadlineExceeded):
    """A download ran for as long as it may, and was not done. What has arrived is kept."""


class Cancelled(LaresError):
    """The caller, or somebody with the right to, stopped it."""


class Unsupported(LaresError):
    """Not built, or not on this platform."""


class InternalError(LaresError):
    """A bug of ours. Its message carries a request id and nothing about our insides."""
