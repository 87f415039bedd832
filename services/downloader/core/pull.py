"""One pull from its first question to its record: the order in which a model becomes available.

resolve -> fetch -> unpack -> inspect -> verify and store each file -> tell the registry

It can be killed at any point and begun again: what has arrived lies in the ingest folder, what was stored is
stored, and the registry hears of a version only when all of it is.
"""

import asyncio
import contextlib
import functools
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Protocol, TypeVar

from services.downloader.core.blobs import Blobs
from services.downloader.core.catalog import CatalogEntry, Plan
from services.downloader.core.concurrency import each
from services.downloader.core.download import Download, DownloadPhase
from services.downloader.core.models import (
    Facts,
    ModelRecord,
    StoredFile,
    VersionRecord,
)
from services.downloader.core.ports import (
    Arrival,
    Blob,
    Inspector,
    LocalFile,
    ManyFiles,
    ModelRegistry,
    PullRequest,
    RemoteFile,
    Resolved,
    Source,
)
from services.downloader.core.space import Claim
from services.downloader.core.transfers import Transfer, Transfers
from services.kit.errors import (
    CorruptBlob,
    InvalidReference,
    ModelExists,
    Unavailable,
    Unsupported,
)
from services.kit.manifest import manifest_digest
from services.kit.names import ModelRef, version_name

T = TypeVar("T")

_MANIFEST_CHARS: Final = 16
_SMALL_BYTES: Final = 8 * 1024**2
_SMALL_AT_ONCE: Final = 8
_GENERATION_CONFIG: Final = "generation_config.json"
# The registry may be a few seconds behind us when all services start together.
_REGISTRY_ATTEMPTS: Final = 8
_MAX_WAIT_S: Final = 5.0


class Reporter(Protocol):
    """Told how a pull goes on."""

    def enter(self, phase: DownloadPhase) -> None:
        """It begins the next thing."""

    def resolved(self, source: str, files: Sequence[RemoteFile]) -> None:
        """It knows what there is."""

    def arrived(self, index: int, num_bytes: int, size_bytes: int | None) -> None:
        """So much of a file is here."""


@dataclass(frozen=True, slots=True)
class _Fetched:
    """paths: of what came, by its source's name. stored: those that are blobs. sha256s: of the others."""

    paths: dict[str, Path] = field(default_factory=dict)
    stored: dict[Path, Blob] = field(default_factory=dict)
    sha256s: dict[Path, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Puller:
    """What every pull needs. sources: by provider. sleep: for tests."""

    sources: Mapping[str, Source]
    blobs: Blobs
    inspector: Inspector
    registry: ModelRegistry
    transfers: Transfers = field(default_factory=Transfers)
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    async def pull(self, download: Download, plan: Plan, report: Reporter) -> str:
        """Bring a model in. Returns its version's name. Raises any LaresError of its ports, StoreFull, DiskFull."""
        async with self.blobs.space.claim(download.id) as claim:
            try:
                return await self._pull(download, plan, report, claim)
            finally:
                await self.transfers.end(download.id)

    async def _pull(self, download: Download, plan: Plan, report: Reporter, claim: Claim) -> str:
        source = self._source(plan)
        request = PullRequest(plan.refs, plan.layout, download.options)
        report.enter(DownloadPhase.RESOLVING)
        await self._check_origin(plan)
        resolved = await source.resolve(request)
        report.resolved(resolved.source, ())
        if resolved.version_id is not None and await self._is_here(plan.model_id, resolved.version_id):
            # By a run of this very download, perhaps, that was killed before it let go.
            await self.blobs.let_go(download.id)
            return version_name(plan.model_id, resolved.version_id)
        report.resolved(resolved.source, resolved.files)
        report.enter(DownloadPhase.FETCHING)
        await claim.expect(await self._missing_bytes(resolved.files))
        fetched = await self._fetch(source, resolved, download.id, report, claim)
        report.enter(DownloadPhase.UNPACKING)
        folder = await asyncio.to_thread(_empty_folder, self.blobs.store.ingest(download.id))
        locals_ = list(await source.unpack(request, fetched.paths, folder))
        facts = await self.inspector.inspect({file.path: file.local for file in locals_})
        if plan.entry is not None and plan.entry.generation:
            locals_ += await asyncio.to_thread(_recommendation, plan.entry, locals_, folder)
        # Not the archives that they came from: those go before anybody else could want the room.
        claim.unpacked(await asyncio.to_thread(_size_to_store, locals_, fetched))
        report.enter(DownloadPhase.VERIFYING)
        files = await self._store(locals_, fetched, download.id)
        report.enter(DownloadPhase.COMMITTING)
        # Once more: of a large model the first file may have been stored long ago.
        await self.blobs.keep([Blob(file.digest, file.size_bytes) for file in files], keeper=download.id)
        version_id = resolved.version_id or manifest_digest(files)[:_MANIFEST_CHARS]
        await self._record(download, plan, resolved, version_id, facts, files)
        await self.blobs.let_go(download.id)
        return version_name(plan.model_id, version_id)

    def _source(self, plan: Plan) -> Source:
        provider = plan.refs[0].provider
        if provider not in self.sources:
            raise Unsupported(
                f"{provider}: is not a source that this release pulls from; it has {', '.join(self.sources)}"
            )
        return self.sources[provider]

    async def _check_origin(self, plan: Plan) -> None:
        """That a model of that name, if there is one, is the same model. Raises ModelExists."""
        known = await self._asking(lambda: self.registry.find_model(plan.model_id))
        if known is None or _origin(known.source) == _origin(str(plan.refs[0])):
            return
        raise ModelExists(
            f"'{plan.model_id}' is a model from {known.source or 'elsewhere'} already;"
            " pull this one under another id"
        )

    async def _is_here(self, model_id: str, version_id: str) -> bool:
        """Whether that very version is recorded and whole. What is damaged is pulled again, which repairs it."""
        version = await self._asking(lambda: self.registry.find_version(model_id, version_id))
        if version is None:
            return False
        try:
            for file in version.files:
                await self.blobs.store.verify(Blob(file.digest, file.size_bytes))
        except CorruptBlob:
            return False
        return True

    async def _missing_bytes(self, files: Sequence[RemoteFile]) -> int:
        """Bytes of what is not here, as far as the source tells: the rest is counted as it comes."""
        here = await self.blobs.store.sizes({_digest(file) for file in files if file.sha256 is not None})
        return sum(file.size_bytes or 0 for file in files if file.sha256 is None or _digest(file) not in here)

    async def _fetch(
        self, source: Source, resolved: Resolved, name: str, report: Reporter, claim: Claim
    ) -> _Fetched:
        """Into the ingest folder of that name.

        Small files several at once, for each waits mostly; large ones one after another, each with the whole line.
        """
        ingest = self.blobs.store.ingest(name)
        files = resolved.files
        # Numbered, so that no name of theirs becomes one of ours.
        targets = [ingest / f"{index:05}.part" for index in range(len(files))]
        numbers = {target: index for index, target in enumerate(targets)}
        fetched = _Fetched()
        arrivals: dict[int, int] = {}
        total_bytes = 0

        def arrived(index: int, num_bytes: int, size_bytes: int | None) -> None:
            nonlocal total_bytes
            total_bytes += num_bytes - arrivals.get(index, 0)
            arrivals[index] = num_bytes
            claim.arrived(total_bytes)
            report.arrived(index, num_bytes, size_bytes)

        def came(target: Path) -> None:
            size_bytes = files[numbers[target]].size_bytes or 0
            arrived(numbers[target], size_bytes, size_bytes)

        def found(index: int, blob: Blob) -> None:
            targets[index] = self.blobs.store.blob_path(blob.digest)
            fetched.stored[targets[index]] = blob
            report.arrived(index, blob.size_bytes, blob.size_bytes)

        async def store(index: int) -> None:
            nonlocal total_bytes
            sha256 = fetched.sha256s[targets[index]]
            [blob] = await self.blobs.adopt([Arrival(targets[index], sha256=sha256)], keeper=name)
            # It is a blob's room that it takes now.
            total_bytes -= arrivals.pop(index, 0)
            found(index, blob)

        async def bring(index: int) -> None:
            file = files[index]
            transfer = Transfer(name)
            if file.sha256 is not None:
                transfer = await self.transfers.begin(_digest(file), name)
            # Once more: another may have brought it since.
            for blob in (await self._stored([file], name)).values():
                found(index, blob)
                await transfer.end()
                return
            fetched.sha256s[targets[index]] = await source.fetch(
                file, targets[index], functools.partial(arrived, index)
            )
            transfer.arrived(functools.partial(store, index))

        for index, blob in (await self._stored(files, name)).items():
            found(index, blob)
        missing = [index for index, target in enumerate(targets) if target not in fetched.stored]
        if isinstance(source, ManyFiles):
            # Of these nobody waits for another's: that would take longer than to fetch one twice.
            fetched.sha256s.update(
                await source.fetch_small({targets[index]: files[index] for index in missing}, came)
            )
            missing = [index for index in missing if targets[index] not in fetched.sha256s]
        small: list[int] = []
        large: list[int] = []
        for index in missing:
            size_bytes = files[index].size_bytes
            (large if size_bytes is None or size_bytes > _SMALL_BYTES else small).append(index)
        await each(small, bring, at_once=_SMALL_AT_ONCE)
        await each(large, bring, at_once=1)
        await self.transfers.settle(name)
        fetched.paths.update((file.path, target) for file, target in zip(files, targets, strict=True))
        return fetched

    async def _stored(self, files: Sequence[RemoteFile], keeper: str) -> dict[int, Blob]:
        """Of files by their numbers, the blobs that are here and whole: of another model, or from before a kill."""
        digests = {index: _digest(file) for index, file in enumerate(files) if file.sha256 is not None}
        sizes = await self.blobs.keep_present(set(digests.values()), keeper=keeper)
        found = {}
        for index, digest in digests.items():
            if digest in sizes:
                blob = Blob(digest, sizes[digest])
                with contextlib.suppress(CorruptBlob):
                    await self.blobs.store.verify(blob)
                    found[index] = blob
        return found

    async def _store(self, files: Sequence[LocalFile], fetched: _Fetched, keeper: str) -> list[StoredFile]:
        stored = dict(fetched.stored)
        arrivals = [
            Arrival(file.local, sha256=fetched.sha256s.get(file.local))
            for file in files
            if file.local not in stored
        ]
        stored.update(
            zip(
                (arrival.path for arrival in arrivals),
                await self.blobs.adopt(arrivals, keeper=keeper),
                strict=True,
            )
        )
        return [
            StoredFile(file.path, stored[file.local].size_bytes, stored[file.local].digest) for file in files
        ]

    async def _record(
        self,
        download: Download,
        plan: Plan,
        resolved: Resolved,
        version_id: str,
        facts: Facts,
        files: Sequence[StoredFile],
    ) -> None:
        # Again, because somebody else may have taken the name while this was on its way.
        await self._check_origin(plan)
        about = plan.entry or resolved.about
        if about is not None:
            facts = replace(
                facts,
                kind=about.kind or facts.kind,
                capabilities=about.capabilities or facts.capabilities,
            )
        model = ModelRecord(
            model_id=plan.model_id,
            provider=resolved.about.provider if resolved.about else plan.refs[0].provider,
            source=resolved.source,
            facts=facts,
            description=about.description if about else "",
            license=about.license if about else resolved.license,
            languages=about.languages if about else (),
        )
        version = VersionRecord(
            plan.model_id, version_id, resolved.revision, resolved.source, facts, tuple(files)
        )
        await self._asking(lambda: self.registry.record(model, version, request_id=download.id))

    async def _asking(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask the registry, and again while it does not answer. Every question may be repeated."""
        for attempt in range(1, _REGISTRY_ATTEMPTS):
            try:
                return await ask()
            except Unavailable:
                await self.sleep(min(_MAX_WAIT_S, 0.25 * 2.0**attempt))
        return await ask()


def _digest(file: RemoteFile) -> str:
    return f"sha256:{file.sha256}"


def _size_to_store(files: Sequence[LocalFile], fetched: _Fetched) -> int:
    """Bytes of those that are no blobs yet."""
    return sum(file.local.stat().st_size for file in files if file.local not in fetched.stored)


def _recommendation(entry: CatalogEntry, files: Sequence[LocalFile], folder: Path) -> list[LocalFile]:
    """A generation_config.json with what the catalogue knows, unless the package brought its own."""
    if any(file.path == _GENERATION_CONFIG for file in files):
        return []
    made = folder / f"catalogue-{_GENERATION_CONFIG}"
    made.write_text(json.dumps(entry.generation, sort_keys=True) + "\n", "utf-8")
    return [LocalFile(_GENERATION_CONFIG, made)]


def _empty_folder(ingest: Path) -> Path:
    """For what is made of the fetched files. A run that was killed may have left some there."""
    folder = ingest / "unpacked"
    for path in sorted(folder.rglob("*"), reverse=True) if folder.exists() else []:
        path.rmdir() if path.is_dir() else path.unlink()
    folder.mkdir(exist_ok=True)
    return folder


def _origin(source: str) -> str:
    """A reference without its revision; what is none, such as a job's name, stands for itself."""
    try:
        return str(replace(ModelRef.parse(source), revision=None))
    except InvalidReference:
        return source
