"""`hf:`: a repository of the Hugging Face Hub, or of what speaks its API.

huggingface_hub tells what there is, at one pinned commit; the bytes are fetched by our own hands, because they have to
be resumed over a restart and checked, whatever arrives.
"""

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx2

from services.downloader.adapters.http_client import MAX_DOCUMENT_BYTES, HttpClient, HttpLimits
from services.downloader.adapters.http_fetch import fetch
from services.downloader.adapters.http_small import fetch_small, git_id_of
from services.downloader.core.ids import as_id
from services.downloader.core.models import LeftOut
from services.downloader.core.options import chosen_files
from services.downloader.core.paths import check_paths
from services.downloader.core.selection import hub_files, left_out
from services.downloader.core.sources import LocalFile, OnBytes, PullRequest, RemoteFile, Resolved
from services.downloader.core.urls import follow, origin_of
from services.kit.errors import DigestMismatch, PermissionDenied, SourceNotFound, SourceUnavailable, Unpinned
from services.kit.names import ModelRef

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_COMMIT_CHARS: Final = 12


class HfSource:
    """See `Source`. endpoint: of the hub, empty for huggingface_hub's own default. token: sent to that host only."""

    def __init__(self, endpoint: str, token: str, limits: HttpLimits) -> None:
        self._endpoint = endpoint.rstrip("/") or None
        self._token = token
        self._limits = limits
        self._client: HttpClient | None = None

    async def resolve(self, request: PullRequest) -> Resolved:
        """Ask the hub for the files of one commit. Raises Unpinned, with the commit to ask for, for a branch."""
        ref = request.refs[0]
        info, commit = await self._commit(ref)
        pinned = replace(ref, revision=commit)
        if not COMMIT.fullmatch(ref.revision or ""):
            raise Unpinned(
                f"'{ref}' names no commit, so what it is may change; pull {pinned}, which it is now",
                metadata={"source": str(pinned)},
            )
        if ref.revision != commit:
            raise SourceUnavailable(f"the hub answers for {ref} with the commit {commit}")
        return self._resolved(request, info, commit)

    async def latest(self, request: PullRequest) -> Resolved:
        """The commit that the repository's main branch points to."""
        request = request.unpinned
        return self._resolved(request, *await self._commit(request.refs[0]))

    async def fetch(self, file: RemoteFile, target: Path, on_bytes: OnBytes) -> str:
        """Bring a file here."""
        sha256 = await fetch(self._http(), file, target, on_bytes)
        if file.git_id is not None:
            await asyncio.to_thread(_check_git_id, file.path, target, file.git_id)
        return sha256

    async def fetch_small(
        self, files: Mapping[Path, RemoteFile], on_arrived: Callable[[Path], None]
    ) -> dict[Path, str]:
        """Bring many at once."""
        return await fetch_small(self._http(), files, on_arrived)

    async def unpack(
        self, request: PullRequest, fetched: Mapping[str, Path], folder: Path
    ) -> Sequence[LocalFile]:
        """They are what they are."""
        return [LocalFile(path, local) for path, local in fetched.items()]

    async def close(self) -> None:
        """Close connections."""
        if self._client is not None:
            await self._client.close()

    async def _commit(self, ref: ModelRef) -> "tuple[ModelInfo, str]":
        info = await asyncio.to_thread(self._model_info, ref)
        if not COMMIT.fullmatch(info.sha or ""):
            raise SourceUnavailable(f"the hub does not say which commit {ref} is")
        return info, info.sha or ""

    def _resolved(self, request: PullRequest, info: "ModelInfo", commit: str) -> Resolved:
        from huggingface_hub import hf_hub_url

        ref = request.refs[0]
        siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
        names = chosen_files(list(siblings), request.options, lambda paths: hub_files(paths, ref.tag))
        check_paths(names)
        return Resolved(
            source=str(replace(ref, revision=commit)),
            revision=commit,
            version_id=version_id_of(ref, commit),
            files=tuple(
                RemoteFile(
                    path=name,
                    url=hf_hub_url(ref.name, name, revision=commit, endpoint=self._endpoint),
                    size_bytes=siblings[name].size,
                    # Of small files the hub knows no sha256, only what git calls them.
                    sha256=lfs.sha256 if (lfs := siblings[name].lfs) is not None else None,
                    git_id=siblings[name].blob_id if lfs is None else None,
                )
                for name in names
            ),
            license=_license(info),
            left_out=tuple(LeftOut(name) for name in left_out(list(siblings))),
        )

    def _http(self) -> HttpClient:
        if self._client is None:
            from huggingface_hub import constants

            endpoint = self._endpoint or constants.ENDPOINT
            credentials = {origin_of(endpoint): f"Bearer {self._token}"} if self._token else {}
            self._client = HttpClient(limits=self._limits, credentials=credentials)
        return self._client

    def _model_info(self, ref: ModelRef) -> "ModelInfo":
        # Imported when a hub is really asked: it is large, and most pulls need none.
        from huggingface_hub import HfApi, set_client_factory
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            HFValidationError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        set_client_factory(self._capped_client)
        # False, because None would mean a token that somebody left on this machine.
        api = HfApi(endpoint=self._endpoint, token=self._token or False, library_name="lares")
        try:
            return api.model_info(
                ref.name,
                revision=ref.revision,
                files_metadata=True,
                timeout=self._limits.stall_timeout_s,
            )
        except GatedRepoError as error:
            raise PermissionDenied(
                f"{ref} is gated: accept its terms on the hub, then set HF_TOKEN for this service"
            ) from error
        except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
            raise SourceNotFound(
                f"the hub has no {ref}; check its spelling and revision, and HF_TOKEN if it is private"
            ) from error
        except (HfHubHTTPError, httpx2.HTTPError, OSError, ValueError) as error:
            raise SourceUnavailable(f"the hub does not answer for {ref} ({type(error).__name__})") from error

    def _capped_client(self) -> httpx2.Client:
        """What huggingface_hub speaks HTTP with: as its own, but it reads no more than metadata can have."""
        return httpx2.Client(
            headers={"Accept-Encoding": "identity"},
            event_hooks={"response": [_check_redirect, _cap]},
            follow_redirects=True,
            max_redirects=5,
            verify=self._limits.tls(),
            timeout=self._limits.stall_timeout_s,
        )


def _license(info: "ModelInfo") -> str:
    """As the card says it: by one name or several, or by one that the hub's list lacks."""
    # Written by whoever published the model: the library's types are a hope.
    card: Any = info.card_data
    stated = None if card is None else card.license
    if stated == "other":
        stated = card.license_name or stated
    return " AND ".join(map(str, stated)) if isinstance(stated, list) else str(stated or "")


def version_id_of(ref: ModelRef, commit: str) -> str:
    """Id of the version that a reference is at a commit."""
    short = commit[:_COMMIT_CHARS]
    return as_id(f"{ref.tag}-{short}" if ref.tag else short)


class _CappedStream(httpx2.SyncByteStream):
    def __init__(self, stream: httpx2.SyncByteStream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        num_bytes = 0
        for chunk in self._stream:
            num_bytes += len(chunk)
            if num_bytes > MAX_DOCUMENT_BYTES:
                raise SourceUnavailable(
                    f"the hub answers with more than {MAX_DOCUMENT_BYTES} bytes of metadata"
                )
            yield chunk

    def close(self) -> None:
        self._stream.close()


def _check_redirect(response: httpx2.Response) -> None:
    """httpx takes the token off a redirect to another host, but would follow one from https to http."""
    if response.has_redirect_location:
        follow(str(response.url), response.headers["location"])


def _cap(response: httpx2.Response) -> None:
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise SourceUnavailable("the hub answers compressed, which was not asked for")
    if isinstance(response.stream, httpx2.SyncByteStream):
        response.stream = _CappedStream(response.stream)


def _check_git_id(path: str, file: Path, git_id: str) -> None:
    """Raises DigestMismatch."""
    if git_id_of(file.read_bytes()) != git_id:
        file.unlink()
        raise DigestMismatch(f"{path} is not what the hub's commit holds; nothing of it was kept")
