"""One file over HTTP: over several connections where that is faster, resumed where it stopped, and never trusted.

Range requests after https://www.rfc-editor.org/rfc/rfc9110#section-14. The server may lie about lengths, ranges and
validators: whatever it does, no more than the promised size is written, and what does not have the promised digest is
dropped. The hash follows behind the bytes, so that it is there soon after the last of them.

One connection, the first, decides: it goes on after failures until the file is here or it loses patience. Others help,
as long as each makes the file come faster; one that fails just ends.
"""

import asyncio
import mmap
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from services.downloader.adapters.http_client import HttpClient, HttpLimits
from services.downloader.adapters.http_connection import Abort, Answer, TryAgain
from services.downloader.adapters.partial_file import BLOCK_BYTES, PartialFile
from services.downloader.core.parts import SEGMENT_BYTES, Range
from services.downloader.core.sources import OnBytes, RemoteFile
from services.downloader.core.urls import shown_url
from services.kit.errors import DigestMismatch, LaresError, SourceUnavailable
from services.kit.unbroken import see_through

# Of a file whose length nobody tells.
_MAX_UNKNOWN_BYTES: Final = 64 * 1024**3
_BUFFER_BYTES: Final = 1024 * 1024
_LENGTH: Final = re.compile(r"\d{1,18}")
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
# What has come is written at least so often, for those who watch and for the case of a kill.
_WRITE_EVERY_S: Final = 0.5
# One more connection must make the file come so much faster, or no other is tried.
_GAIN: Final = 1.15


async def fetch(client: HttpClient, file: RemoteFile, target: Path, on_bytes: OnBytes) -> str:
    """Bring `file` to `target`, going on from what lies there. Returns its sha256, in hex.

    Raises SourceNotFound, SourceUnavailable, PermissionDenied, DigestMismatch, DiskFull. Cancelled or failed, it keeps
    what has arrived, unless that is wrong.
    """
    partial = PartialFile(target, file.sha256 or file.url)
    await client.run(lambda: partial.open(file.size_bytes))
    try:
        return await _Fetch(client, file, partial, on_bytes).run()
    except DigestMismatch:
        await client.run(partial.drop)
        raise
    finally:
        partial.close()


@dataclass(frozen=True, slots=True)
class _Head:
    """What an answer says of itself. first: offset of its first byte; size_bytes: of the whole file, if it says."""

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
        self._loop = asyncio.get_running_loop()
        self._has_written = asyncio.Event()
        self._has_ended = asyncio.Event()
        self._helping: asyncio.Task[None] | None = None
        self._takes_ranges = False
        self._is_pieced = partial.parts.num_bytes > 0
        self._in_one_go = False
        self._running: asyncio.Task[Any] | None = None
        self._refusal: LaresError | None = None

    async def run(self) -> str:
        """Until the file is here and has its digest, which is returned."""
        self._running = asyncio.current_task()
        try:
            return await self._run()
        except asyncio.CancelledError:
            if self._running is not None and self._refusal is not None and not self._running.uncancel():
                raise self._refusal from None
            raise

    async def _run(self) -> str:
        num_failures = 0
        while True:
            before = self._partial.parts.num_bytes
            try:
                sha256 = await self._whole()
                if self._file.sha256 in (None, sha256):
                    return sha256
                if not self._is_pieced:
                    raise DigestMismatch(
                        f"{shown_url(self._file.url)} has the sha256 {sha256} instead of {self._file.sha256}: it was"
                        " changed on its way or at its source; nothing of it was kept"
                    )
                # Pieced together over a restart, lost connections or several: once more, in one go.
                self._is_pieced, self._in_one_go = False, True
                await self._begin()
            except TryAgain as failure:
                has_progressed = self._partial.parts.num_bytes > before
                num_failures = 1 if has_progressed else num_failures + 1
                self._is_pieced = self._is_pieced or has_progressed
                if num_failures >= self._limits.max_attempts:
                    raise failure.error from failure
                await self._client.sleep(self._limits.backoff_s(num_failures, failure.retry_after_s))

    async def _whole(self) -> str:
        """Fetch all that is missing, hash all of it. Returns the sha256."""
        if self._partial.parts.size_bytes is None and self._partial.parts.num_bytes and self._file.sha256:
            # Fetched before a restart, perhaps all of it, by a source that tells no length.
            await self._hash()
            if self._partial.sha256 == self._file.sha256:
                return self._partial.sha256
        hashing = asyncio.create_task(self._hash_behind()) if self._is_large else None
        try:
            await self._decide()
        finally:
            await self._stop_help()
            await _ended(hashing)
        self._tell()
        await self._hash()
        return self._partial.sha256

    @property
    def _is_large(self) -> bool:
        """Or of unknown size: worth a task that hashes behind it, and help."""
        size_bytes = self._partial.parts.size_bytes
        return size_bytes is None or size_bytes > SEGMENT_BYTES

    async def _hash(self) -> None:
        while await self._client.run(self._partial.hash):
            pass

    async def _hash_behind(self) -> None:
        while True:
            await self._has_written.wait()
            self._has_written.clear()
            await self._hash()

    async def _decide(self) -> None:
        """The first connection, until nothing is missing. Raises TryAgain."""
        parts = self._partial.parts
        if parts.size_bytes is not None and parts.num_bytes > parts.size_bytes:
            await self._begin()
        while not self._partial.parts.is_whole:
            self._has_ended.clear()
            taken = self._partial.take()
            if taken is None:
                await self._has_ended.wait()  # Others bring the rest.
                continue
            abort = Abort()
            try:
                async with self._client.get(self._file.url, self._range_headers(taken), abort) as answer:
                    head = self._read_head(answer, taken)
                    if head is None:
                        await self._begin()
                        raise TryAgain(SourceUnavailable(f"{shown_url(self._file.url)} has no such range"))
                    self._check_size(head)
                    if head.first != taken.next or self._partial.parts.num_bytes == 0:
                        await self._begin(head.validator, head.size_bytes)
                        if (taken := self._partial.take()) is None:
                            return  # It is empty.
                    await self._client.run(self._partial.check_room)
                    if self._helping is None and self._is_large and not self._in_one_go:
                        self._helping = asyncio.create_task(self._get_help())
                    await self._receive(answer, taken, abort)
            finally:
                if taken is not None:
                    self._partial.give_back(taken)

    async def _get_help(self) -> None:
        """Add connections while each makes the file come faster."""
        async with asyncio.TaskGroup() as helpers:
            rate = await self._measured_rate()
            for _ in range(self._limits.max_connections - 1):
                if not self._takes_ranges or self._partial.parts.size_bytes is None:
                    return
                if rate > self._limits.enough_bytes_per_second:
                    return
                taken = self._partial.take()
                if taken is None:
                    return
                self._is_pieced = True
                helper = helpers.create_task(self._help(taken))
                faster = await self._measured_rate()
                if helper.done() or faster < rate * _GAIN:
                    return
                rate = faster

    async def _stop_help(self) -> None:
        helping, self._helping = self._helping, None
        await _ended(helping)

    async def _measured_rate(self) -> float:
        before, began_s = self._partial.parts.num_bytes, time.monotonic()
        await asyncio.sleep(self._limits.grow_interval_s)
        return (self._partial.parts.num_bytes - before) / (time.monotonic() - began_s)

    async def _help(self, taken: Range | None) -> None:
        """Another connection. It ends at its first failure: if that lasts, the first one meets it too."""
        while taken is not None:
            abort = Abort()
            try:
                async with self._client.get(self._file.url, self._range_headers(taken), abort) as answer:
                    head = self._read_head(answer, taken)
                    if head is None or head.first != taken.next:
                        return
                    self._check_size(head)
                    await self._receive(answer, taken, abort)
            except (TryAgain, LaresError):
                return
            finally:
                self._partial.give_back(taken)
                self._has_ended.set()
            taken = self._partial.take()

    async def _begin(self, validator: str = "", size_bytes: int | None = None) -> None:
        """Begin anew; whoever helps has to end before."""
        await self._stop_help()
        size_bytes = self._file.size_bytes if size_bytes is None else size_bytes
        await self._client.run(lambda: self._partial.begin(validator, size_bytes))
        self._tell()

    def _range_headers(self, taken: Range) -> dict[str, str]:
        goes_to_the_end = taken.end in (None, self._partial.parts.size_bytes)
        # Without a validator only a digest can tell whether two halves belong together.
        if (taken.next == 0 and goes_to_the_end) or not (self._partial.validator or self._file.sha256):
            return {}
        last = "" if taken.end is None or goes_to_the_end else str(taken.end - 1)
        headers = {"Range": f"bytes={taken.next}-{last}"}
        if self._partial.validator:
            headers["If-Range"] = self._partial.validator
        return headers

    def _read_head(self, answer: Answer, taken: Range) -> _Head | None:
        """None if what we have cannot be gone on from."""
        validator = _validator(answer)
        if answer.status == 200:
            self._takes_ranges = answer.headers.get("accept-ranges") == "bytes"
            length = _LENGTH.fullmatch(answer.headers.get("content-length", ""))
            return _Head(0, int(length[0]) if length else None, validator)
        match = _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", ""))
        size_bytes = self._partial.parts.size_bytes
        is_wanted = (
            answer.status == 206
            and match is not None
            and int(match[1]) == taken.next
            and (size_bytes is None or match[3] in ("*", str(size_bytes)))
            and validator in ("", self._partial.validator)
        )
        if not is_wanted or match is None:
            return None
        self._takes_ranges = True
        if size_bytes is None and match[3] != "*":
            self._partial.parts.learn_size(int(match[3]))
        return _Head(int(match[1]), None if match[3] == "*" else int(match[3]), validator)

    def _check_size(self, head: _Head) -> None:
        if head.size_bytes is not None and self._file.size_bytes not in (None, head.size_bytes):
            raise DigestMismatch(
                f"{shown_url(self._file.url)} has {head.size_bytes} bytes instead of {self._file.size_bytes}"
            )

    async def _receive(self, answer: Answer, taken: Range, abort: Abort) -> None:
        """Fill a range. Raises TryAgain if the answer ends before it is full."""
        await self._client.run(lambda: self._read(answer, taken), abort)
        parts = self._partial.parts
        if taken.end is None:
            parts.learn_size(parts.num_bytes)  # The end of the answer is the end of the file.
        elif not taken.is_done:
            raise TryAgain(SourceUnavailable(f"{shown_url(self._file.url)} ended too early"))

    def _read(self, answer: Answer, taken: Range) -> None:
        """In a thread. Bytes are gathered before they are written, but not for long."""
        throttle, pace = self._limits.throttle, _Pace(self._limits, self._file.url)
        buffer = memoryview(mmap.mmap(-1, _BUFFER_BYTES))
        # So aligned in memory as they will be in the file.
        start = filled = taken.next % BLOCK_BYTES
        try:
            while num_bytes := answer.read_into(buffer[filled : filled + throttle.max_bytes]):
                pace.count(num_bytes)
                throttle.take(num_bytes)
                filled += num_bytes
                if taken.room(filled - start) < filled - start:
                    filled = start + taken.room(filled - start)
                    if taken.end == self._partial.parts.size_bytes:
                        raise DigestMismatch(
                            f"{shown_url(self._file.url)} sends more than its {taken.end} bytes"
                        )
                    return  # Somebody else fetches from here on.
                if taken.end is None and taken.next + filled - start > _MAX_UNKNOWN_BYTES:
                    raise DigestMismatch(f"{shown_url(self._file.url)} has no end")
                if filled == len(buffer) or pace.is_late:
                    self._write(taken, buffer[start:filled])
                    pace.is_late, start = False, taken.next % BLOCK_BYTES
                    filled = start
        finally:
            self._write(taken, buffer[start:filled])

    def _write(self, taken: Range, chunk: memoryview) -> None:
        self._partial.write(taken, chunk)
        self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        parts = self._partial.parts
        if self._partial.is_behind:
            self._has_written.set()
        try:
            self._on_bytes(parts.num_bytes, parts.size_bytes)
        except LaresError as error:
            # This may be a thread's message and not a step of `run`: it is ended, and raises the error itself.
            if self._refusal is None and self._running is not None:
                self._refusal = error
                self._running.cancel()


async def _ended(task: asyncio.Task[None] | None) -> None:
    """Cancel it and wait for it. Raises what it failed with before."""
    if task is not None:
        task.cancel()
        await see_through(asyncio.wait([task]))
        if not task.cancelled():
            task.result()


class _Pace:
    """Notices a server that sends, but hardly: a timeout per read never does. is_late: nothing was written for long."""

    def __init__(self, limits: HttpLimits, url: str) -> None:
        self._limits = limits
        self._url = url
        self._since = self._written_at = time.monotonic()
        self._num_bytes = 0
        self.is_late = False

    def count(self, num_bytes: int) -> None:
        """Raises TryAgain when a window was too slow."""
        self._num_bytes += num_bytes
        now = time.monotonic()
        if now - self._written_at > _WRITE_EVERY_S:
            self._written_at, self.is_late = now, True
        elapsed_s = now - self._since
        if elapsed_s < self._limits.speed_window_s:
            return
        if self._num_bytes < self._limits.min_bytes_per_second * elapsed_s:
            rate = int(self._num_bytes / elapsed_s)
            raise TryAgain(SourceUnavailable(f"{shown_url(self._url)} sends only {rate} bytes a second"))
        self._since, self._num_bytes = now, 0


def _validator(answer: Answer) -> str:
    """A strong ETag, or else the date: what If-Range takes."""
    etag = answer.headers.get("etag", "")
    if etag and not etag.startswith("W/"):
        return etag
    return answer.headers.get("last-modified", "")
