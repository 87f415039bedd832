"""One pull from its first question to its record: the order in which a model becomes available.

resolve -> fetch -> unpack -> inspect -> verify and store each file -> tell the registry

It can be killed at any point and begun again: what has arrived lies in the ingest folder, what was stored is
stored, and the registry hears of a version only when all of it is.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Protocol, TypeVar

from services.downloader.core.admission import Admission, most_important
from services.downloader.core.blobs import Blobs
from services.downloader.core.catalog import CatalogEntry, Plan, unpinned
from services.downloader.core.download import Download, DownloadPhase, PullOptions
from services.downloader.core.fetching import Fetched, Fetching
from services.downloader.core.models import (
    Finding,
    Inspection,
    ModelRecord,
    StoredFile,
    VersionRecord,
)
from services.downloader.core.options import narrowed
from services.downloader.core.ports import Arrival, Blob, ModelRegistry
from services.downloader.core.selection import SIGNATURE
from services.downloader.core.sources import LocalFile, PullRequest, RemoteFile, Resolved, Source
from services.downloader.core.space import Claim
from services.downloader.core.transfers import Transfers
from services.kit.errors import (
    CorruptBlob,
    InvalidArgument,
    ModelExists,
    Unavailable,
    Unsupported,
)
from services.kit.manifest import manifest_digest
from services.kit.names import version_name

T = TypeVar("T")

_MANIFEST_CHARS: Final = 16
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
class Puller:
    """What every pull needs. sources: by provider. sleep: for tests. local_sources: for what is on this machine."""

    sources: Mapping[str, Source]
    blobs: Blobs
    admission: Admission
    registry: ModelRegistry
    transfers: Transfers = field(default_factory=Transfers)
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    local_sources: Mapping[str, Source] = field(default_factory=dict)

    async def pull(self, download: Download, plan: Plan, report: Reporter) -> str:
        """Bring a model in. Returns its version's name. Raises any LaresError of its ports, StoreFull, DiskFull."""
        async with self.blobs.space.claim(download.id) as claim:
            try:
                return await self._pull(download, plan, report, claim)
            finally:
                await self.transfers.end(download.id)

    async def _pull(self, download: Download, plan: Plan, report: Reporter, claim: Claim) -> str:
        source = self.source(plan, download.options)
        request = PullRequest(plan.refs, plan.layout, download.options)
        report.enter(DownloadPhase.RESOLVING)
        await self._check_origin(plan)
        resolved = narrowed(await source.resolve(request), download.options)
        report.resolved(resolved.source, ())
        if resolved.version_id is not None and await self._is_here(plan.model_id, resolved.version_id):
            # By a run of this very download, perhaps, that was killed before it let go.
            await self.blobs.let_go(download.id)
            return version_name(plan.model_id, resolved.version_id)
        stated_license = _stated_license(plan, resolved)
        self.admission.check_offer(resolved, stated_license)
        report.resolved(resolved.source, resolved.files)
        report.enter(DownloadPhase.FETCHING)
        shared = [file for file in resolved.files if file.is_shared]
        copied = [file for file in resolved.files if not file.is_shared]
        await claim.expect(await self.missing_bytes(copied), shared_bytes=await self.missing_bytes(shared))
        fetched = await Fetching(
            download.id, resolved.files, source, self.blobs, self.transfers, claim, report.arrived
        ).run()
        report.enter(DownloadPhase.UNPACKING)
        folder = await asyncio.to_thread(_empty_folder, self.blobs.store.ingest(download.id))
        locals_ = list(await source.unpack(request, fetched.paths, folder))
        told = await self.admission.inspect(locals_, resolved, fetched.paths, stated_license)
        brought = {file.path for file in locals_}
        if plan.entry is not None and plan.entry.generation:
            locals_ += await asyncio.to_thread(_recommendation, plan.entry, locals_, folder)
        # Not the archives that they came from: those go before anybody else could want the room.
        claim.unpacked(await asyncio.to_thread(_size_to_store, locals_, fetched))
        report.enter(DownloadPhase.VERIFYING)
        files = await self._store(locals_, fetched, download.id)
        signed = await self._check_signature([file for file in files if file.path in brought])
        report.enter(DownloadPhase.COMMITTING)
        # Once more: of a large model the first file may have been stored long ago.
        await self.blobs.keep([Blob(file.digest, file.size_bytes) for file in files], keeper=download.id)
        version_id = resolved.version_id or manifest_digest(files)[:_MANIFEST_CHARS]
        told = replace(told, findings=most_important([*told.findings, *signed]))
        await self._record(download, plan, resolved, version_id, told, files)
        await self.blobs.let_go(download.id)
        return version_name(plan.model_id, version_id)

    def source(self, plan: Plan, options: PullOptions) -> Source:
        """Where a plan's files come from. Raises Unsupported, InvalidArgument."""
        provider = plan.refs[0].provider
        if options.local_folder:
            if provider not in self.local_sources:
                raise InvalidArgument.at(
                    "options.local_folder", f"must be empty: {provider}: is not taken from a folder"
                )
            return self.local_sources[provider]
        if provider not in self.sources:
            raise Unsupported(
                f"{provider}: is not a source that this release pulls from; it has {', '.join(self.sources)}"
            )
        return self.sources[provider]

    async def _check_origin(self, plan: Plan) -> None:
        """That a model of that name, if there is one, is the same model. Raises ModelExists."""
        known = await self._asking(lambda: self.registry.find_model(plan.model_id))
        if known is None or unpinned(known.source) == unpinned(str(plan.refs[0])):
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

    async def missing_bytes(self, files: Sequence[RemoteFile]) -> int:
        """Bytes of what is not here, as far as the source tells: the rest is counted as it comes."""
        digests = {f"sha256:{file.sha256}" for file in files if file.sha256 is not None}
        here = await self.blobs.store.sizes(digests)
        return sum(file.size_bytes or 0 for file in files if f"sha256:{file.sha256}" not in here)

    async def _store(self, files: Sequence[LocalFile], fetched: Fetched, keeper: str) -> list[StoredFile]:
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

    async def _check_signature(self, files: Sequence[StoredFile]) -> list[Finding]:
        """files: as they came, without any that was made here."""
        digest = next((file.digest for file in files if file.path == SIGNATURE), None)
        signature = None if digest is None else self.blobs.store.blob_path(digest)
        return await self.admission.check_signature(files, signature)

    async def _record(
        self,
        download: Download,
        plan: Plan,
        resolved: Resolved,
        version_id: str,
        told: Inspection,
        files: Sequence[StoredFile],
    ) -> None:
        # Again, because somebody else may have taken the name while this was on its way.
        await self._check_origin(plan)
        about = plan.entry or resolved.about
        facts = told.facts
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
            license=facts.license,
            languages=about.languages if about else (),
        )
        version = VersionRecord(
            plan.model_id,
            version_id,
            resolved.revision,
            resolved.source,
            facts,
            tuple(files),
            told.findings,
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


def _stated_license(plan: Plan, resolved: Resolved) -> str:
    """What is known of the licence before anything is fetched; empty if nothing is."""
    about = plan.entry or resolved.about
    return (about.license if about else "") or resolved.license


def _size_to_store(files: Sequence[LocalFile], fetched: Fetched) -> int:
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
