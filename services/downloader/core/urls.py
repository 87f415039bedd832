"""URLs: taken apart in one place, and never shown with a secret in them. Pure functions."""

import base64
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urljoin, urlsplit, urlunsplit

from services.kit.errors import SourceUnavailable

_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Address:
    """A URL without credentials, and the header that carries those it had. origin: whom they are for."""

    url: str
    authorization: str | None = None

    @property
    def origin(self) -> str:
        """`https://host:443`."""
        return origin_of(self.url)


def parse_url(url: str, *, schemes: tuple[str, ...] = ("https", "http")) -> Address:
    """Take user and password out of a URL. Raises SourceUnavailable for what is no URL of these schemes."""
    parts = _split(url)
    if parts.scheme not in schemes or (parts.scheme != "file" and not parts.hostname):
        raise SourceUnavailable(f"{shown_url(url)} is no {' or '.join(schemes)} address")
    if parts.username is None:
        return Address(urlunsplit(parts._replace(fragment="")))
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    token = base64.b64encode(pair.encode()).decode()
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="")
    return Address(urlunsplit(bare), f"Basic {token}")


def follow(base: str, location: str) -> str:
    """Where a redirect leads. Raises SourceUnavailable if it leaves HTTP, or leaves TLS."""
    target = parse_url(urljoin(base, location)).url
    if _split(base).scheme == "https" and _split(target).scheme != "https":
        raise SourceUnavailable(f"{shown_url(base)} redirects from https to http, which is refused")
    return target


def origin_of(url: str) -> str:
    """`https://host:443` of a URL."""
    parts = _split(url)
    return f"{parts.scheme}://{parts.hostname}:{parts.port or _DEFAULT_PORTS.get(parts.scheme, 0)}"


def shown_url(url: str) -> str:
    """A URL for messages and logs: without user, password, query and fragment, where secrets are kept."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "an address that does not parse"
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port  # Parsed when it is read.
    except ValueError as error:
        raise SourceUnavailable("an address that the source gave does not parse") from error
    return parts
