"""One HTTP connection: uvicorn's, which here also bounds the headers of a request, in time and in size."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


def connection_class(header_timeout_s: float, max_header_bytes: int) -> type[asyncio.Protocol]:
    """uvicorn's protocol with bounds for the headers of each request, which it does not have itself.

    The one over httptools: h11's writes a streamed token in four times the time.
    """

    class Connection(HttpToolsProtocol):
        _deadline: asyncio.TimerHandle | None = None
        _num_header_bytes = 0

        # uvicorn narrows what asyncio calls a BaseTransport, which a subclass may not do again.
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._start_clock()

        def data_received(self, data: bytes) -> None:
            if self._awaits_headers():
                self._start_clock()
                self._num_header_bytes += len(data)
            super().data_received(data)
            if not self._awaits_headers():
                self._stop_clock()
                self._num_header_bytes = 0
            elif self._num_header_bytes > max_header_bytes and not self.transport.is_closing():
                self.transport.write(_TOO_LARGE)
                self.transport.close()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_clock()
            super().connection_lost(exc)

        def _awaits_headers(self) -> bool:
            cycle: Any = self.cycle
            return cycle is None or bool(cycle.response_complete)

        def _start_clock(self) -> None:
            if self._deadline is None:
                self._deadline = self.loop.call_later(header_timeout_s, self._hang_up)

        def _stop_clock(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _hang_up(self) -> None:
            self._deadline = None
            if self._awaits_headers():
                self.transport.close()

    return Connection
