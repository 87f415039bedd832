"""Inference, wired: settings -> adapters -> core -> servicer. Imports no torch: that is the workers'."""

import asyncio

import grpc

from lares.inference.v1 import inference_pb2 as pb
from lares.inference.v1 import inference_pb2_grpc as rpc
from services.inference.adapters.converter import Converter
from services.inference.adapters.downloader_store import DownloaderStore
from services.inference.adapters.hardware import probe_memory
from services.inference.adapters.registry_catalog import RegistryCatalog
from services.inference.adapters.workers import ProcessWorkerFactory
from services.inference.core.inference import Inference
from services.inference.core.models import PoolLimits
from services.inference.core.pool import ModelPool
from services.inference.servicer import InferenceServicer
from services.inference.settings import InferenceSettings
from services.kit.host import Host, Service

_DEFAULT_MEMORY_SHARE = 0.85


def build(host: Host) -> Service:
    """Inference in a process."""
    return InferenceService(host, host.load(InferenceSettings))


class InferenceService:
    """The service; no model is in memory until one is asked for."""

    full_name = pb.DESCRIPTOR.services_by_name["InferenceService"].full_name

    def __init__(self, host: Host, settings: InferenceSettings) -> None:
        catalog = RegistryCatalog(host.channel("registry"))
        store = DownloaderStore(host.channel("downloader"))
        self._converter = Converter(store, catalog, host.settings.home / "inference" / "scratch")
        factory = ProcessWorkerFactory(
            self._converter,
            store,
            device=settings.device,
            max_sequences=settings.max_sequences,
            max_batch_tokens=settings.max_batch_tokens,
            kv_bytes=settings.kv_bytes,
            load_timeout_s=settings.load_timeout_s,
            cuda_graphs=settings.cuda_graphs,
        )
        limits = PoolLimits(
            max_models=settings.max_models,
            memory_bytes=settings.memory_bytes or int(probe_memory().total_bytes * _DEFAULT_MEMORY_SHARE),
            max_waiting=settings.max_waiting,
            keep_alive_s=settings.keep_alive_s,
            max_adapters=settings.max_adapters,
        )
        self._pool = ModelPool(factory, limits, available_bytes=lambda: probe_memory().available_bytes)
        self._servicer = InferenceServicer(host, Inference(catalog, self._pool), self._pool)

    def register(self, server: grpc.aio.Server) -> None:
        """Add the servicer."""
        rpc.add_InferenceServiceServicer_to_server(self._servicer, server)

    async def start(self) -> None:
        """Make the place for conversions."""
        await asyncio.to_thread(self._converter.prepare)

    async def stop(self) -> None:
        """End the workers."""
        await self._pool.close()
