"""Many small files over HTTP: a few threads, each with a connection that it keeps, a file in one go.

What `http_fetch` does for each file (a note of what it is, ranges, a hash that follows) costs more than such a file
takes to come. Here is the first try, and the only one: whatever is not at once what was promised is left for it.
"""

import asyncio
import hashlib
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from services.downloader.adapters.disk_errors import translated_disk_errors, write_all
from services.downloader.adapters.http_client import HttpClient
from services.downloader.adapters.http_connection import Abort, TryAgain
from services.downloader.core.sources import SMALL_BYTES, RemoteFile
from services.kit.errors import DiskFull, LaresError
from services.kit.unbroken import see_through

_MAX_THREADS: Final = 8
_TELL_S: Final = 0.1
# Threads that use so much of a processor would only wait for each other.
_BUSY_SHARE: Final = 0.5


async def fetch_small(
    client: HttpClient, files: Mapping[Path, RemoteFile], on_arrived: Callable[[Path], None]
) -> dict[Path, str]:
    """Bring files, each of at most SMALL_BYTES, to the paths that they are under.

    on_arrived: told of each; may raise a LaresError, which ends it. Returns the sha256, in hex, of each that is right.
    Raises DiskFull. Cancelled, it keeps what has arrived.
    """
    waiting = deque(files.items())
    crew: list[_Worker] = []
    working: list[asyncio.Future[None]] = []
    sha256s: dict[Path, str] = {}

    def tell() -> None:
        for worker in crew:
            while worker.arrived:
                target, sha256 = worker.arrived.popleft()
                sha256s[target] = sha256
                on_arrived(target)

    try:
        while waiting or any(not work.done() for work in working):
            if waiting and len(crew) < _MAX_THREADS and _waits(crew):
                worker = _Worker(client, waiting)
                crew.append(worker)
                working.append(asyncio.ensure_future(client.run(worker.work, worker.abort)))
            _, running = await asyncio.wait(working, timeout=_TELL_S)
            tell()
            for worker in crew:
                worker.lose_patience()
            if not running:
                break
    finally:
        waiting.clear()
        for work in working:
            work.cancel()
        if working:
            await see_through(asyncio.wait(working))
    for work in working:
        work.result()
    return sha256s


def _waits(crew: Sequence["_Worker"]) -> bool:
    """Whether another would be of use: all of them together have one processor, for that is how Python's threads go."""
    return sum(worker.busy_share() for worker in crew) < _BUSY_SHARE


def git_id_of(content: bytes | memoryview) -> str:
    """What git calls a file: https://git-scm.com/book/en/v2/Git-Internals-Git-Objects."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


class _Worker:
    """One thread's work: files from `waiting` until none is left, or one does not come."""

    def __init__(self, client: HttpClient, waiting: deque[tuple[Path, RemoteFile]]) -> None:
        self.abort = Abort()
        self.arrived: deque[tuple[Path, str]] = deque()
        self._client = client
        self._waiting = waiting
        self._buffer = memoryview(b"")
        self._began_s = 0.0
        self._cpu_s = self._cpu_seen_s = 0.0
        self._seen_s = time.monotonic()

    def work(self) -> None:
        """In a thread. Raises DiskFull."""
        self._buffer = memoryview(bytearray(SMALL_BYTES))
        first_s = time.thread_time()
        while not self.abort.is_set:
            try:
                target, file = self._waiting.popleft()
            except IndexError:
                return
            self._began_s = time.monotonic()
            try:
                sha256 = self._bring(file, target)
            except DiskFull:
                raise
            except (TryAgain, LaresError):
                return  # Not the next one either: it may be the server, and that has its own rules.
            finally:
                self._began_s = 0.0
                self._cpu_s = time.thread_time() - first_s
            if sha256 is not None:
                self.arrived.append((target, sha256))

    def lose_patience(self) -> None:
        """End its connection if a file takes too long."""
        began_s = self._began_s
        if began_s and time.monotonic() - began_s > self._client.limits.stall_timeout_s:
            self.abort.set()

    def busy_share(self) -> float:
        """How much of a processor it has used since this was last asked, 0 to 1."""
        now_s, cpu_s = time.monotonic(), self._cpu_s
        share = (cpu_s - self._cpu_seen_s) / max(now_s - self._seen_s, 1e-3)
        self._seen_s, self._cpu_seen_s = now_s, cpu_s
        return share

    def _bring(self, file: RemoteFile, target: Path) -> str | None:
        """Its sha256; None if it is not what was promised."""
        found = _found(file, target)
        if found is not None and (sha256 := _sha256_if_right(file, found)) is not None:
            return sha256
        content = self._read(file)
        if content is None or (sha256 := _sha256_if_right(file, content)) is None:
            return None
        with translated_disk_errors(target):
            # Never written over: an import before this may have left another program's file there.
            target.unlink(missing_ok=True)
            with target.open("xb", buffering=0) as opened:
                write_all(opened, content)
        return sha256

    def _read(self, file: RemoteFile) -> memoryview | None:
        size_bytes = file.size_bytes
        answer = self._client.ask(file.url, {}, self.abort)
        try:
            if answer.status != 200 or answer.headers.get("content-length") != str(size_bytes):
                return None
            filled, throttle = 0, self._client.limits.throttle
            while num_bytes := answer.read_into(self._buffer[filled : filled + throttle.max_bytes]):
                throttle.take(num_bytes)
                filled += num_bytes
            return self._buffer[:filled] if filled == size_bytes else None
        finally:
            answer.close()


def _found(file: RemoteFile, target: Path) -> bytes | None:
    """What lies there from before a kill. None if nothing does, or nobody can tell whether it is right."""
    try:
        if (file.sha256 or file.git_id) and target.stat().st_size == file.size_bytes:
            return target.read_bytes()
    except OSError:
        pass
    return None


def _sha256_if_right(file: RemoteFile, content: bytes | memoryview) -> str | None:
    if file.git_id is not None and git_id_of(content) != file.git_id:
        return None
    sha256 = hashlib.sha256(content).hexdigest()
    return sha256 if file.sha256 in (None, sha256) else None
