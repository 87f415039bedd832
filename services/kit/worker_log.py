"""A child's stderr: every line goes to the parent's log, and the last ones are kept for when it dies."""

import asyncio
import codecs
import re

from structlog.typing import FilteringBoundLogger

_MAX_LINES = 20
_MAX_LINE_CHARS = 300
_BREAK = re.compile(r"[\r\n]+")  # A progress bar rewrites its line with a carriage return.


class LastLines:
    """Follows one stream of text. `lines`: the last of them, oldest first."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        self.lines: list[str] = []
        self._log = log

    async def follow(self, stream: asyncio.StreamReader) -> None:
        """Read to the end. Whatever the bytes are, this neither fails nor holds more than one chunk."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        rest = ""
        while chunk := await stream.read(16 * 1024):
            *lines, rest = _BREAK.split(rest + decoder.decode(chunk))
            rest = rest[-_MAX_LINE_CHARS:]
            for line in lines:
                self._keep(line)
        self._keep(rest)

    def _keep(self, line: str) -> None:
        line = line.strip()[:_MAX_LINE_CHARS]
        if line:
            self.lines = [*self.lines[1 - _MAX_LINES :], line]
            self._log.info("worker says", line=line)
