"""Pages of a package index, in both of their forms, and the choice of a wheel from them. Pure functions.

HTML after https://packaging.python.org/en/latest/specifications/simple-repository-api/ (PEP 503),
JSON after the same (PEP 691).
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any, Final
from urllib.parse import urldefrag, urljoin, urlsplit

from packaging.tags import Tag, sys_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from services.kit.errors import InvalidReference, SourceNotFound, SourceUnavailable, UnsupportedFormat

ACCEPT: Final = (
    "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
)

_SHA256 = re.compile(r"[0-9a-f]{64}")
_PURE: Final = Tag("py3", "none", "any")


@dataclass(frozen=True, slots=True)
class Link:
    """One file that a page offers. sha256: 64 hex digits, or None if the page does not tell."""

    filename: str
    url: str
    sha256: str | None = None
    size_bytes: int | None = None
    yanked: bool = False


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel that was chosen."""

    link: Link
    version: Version
    sha256: str


def parse_page(url: str, content_type: str, body: bytes) -> list[Link]:
    """All links of a page. url: where it was found. Raises SourceUnavailable if it is no index page."""
    links = _json_links(url, body) if "json" in content_type else _html_links(url, body)
    # A page of the network must not make us read a file of this machine.
    scheme = urlsplit(url).scheme
    return [link for link in links if scheme == "file" or urlsplit(link.url).scheme in ("https", "http")]


def choose_wheel(links: Iterable[Link], name: str, revision: str | None) -> Wheel:
    """The wheel to fetch: of the pinned version, or of the newest; one for every platform before others.

    Raises SourceNotFound, InvalidReference for a version that is none, UnsupportedFormat if no wheel has a digest.
    """
    pinned = _version(revision) if revision is not None else None
    ranks = {tag: rank for rank, tag in enumerate([_PURE, *sys_tags()])}
    found: list[tuple[Version, int, Link]] = []
    versions: set[Version] = set()
    for link in links:
        parsed = _parse_wheel(link.filename)
        if parsed is None or parsed[0] != canonicalize_name(name):
            continue
        _, version, tags = parsed
        versions.add(version)
        rank = min((ranks[tag] for tag in tags if tag in ranks), default=None)
        if rank is not None and _is_wanted(link, version, pinned):
            found.append((version, -rank, link))
    if not found:
        raise SourceNotFound(_why_nothing(name, pinned, versions))
    with_digest = [each for each in found if each[2].sha256]
    if not with_digest:
        raise UnsupportedFormat(f"the index tells no sha256 for {found[0][2].filename}; it was refused")
    version, _, link = max(with_digest, key=lambda each: each[:2])
    return Wheel(link, version, link.sha256 or "")


def is_newer(version: str, than: str) -> bool:
    """Whether one version of a package comes after another. Raises InvalidReference for what is none."""
    return _version(version) > _version(than)


def _is_wanted(link: Link, version: Version, pinned: Version | None) -> bool:
    if pinned is not None:
        return version == pinned
    return not link.yanked and not version.is_prerelease


def _version(text: str) -> Version:
    try:
        return Version(text)
    except InvalidVersion as error:
        raise InvalidReference(f"'{text}' is no version of a package; give one such as ==1.2.0") from error


def _parse_wheel(filename: str) -> tuple[str, Version, frozenset[Tag]] | None:
    try:
        name, version, _, tags = parse_wheel_filename(filename)
    except (InvalidWheelFilename, InvalidVersion):
        return None
    return name, version, tags


def _why_nothing(name: str, pinned: Version | None, versions: set[Version]) -> str:
    if not versions:
        return f"no wheel of {name} is in pip's indexes; check its name, and `pip config list`"
    shown: Sequence[str] = [str(version) for version in sorted(versions)[-5:]]
    wanted = f"version {pinned}" if pinned else "released version for this machine"
    return f"{name} has no {wanted}; the newest wheels are of {', '.join(shown)}"


def _json_links(base: str, body: bytes) -> list[Link]:
    try:
        page = json.loads(body)
        return [_json_link(base, file) for file in page["files"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SourceUnavailable("the package index answers with JSON that is no index page") from error


def _json_link(base: str, file: dict[str, Any]) -> Link:
    size = file.get("size")
    return Link(
        filename=str(file["filename"]),
        url=urljoin(base, str(file["url"])),
        sha256=_checked_sha256(str(file.get("hashes", {}).get("sha256", ""))),
        size_bytes=size if type(size) is int and size > 0 else None,
        yanked=bool(file.get("yanked", False)),
    )


def _html_links(base: str, body: bytes) -> list[Link]:
    parser = _Anchors()
    parser.feed(body.decode("utf-8", "replace"))
    links = []
    for attributes in parser.found:
        try:
            url, fragment = urldefrag(urljoin(base, attributes.get("href") or ""))
            filename = urlsplit(url).path.rsplit("/", 1)[-1]
        except ValueError:
            continue
        algorithm, _, digest = fragment.partition("=")
        links.append(
            Link(
                filename=filename,
                url=url,
                sha256=_checked_sha256(digest) if algorithm == "sha256" else None,
                yanked="data-yanked" in attributes,
            )
        )
    return links


def _checked_sha256(text: str) -> str | None:
    return text.lower() if _SHA256.fullmatch(text.lower()) else None


class _Anchors(HTMLParser):
    """Collects the attributes of all `<a>`."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called by the parser."""
        if tag == "a":
            self.found.append(dict(attrs))
