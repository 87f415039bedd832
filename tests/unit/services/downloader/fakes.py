"""Stand-ins for what is outside of the core: a registry, a source whose pace a test sets, an inspector."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from services.downloader.core.models import (
    Facts,
    Finding,
    FindingKind,
    FindingSeverity,
    Format,
    Inspection,
    KnownModel,
    LeftOut,
    ListedVersion,
    ModelKind,
    ModelRecord,
    StoredFile,
    VersionRecord,
)
from services.downloader.core.options import chosen_files
from services.downloader.core.selection import model_files
from services.downloader.core.sources import LocalFile, OnBytes, PullRequest, RemoteFile, Resolved
from services.kit.errors import LaresError, ModelNotAvailable, Unavailable, VersionNotFound
from services.kit.names import model_name, parse_version_name, version_name


class MemoryRegistry:
    """`ModelRegistry`. num_failures: how many of the next calls find nobody there."""

    def __init__(self) -> None:
        self.models: dict[str, ModelRecord] = {}
        self.versions: dict[str, VersionRecord] = {}
        self.num_failures = 0
        self.quarantined: dict[str, str] = {}
        self.current: dict[str, str] = {}
        self.labels: dict[str, dict[str, str]] = {}
        self.bases: dict[str, str] = {}

    async def find_model(self, model_id: str) -> KnownModel | None:
        self._fail()
        model = self.models.get(model_id)
        return KnownModel(model_id, model.source) if model else None

    async def find_version(self, model_id: str, version_id: str) -> VersionRecord | None:
        self._fail()
        name = version_name(model_id, version_id)
        return None if name in self.quarantined else self.versions.get(name)

    async def record(self, model: ModelRecord, version: VersionRecord, *, request_id: str) -> None:
        self._fail()
        self.models.setdefault(model.model_id, model)
        name = version_name(version.model_id, version.version_id)
        self.versions[name] = version
        if self.quarantined.pop(name, None) is None:
            self.current[model_name(version.model_id)] = name

    async def lease_files(self, version: str, artifact_id: str) -> tuple[StoredFile, ...]:
        if version not in self.versions:
            raise VersionNotFound.named(*parse_version_name(version))
        if version in self.quarantined:
            raise ModelNotAvailable(f"{version} is quarantined")
        return self.versions[version].files

    async def referenced(self) -> AsyncIterator[str]:
        for version in list(self.versions.values()):
            for file in version.files:
                yield file.digest

    async def list_versions(self) -> AsyncIterator[ListedVersion]:
        for name, version in list(self.versions.items()):
            yield ListedVersion(
                name=name,
                source=version.source,
                is_adapter=name in self.bases,
                base=self.bases.get(name, ""),
                files=version.files,
                artifacts={},
                is_quarantined=name in self.quarantined,
                state_reason=self.quarantined.get(name, ""),
                labels=self.labels.get(name, {}),
                create_time=datetime(2026, 11, 21, tzinfo=UTC),
                etag="1",
            )

    async def current_versions(self) -> Mapping[str, str]:
        return dict(self.current)

    async def quarantine(self, version: str, reason: str) -> None:
        self._check(version)
        self.quarantined[version] = reason

    async def release(self, version: str, etag: str) -> None:
        self._check(version)
        self.quarantined.pop(version, None)

    async def delete_version(self, version: str, etag: str) -> None:
        self._check(version)
        del self.versions[version]

    def _check(self, version: str) -> None:
        if version not in self.versions:
            raise VersionNotFound.named(*parse_version_name(version))

    def _fail(self) -> None:
        if self.num_failures:
            self.num_failures -= 1
            raise Unavailable("the registry is not there")


class SlowSource:
    """`Source` of one file. It waits for `go` before it fetches; `failure`, if set, is what fetching ends in."""

    def __init__(self, content: bytes = b"weights", *, go: bool = True) -> None:
        self.content = content
        self.failure: LaresError | Exception | None = None
        self.fetching = asyncio.Event()
        self.two_fetching = asyncio.Event()
        self.go = asyncio.Event()
        if go:
            self.go.set()
        self.sha256: str | None = None
        self.tells_size = True
        self.num_fetched = 0

    async def resolve(self, request: PullRequest) -> Resolved:
        ref = request.refs[0]
        revision = ref.revision or "1"
        file = RemoteFile(
            "m.gguf", "http://x/m.gguf", len(self.content) if self.tells_size else None, self.sha256
        )
        return Resolved(str(replace(ref, revision=revision)), revision, revision, (file,))

    async def latest(self, request: PullRequest) -> Resolved | None:
        return None

    async def fetch(self, file: RemoteFile, target: Path, on_bytes: OnBytes) -> str:
        self.num_fetched += 1
        if self.num_fetched == 2:
            self.two_fetching.set()
        target.write_bytes(self.content[:3])
        on_bytes(3, len(self.content))
        self.fetching.set()
        await self.go.wait()
        if self.failure is not None:
            raise self.failure
        target.write_bytes(self.content)
        on_bytes(len(self.content), len(self.content))
        return hashlib.sha256(self.content).hexdigest()

    async def unpack(
        self, request: PullRequest, fetched: Mapping[str, Path], folder: Path
    ) -> Sequence[LocalFile]:
        return [LocalFile(path, local) for path, local in fetched.items()]


class Repository:
    """`Source` of one repository, `hf:org/m`: path -> bytes by commit, and the commit that its main branch has now.

    failure: what asking it ends in.
    """

    def __init__(self, **commits: dict[str, bytes]) -> None:
        self.commits = commits
        self.main = next(iter(commits))
        self.failure: LaresError | None = None
        self.num_asked = 0

    async def resolve(self, request: PullRequest) -> Resolved:
        self.num_asked += 1
        if self.failure is not None:
            raise self.failure
        ref = request.refs[0]
        commit = ref.revision or ""
        files = self.commits[commit]
        return Resolved(
            str(ref),
            commit,
            commit,
            tuple(
                RemoteFile(path, f"{commit}/{path}", len(files[path]))
                for path in chosen_files(list(files), request.options, model_files)
            ),
        )

    async def latest(self, request: PullRequest) -> Resolved:
        ref = replace(request.refs[0], revision=self.main)
        return await self.resolve(replace(request, refs=(ref,)))

    async def fetch(self, file: RemoteFile, target: Path, on_bytes: OnBytes) -> str:
        commit, _, path = file.url.partition("/")
        content = self.commits[commit][path]
        target.write_bytes(content)
        on_bytes(len(content), len(content))
        return hashlib.sha256(content).hexdigest()

    async def unpack(
        self, request: PullRequest, fetched: Mapping[str, Path], folder: Path
    ) -> Sequence[LocalFile]:
        return [LocalFile(path, local) for path, local in fetched.items()]


class TrustingInspector:
    """`Inspector` that takes everything for a GGUF."""

    async def inspect(self, files: Mapping[str, Path], archives: Sequence[Path] = ()) -> Inspection:
        return Inspection(Facts(ModelKind.TEXT_GENERATION, Format.GGUF))

    async def scan(self, left_out: LeftOut) -> Finding:
        return Finding.of(FindingKind.SKIPPED, FindingSeverity.INFO, left_out.path, "left out")

    async def verify(self, signature: Path, keys: Sequence[Path], digests: Mapping[str, str]) -> Finding:
        return Finding.of(FindingKind.SIGNED, FindingSeverity.INFO, "model.sig", "signed")
