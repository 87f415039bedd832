"""`lares:`: a model that another Lares has, over the calls below /hf of its gateway.

    lares:192.168.1.7:7210/smollm2-135m-instruct          the version that answers there
    lares:192.168.1.7:7210/smollm2-135m-instruct:0.1.2    that version

The other house is trusted to say what the model is: nobody vouches for the list of files and digests that it gives,
and over plain HTTP whoever sits in between can give another. Bytes are not trusted: each file must have the size and
the digest that the list says, whatever happened to it on its way. The version keeps its id, so that both houses mean
the same by it.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import quote

import msgspec
from msgspec import Meta

from services.downloader.adapters.http_client import HttpClient, HttpLimits
from services.downloader.adapters.http_fetch import fetch
from services.downloader.adapters.http_small import fetch_small
from services.downloader.core.models import About, Capability, ModelKind
from services.downloader.core.options import chosen_files
from services.downloader.core.paths import check_paths
from services.downloader.core.sources import LocalFile, OnBytes, PullRequest, RemoteFile, Resolved
from services.kit.errors import InvalidReference, SourceUnavailable
from services.kit.names import PROVIDERS, ModelRef, parse_id

_MAX_FILE_BYTES: Final = 2**48

Line = Annotated[str, Meta(max_length=256)]
Language = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9-]{1,35}\Z")]


class _Lfs(msgspec.Struct):
    sha256: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class _Sibling(msgspec.Struct):
    rfilename: str
    size: Annotated[int, Meta(ge=0, le=_MAX_FILE_BYTES)]
    lfs: _Lfs


class _CardData(msgspec.Struct):
    license: Line | None = None


class _Record(msgspec.Struct):
    version: str
    revision: Line
    provider: Line
    kind: Line
    capabilities: Annotated[list[Line], Meta(max_length=256)]
    description: Annotated[str, Meta(max_length=4096)]
    languages: Annotated[list[Language], Meta(max_length=256)]


class _Info(msgspec.Struct):
    """Of what `gateway/hub/answers.py` sends as RepoInfo, what is needed here."""

    sha: Annotated[str, Meta(pattern=r"\A[0-9a-f]{40}\Z")]
    cardData: _CardData
    siblings: list[_Sibling]
    lares: _Record


class LaresSource:
    """See `Source`."""

    def __init__(self, limits: HttpLimits) -> None:
        self._http = HttpClient(limits=limits)

    async def resolve(self, request: PullRequest) -> Resolved:
        """Ask the other Lares for the files of a version."""
        ref = request.refs[0]
        address, _, model_id = ref.name.partition("/")
        hub = f"http://{address}/hf"
        url = f"{hub}/api/models/{model_id}/revision/{ref.revision or 'main'}?blobs=true"
        document = await self._http.get_document(url, accept="application/json")
        info = _parse(document.body, address)
        siblings = {sibling.rfilename: sibling for sibling in info.siblings}
        check_paths(sibling.rfilename for sibling in info.siblings)
        wanted = chosen_files(list(siblings), request.options, list)
        record = info.lares
        return Resolved(
            source=str(ModelRef("lares", ref.name, revision=record.version)),
            revision=record.revision,
            version_id=record.version,
            files=tuple(
                RemoteFile(
                    path=sibling.rfilename,
                    url=f"{hub}/{model_id}/resolve/{info.sha}/{quote(sibling.rfilename)}",
                    size_bytes=sibling.size,
                    sha256=sibling.lfs.sha256,
                )
                for sibling in map(siblings.__getitem__, wanted)
            ),
            about=_about(info),
        )

    async def latest(self, request: PullRequest) -> Resolved:
        """The version that answers there."""
        return await self.resolve(request.unpinned)

    async def fetch(self, file: RemoteFile, target: Path, on_bytes: OnBytes) -> str:
        """Bring a file here; its digest is checked."""
        return await fetch(self._http, file, target, on_bytes)

    async def fetch_small(
        self, files: Mapping[Path, RemoteFile], on_arrived: Callable[[Path], None]
    ) -> dict[Path, str]:
        """Bring many at once."""
        return await fetch_small(self._http, files, on_arrived)

    async def unpack(
        self, request: PullRequest, fetched: Mapping[str, Path], folder: Path
    ) -> Sequence[LocalFile]:
        """They are what they are."""
        return [LocalFile(path, local) for path, local in fetched.items()]

    async def close(self) -> None:
        """Close connections."""
        await self._http.close()


def _parse(body: bytes, address: str) -> _Info:
    try:
        info = msgspec.json.decode(body, type=_Info)
        parse_id(info.lares.version)
    except (msgspec.DecodeError, UnicodeDecodeError, InvalidReference) as error:
        raise SourceUnavailable(
            f"{address} does not answer as a Lares of this release does: {error}"
        ) from error
    return info


def _about(info: _Info) -> About:
    record = info.lares
    known = ModelKind.__members__
    return About(
        provider=record.provider if record.provider in PROVIDERS else "lares",
        kind=known.get(record.kind.upper(), ModelKind.UNSPECIFIED),
        capabilities=tuple(
            Capability[name.upper()] for name in record.capabilities if name.upper() in Capability.__members__
        ),
        description=record.description,
        license=info.cardData.license or "",
        languages=tuple(record.languages),
    )
