"""HTTP, as far as we trust it: one request with its redirects, and what a bad answer means.

We follow redirects ourselves: at most five, never from https to http, and credentials are looked up for each
origin anew, so that they never reach another host. Answers must not be compressed: a decoder is one more thing
that a hostile server can feed, and sizes would no longer be those that were promised.
"""

import asyncio
import datetime
import email.utils
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, NoReturn

import httpx2

from services.downloader.core.urls import follow, origin_of, parse_url, shown_url
from services.kit.errors import LaresError, PermissionDenied, SourceNotFound, SourceUnavailable

MAX_REDIRECTS: Final = 5
MAX_DOCUMENT_BYTES: Final = 4 * 1024 * 1024

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
# https://www.rfc-editor.org/rfc/rfc9110#section-15: what may pass if it is asked again.
_TRANSIENT: Final = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """When to lose patience. stall_timeout_s: with no byte at all; min_bytes_per_second: over speed_window_s."""

    stall_timeout_s: float = 30.0
    min_bytes_per_second: int = 1024
    speed_window_s: float = 60.0
    max_attempts: int = 8
    first_backoff_s: float = 0.5
    max_backoff_s: float = 30.0
    max_retry_after_s: float = 300.0

    def backoff_s(self, num_failures: int, retry_after_s: float | None) -> float:
        """How long to wait after that many failures in a row. What the server asks for is kept to, within reason."""
        if retry_after_s is not None:
            return min(retry_after_s, self.max_retry_after_s)
        backoff_s = min(self.max_backoff_s, self.first_backoff_s * 2.0 ** (num_failures - 1))
        return backoff_s * random.uniform(0.5, 1.0)


class TryAgain(Exception):
    """A failure that may pass. error: what to raise if it does not."""

    def __init__(self, error: LaresError, retry_after_s: float | None = None) -> None:
        super().__init__(error.message)
        self.error = error
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Document:
    """A small thing that was read whole: an index page, a piece of metadata. url: where it was found in the end."""

    url: str
    content_type: str
    body: bytes


class HttpClient:
    """A pool of connections. credentials: origin -> value of its Authorization header."""

    def __init__(
        self,
        *,
        limits: HttpLimits | None = None,
        credentials: Mapping[str, str] | None = None,
        verify: ssl.SSLContext | bool = True,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.limits = limits or HttpLimits()
        self.sleep = sleep
        self._credentials = dict(credentials or {})
        timeout = httpx2.Timeout(self.limits.stall_timeout_s)
        self._client = httpx2.AsyncClient(verify=verify, timeout=timeout, follow_redirects=False)

    async def close(self) -> None:
        """Close its connections."""
        await self._client.aclose()

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

    @asynccontextmanager
    async def get(self, url: str, headers: Mapping[str, str]) -> AsyncIterator[httpx2.Response]:
        """One answer of status 200, 206 or 416, its body not yet read. Raises TryAgain for what may pass."""
        for _ in range(MAX_REDIRECTS + 1):
            with translated_http_errors(url):
                async with asyncio.timeout(self.limits.stall_timeout_s):
                    response = await self._client.send(self._request(url, headers), stream=True)
            try:
                if response.status_code not in _REDIRECTS:
                    _check_answer(url, response)
                    yield response
                    return
                url = follow(url, response.headers.get("location", ""))
            finally:
                await response.aclose()
        raise SourceUnavailable(f"{shown_url(url)} redirects more than {MAX_REDIRECTS} times")

    def _request(self, url: str, headers: Mapping[str, str]) -> httpx2.Request:
        address = parse_url(url)
        credentials = self._credentials.get(address.origin)
        sent = {"Accept-Encoding": "identity", "User-Agent": "lares", **headers}
        if credentials is not None:
            sent["Authorization"] = credentials
        return self._client.build_request("GET", address.url, headers=sent)

    async def _read_document(self, url: str, accept: str) -> Document:
        async with self.get(url, {"Accept": accept}) as response:
            body = bytearray()
            with translated_http_errors(url):
                async for chunk in response.aiter_raw():
                    body += chunk
                    if len(body) > MAX_DOCUMENT_BYTES:
                        raise SourceUnavailable(
                            f"{shown_url(url)} is longer than {MAX_DOCUMENT_BYTES} bytes: too much for metadata"
                        )
            return Document(str(response.url), response.headers.get("content-type", ""), bytes(body))

    async def challenge(self, url: str) -> str:
        """What a 401 for this URL asks for (WWW-Authenticate), or empty. Raises SourceUnavailable."""
        try:
            with translated_http_errors(url):
                async with asyncio.timeout(self.limits.stall_timeout_s):
                    response = await self._client.send(self._request(url, {}), stream=True)
        except TryAgain as failure:
            raise failure.error from failure
        await response.aclose()
        return str(response.headers.get("www-authenticate", "")) if response.status_code == 401 else ""

    def authorize(self, origin: str, authorization: str) -> None:
        """Send this to that origin from now on: a token that was handed out for it, and will run out."""
        self._credentials[origin] = authorization


class translated_http_errors:
    """Context manager: a connection that fails is a TryAgain. Not a generator, so that it costs nothing per chunk."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        return None

    def __exit__(self, exc_type: object, exc: BaseException | None, traceback: object) -> None:
        if isinstance(exc, TimeoutError | httpx2.TimeoutException):
            raise TryAgain(SourceUnavailable(f"{shown_url(self._url)} stopped sending")) from exc
        if isinstance(exc, httpx2.UnsupportedProtocol | httpx2.InvalidURL):
            raise SourceUnavailable(f"{shown_url(self._url)} is no address that can be fetched") from exc
        if isinstance(exc, httpx2.TransportError | httpx2.StreamError):
            # The exception's own text may hold the URL with its query: only its kind is told.
            raise TryAgain(
                SourceUnavailable(f"{shown_url(self._url)} cannot be reached ({type(exc).__name__})")
            ) from exc


def _check_answer(url: str, response: httpx2.Response) -> None:
    if response.status_code not in (200, 206, 416):
        _refuse(url, response)
    encoding = response.headers.get("content-encoding", "identity")
    if encoding.strip().lower() not in ("", "identity"):
        raise SourceUnavailable(f"{shown_url(url)} answers compressed, which was not asked for")


def _refuse(url: str, response: httpx2.Response) -> NoReturn:
    status, shown = response.status_code, shown_url(url)
    if status in (404, 410):
        raise SourceNotFound(f"nothing lies at {shown} (HTTP {status})", metadata={"source": shown})
    if status in (401, 403):
        raise PermissionDenied(
            f"{origin_of(url)} refuses {shown} (HTTP {status}); it may need a token, or its licence be accepted there"
        )
    error = SourceUnavailable(f"{shown} answers HTTP {status}")
    if status in _TRANSIENT:
        raise TryAgain(error, _retry_after_s(response.headers.get("retry-after", "")))
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
