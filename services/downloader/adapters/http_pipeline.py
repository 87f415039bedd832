"""Many requests on one connection: sent ahead, and answered in their order.

After https://www.rfc-editor.org/rfc/rfc9112#section-9.3.2. A server or a proxy that mixes up its answers is found out
by whoever knows what each should be; nobody else may use this. Whatever is not plain ends the connection: a body in
chunks, a length that is not told, a header that is too long.
"""

import http.client
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from services.downloader.adapters.http_connection import request_target, translated_http_errors

_READ_BYTES: Final = 256 * 1024
_MAX_LINE_BYTES: Final = 16 * 1024
_MAX_HEADERS: Final = 100
# Of an answer that is not what was wanted: a page that says so.
_MAX_OTHER_BYTES: Final = 64 * 1024
_STATUS: Final = re.compile(rb"HTTP/1\.1 ([2-5]\d\d)(?: [^\r\n]*)?\r\n")
_LENGTH: Final = re.compile(rb"\d{1,18}")


@dataclass(frozen=True, slots=True)
class Reply:
    """status: of HTTP. content: None if it is not a whole, plain answer of the size that was wanted. location: of a
    redirect. is_last: the server ends the connection behind it.
    """

    status: int
    content: bytes | None
    location: str
    is_last: bool


class Pipeline:
    """A connection of its own, which it closes. Its methods block, and raise TryAgain."""

    def __init__(self, origin: str, connection: http.client.HTTPConnection, headers: dict[str, str]) -> None:
        self.origin = origin
        self._connection = connection
        self._reader = connection.sock.makefile("rb", _READ_BYTES)
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in headers.items())

    def send(self, urls: Iterable[str]) -> None:
        """Ask for all of them. urls: of its origin."""
        with translated_http_errors(self.origin):
            heads = (f"GET {request_target(url)} HTTP/1.1\r\n{self._headers}\r\n" for url in urls)
            self._connection.sock.sendall("".join(heads).encode("ascii"))

    def receive(self, size_bytes: int) -> Reply:
        """The next answer. size_bytes: what it should have."""
        with translated_http_errors(self.origin):
            match = _STATUS.fullmatch(self._line())
            if match is None:
                raise http.client.BadStatusLine("")
            headers = self._read_headers()
            length = _LENGTH.fullmatch(headers.get(b"content-length", b""))
            if length is None or b"transfer-encoding" in headers:
                raise http.client.HTTPException
            status, num_bytes = int(match[1]), int(length[0])
            is_plain = headers.get(b"content-encoding", b"identity").lower() == b"identity"
            is_wanted = status == 200 and num_bytes == size_bytes and is_plain
            if not is_wanted and num_bytes > _MAX_OTHER_BYTES:
                raise http.client.HTTPException
            content = self._reader.read(num_bytes)
            if len(content) < num_bytes:
                raise http.client.IncompleteRead(content, num_bytes - len(content))
            return Reply(
                status,
                content if is_wanted else None,
                headers.get(b"location", b"").decode("latin-1"),
                headers.get(b"connection", b"").lower() == b"close",
            )

    def close(self) -> None:
        """End it, whatever is still on its way."""
        self._reader.close()
        self._connection.close()

    def _line(self) -> bytes:
        line = self._reader.readline(_MAX_LINE_BYTES)
        if not line.endswith(b"\n"):
            raise http.client.RemoteDisconnected if not line else http.client.LineTooLong("header")
        return line

    def _read_headers(self) -> dict[bytes, bytes]:
        headers: dict[bytes, bytes] = {}
        for _ in range(_MAX_HEADERS):
            line = self._line()
            if line == b"\r\n":
                return headers
            name, _, value = line.partition(b":")
            key = name.lower()
            # Twice, and the two may not be the same: https://www.rfc-editor.org/rfc/rfc9112#section-6.3.
            if key == b"content-length" and key in headers:
                raise http.client.HTTPException
            headers[key] = value.strip()
        raise http.client.HTTPException
