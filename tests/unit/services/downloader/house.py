"""A downloader's core with fakes around it, and a clock that a test moves."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

from services.downloader.core.admission import Admission, Policy
from services.downloader.core.blobs import Blobs
from services.downloader.core.catalog import Catalog
from services.downloader.core.cleanup import VersionCleaner
from services.downloader.core.download import DEFAULT_OPTIONS, Download, PullOptions
from services.downloader.core.garbage import GarbageCollector
from services.downloader.core.jobs import DownloadJobs
from services.downloader.core.leases import Leases
from services.downloader.core.models import Facts, Format, ModelKind, ModelRecord, StoredFile, VersionRecord
from services.downloader.core.ports import BlobStore
from services.downloader.core.pull import Puller
from services.downloader.core.sources import Source
from services.downloader.core.space import SpaceLimits
from services.downloader.core.update_check import UpdateChecker
from services.downloader.core.validation import Validator
from services.kit.names import version_name
from tests.contract.memory_blob_store import MemoryBlobStore
from tests.contract.memory_download_store import MemoryDownloadStore
from tests.unit.services.downloader.fakes import MemoryRegistry, Repository, SlowSource, TrustingInspector

FACTS = Facts(ModelKind.TEXT_GENERATION, Format.GGUF)


class House:
    """A store with everything that takes care of it. store: the one in memory, if none is given."""

    def __init__(
        self,
        folder: Path,
        *,
        store: BlobStore | None = None,
        limits: SpaceLimits | None = None,
        pulled_from: Source | None = None,
        catalog: str = "",
    ) -> None:
        self.time = datetime(2026, 11, 21, tzinfo=UTC)
        self.store = store or MemoryBlobStore(folder, now=lambda: self.time)
        self.records = MemoryDownloadStore()
        self.registry = MemoryRegistry()
        self.source = SlowSource()
        self.repository = Repository(c1={"m.gguf": b"first", "big.bin": b"x", "notes.txt": b"1"})
        self.blobs = Blobs(self.store, self.records, limits=limits, now=lambda: self.time)
        self.leases = Leases(self.blobs, self.registry)
        self.garbage = GarbageCollector(self.blobs, self.registry)
        self.blobs.space.reclaimable = self.garbage.reclaimable_bytes
        self.cleaner = VersionCleaner(self.blobs, self.registry, self.garbage)
        self.puller = Puller(
            {"pypi": pulled_from or self.source, "hf": self.repository, "https": self.source},
            self.blobs,
            Admission(TrustingInspector(), Policy()),
            self.registry,
        )
        self.catalog = Catalog.parse(catalog)
        self.jobs = DownloadJobs(self.puller, self.catalog, self.records, max_concurrent=4)
        self.updates = UpdateChecker(self.puller, self.jobs, self.catalog, self.records)
        self.validator = Validator(self.blobs, self.registry, self.jobs, self.catalog)

    async def write(self, content: bytes, path: str = "model.gguf") -> StoredFile:
        """Bytes that nobody refers to yet."""
        written = await self.blobs.write(chunks(content), size_bytes=len(content), digest="")
        return StoredFile(path, written.blob.size_bytes, written.blob.digest)

    async def pull(self, source: str, model_id: str = "m", options: PullOptions = DEFAULT_OPTIONS) -> str:
        """Returns the version's name."""
        done = await self.ended(await self.jobs.create(source, model_id=model_id, options=options))
        assert done.version, done.failure
        return done.version

    async def ended(self, download: Download) -> Download:
        """As it was in the end."""
        async for _, seen in self.jobs.watch(download.id):
            download = seen
        return download

    async def record(self, model_id: str, *files: StoredFile, version_id: str = "1", source: str = "") -> str:
        """A version of these files, which answers from now on. Returns its name."""
        model = ModelRecord(model_id, "file", source, FACTS)
        version = VersionRecord(model_id, version_id, "", source, FACTS, files)
        await self.registry.record(model, version, request_id="")
        return version_name(model_id, version_id)


async def chunks(*contents: bytes) -> AsyncIterator[bytes]:
    """As a caller sends them."""
    for content in contents:
        yield content


def damage(store: BlobStore, digest: str, content: bytes | None) -> None:
    """Change a blob where it lies, as a failing disk does; None: it is gone."""
    if isinstance(store, MemoryBlobStore):
        if content is None:
            del store.bytes_of[digest]
        else:
            store.bytes_of[digest] = content
        return
    path = store.blob_path(digest)
    path.chmod(0o644)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
