"""One repository of an OCI registry, with the tokens that it may want to see.

Requests after https://github.com/opencontainers/distribution-spec/blob/main/spec.md, tokens after
https://distribution.github.io/distribution/spec/auth/token/. Whoever answers says where tokens are to be had: it gets
no credential of ours for that, and no place that is neither https nor its own is asked.
"""

import json
import re
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit
from urllib.request import parse_http_list, parse_keqv_list

from services.downloader.adapters.http_client import Document, HttpClient, HttpLimits
from services.downloader.adapters.http_fetch import fetch
from services.downloader.core.sources import OnBytes, RemoteFile
from services.downloader.core.urls import origin_of, parse_url
from services.kit.errors import PermissionDenied, SourceUnavailable

# https://www.rfc-editor.org/rfc/rfc6750#section-2.1: what may stand in a header.
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/=-]{1,16384}")


class OciRepository:
    """url: `https://registry/v2/library/gemma2`. Its connections and its token are its own."""

    def __init__(self, url: str, limits: HttpLimits) -> None:
        self._url = url
        self._http = HttpClient(limits=limits)

    def manifest_url(self, reference: str) -> str:
        """reference: a tag or a digest."""
        return f"{self._url}/manifests/{reference}"

    def blob_url(self, digest: str) -> str:
        """digest: `sha256:<hex>`."""
        return f"{self._url}/blobs/{digest}"

    async def get_document(self, url: str, *, accept: str = "*/*") -> Document:
        """As `HttpClient.get_document`, with a token if one is wanted."""
        try:
            return await self._http.get_document(url, accept=accept)
        except PermissionDenied as refusal:
            await self._authorize(url, refusal)
            return await self._http.get_document(url, accept=accept)

    async def fetch(self, file: RemoteFile, target: Path, on_bytes: OnBytes) -> str:
        """As `http_fetch.fetch`, with a token if one is wanted, and a new one whenever it has run out meanwhile."""
        may_ask = True

        def arrived(num_bytes: int, size_bytes: int | None) -> None:
            nonlocal may_ask
            may_ask = may_ask or num_bytes > 0
            on_bytes(num_bytes, size_bytes)

        while True:
            try:
                return await fetch(self._http, file, target, arrived)
            except PermissionDenied as refusal:
                if not may_ask:
                    raise
                may_ask = False
                await self._authorize(file.url, refusal)

    async def close(self) -> None:
        """Close connections."""
        await self._http.close()

    async def _authorize(self, url: str, refusal: PermissionDenied) -> None:
        challenge = _parse_challenge(await self._http.challenge(url))
        if "realm" not in challenge:
            raise refusal
        # A client apart, so that not even an old token of this registry comes to where tokens are handed out.
        tokens = HttpClient(limits=self._http.limits)
        try:
            document = await tokens.get_document(_token_url(challenge, origin_of(self._url)))
        finally:
            await tokens.close()
        self._http.authorize(origin_of(self._url), f"Bearer {_parse_token(document.body)}")


def _parse_challenge(header: str) -> dict[str, str]:
    """What `Bearer realm="...",service="...",scope="..."` asks for; empty for anything else."""
    scheme, _, rest = header.partition(" ")
    if scheme.lower() != "bearer":
        return {}
    try:
        return parse_keqv_list(parse_http_list(rest))
    except (ValueError, IndexError):
        return {}


def _token_url(challenge: dict[str, str], origin: str) -> str:
    """Where to ask for a token. Raises PermissionDenied, SourceUnavailable."""
    realm = parse_url(challenge["realm"]).url
    if not realm.startswith("https:") and origin_of(realm) != origin:
        raise PermissionDenied(
            f"{origin} hands out tokens at {origin_of(realm)}, which is not https; it is not asked"
        )
    parts = urlsplit(realm)
    asked: list[tuple[str, str]] = [
        (name, challenge[name]) for name in ("service", "scope") if name in challenge
    ]
    return parts._replace(query=urlencode(parse_qsl(parts.query) + asked)).geturl()


def _parse_token(body: bytes) -> str:
    try:
        answer: Any = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    match answer:
        case {"token": str(token)} | {"access_token": str(token)} if _TOKEN.fullmatch(token):
            return token
        case _:
            raise SourceUnavailable("the registry's token service answers with no token")
