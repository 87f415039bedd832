"""What this house requires: models that are to be here, whoever asks or does not."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from services.downloader.core.catalog import Catalog, Plan, unpinned
from services.downloader.core.download import DownloadState
from services.downloader.core.jobs import MAX_QUEUED, DownloadJobs
from services.downloader.core.models import ListedVersion
from services.downloader.core.options import is_narrowed_id
from services.downloader.core.ports import ModelRegistry
from services.kit.errors import InvalidArgument, LaresError
from services.kit.names import parse_version_name


class RequiredState(IntEnum):
    """Whether a required model is here. Numbers as in the contract."""

    UNSPECIFIED = 0
    PRESENT = 1
    PULLING = 2
    MISSING = 3


@dataclass(frozen=True, slots=True)
class RequiredModel:
    """One of them. source: as the setting names it; version and download: resource names, or empty."""

    source: str
    model_id: str
    state: RequiredState
    version: str = ""
    download: str = ""


class Requirements:
    """See `ensure`. required: short names or references. Raises InvalidArgument for one that is neither."""

    def __init__(
        self, required: Sequence[str], catalog: Catalog, jobs: DownloadJobs, registry: ModelRegistry
    ) -> None:
        try:
            self._plans = [(source, catalog.plan(source)) for source in required]
        except LaresError as error:
            raise InvalidArgument.at("downloader.required", error.message) from error
        self._jobs = jobs
        self._registry = registry

    async def ensure(self, *, dry_run: bool) -> list[RequiredModel]:
        """How each stands, in their order, once downloads of what is missing have begun. dry_run: they are not begun.

        A version that is recorded as available counts; its bytes are not read. Raises Unavailable, QueueFull.
        """
        versions = [version async for version in self._registry.list_versions()]
        active = [DownloadState.QUEUED, DownloadState.RUNNING]
        downloads = await self._jobs.page(active, before_id=None, limit=MAX_QUEUED)
        models = []
        for source, plan in self._plans:
            model = RequiredModel(source, plan.model_id, RequiredState.MISSING)
            under_way = [
                each.name
                for each in downloads
                if (each.source, each.model_id) == (plan.source, plan.model_id)
                and not each.options.is_narrowed
            ]
            if found := _version_of(plan, versions):
                model = RequiredModel(source, plan.model_id, RequiredState.PRESENT, version=found)
            elif under_way:
                model = RequiredModel(source, plan.model_id, RequiredState.PULLING, download=under_way[0])
            elif not dry_run:
                download = await self._jobs.create(source)
                model = RequiredModel(source, plan.model_id, RequiredState.PULLING, download=download.name)
            models.append(model)
        return models


def _version_of(plan: Plan, versions: Iterable[ListedVersion]) -> str:
    """Name of the newest version that is what a plan brings, or empty."""
    ref = plan.refs[0]
    found = ""
    for version in versions:
        model_id, version_id = parse_version_name(version.name)
        is_its = version.source == str(ref) if ref.revision else unpinned(version.source) == str(ref)
        is_whole = not (version.is_quarantined or version.is_adapter or is_narrowed_id(version_id))
        if model_id == plan.model_id and is_its and is_whole:
            found = version.name
    return found
