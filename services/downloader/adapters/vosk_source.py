"""`vosk:`: models of Vosk's public catalogue, which come as zips."""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from services.downloader.adapters.http_client import HttpClient, HttpLimits
from services.downloader.adapters.http_fetch import fetch
from services.downloader.core.ids import as_id
from services.downloader.core.sources import LocalFile, OnBytes, PullRequest, RemoteFile, Resolved, Unpacker
from services.downloader.core.urls import follow
from services.downloader.core.vosk_catalog import PREFIX, choose, parse_list
from services.kit.errors import DigestMismatch, InvalidReference

_MD5_CHARS = 8


class VoskSource:
    """See `Source`. endpoint: of the folder in which `model-list.json` lies."""

    def __init__(self, endpoint: str, unpacker: Unpacker, limits: HttpLimits) -> None:
        self._list_url = f"{endpoint.rstrip('/')}/model-list.json"
        self._unpacker = unpacker
        self._http = HttpClient(limits=limits)

    async def resolve(self, request: PullRequest) -> Resolved:
        """Look the model up in the catalogue."""
        ref = request.refs[0]
        if ref.tag is not None:
            raise InvalidReference(f"'{ref}' must have no tag: write vosk:LANGUAGE or vosk:NAME")
        document = await self._http.get_document(self._list_url, accept="application/json")
        model = choose(parse_list(document.body), ref)
        # What follow() refuses in a redirect is refused here too: a list that came by TLS leads to no plain http.
        url = follow(self._list_url, model.url)
        file = RemoteFile(f"{PREFIX}{model.name}.zip", url, model.size_bytes, md5=model.md5)
        return Resolved(
            source=str(replace(ref, revision=model.name)),
            revision=model.name,
            # A name alone would hide that another file was put there under it.
            version_id=as_id(f"{model.name}-{model.md5[:_MD5_CHARS]}"),
            files=(file,),
        )

    async def latest(self, request: PullRequest) -> Resolved:
        """The newest small model of the language; of a model that was asked for by name, that one."""
        return await self.resolve(request.unpinned)

    async def fetch(self, file: RemoteFile, target: Path, on_bytes: OnBytes) -> str:
        """Bring a zip here. The catalogue has but an md5; of the files in it the store takes the sha256."""
        sha256 = await fetch(self._http, file, target, on_bytes)
        await asyncio.to_thread(_check_md5, file, target)
        return sha256

    async def unpack(
        self, request: PullRequest, fetched: Mapping[str, Path], folder: Path
    ) -> Sequence[LocalFile]:
        """Take the model out of its zip."""
        paths = await self._unpacker.unpack(list(fetched.values()), "zip", folder)
        return [LocalFile(path, folder / path) for path in paths]

    async def close(self) -> None:
        """Close connections."""
        await self._http.close()


def _check_md5(file: RemoteFile, target: Path) -> None:
    with target.open("rb") as opened:
        found = hashlib.file_digest(opened, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != file.md5:
        target.unlink()
        raise DigestMismatch(
            f"{file.path} has the md5 {found} instead of the catalogue's {file.md5}; nothing of it was kept"
        )
