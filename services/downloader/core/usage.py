"""What the store holds, by what it is for."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from services.downloader.core.blobs import Blobs
from services.downloader.core.ports import Area, Disk, ModelRegistry
from services.kit.names import model_name, parse_version_name


@dataclass(frozen=True, slots=True)
class Share:
    """A part of it."""

    count: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ModelUsage:
    """What a model takes. model: resource name; shared_bytes: those of size_bytes that other models need too."""

    model: str
    num_versions: int
    size_bytes: int
    shared_bytes: int


@dataclass(frozen=True, slots=True)
class StoreUsage:
    """used_bytes: what the limit counts; limit_bytes: 0 for none; reserve_bytes: to stay free on the disk."""

    referenced: Share
    unreferenced: Share
    partial: Share
    views: Share
    quarantine: Share
    used_bytes: int
    limit_bytes: int
    reserve_bytes: int
    disk: Disk
    models: tuple[ModelUsage, ...]


async def store_usage(blobs: Blobs, registry: ModelRegistry, *, num_models: int) -> StoreUsage:
    """num_models: how many of the largest models to list. Raises Unavailable if the registry does not answer."""
    store = blobs.store
    sizes = {blob.digest: blob.size_bytes for blob in await store.blobs()}
    digests_of: dict[str, set[str]] = defaultdict(set)
    num_versions: Counter[str] = Counter()
    async for version in registry.list_versions():
        model = model_name(parse_version_name(version.name)[0])
        num_versions[model] += 1
        digests_of[model].update(file.digest for file in version.all_files)
    num_models_with = Counter(digest for digests in digests_of.values() for digest in digests)
    models = [
        ModelUsage(
            model,
            num_versions[model],
            sum(sizes.get(digest, 0) for digest in digests),
            sum(sizes.get(digest, 0) for digest in digests if num_models_with[digest] > 1),
        )
        for model, digests in digests_of.items()
    ]
    return StoreUsage(
        referenced=_share(size for digest, size in sizes.items() if digest in num_models_with),
        unreferenced=_share(size for digest, size in sizes.items() if digest not in num_models_with),
        partial=await _measured(blobs, Area.INGEST, await store.ingests()),
        views=await _measured(blobs, Area.VIEW, await store.views()),
        quarantine=_share(blob.size_bytes for blob in await store.quarantined()),
        used_bytes=await blobs.space.used_bytes(),
        limit_bytes=blobs.space.limits.max_store_bytes,
        reserve_bytes=blobs.space.reserve_bytes,
        disk=store.disk(),
        models=tuple(sorted(models, key=lambda each: (-each.size_bytes, each.model))[:num_models]),
    )


async def _measured(blobs: Blobs, area: Area, names: Iterable[str]) -> Share:
    found = [await blobs.store.measure(area, name) for name in names]
    return _share(measure.size_bytes for measure in found if measure is not None)


def _share(sizes: Iterable[int]) -> Share:
    listed = list(sizes)
    return Share(len(listed), sum(listed))
