"""HTTP, as far as we trust it: one request with its redirects, and what a bad answer means.

We follow redirects ourselves: at most five, never from https to http, and credentials are looked up for each
origin anew, so that they never reach another host. Answers must not be compressed: a decoder is one more thing
that a hostile server can feed, and sizes would no longer be those that were promised.
"""

import asyncio
import contextlib
import datetime
import email.utils
import random
import ssl
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, NoReturn, TypeVar
from urllib.parse import urlsplit

from services.downloader.adapters.http_connection import Abort, Answer, Connections, TryAgain
from services.downloader.adapters.http_pipeline import Pipeline
from services.downloader.core.urls import follow, origin_of, parse_url, shown_url
from services.kit.errors import PermissionDenied, SourceNotFound, SourceUnavailable
from services.kit.unbroken import see_through

T = TypeVar("T")

MAX_REDIRECTS: Final = 5
MAX_DOCUMENT_BYTES: Final = 4 * 1024 * 1024

_MIN_TAKE_BYTES: Final = 4096
# As many as the settings allow downloads times connections; they are started as they are needed.
_MAX_THREADS: Final = 2048

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
# https://www.rfc-editor.org/rfc/rfc9110#section-15: what may pass if it is asked again.
_TRANSIENT: Final = frozenset({408, 425, 429, 500, 502, 503, 504})


class Throttle:
    """Holds all threads that take bytes through it to one rate. bytes_per_second: 0 for none."""

    def __init__(self, bytes_per_second: int = 0, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._rate = bytes_per_second
        self._sleep = sleep
        self._lock = threading.Lock()
        self._free_at_s = 0.0

    @property
    def max_bytes(self) -> int:
        """At most so many are to be taken at once: a quarter of a second's worth."""
        return max(_MIN_TAKE_BYTES, self._rate // 4) if self._rate else sys.maxsize

    def take(self, num_bytes: int) -> None:
        """Wait until so many may pass."""
        if not self._rate:
            return
        with self._lock:
            now_s = time.monotonic()
            wait_s = max(0.0, self._free_at_s - now_s)
            self._free_at_s = max(self._free_at_s, now_s) + num_bytes / self._rate
        if wait_s:
            self._sleep(wait_s)


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """When to lose patience, how much to take, whom to trust.

    stall_timeout_s: with no byte at all; min_bytes_per_second: over speed_window_s; max_connections: for one file;
    grow_interval_s: how long one more is tried before the next; enough_bytes_per_second: no other is tried, for then
    it is this machine that is slow; throttle: for all that share it; ca_file: of authorities that are trusted beside
    the system's.
    """

    stall_timeout_s: float = 30.0
    min_bytes_per_second: int = 1024
    speed_window_s: float = 60.0
    max_attempts: int = 8
    first_backoff_s: float = 0.5
    max_backoff_s: float = 30.0
    max_retry_after_s: float = 300.0
    max_connections: int = 8
    grow_interval_s: float = 1.0
    enough_bytes_per_second: float = 300e6
    throttle: Throttle = field(default_factory=Throttle)
    ca_file: str = ""

    def tls(self, *more_files: str) -> ssl.SSLContext:
        """Whom to trust: the system, ca_file, and these. Raises SourceUnavailable if one cannot be read."""
        context = ssl.create_default_context()
        for file in filter(None, (self.ca_file, *more_files)):
            try:
                context.load_verify_locations(cafile=file)
            except OSError as error:
                raise SourceUnavailable(
                    f"certificate authorities cannot be read from {file}: {error}"
                ) from None
        return context

    def backoff_s(self, num_failures: int, retry_after_s: float | None) -> float:
        """How long to wait after that many failures in a row. What the server asks for is kept to, within reason."""
        if retry_after_s is not None:
            return min(retry_after_s, self.max_retry_after_s)
        backoff_s = min(self.max_backoff_s, self.first_backoff_s * 2.0 ** (num_failures - 1))
        return backoff_s * random.uniform(0.5, 1.0)


@dataclass(frozen=True, slots=True)
class Document:
    """A small thing that was read whole: an index page, a piece of metadata. url: where it was found in the end."""

    url: str
    content_type: str
    body: bytes


class HttpClient:
    """Requests on threads of its own. credentials: origin -> value of its Authorization header. ca_file: of
    authorities that are trusted beside those of the limits.

    Nothing is opened or read before the first request.
    """

    def __init__(
        self,
        *,
        limits: HttpLimits | None = None,
        credentials: Mapping[str, str] | None = None,
        ca_file: str = "",
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.limits = limits or HttpLimits()
        self.sleep = sleep
        self._credentials = dict(credentials or {})
        self._ca_file = ca_file
        self._opened: Connections | None = None
        self._opening = threading.Lock()
        self._threads = ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix="transfer")

    async def close(self) -> None:
        """Close its connections."""
        if self._opened is not None:
            self._opened.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def run(self, work: Callable[[], T], abort: Abort | None = None) -> T:
        """Do something that blocks on one of the threads. Whoever cancels this waits for its end.

        abort: set when this is cancelled, to hasten that end.
        """
        running = asyncio.get_running_loop().run_in_executor(self._threads, work)
        return await see_through(running, on_cancel=(abort or Abort()).set)

    async def get_document(self, url: str, *, accept: str = "*/*") -> Document:
        """Read a small document. Raises SourceNotFound, SourceUnavailable, PermissionDenied."""
        num_failures = 0
        while True:
            try:
                # Also against a server that trickles: this is one screenful, not a download.
                async with asyncio.timeout(self.limits.speed_window_s):
                    return await self._read_document(url, accept)
            except TimeoutError:
                failure = TryAgain(SourceUnavailable(f"{shown_url(url)} takes too long to answer"))
            except TryAgain as error:
                failure = error
            num_failures += 1
            if num_failures >= self.limits.max_attempts:
                raise failure.error from failure
            await self.sleep(self.limits.backoff_s(num_failures, failure.retry_after_s))

    @contextlib.asynccontextmanager
    async def get(self, url: str, headers: Mapping[str, str], abort: Abort) -> AsyncIterator[Answer]:
        """One answer of status 200, 206 or 416, its body not yet read. Raises TryAgain for what may pass.

        abort: set when its headers do not come in time.
        """
        answer = await self._in_time(lambda: self._follow(url, headers, abort), url, abort)
        try:
            yield answer
        finally:
            answer.close()

    def _follow(self, url: str, headers: Mapping[str, str], abort: Abort) -> Answer:
        for _ in range(MAX_REDIRECTS + 1):
            answer = self._request(url, headers, abort)
            try:
                if answer.status not in _REDIRECTS:
                    _check_answer(url, answer)
                    return answer
                url = follow(url, answer.headers.get("location", ""))
            except BaseException:
                answer.close()
                raise
            answer.close()
        raise SourceUnavailable(f"{shown_url(url)} redirects more than {MAX_REDIRECTS} times")

    def pipeline(self, url: str, abort: Abort) -> Pipeline | None:
        """To an address's origin; None where a proxy is in between. Blocks. Raises TryAgain, SourceUnavailable."""
        address = parse_url(url)
        connection = self._connections().connect(address.url, abort)
        if connection is None:
            return None
        host = {"Host": urlsplit(address.url).netloc}
        return Pipeline(address.origin, connection, host | self._headers(address.origin))

    def _request(self, url: str, headers: Mapping[str, str], abort: Abort) -> Answer:
        address = parse_url(url)
        return self._connections().get(address.url, {**self._headers(address.origin), **headers}, abort)

    def _headers(self, origin: str) -> dict[str, str]:
        headers = {"Accept-Encoding": "identity", "User-Agent": "lares"}
        if (credentials := self._credentials.get(origin)) is not None:
            headers["Authorization"] = credentials
        return headers

    def _connections(self) -> Connections:
        with self._opening:
            if self._opened is None:
                self._opened = Connections(self.limits.stall_timeout_s, self.limits.tls(self._ca_file))
            return self._opened

    async def _in_time(self, ask: Callable[[], Answer], url: str, abort: Abort) -> Answer:
        asking = asyncio.get_running_loop().run_in_executor(self._threads, ask)
        try:
            # Also against headers that trickle: each read of them would be in time.
            async with asyncio.timeout(self.limits.stall_timeout_s):
                return await asyncio.shield(asking)
        except TimeoutError:
            abort.set()
            asking.add_done_callback(_close_late)
            raise TryAgain(SourceUnavailable(f"{shown_url(url)} stopped sending")) from None
        except asyncio.CancelledError:
            abort.set()
            asking.add_done_callback(_close_late)
            raise

    async def _read_document(self, url: str, accept: str) -> Document:
        abort = Abort()

        def read(answer: Answer) -> bytes:
            body, buffer = bytearray(), memoryview(bytearray(64 * 1024))
            while num_bytes := answer.read_into(buffer):
                body += buffer[:num_bytes]
                if len(body) > MAX_DOCUMENT_BYTES:
                    raise SourceUnavailable(
                        f"{shown_url(url)} is longer than {MAX_DOCUMENT_BYTES} bytes: too much for metadata"
                    )
            return bytes(body)

        async with self.get(url, {"Accept": accept}, abort) as answer:
            body = await self.run(lambda: read(answer), abort)
            return Document(answer.url, answer.headers.get("content-type", ""), body)

    async def challenge(self, url: str) -> str:
        """What a 401 for this URL asks for (WWW-Authenticate), or empty. Raises SourceUnavailable."""
        abort = Abort()
        try:
            answer = await self._in_time(lambda: self._request(url, {}, abort), url, abort)
        except TryAgain as failure:
            raise failure.error from failure
        answer.close()
        return answer.headers.get("www-authenticate", "") if answer.status == 401 else ""

    def authorize(self, origin: str, authorization: str) -> None:
        """Send this to that origin from now on: a token that was handed out for it, and will run out."""
        self._credentials[origin] = authorization


def _close_late(asking: "asyncio.Future[Answer]") -> None:
    """An answer that came when nobody waited for it any more."""
    if not asking.cancelled() and asking.exception() is None:
        asking.result().close()


def _check_answer(url: str, answer: Answer) -> None:
    if answer.status not in (200, 206, 416):
        _refuse(url, answer)
    encoding = answer.headers.get("content-encoding", "identity")
    if encoding.strip().lower() not in ("", "identity"):
        raise SourceUnavailable(f"{shown_url(url)} answers compressed, which was not asked for")


def _refuse(url: str, answer: Answer) -> NoReturn:
    status, shown = answer.status, shown_url(url)
    if status in (404, 410):
        raise SourceNotFound(f"nothing lies at {shown} (HTTP {status})", metadata={"source": shown})
    if status in (401, 403):
        raise PermissionDenied(
            f"{origin_of(url)} refuses {shown} (HTTP {status}); it may need a token, or its licence be accepted there"
        )
    error = SourceUnavailable(f"{shown} answers HTTP {status}")
    if status in _TRANSIENT:
        raise TryAgain(error, _retry_after_s(answer.headers.get("retry-after", "")))
    raise error


def _retry_after_s(value: str) -> float | None:
    """Seconds, or a date: https://www.rfc-editor.org/rfc/rfc9110#section-10.2.3."""
    if value.strip().isdecimal():
        return float(value[:10])
    try:
        when = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=datetime.UTC)
    return max(0.0, (when - datetime.datetime.now(datetime.UTC)).total_seconds())
