"""Which sources may be pulled from: patterns on references, `hf:meta-llama/*`, and the one place that matches them.

    pattern   provider ":" name         `*` stands for any characters, also for `/`
              hf:meta-llama/*   ollama:library/*   pypi:llm-*   vosk:*   file:/models/*   https:*
              https://models.example.com/*   https://*.example.com:8443/gguf/*   lares:192.168.1.7:7210/*

A name is matched as it was parsed, whatever its tag and revision. What a server or a disk may read as another name than
the one that was matched, such as `..` in disguise, matches nothing. Where a trusted server redirects to, and where a
link in a trusted folder leads, is their owner's word.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final, Self
from urllib.parse import unquote

from services.kit.errors import FieldViolation, InvalidArgument, InvalidReference, PermissionDenied
from services.kit.names import PROVIDERS, ModelRef

SETTING: Final = "downloader.trusted_sources"

_DEFAULT_PORTS: Final = {"https": ":443", "http": ":80"}
# Slashes, dots, and the percent sign itself, which could hide any of them once more.
_DISGUISED: Final = re.compile(r"%(2e|2f|5c|25|[01][0-9a-f]|7f)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Pattern:
    """provider: of the references it matches. host: of a URL, in lower case, with its port; empty for all."""

    provider: str
    host: str
    name: re.Pattern[str]


class TrustedSources:
    """What was configured. No pattern: every source is trusted."""

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        """Raises InvalidArgument for what is no pattern."""
        self._texts = tuple(patterns)
        self._patterns = tuple(_parse(pattern) for pattern in patterns)

    def check(self, ref: ModelRef) -> None:
        """Raises PermissionDenied unless a pattern matches. ref: no short name; those are ours."""
        if self._patterns and not any(_matches(pattern, ref) for pattern in self._patterns):
            raise PermissionDenied(
                f"'{str(ref)[:200]}' is from no trusted source; {SETTING} allows {', '.join(self._texts)}",
                violations=[FieldViolation("source", "is from no trusted source")],
            )


@dataclass(frozen=True, slots=True)
class _Place:
    """What is matched. host: see `_Pattern`. name: None for one that may be read as another."""

    host: str
    name: str | None

    @classmethod
    def of(cls, provider: str, name: str) -> Self:
        match provider:
            case "https" | "http":
                host, _, path = name.removeprefix("//").partition("/")
                decoded = None if _DISGUISED.search(path) else unquote(path)
                return cls(host.lower().removesuffix(_DEFAULT_PORTS[provider]), decoded)
            case "lares":
                host, _, model = name.partition("/")
                return cls(host.lower(), model)
            case "file":
                local = PurePath(name)
                return cls("", None if ".." in local.parts else local.as_posix())
            case "ollama":
                return cls("", name if "/" in name else f"library/{name}")
            case _:
                return cls("", name)


def _matches(pattern: _Pattern, ref: ModelRef) -> bool:
    if pattern.provider != ref.provider:
        return False
    if pattern.name.pattern == _ANYTHING and not pattern.host:
        return True
    place = _Place.of(ref.provider, ref.name)
    if place.name is None or pattern.name.fullmatch(place.name) is None:
        return False
    if pattern.host.startswith("*."):
        return place.host.endswith(pattern.host[1:])
    return place.host == pattern.host


_ANYTHING: Final = ".*"


def _parse(text: str) -> _Pattern:
    provider, colon, name = text.partition(":")
    if not colon or provider not in PROVIDERS - {"local"}:
        raise _invalid(text, "must begin with a provider, as in hf:ORG/*")
    if name == "*":
        return _Pattern(provider, "", re.compile(_ANYTHING))
    try:
        # With a letter for each wildcard it has to be a reference, without tag and revision.
        ref = ModelRef.parse(f"{provider}:{name.replace('*', 'x')}")
    except InvalidReference as error:
        raise _invalid(text, f"is no pattern on references: {error}") from error
    if ref.tag is not None or ref.revision is not None:
        raise _invalid(text, "must have no tag and no revision: all of a model are trusted, or none")
    place = _Place.of(provider, name.lower() if provider == "pypi" else name)
    if place.name is None:
        raise _invalid(text, "must be spelled without '..' and without escaped slashes or dots")
    if "*" in place.host.removeprefix("*."):
        raise _invalid(text, "must name its host, or all of a domain as *.example.com")
    glob = re.sub(r"[-_.]+", "-", place.name) if provider == "pypi" else place.name
    return _Pattern(provider, place.host, re.compile(".*".join(map(re.escape, glob.split("*"))), re.DOTALL))


def _invalid(text: str, why: str) -> InvalidArgument:
    return InvalidArgument(f"{SETTING}: '{text[:200]}' {why}", violations=[FieldViolation(SETTING, why)])
