"""Many small files over HTTP: a few threads, each with a connection on which requests are sent ahead.

What `http_fetch` does for each file (a note of what it is, ranges, a hash that follows) costs more than such a file
takes to come, and so does waiting for each answer. Here is the first try, and the only one: whatever is not at once
what was promised is left for it, and so is a file without a digest, which could be taken for another one.
"""

import asyncio
import contextlib
import hashlib
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from services.downloader.adapters.disk_errors import translated_disk_errors, write_all
from services.downloader.adapters.http_client import MAX_REDIRECTS, HttpClient
from services.downloader.adapters.http_connection import Abort, TryAgain
from services.downloader.adapters.http_pipeline import Pipeline, Reply
from services.downloader.core.sources import RemoteFile
from services.downloader.core.urls import follow, origin_of, shown_url
from services.kit.errors import DiskFull, LaresError, SourceUnavailable
from services.kit.unbroken import see_through

_MAX_THREADS: Final = 8
_MAX_AHEAD: Final = 16
_TELL_S: Final = 0.1
# Where this process uses so much of a processor, more threads would only wait for each other.
_BUSY_SHARE: Final = 0.5
_LOAD_S: Final = 0.3


async def fetch_small(
    client: HttpClient, files: Mapping[Path, RemoteFile], on_arrived: Callable[[Path], None]
) -> dict[Path, str]:
    """Bring files, each of at most SMALL_BYTES, to the paths that they are under.

    on_arrived: told of each; may raise a LaresError, which ends it. Returns the sha256, in hex, of each that is right.
    Raises DiskFull. Cancelled, it keeps what has arrived.
    """
    waiting = deque(
        _Wanted(target, file, file.url) for target, file in files.items() if file.sha256 or file.git_id
    )
    crew: list[_Worker] = []
    working: list[asyncio.Future[None]] = []
    sha256s: dict[Path, str] = {}

    def tell() -> None:
        for worker in crew:
            while worker.arrived:
                target, sha256 = worker.arrived.popleft()
                sha256s[target] = sha256
                on_arrived(target)

    load = _Load()
    try:
        while waiting or any(not work.done() for work in working):
            if waiting and len(crew) < _MAX_THREADS and (not crew or load.is_low()):
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


def git_id_of(content: bytes | memoryview) -> str:
    """What git calls a file: https://git-scm.com/book/en/v2/Git-Internals-Git-Objects."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


class _Load:
    """Whether this process mostly waits: for servers, not for its own threads, which have one processor together.

    What the kernel does for them is no better shared: files that are made in one folder wait for each other there.
    """

    def __init__(self) -> None:
        self._since_s, self._cpu_s = time.monotonic(), time.process_time()

    def is_low(self) -> bool:
        """Of the last moment. False while that is too short to tell."""
        now_s, cpu_s = time.monotonic(), time.process_time()
        if now_s - self._since_s < _LOAD_S:
            return False
        share = (cpu_s - self._cpu_s) / (now_s - self._since_s)
        self._since_s, self._cpu_s = now_s, cpu_s
        return share < _BUSY_SHARE


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A file, where it is to lie, and where it is to be had: elsewhere, after so many redirects."""

    target: Path
    file: RemoteFile
    url: str
    num_redirects: int = 0


class _Worker:
    """One thread's work: files from `waiting` until none is left, or the server does not do as it should."""

    def __init__(self, client: HttpClient, waiting: deque[_Wanted]) -> None:
        self.abort = Abort()
        self.arrived: deque[tuple[Path, str]] = deque()
        self._client = client
        self._waiting = waiting
        self._began_s = 0.0

    def work(self) -> None:
        """In a thread. Raises DiskFull."""
        try:
            while (wanted := self._next()) is not None:
                self._began_s = time.monotonic()
                pipeline = self._client.pipeline(wanted.url, self.abort)
                if pipeline is None:
                    return
                with contextlib.closing(pipeline):
                    self._bring(pipeline, wanted)
        except DiskFull:
            raise
        except (TryAgain, LaresError):
            return  # Not the next one either: it may be the server, and that has its own rules.

    def lose_patience(self) -> None:
        """End its connection if a file takes too long."""
        began_s = self._began_s
        if began_s and time.monotonic() - began_s > self._client.limits.stall_timeout_s:
            self.abort.set()

    def _bring(self, pipeline: Pipeline, first: _Wanted) -> None:
        """Files over one connection, as long as both last. The first alone: that may be all that it takes."""
        asked = deque([first])
        pipeline.send([first.url])
        while asked:
            wanted = asked.popleft()
            self._began_s = time.monotonic()
            reply = pipeline.receive(wanted.file.size_bytes or 0)
            self._began_s = 0.0
            self._client.limits.throttle.take(len(reply.content or b""))
            self._take(wanted, reply)
            if reply.is_last:
                self._waiting.extendleft(reversed(asked))
                return
            if len(asked) <= _MAX_AHEAD // 2:
                more: list[_Wanted] = []
                while len(asked) + len(more) < _MAX_AHEAD and (following := self._next()) is not None:
                    if origin_of(following.url) == pipeline.origin:
                        more.append(following)
                pipeline.send([following.url for following in more])
                asked.extend(more)

    def _next(self) -> _Wanted | None:
        """One to ask for. What lies there from before a kill has arrived."""
        while not self.abort.is_set:
            try:
                wanted = self._waiting.popleft()
            except IndexError:
                return None
            found = _found(wanted.file, wanted.target)
            sha256 = None if found is None else _sha256_if_right(wanted.file, found)
            if sha256 is None:
                return wanted
            self.arrived.append((wanted.target, sha256))
        return None

    def _take(self, wanted: _Wanted, reply: Reply) -> None:
        """Keep it, if it is what was promised, or ask again where it is said to be. Raises TryAgain for a refusal."""
        if reply.status >= 400:
            # Perhaps of all that is asked so fast: what that means, and for how long, is not for here.
            self._waiting.clear()
            raise TryAgain(SourceUnavailable(f"{shown_url(wanted.url)} answers HTTP {reply.status}"))
        if reply.location and wanted.num_redirects < MAX_REDIRECTS:
            url = follow(wanted.url, reply.location)
            self._waiting.append(replace(wanted, url=url, num_redirects=wanted.num_redirects + 1))
        elif reply.content is not None:
            sha256 = _sha256_if_right(wanted.file, reply.content)
            if sha256 is not None:
                with translated_disk_errors(wanted.target):
                    # Never written over: an import before this may have left another program's file there.
                    wanted.target.unlink(missing_ok=True)
                    with wanted.target.open("xb", buffering=0) as opened:
                        write_all(opened, reply.content)
                self.arrived.append((wanted.target, sha256))


def _found(file: RemoteFile, target: Path) -> bytes | None:
    """What lies there from before a kill, or None."""
    try:
        return target.read_bytes() if target.stat().st_size == file.size_bytes else None
    except OSError:
        return None


def _sha256_if_right(file: RemoteFile, content: bytes | memoryview) -> str | None:
    if file.git_id is not None and git_id_of(content) != file.git_id:
        return None
    sha256 = hashlib.sha256(content).hexdigest()
    return sha256 if file.sha256 in (None, sha256) else None
