"""The check for updates: what the sources of models have now, beside the versions that answer.

A model that was pulled by a short name is compared to the catalogue, which names releases that are known to work. A
version that this house has had is never chosen again: whoever went back from it would be brought forward by the next
check.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Final

from services.downloader.core.catalog import Catalog, CatalogEntry
from services.downloader.core.concurrency import each
from services.downloader.core.jobs import DownloadJobs
from services.downloader.core.models import ListedVersion
from services.downloader.core.options import narrowed, narrowing_of
from services.downloader.core.pull import Puller
from services.downloader.core.sources import PullRequest, Resolved
from services.downloader.core.update import Update, UpdateStore, UpdateVerdict
from services.kit.errors import LaresError, ModelNotFound
from services.kit.names import parse_model_name, parse_version_name, version_name

_AT_ONCE: Final = 4


class UpdateChecker:
    """See `check`."""

    def __init__(self, puller: Puller, jobs: DownloadJobs, catalog: Catalog, records: UpdateStore) -> None:
        self._puller = puller
        self._jobs = jobs
        self._catalog = catalog
        self._records = records
        self._downloads = puller.blobs.records
        self._now = puller.blobs.now

    async def check(self, models: Sequence[str], *, pull: bool) -> list[Update]:
        """What there is, by model; written down too. models: resource names, none for all. pull: what is newer.

        Raises InvalidReference, ModelNotFound, Unavailable if the registry does not answer.
        """
        wanted = {parse_model_name(name, field="models") for name in models}
        current = {
            parse_model_name(model): version
            for model, version in (await self._puller.registry.current_versions()).items()
        }
        if missing := sorted(wanted - current.keys()):
            raise ModelNotFound.named(missing[0])
        versions = {version.name: version async for version in self._puller.registry.list_versions()}
        found: dict[str, Update] = {}

        async def check_one(model_id: str) -> None:
            found[model_id] = await self._checked(
                model_id, versions.get(current[model_id]), versions, pull=pull
            )

        await each(sorted(wanted or current), check_one, at_once=_AT_ONCE)
        updates = [found[model_id] for model_id in sorted(found)]
        await self._records.save_updates(updates, are_all=not wanted)
        return updates

    async def page(self, *, after_id: str, limit: int) -> Sequence[Update]:
        """What the last checks found, by model id."""
        return await self._records.updates(after_id=after_id, limit=limit)

    async def due_in(self, interval: timedelta) -> timedelta:
        """Time until all models should be checked again."""
        times = [update.check_time for update in await self._records.updates(after_id="", limit=1000)]
        return max(timedelta(), min(times) + interval - self._now()) if times else timedelta()

    async def _checked(
        self,
        model_id: str,
        current: ListedVersion | None,
        versions: Mapping[str, ListedVersion],
        *,
        pull: bool,
    ) -> Update:
        update = Update(model_id, current.name if current else "", UpdateVerdict.UNKNOWN, self._now())
        if current is None:
            return replace(update, reason="it has no version")
        try:
            return await self._compared(update, current, versions, pull=pull)
        except LaresError as error:
            return replace(update, reason=error.message)

    async def _compared(
        self, update: Update, current: ListedVersion, versions: Mapping[str, ListedVersion], *, pull: bool
    ) -> Update:
        if ":" not in current.source:
            return replace(update, reason="it came from no source that could be asked")
        entry = await self._entry_of(update.model_id, current)
        if entry is not None and str(entry.sources[0]) == current.source:
            return replace(
                update,
                verdict=UpdateVerdict.UP_TO_DATE,
                latest_source=current.source,
                latest_version=current.name,
            )
        plan = self._catalog.plan(entry.model_id if entry else current.source, model_id=update.model_id)
        options = await narrowing_of(current.name, self._downloads)
        request = PullRequest(plan.refs, plan.layout, options)
        source = self._puller.source(plan, options)
        latest = await (source.resolve(request) if entry else source.latest(request))
        version_id = narrowed(latest, options).version_id if latest else None
        if latest is None or version_id is None:
            return replace(update, reason=f"{plan.refs[0].provider}: does not tell what is newer")
        update = replace(
            update,
            latest_source=latest.source,
            latest_version=version_name(update.model_id, version_id),
        )
        if update.latest_version == current.name:
            return replace(update, verdict=UpdateVerdict.UP_TO_DATE)
        if reason := await self._why_held_back(update, versions):
            return replace(update, verdict=UpdateVerdict.HELD_BACK, reason=reason)
        update = replace(update, verdict=UpdateVerdict.AVAILABLE, download_bytes=await self._bytes_of(latest))
        if not pull:
            return update
        download = await self._jobs.create(
            entry.model_id if entry else latest.source, model_id=update.model_id, options=options
        )
        return replace(update, download=download.name)

    async def _entry_of(self, model_id: str, version: ListedVersion) -> CatalogEntry | None:
        """The catalogue's, unless somebody asked for that very version by its reference."""
        entry = self._catalog.entry_of(model_id, version.source)
        download = await self._downloads.download_of_version(version.name)
        return None if entry and download and download.source != entry.model_id else entry

    async def _why_held_back(self, update: Update, versions: Mapping[str, ListedVersion]) -> str:
        """Empty if nothing speaks against it."""
        version_id = parse_version_name(update.latest_version)[1]
        there = versions.get(update.latest_version)
        if there is not None and there.is_quarantined:
            return f"{version_id} is here, in quarantine: {there.state_reason}"
        if there is not None:
            return f"{version_id} is here; `lares rollback {update.model_id} --to {version_id}` chooses it"
        if await self._downloads.download_of_version(update.latest_version) is not None:
            return (
                f"{version_id} was here and was removed;"
                f" `lares pull {update.latest_source} --name {update.model_id}` brings it back"
            )
        return ""

    async def _bytes_of(self, resolved: Resolved) -> int | None:
        if any(file.size_bytes is None for file in resolved.files):
            return None
        return await self._puller.missing_bytes(resolved.files)
