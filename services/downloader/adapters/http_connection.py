"""One HTTP answer at a time, read by a thread: the standard library's client, which fills our buffers itself.

An event loop would touch every chunk; a thread that reads into a buffer does not (measured on loopback: 250 MB/s
against 700). Connections are kept and used again. Proxies are those of the environment: HTTP_PROXY, HTTPS_PROXY,
NO_PROXY.
"""

import base64
import contextlib
import functools
import http.client
import io
import socket
import ssl
import threading
import urllib.request
from collections.abc import Mapping
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from services.downloader.core.urls import origin_of, shown_url
from services.kit.errors import LaresError, SourceUnavailable

_MAX_IDLE: Final = 16
# What a connection that was kept says when its server has closed it meanwhile.
_STALE: Final = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError)


class TryAgain(Exception):
    """A failure that may pass. error: what to raise if it does not."""

    def __init__(self, error: LaresError, retry_after_s: float | None = None) -> None:
        super().__init__(error.message)
        self.error = error
        self.retry_after_s = retry_after_s


class Abort:
    """Ends a thread's read from outside: its socket is shut."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self.is_set = False

    def watch(self, connected: socket.socket | None) -> None:
        """The socket that is read from now on."""
        with self._lock:
            self._socket = connected
            if self.is_set:
                self._shut()

    def set(self) -> None:
        """Whoever reads gets an error, now and later."""
        with self._lock:
            self.is_set = True
            self._shut()

    def _shut(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                # The plain one's method: that of a TLS socket would take its state from under the reader.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


class Answer:
    """A response whose body is not read yet. headers: names in lower case. Close it."""

    def __init__(
        self,
        url: str,
        connection: http.client.HTTPConnection,
        response: http.client.HTTPResponse,
        home: "Connections",
    ) -> None:
        self.url = url
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self._connection = connection
        self._response = response
        self._home = home
        self._is_drained = False

    def read_into(self, buffer: memoryview) -> int:
        """What has come, at most a buffer full; 0 at the end. Raises TryAgain."""
        with translated_http_errors(self.url):
            left = self._response.length
            if left is None:  # In chunks, or until the connection ends.
                chunk = self._response.read1(len(buffer))
                buffer[: len(chunk)] = chunk
                return len(chunk)
            if not left:
                return 0
            num_bytes = self._read_into(buffer[:left])
            if not num_bytes:
                raise http.client.IncompleteRead(b"", left)
            self._response.length = left - num_bytes
            return num_bytes

    def _read_into(self, buffer: memoryview) -> int:
        """Not by the response's own `readinto`, which waits until the buffer is full, nor its stream's `readinto1`,
        which loses what came with the headers if the socket then fails.
        """
        stream = self._response.fp
        if self._is_drained:
            return int(stream.raw.readinto(buffer) or 0)
        chunk = stream.read1(len(buffer))
        self._is_drained = len(chunk) < len(buffer) or len(buffer) > io.DEFAULT_BUFFER_SIZE
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def close(self) -> None:
        """Keep its connection if the body was read, or else close it."""
        is_read = self._response.length == 0 or self._response.isclosed()
        self._response.close()
        if is_read and not self._response.will_close:
            self._home.keep(self.url, self._connection)
        else:
            self._connection.close()


class Connections:
    """Makes requests, in the calling thread. timeout_s: for a connection to be made, and for each read of it."""

    def __init__(self, timeout_s: float, tls: ssl.SSLContext) -> None:
        self._timeout_s = timeout_s
        self._tls = tls
        self._lock = threading.Lock()
        self._idle: dict[str, list[http.client.HTTPConnection]] = {}
        self._proxies: dict[str, SplitResult | None] = {}

    def get(self, url: str, headers: Mapping[str, str], abort: Abort) -> Answer:
        """Ask, and wait for the headers. Raises TryAgain, SourceUnavailable."""
        with translated_http_errors(url):
            with self._lock:
                idle = self._idle.get(origin_of(url))
                kept = idle.pop() if idle else None
            if kept is not None:
                with contextlib.suppress(*_STALE):
                    return self._ask(kept, url, headers, abort)
            return self._ask(self._connection(url), url, headers, abort)

    def connect(self, url: str, abort: Abort) -> http.client.HTTPConnection | None:
        """A new one for the caller alone. None where a proxy takes the requests. Raises TryAgain, SourceUnavailable."""
        if self._proxy_for(url) is not None and urlsplit(url).scheme == "http":
            return None
        connection = self._connection(url)
        with translated_http_errors(url):
            try:
                _open(connection, abort)
                abort.watch(connection.sock)
            except BaseException:
                connection.close()
                raise
        return connection

    def keep(self, url: str, connection: http.client.HTTPConnection) -> None:
        """It can be used again."""
        with self._lock:
            idle = self._idle.setdefault(origin_of(url), [])
            if len(idle) < _MAX_IDLE:
                idle.append(connection)
                return
        connection.close()

    def close(self) -> None:
        """Close those that are kept."""
        with self._lock:
            idle, self._idle = self._idle, {}
        for connections in idle.values():
            for connection in connections:
                connection.close()

    def _ask(
        self, connection: http.client.HTTPConnection, url: str, headers: Mapping[str, str], abort: Abort
    ) -> Answer:
        try:
            if connection.sock is None:
                _open(connection, abort)
            abort.watch(connection.sock)
            target, sent = request_target(url), dict(headers)
            if (proxy := self._proxy_for(url)) is not None and urlsplit(url).scheme == "http":
                target, sent = url, sent | _proxy_authorization(proxy)
            connection.putrequest("GET", target, skip_accept_encoding=True)
            for name, value in sent.items():
                connection.putheader(name, value)
            connection.endheaders()
            return Answer(url, connection, connection.getresponse(), self)
        except BaseException:
            connection.close()
            raise

    def _connection(self, url: str) -> http.client.HTTPConnection:
        parts, proxy = urlsplit(url), self._proxy_for(url)
        host, port = (proxy or parts).hostname or "", (proxy or parts).port
        if parts.scheme == "http":
            return http.client.HTTPConnection(host, port or 80, timeout=self._timeout_s)
        connection = http.client.HTTPSConnection(
            host, port or (443 if proxy is None else 80), timeout=self._timeout_s, context=self._tls
        )
        if proxy is not None:
            connection.set_tunnel(
                parts.hostname or "", parts.port or 443, headers=_proxy_authorization(proxy)
            )
        return connection

    def _proxy_for(self, url: str) -> SplitResult | None:
        """The environment's, which is read once for each origin: it is large, and requests are many."""
        origin = origin_of(url)
        if origin not in self._proxies:
            self._proxies[origin] = _environments_proxy(origin)
        return self._proxies[origin]


def _open(connection: http.client.HTTPConnection, abort: Abort) -> None:
    # There is no public way to the socket while it connects, and a host that says nothing takes long. The types leave
    # out what is private.
    connection._create_connection = functools.partial(_connect, abort)  # type: ignore[attr-defined]
    connection.connect()


def _connect(
    abort: Abort, address: tuple[str, int], timeout_s: float, source_address: tuple[str, int] | None = None
) -> socket.socket:
    """As socket.create_connection, but for its end when `abort` is set."""
    failure: OSError = OSError("the name has no address")
    for family, kind, protocol, _, found in socket.getaddrinfo(*address, 0, socket.SOCK_STREAM):
        connecting = socket.socket(family, kind, protocol)
        try:
            connecting.settimeout(timeout_s)
            abort.watch(connecting)
            connecting.connect(found)
        except OSError as error:
            connecting.close()
            failure = error
            if abort.is_set:
                break
        else:
            return connecting
    raise failure


class translated_http_errors:
    """Context manager: a connection that fails is a TryAgain. Not a generator, so that it costs nothing per chunk."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        return None

    def __exit__(self, exc_type: object, exc: BaseException | None, traceback: object) -> None:
        if isinstance(exc, TimeoutError):
            raise TryAgain(SourceUnavailable(f"{shown_url(self._url)} stopped sending")) from exc
        if isinstance(exc, ssl.SSLCertVerificationError):
            raise SourceUnavailable(
                f"the certificate of {origin_of(self._url)} is not trusted ({exc.verify_message}); if your network"
                " has a certificate authority of its own, name its file in downloader.ca_file"
            ) from exc
        if isinstance(exc, http.client.InvalidURL | UnicodeError):
            raise SourceUnavailable(f"{shown_url(self._url)} is no address that can be fetched") from exc
        if isinstance(exc, http.client.HTTPException | OSError):
            # The exception's own text may hold the URL with its query: only its kind is told.
            raise TryAgain(
                SourceUnavailable(f"{shown_url(self._url)} cannot be reached ({type(exc).__name__})")
            ) from exc


def request_target(url: str) -> str:
    """Of an address, what stands in the first line of a request. Raises InvalidURL for what may not stand there."""
    parts = urlsplit(url)
    target = urlunsplit(("", "", parts.path or "/", parts.query, ""))
    if not target.isascii() or not target.isprintable() or " " in target:
        raise http.client.InvalidURL
    return target


def _environments_proxy(origin: str) -> SplitResult | None:
    """For what lies there. Raises SourceUnavailable for one that we cannot speak to."""
    parts = urlsplit(origin)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if not proxy or urllib.request.proxy_bypass(parts.netloc):
        return None
    found = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if found.scheme != "http" or not found.hostname:
        raise SourceUnavailable(
            f"the proxy {shown_url(proxy)} is no http:// address, which is all that is spoken here"
        )
    return found


def _proxy_authorization(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
