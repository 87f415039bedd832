"""JSON messages on a stream of bytes: 4 bytes of length, big-endian, and so many bytes of JSON."""

import json
from typing import IO, Any


def read_frame(stream: IO[bytes]) -> Any | None:
    """The next message; None at the end of the stream, be it within a frame."""
    head = stream.read(4)
    size = int.from_bytes(head, "big")
    body = stream.read(size)
    return json.loads(body) if len(head) == 4 and len(body) == size else None


def write_frame(stream: IO[bytes], message: Any) -> None:
    """Send a message. Raises BrokenPipeError when nobody reads."""
    body = json.dumps(message).encode()
    stream.write(len(body).to_bytes(4, "big") + body)
    stream.flush()
