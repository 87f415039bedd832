"""Leases: a folder with a version's files, which nobody takes away while the lease is renewed."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Final

from services.downloader.core.blobs import Blobs
from services.downloader.core.ids import new_id
from services.downloader.core.models import StoredFile
from services.downloader.core.ports import Blob, Lease, ModelRegistry
from services.kit.errors import CorruptBlob, InvalidArgument, LeaseNotFound
from services.kit.manifest import manifest_digest
from services.kit.names import parse_id, parse_version_name, resource_name

DEFAULT_TTL: Final = timedelta(minutes=5)
MIN_TTL: Final = timedelta(seconds=1)
MAX_TTL: Final = timedelta(hours=1)
MAX_HOLDER_CHARS: Final = 128


class Leases:
    """Gives them out, renews them, takes them back."""

    def __init__(self, blobs: Blobs, registry: ModelRegistry) -> None:
        self._blobs = blobs
        self._registry = registry

    async def create(
        self, version: str, *, artifact_id: str = "", holder: str = "", ttl: timedelta | None = None
    ) -> tuple[Lease, Path]:
        """A lease, and the folder it is on. version: its resource name.

        Raises InvalidReference, InvalidArgument, ModelNotFound, VersionNotFound, ModelNotAvailable, CorruptBlob.
        """
        parse_version_name(version, field="version")
        if artifact_id:
            parse_id(artifact_id, field="artifact_id")
        if len(holder) > MAX_HOLDER_CHARS or not holder.isprintable():
            raise InvalidArgument.at("holder", f"must be at most {MAX_HOLDER_CHARS} printable characters")
        ttl = _checked_ttl(ttl)
        files = await self._registry.lease_files(version, artifact_id)
        lease = Lease(
            id=new_id(),
            version=version,
            artifact_id=artifact_id,
            holder=holder,
            manifest=manifest_digest(files),
            digests=tuple(file.digest for file in files),
            expire_time=self._blobs.now() + ttl,
        )
        # Recorded first: from here on garbage collection leaves the blobs alone.
        async with self._blobs.lock:
            await self._blobs.records.save_lease(lease)
        try:
            for file in files:
                await self._check(version, file)
            async with self._blobs.lock:
                path = await self._blobs.store.open_view(lease.manifest, files)
        except BaseException:
            await self._blobs.records.delete_lease(lease.id)
            raise
        return lease, path

    async def renew(self, name: str, *, ttl: timedelta | None = None) -> tuple[Lease, Path]:
        """Make it last that long from now. Raises LeaseNotFound if it has ended."""
        ttl = _checked_ttl(ttl)
        lease_id = _parse_lease_name(name)
        async with self._blobs.lock:
            lease = await self._blobs.records.lease(lease_id)
            if lease is None or lease.expire_time <= self._blobs.now():
                raise LeaseNotFound.named(name)
            lease = replace(lease, expire_time=self._blobs.now() + ttl)
            await self._blobs.records.save_lease(lease)
        return lease, self._blobs.store.view_path(lease.manifest)

    async def delete(self, name: str) -> None:
        """Give it back. Raises LeaseNotFound."""
        if not await self._blobs.records.delete_lease(_parse_lease_name(name)):
            raise LeaseNotFound.named(name)

    async def _check(self, version: str, file: StoredFile) -> None:
        try:
            await self._blobs.store.check(Blob(file.digest, file.size_bytes))
        except CorruptBlob as error:
            raise CorruptBlob(
                f"{file.path} of {version}: {error.message}; pull the model again to repair it",
                metadata={"file": file.path, "digest": file.digest, "version": version},
            ) from error


def lease_name(lease_id: str) -> str:
    """`leases/{lease}`."""
    return resource_name("leases/{lease}", lease_id)


def _parse_lease_name(name: str) -> str:
    collection, _, lease_id = name.partition("/")
    if collection != "leases":
        raise LeaseNotFound.named(name)
    return parse_id(lease_id)


def _checked_ttl(ttl: timedelta | None) -> timedelta:
    if ttl is None:
        return DEFAULT_TTL
    if not MIN_TTL <= ttl <= MAX_TTL:
        raise InvalidArgument.at("ttl", "must be 1 s to 1 h")
    return ttl
