"""Old versions of models: which of them go, and what that frees."""

from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from services.downloader.core.blobs import Blobs
from services.downloader.core.garbage import GarbageCollector
from services.downloader.core.ports import ListedVersion, ModelRegistry
from services.kit.errors import EtagMismatch, FieldViolation, ModelInUse, ModelNotFound, NotFound
from services.kit.names import model_name, parse_model_name, parse_version_name

PINNED_LABEL: Final = "pinned"
"""A version with this label stays, whatever its value."""


class KeepReason(IntEnum):
    """Why a version stays. Numbers as in the contract."""

    UNSPECIFIED = 0
    CURRENT = 1
    PINNED = 2
    LEASED = 3
    BASE = 4
    CHANGED = 5


@dataclass(frozen=True, slots=True)
class CleanUp:
    """What went, or would go, and what stays of what is not among the newest."""

    removed: tuple[ListedVersion, ...]
    freed_bytes: int
    kept: tuple[tuple[ListedVersion, KeepReason], ...]


class VersionCleaner:
    """See `clean_up`."""

    def __init__(self, blobs: Blobs, registry: ModelRegistry, garbage: GarbageCollector) -> None:
        self._blobs = blobs
        self._registry = registry
        self._garbage = garbage

    async def clean_up(self, models: Sequence[str], *, num_keep: int, dry_run: bool) -> CleanUp:
        """Delete versions of weights beyond the newest `num_keep`, and collect. models: resource names; none for all.

        What is in use stays, however old. Raises InvalidReference, ModelNotFound.
        """
        wanted = {parse_model_name(name, field="models") for name in models}
        # All versions in one listing: those of other models tell which blobs are shared.
        versions = [version async for version in self._registry.list_versions()]
        current = await self._registry.current_versions()
        _check_known(wanted, current)
        reasons = await self._reasons(versions, current)
        by_model: dict[str, list[ListedVersion]] = defaultdict(list)
        for version in reversed(versions):
            model_id = parse_version_name(version.name)[0]
            if not version.is_adapter and (not wanted or model_id in wanted):
                by_model[model_id].append(version)
        removed: list[ListedVersion] = []
        kept: list[tuple[ListedVersion, KeepReason]] = []
        for model_id in sorted(by_model):
            for version in by_model[model_id][num_keep:]:
                if version.name in reasons:
                    kept.append((version, reasons[version.name]))
                else:
                    removed.append(version)
        sizes = await self._sizes(versions, removed)
        if dry_run:
            return CleanUp(tuple(removed), sum(sizes.values()), tuple(kept))
        gone = [version async for version in self._delete(removed, kept)]
        await self._garbage.collect()
        left = await self._blobs.store.sizes(sizes)
        freed_bytes = sum(size for digest, size in sizes.items() if digest not in left)
        return CleanUp(tuple(gone), freed_bytes, tuple(kept))

    async def _delete(
        self, versions: Sequence[ListedVersion], kept: list[tuple[ListedVersion, KeepReason]]
    ) -> AsyncIterator[ListedVersion]:
        for version in versions:
            try:
                # Once more: it may have been loaded since. A lease that comes later yet keeps its blobs by itself.
                if version.name in await self._leased():
                    kept.append((version, KeepReason.LEASED))
                    continue
                await self._registry.delete_version(version.name, version.etag)
            except NotFound:
                continue  # Somebody else was as quick.
            except (EtagMismatch, ModelInUse):
                kept.append((version, KeepReason.CHANGED))
            else:
                yield version

    async def _reasons(
        self, versions: Sequence[ListedVersion], current: Mapping[str, str]
    ) -> dict[str, KeepReason]:
        """Name of a version that stays -> why: the first of the reasons that it has."""
        leased = await self._leased()
        bases = {version.base for version in versions if version.base}
        answering = set(current.values())
        reasons: dict[str, KeepReason] = {}
        for version in versions:
            if version.name in answering:
                reasons[version.name] = KeepReason.CURRENT
            elif PINNED_LABEL in version.labels:
                reasons[version.name] = KeepReason.PINNED
            elif version.name in leased:
                reasons[version.name] = KeepReason.LEASED
            elif version.name in bases:
                reasons[version.name] = KeepReason.BASE
        return reasons

    async def _leased(self) -> set[str]:
        now = self._blobs.now()
        return {lease.version for lease in await self._blobs.records.leases() if lease.expire_time > now}

    async def _sizes(
        self, versions: Sequence[ListedVersion], removed: Sequence[ListedVersion]
    ) -> dict[str, int]:
        """Digests and bytes of what a collection would free once they are gone; other garbage is not their doing."""
        gone = {version.name for version in removed}
        needed = {
            file.digest for version in versions if version.name not in gone for file in version.all_files
        }
        needed |= await self._blobs.held()
        going = {file.digest for version in removed for file in version.all_files} - needed
        return await self._blobs.store.sizes(going)


def _check_known(wanted: set[str], current: Mapping[str, str]) -> None:
    for model_id in sorted(wanted):
        if model_name(model_id) not in current:
            raise ModelNotFound(
                f"model '{model_id}' is not here; nothing was deleted",
                violations=[FieldViolation("models", f"'{model_id}' is not here")],
                metadata={"model": model_id},
            )
