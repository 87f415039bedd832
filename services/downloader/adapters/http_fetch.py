"""One file over HTTP, resumed where it stopped, and never trusted.

Range requests after https://www.rfc-editor.org/rfc/rfc9110#section-14. The server may lie about lengths, ranges and
validators: whatever it does, no more than the promised size is written, and what does not have the promised digest is
dropped.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx2

from services.downloader.adapters.http_client import HttpClient, TryAgain, translated_http_errors
from services.downloader.adapters.partial_file import PartialFile
from services.downloader.core.ports import OnBytes, RemoteFile
from services.downloader.core.urls import shown_url
from services.kit.errors import DigestMismatch, SourceUnavailable

# Of a file whose length nobody tells.
_MAX_UNKNOWN_BYTES: Final = 64 * 1024**3
_WRITE_BYTES: Final = 1024 * 1024
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")


async def fetch(client: HttpClient, file: RemoteFile, target: Path, on_bytes: OnBytes) -> None:
    """Bring `file` to `target`, going on from what lies there.

    Raises SourceNotFound, SourceUnavailable, PermissionDenied, DigestMismatch, DiskFull. Cancelled or failed, it keeps
    what has arrived, unless that is wrong.
    """
    partial = PartialFile(target, file.sha256 or file.url)
    await asyncio.to_thread(partial.open)
    try:
        await _Fetch(client, file, partial, on_bytes).run()
    except DigestMismatch:
        await asyncio.to_thread(partial.drop)
        raise
    finally:
        partial.close()


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a response says of itself. first: offset of its first byte; size_bytes: of the whole file, if it says."""

    first: int
    size_bytes: int | None
    validator: str


class _Fetch:
    def __init__(self, client: HttpClient, file: RemoteFile, partial: PartialFile, on_bytes: OnBytes) -> None:
        self._client = client
        self._limits = client.limits
        self._file = file
        self._partial = partial
        self._on_bytes = on_bytes
        self._size_bytes = file.size_bytes

    async def run(self) -> None:
        resumed = self._partial.num_bytes > 0
        num_failures = 0
        while True:
            before = self._partial.num_bytes
            try:
                # Fetched before a restart, by a source that tells no length.
                if self._file.sha256 != self._partial.sha256:
                    await self._go_on()
                if self._file.sha256 in (None, self._partial.sha256):
                    return
                if not resumed:
                    raise DigestMismatch(
                        f"{shown_url(self._file.url)} has the sha256 {self._partial.sha256} instead of"
                        f" {self._file.sha256}: it was changed on its way or at its source; nothing of it was kept"
                    )
                # Pieced together over a restart or a lost connection: once more, in one go.
                resumed = False
                await self._begin("")
            except TryAgain as failure:
                has_progressed = self._partial.num_bytes > before
                num_failures = 1 if has_progressed else num_failures + 1
                resumed = resumed or has_progressed
                if num_failures >= self._limits.max_attempts:
                    raise failure.error from failure
                await self._client.sleep(self._limits.backoff_s(num_failures, failure.retry_after_s))

    async def _go_on(self) -> None:
        """One connection's worth. Returns when the file has its size."""
        if self._size_bytes is not None and self._partial.num_bytes > self._size_bytes:
            await self._begin("")
        if self._size_bytes is not None and self._partial.num_bytes == self._size_bytes:
            self._tell(self._partial.num_bytes)
            return
        async with self._client.get(self._file.url, self._range_headers()) as response:
            answer = self._read_headers(response)
            if answer is None:
                await self._begin("")
                raise TryAgain(SourceUnavailable(f"{shown_url(self._file.url)} has no such range"))
            self._check_size(answer)
            if answer.first != self._partial.num_bytes or self._partial.num_bytes == 0:
                await self._begin(answer.validator)
            if self._size_bytes is not None:
                missing = self._size_bytes - self._partial.num_bytes
                await asyncio.to_thread(self._partial.check_room, missing)
            await self._receive(response)
        if self._size_bytes is not None and self._partial.num_bytes < self._size_bytes:
            raise TryAgain(SourceUnavailable(f"{shown_url(self._file.url)} ended too early"))

    def _range_headers(self) -> dict[str, str]:
        have = self._partial.num_bytes
        # Without a validator only a digest can tell whether two halves belong together.
        if not have or not (self._partial.validator or self._file.sha256):
            return {}
        headers = {"Range": f"bytes={have}-"}
        if self._partial.validator:
            headers["If-Range"] = self._partial.validator
        return headers

    def _read_headers(self, response: httpx2.Response) -> _Answer | None:
        """None if what we have cannot be gone on from."""
        validator = _validator(response)
        if response.status_code == 200:
            length = response.headers.get("content-length", "")
            return _Answer(0, int(length) if length.isdecimal() else None, validator)
        match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        is_wanted = (
            response.status_code == 206
            and match is not None
            and int(match[1]) == self._partial.num_bytes
            and validator in ("", self._partial.validator)
        )
        if not is_wanted or match is None:
            return None
        return _Answer(int(match[1]), None if match[3] == "*" else int(match[3]), validator)

    def _check_size(self, answer: _Answer) -> None:
        if answer.size_bytes is None:
            return
        if self._file.size_bytes not in (None, answer.size_bytes):
            raise DigestMismatch(
                f"{shown_url(self._file.url)} has {answer.size_bytes} bytes instead of {self._file.size_bytes}"
            )
        self._size_bytes = answer.size_bytes

    async def _receive(self, response: httpx2.Response) -> None:
        limit = self._size_bytes if self._size_bytes is not None else _MAX_UNKNOWN_BYTES
        pace = _Pace(self._client, self._file.url)
        buffer = bytearray()
        chunks = response.aiter_raw()
        try:
            while chunk := await self._next(chunks):
                if self._partial.num_bytes + len(buffer) + len(chunk) > limit:
                    raise DigestMismatch(f"{shown_url(self._file.url)} sends more than its {limit} bytes")
                buffer += chunk
                pace.count(len(chunk))
                self._tell(self._partial.num_bytes + len(buffer))
                if len(buffer) >= _WRITE_BYTES:
                    await self._write(buffer)
        finally:
            # Whatever ended it, a lost connection or a pause: what has arrived need not be fetched twice.
            await asyncio.shield(self._write(buffer))

    async def _next(self, chunks: AsyncIterator[bytes]) -> bytes:
        with translated_http_errors(self._file.url):
            async with asyncio.timeout(self._limits.stall_timeout_s):
                return await anext(chunks, b"")

    async def _write(self, buffer: bytearray) -> None:
        chunk = bytes(buffer)
        buffer.clear()
        if chunk:
            await asyncio.to_thread(self._partial.append, chunk)

    def _tell(self, num_bytes: int) -> None:
        self._on_bytes(num_bytes, self._size_bytes)

    async def _begin(self, validator: str) -> None:
        await asyncio.to_thread(self._partial.begin, validator)
        self._tell(0)


class _Pace:
    """Notices a server that sends, but hardly: a timeout per read never does."""

    def __init__(self, client: HttpClient, url: str) -> None:
        self._limits = client.limits
        self._url = url
        self._since = time.monotonic()
        self._num_bytes = 0

    def count(self, num_bytes: int) -> None:
        """Raises TryAgain when a window was too slow."""
        self._num_bytes += num_bytes
        elapsed_s = time.monotonic() - self._since
        if elapsed_s < self._limits.speed_window_s:
            return
        if self._num_bytes < self._limits.min_bytes_per_second * elapsed_s:
            rate = int(self._num_bytes / elapsed_s)
            raise TryAgain(SourceUnavailable(f"{shown_url(self._url)} sends only {rate} bytes a second"))
        self._since, self._num_bytes = time.monotonic(), 0


def _validator(response: httpx2.Response) -> str:
    """A strong ETag, or else the date: what If-Range takes."""
    etag: str = response.headers.get("etag", "")
    if etag and not etag.startswith("W/"):
        return etag
    return str(response.headers.get("last-modified", ""))
