"""Inference, wired: settings -> adapters -> core -> servicer. Imports no torch: that is the workers'."""

import asyncio

import grpc

from lares.inference.v1 import inference_pb2 as pb
from lares.inference.v1 import inference_pb2_grpc as rpc
from services.inference.adapters.converter import Converter
from services.inference.adapters.downloader_store import DownloaderStore
from services.inference.adapters.estimates import Estimates
from services.inference.adapters.hardware import MachineMemory
from services.inference.adapters.metrics import METRICS
from services.inference.adapters.preloader import Preloader
from services.inference.adapters.registry_catalog import RegistryCatalog
from services.inference.adapters.workers import ProcessWorkerFactory
from services.inference.core.inference import Inference
from services.inference.core.models import PoolLimits, Quantization
from services.inference.core.pool import ModelPool
from services.inference.servicer import InferenceServicer
from services.inference.settings import InferenceSettings
from services.kit.host import Host, Service


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
        memory = MachineMemory(device=settings.device, limit_bytes=settings.memory_bytes)
        factory = ProcessWorkerFactory(
            self._converter,
            store,
            Estimates(
                self._converter,
                devices=memory.model_devices,
                max_batch_tokens=settings.max_batch_tokens,
                quantization=Quantization(settings.quantization),
            ),
            max_sequences=settings.max_sequences,
            max_batch_tokens=settings.max_batch_tokens,
            load_timeout_s=settings.load_timeout_s,
            step_timeout_s=settings.step_timeout_s,
            cuda_graphs=settings.cuda_graphs,
            uses_mps=settings.device == "mps",
        )
        limits = PoolLimits(
            max_models=settings.max_models,
            max_waiting=settings.max_waiting,
            keep_alive_s=settings.keep_alive_s,
            max_adapters=settings.max_adapters,
            max_sequences=settings.max_sequences,
            kv_cache_bytes=settings.kv_cache_bytes,
            workers_per_model=settings.workers_per_model,
            pinned=frozenset(settings.pinned),
            kept=frozenset({*settings.pinned, *settings.preload}),
        )
        self._pool = ModelPool(factory, limits, memory)
        inference = Inference(catalog, self._pool)
        self._preloader = Preloader(inference.load, settings.preload)
        self._servicer = InferenceServicer(host, inference, self._pool)
        METRICS.watch(self._pool)

    def register(self, server: grpc.aio.Server) -> None:
        """Add the servicer."""
        rpc.add_InferenceServiceServicer_to_server(self._servicer, server)

    async def start(self) -> None:
        """Make the place for conversions, and begin to load what shall be there from the start."""
        await asyncio.to_thread(self._converter.prepare)
        self._preloader.start()

    async def stop(self) -> None:
        """End the workers."""
        await self._preloader.stop()
        await self._pool.close()
