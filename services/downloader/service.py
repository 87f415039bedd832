"""Wiring: settings -> adapters -> core -> servicer. The only file that knows all of them."""

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Final

import grpc
import structlog

from lares.downloader.v1 import downloader_pb2 as pb
from lares.downloader.v1 import downloader_pb2_grpc as rpc
from services.downloader.adapters.disk_blob_store import DiskBlobStore
from services.downloader.adapters.file_source import FileImport, FileSource
from services.downloader.adapters.folder_lock import FolderLock
from services.downloader.adapters.hf_cache import HfCache
from services.downloader.adapters.hf_source import HfSource
from services.downloader.adapters.http_client import HttpLimits, Throttle
from services.downloader.adapters.https_source import HttpsSource
from services.downloader.adapters.lares_source import LaresSource
from services.downloader.adapters.local_places import DiskPlaces
from services.downloader.adapters.ollama_models import OllamaModels
from services.downloader.adapters.ollama_source import OllamaSource
from services.downloader.adapters.pypi_source import PypiSource
from services.downloader.adapters.registry_client import RegistryClient
from services.downloader.adapters.sql_store import SqlStore
from services.downloader.adapters.takeover import Takeover
from services.downloader.adapters.vosk_source import VoskSource
from services.downloader.adapters.worker_inspector import WorkerInspector
from services.downloader.core.admission import Admission, Policy
from services.downloader.core.blobs import Blobs
from services.downloader.core.catalog import Catalog
from services.downloader.core.cleanup import VersionCleaner
from services.downloader.core.garbage import GarbageCollector
from services.downloader.core.jobs import DownloadJobs
from services.downloader.core.leases import Leases
from services.downloader.core.local_models import LocalModels
from services.downloader.core.pull import Puller
from services.downloader.core.required import Requirements
from services.downloader.core.sources import Source
from services.downloader.core.space import SpaceLimits
from services.downloader.core.trust import TrustedSources
from services.downloader.core.update import UpdateVerdict
from services.downloader.core.update_check import UpdateChecker
from services.downloader.core.validation import Validator
from services.downloader.servicer import DownloaderServicer
from services.downloader.settings import DownloaderSettings
from services.kit.database import database_url
from services.kit.errors import LaresError
from services.kit.host import Host

CATALOG = Path(__file__).parent / "catalog.toml"

_AFTER_A_FAILURE: Final = timedelta(minutes=1)

_log = structlog.get_logger(__name__)


def build(host: Host) -> "DownloaderService":
    """The downloader of a process. Touches nothing outside until it is started."""
    return DownloaderService(host, host.load(DownloaderSettings))


class DownloaderService:
    """The downloader as `services.kit.server` runs it."""

    full_name = pb.DESCRIPTOR.services_by_name["DownloaderService"].full_name

    def __init__(self, host: Host, settings: DownloaderSettings) -> None:
        limits = HttpLimits(
            stall_timeout_s=settings.stall_timeout_s,
            min_bytes_per_second=settings.min_bytes_per_second,
            speed_window_s=settings.speed_window_s,
            max_attempts=settings.max_attempts,
            max_connections=settings.max_connections,
            throttle=Throttle(settings.max_bytes_per_second),
            ca_file=settings.ca_file,
        )
        self._store = DiskBlobStore(host.settings.store_path, secure_delete=settings.secure_delete)
        self._lock = FolderLock(host.settings.store_path)
        self._records = SqlStore(
            database_url(settings.database.get_secret_value(), host.settings.home / "downloader.db")
        )
        inspector = WorkerInspector()
        pypi = PypiSource(inspector, limits)
        hf = HfSource(settings.hf_endpoint, settings.hf_token.get_secret_value(), limits)
        ollama = OllamaSource(settings.ollama_endpoint, limits)
        vosk = VoskSource(settings.vosk_endpoint, inspector, limits)
        https = HttpsSource(inspector, limits)
        lares = LaresSource(limits)
        self._remote = (pypi, hf, ollama, vosk, https, lares)
        registry = RegistryClient(host.channel("registry"))
        catalog = Catalog.parse(CATALOG.read_text("utf-8"), TrustedSources(settings.trusted_sources))
        space = SpaceLimits(settings.max_store_bytes, settings.min_free_bytes)
        blobs = Blobs(self._store, self._records, limits=space)
        sources: dict[str, Source] = {
            "pypi": pypi,
            "hf": hf,
            "ollama": ollama,
            "vosk": vosk,
            "https": https,
            "http": https,
            "lares": lares,
            "file": FileSource(),
        }
        takeover = Takeover(host.settings.store_path)
        local_sources: dict[str, Source] = {
            "hf": HfCache(takeover),
            "ollama": OllamaModels(takeover),
            "file": FileImport(takeover),
        }
        keys = tuple(Path(key).expanduser() for key in settings.trusted_keys)
        policy = Policy(settings.licenses, keys, settings.require_signature)
        puller = Puller(sources, blobs, Admission(inspector, policy), registry, local_sources=local_sources)
        self._jobs = DownloadJobs(
            puller,
            catalog,
            self._records,
            max_concurrent=settings.max_concurrent,
            timeout_s=settings.timeout_s,
        )
        self._collector = GarbageCollector(blobs, registry)
        blobs.space.reclaimable = self._collector.reclaimable_bytes
        cleaner = VersionCleaner(blobs, registry, self._collector)
        validator = Validator(blobs, registry, self._jobs, catalog)
        self._updates = UpdateChecker(puller, self._jobs, catalog, self._records)
        self._update_check = settings.update_check
        self._update_interval = timedelta(seconds=settings.update_interval_s)
        self._collect_interval_s = settings.collect_interval_s
        self._chores: list[asyncio.Task[None]] = []
        self._servicer = DownloaderServicer(
            host,
            self._jobs,
            catalog,
            blobs,
            Leases(blobs, registry),
            self._collector,
            cleaner,
            validator,
            registry,
            Requirements(settings.required, catalog, self._jobs, registry),
            self._updates,
            LocalModels(DiskPlaces(settings.local_folders), local_sources, catalog, registry),
        )

    def register(self, server: grpc.aio.Server) -> None:
        """Put the RPCs on a server."""
        rpc.add_DownloaderServiceServicer_to_server(self._servicer, server)

    async def start(self) -> None:
        """Take the store, open the database, go on with what was under way.

        Raises FailedPrecondition if another process has the store, Unavailable, DiskFull, DataLoss.
        """
        await self._lock.acquire()
        await asyncio.to_thread(self._store.open)
        await self._records.open()
        await self._jobs.start()
        if self._collect_interval_s:
            self._chores.append(asyncio.create_task(self._collect_now_and_then()))
        if self._update_check != "off":
            self._chores.append(asyncio.create_task(self._check_now_and_then()))

    async def stop(self) -> None:
        """Stop downloads where they are; the next start goes on with them."""
        for chore in self._chores:
            chore.cancel()
        await asyncio.gather(*self._chores, return_exceptions=True)
        self._chores.clear()
        await self._jobs.stop()
        for source in self._remote:
            await source.close()
        await self._records.close()
        self._lock.release()

    async def _collect_now_and_then(self) -> None:
        """What nobody asked to have collected goes too: conversions of a deleted model, leftovers of a crash."""
        while True:
            await asyncio.sleep(self._collect_interval_s)
            try:
                collected = await self._collector.collect()
            except LaresError as error:
                _log.warning("garbage was not collected", error=str(error))
            else:
                if collected.num_blobs:
                    _log.info(
                        "garbage collected", blobs=collected.num_blobs, freed_bytes=collected.freed_bytes
                    )

    async def _check_now_and_then(self) -> None:
        """As if somebody had asked, once an interval, counted over restarts."""
        while True:
            wait = _AFTER_A_FAILURE
            try:
                wait = await self._updates.due_in(self._update_interval)
                if not wait:
                    updates = await self._updates.check((), pull=self._update_check == "pull")
                    wait = self._update_interval
                    found = [each.model_id for each in updates if each.verdict is UpdateVerdict.AVAILABLE]
                    _log.info("updates checked", models=len(updates), available=found)
            except LaresError as error:
                _log.warning("updates were not checked", error=str(error))
            await asyncio.sleep(wait.total_seconds())
