"""One HTTP connection: uvicorn's, which here also hangs up on a client that does not get its headers out in time."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


def connection_class(header_timeout_s: float) -> type[asyncio.Protocol]:
    """uvicorn's protocol with a deadline for the headers of each request, which it does not have itself."""

    class Connection(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None

        # uvicorn narrows what asyncio calls a BaseTransport, which a subclass may not do again.
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._start_clock()

        def data_received(self, data: bytes) -> None:
            if self._awaits_headers():
                self._start_clock()
            super().data_received(data)
            if not self._awaits_headers():
                self._stop_clock()

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
