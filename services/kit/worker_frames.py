"""What crosses the pipes between a worker's two sides. Both import this, so it is pure and light.

A frame is a length (4 bytes, little-endian) and that many bytes of msgpack. Downwards goes one `Start`, then
Open, Message, Close, Cancel, Ping and at last Stop; upwards go Progress, one Ready or Refused, then Posts and
Pongs.

The messages inside are msgspec Structs of the worker's own; here they stay `Raw`, which is copied, never
parsed.
"""

import struct
from collections.abc import Iterable
from typing import Any

import msgspec

from services.kit.errors import FieldViolation, InternalError, LaresError, PayloadTooLarge, error_class

LENGTH = struct.Struct("<I")

MAX_FRAME_BYTES = 256 * 1024 * 1024
"""Far beyond any honest frame: past it, the stream is out of step or the other side is mad."""


class Start(msgspec.Struct, tag="start", array_like=True):
    """The first frame: what to run, `package.module:function`, what to give it, and how long it may work on one thing
    before it counts as hung; 0 for as long as it likes.
    """

    target: str
    init: msgspec.Raw
    max_work_s: float


class Open(msgspec.Struct, tag="open", array_like=True):
    """A call begins."""

    call_id: int
    message: msgspec.Raw


class Message(msgspec.Struct, tag="message", array_like=True):
    """A further message of a call."""

    call_id: int
    message: msgspec.Raw


class Close(msgspec.Struct, tag="close", array_like=True):
    """No more messages will follow on this call; its events are still wanted."""

    call_id: int


class Cancel(msgspec.Struct, tag="cancel", array_like=True):
    """Nobody wants this call's events any more."""

    call_id: int


class Ping(msgspec.Struct, tag="ping", array_like=True):
    """Say that you live. The thread that reads answers, so that a long step is no silence."""


class Stop(msgspec.Struct, tag="stop", array_like=True):
    """End in good order."""


class WireError(msgspec.Struct, array_like=True):
    """A LaresError, taken apart."""

    reason: str
    message: str
    violations: list[tuple[str, str]]
    metadata: dict[str, str]
    retry_after_s: float | None


class Progress(msgspec.Struct, tag="progress", array_like=True):
    """How far the start has come."""

    value: msgspec.Raw


class Ready(msgspec.Struct, tag="ready", array_like=True):
    """Calls may come. info: what the parent should know about what was loaded."""

    info: msgspec.Raw


class Refused(msgspec.Struct, tag="refused", array_like=True):
    """The start failed for a reason that the domain knows."""

    error: WireError


class Post(msgspec.Struct, tag="post", array_like=True):
    """All that one step of the worker has to say."""

    events: list[tuple[int, msgspec.Raw]]
    finished: list[int]
    failed: list[tuple[int, WireError]]


class Pong(msgspec.Struct, tag="pong", array_like=True):
    """The answer to a Ping."""


Down = Start | Open | Message | Close | Cancel | Ping | Stop
Up = Progress | Ready | Refused | Post | Pong


_encode = msgspec.msgpack.Encoder().encode


def frame(message: Any) -> bytes:
    """A whole frame: length and msgpack. Raises PayloadTooLarge."""
    body = _encode(message)
    return LENGTH.pack(_check(len(body))) + body


def raw(message: Any) -> msgspec.Raw:
    """A worker's own message, packed to travel inside a frame."""
    return msgspec.Raw(_encode(message))


def frame_length(header: bytes) -> int:
    """The length that a header announces. Raises PayloadTooLarge."""
    (num_bytes,) = LENGTH.unpack(header)
    return _check(num_bytes)


def _check(num_bytes: int) -> int:
    if num_bytes > MAX_FRAME_BYTES:
        limit = f"at most {MAX_FRAME_BYTES} fit through a worker's pipe; send it in parts"
        raise PayloadTooLarge(f"a message of {num_bytes} bytes: {limit}")
    return num_bytes


def error_to_wire(error: LaresError) -> WireError:
    """Take an error apart."""
    violations = [(v.field, v.description) for v in error.violations]
    return WireError(error.reason, error.message, violations, error.metadata, error.retry_after_s)


def error_from_wire(wire: WireError) -> LaresError:
    """Put it together again. A reason that is not known is a worker of another release: a bug of ours."""
    cls = error_class(wire.reason) or InternalError
    violations: Iterable[FieldViolation] = (FieldViolation(*v) for v in wire.violations)
    return cls(wire.message, violations=violations, metadata=wire.metadata, retry_after_s=wire.retry_after_s)
