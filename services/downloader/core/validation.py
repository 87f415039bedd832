"""Validation: every byte of versions read again, and what follows from it.

A file that is not what was recorded takes every version that has it out of service first, and is put aside after
that, so that nothing serves it. Nothing is locked while bytes are read: a blob that was replaced meanwhile, by a pull
that repairs it, is read once more.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing

from services.downloader.core.blobs import Blobs
from services.downloader.core.catalog import Catalog
from services.downloader.core.download import DownloadState
from services.downloader.core.findings import Event, Progress, ValidatedVersion, VersionVerdict
from services.downloader.core.jobs import DownloadJobs
from services.downloader.core.models import ListedVersion
from services.downloader.core.options import narrowing_of
from services.downloader.core.ports import Blob, ModelRegistry
from services.downloader.core.validation_run import Pace, ValidationRun, blob_of
from services.kit.errors import FailedPrecondition, LaresError, ModelNotFound, VersionNotFound
from services.kit.names import parse_model_name, parse_version_name


class Validator:
    """See `validate`. sleep, clock_s: for tests."""

    def __init__(
        self,
        blobs: Blobs,
        registry: ModelRegistry,
        jobs: DownloadJobs,
        catalog: Catalog,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._blobs = blobs
        self._registry = registry
        self._jobs = jobs
        self._catalog = catalog
        self._sleep = sleep
        self._clock_s = clock_s
        self._is_running = False

    async def validate(
        self, names: Sequence[str], *, repair: bool = False, max_bytes_per_second: int = 0
    ) -> AsyncGenerator[Event, None]:
        """Events as they come; the last is the summary. names: of models or versions; none for the whole store.

        Raises InvalidReference, ModelNotFound, VersionNotFound, FailedPrecondition if another one is under way.
        """
        if self._is_running:
            raise FailedPrecondition(
                "another validation of this store is under way; let it end, or interrupt it"
            )
        self._is_running = True
        try:
            with self._blobs.noted_adoptions() as adopted:
                versions = [version async for version in self._registry.list_versions()]
                run = ValidationRun(
                    versions,
                    self._blobs,
                    self._registry,
                    adopted,
                    Pace(max_bytes_per_second, self._sleep, self._clock_s),
                )
                chosen = _chosen(versions, names)
                orphans = [] if names else await run.orphans()
                async with aclosing(self._events(run, chosen, orphans, repair=repair)) as events:
                    async for event in events:
                        yield event
        finally:
            self._is_running = False

    async def _events(
        self, run: ValidationRun, chosen: Sequence[ListedVersion], orphans: Sequence[Blob], *, repair: bool
    ) -> AsyncGenerator[Event, None]:
        to_read = [
            (version.name, file.path, blob_of(file)) for version in chosen for file in version.all_files
        ]
        to_read += [("", blob.digest, blob) for blob in orphans]
        run.expect({blob for _, _, blob in to_read})
        # At once, so that a caller knows that it has begun: the first file may be a long one.
        yield run.progress("", "")
        for version_name, path, blob in to_read:
            async with aclosing(run.read(version_name, path, blob)) as events:
                async for event in events:
                    yield event
        damaged = []
        for version in (*chosen, *run.bystanders(chosen)):
            verdict = await run.settled(version)
            if verdict.verdict is VersionVerdict.QUARANTINED and repair:
                damaged.append((version, verdict))
            else:
                run.summary.count_version(verdict.verdict)
                yield verdict
        for version, verdict in damaged:
            async with aclosing(self._repaired(run, version, verdict.reason)) as steps:
                async for step in steps:
                    if isinstance(step, ValidatedVersion):
                        run.summary.count_version(step.verdict)
                    yield step
        yield run.summary

    async def _repaired(
        self, run: ValidationRun, version: ListedVersion, reason: str
    ) -> AsyncGenerator[Progress | ValidatedVersion, None]:
        """Its download's progress, then its verdict."""
        download_name = ""
        # Another version may have brought back what they share.
        if not await run.is_mended(version):
            try:
                if not run.is_downloadable(version):
                    raise FailedPrecondition(
                        f"{reason}; that was made here and is not downloaded: delete the version and make it anew"
                    )
                model_id = parse_version_name(version.name)[0]
                source = self._catalog.source_of(model_id, version.source)
                options = await narrowing_of(version.name, self._blobs.records)
                download = await self._jobs.create(source, model_id=model_id, options=options)
                download_name = download.name
                async with aclosing(self._jobs.watch(download.id)) as watch:
                    async for _, download in watch:
                        yield Progress(
                            version.name, download_name, download.completed_bytes, download.total_bytes or 0
                        )
                        if download.state is DownloadState.PAUSED:
                            break
                if download.failure is not None:
                    reason = f"{reason}; its download failed: {download.failure.message}"
                elif download.state is not DownloadState.SUCCEEDED:
                    reason = f"{reason}; its download was {download.state.name.lower()}"
            except LaresError as error:
                reason = error.message
        yield await run.settled_again(version, reason, download_name)


def _chosen(versions: Sequence[ListedVersion], names: Sequence[str]) -> list[ListedVersion]:
    """Raises InvalidReference, ModelNotFound, VersionNotFound."""
    if not names:
        return list(versions)
    wanted: set[str] = set()
    for name in names:
        if name.count("/") > 1:
            model_id, version_id = parse_version_name(name, field="names")
            found = {version.name for version in versions if version.name == name}
            if not found:
                raise VersionNotFound.named(model_id, version_id)
        else:
            model_id = parse_model_name(name, field="names")
            found = {version.name for version in versions if version.name.startswith(f"{name}/")}
            if not found:
                raise ModelNotFound.named(model_id)
        wanted |= found
    return [version for version in versions if version.name in wanted]
