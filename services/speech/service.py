"""Speech, wired: settings -> adapters -> core -> servicer."""

import grpc

from lares.speech.v1 import speech_pb2 as pb
from lares.speech.v1 import speech_pb2_grpc as rpc
from services.kit.host import Host, Service
from services.kit.leases import Leases
from services.speech.adapters.file_spool import FileSpool
from services.speech.adapters.process_launcher import EngineOptions, ProcessLauncher
from services.speech.adapters.registry_catalog import RegistryCatalog
from services.speech.core.pool import PoolLimits, RecognizerPool
from services.speech.core.ports import LeaseBroker, ModelCatalog
from services.speech.core.speech import AudioLimits, Speech
from services.speech.servicer import SpeechServicer
from services.speech.settings import SpeechSettings


def build(host: Host) -> Service:
    """Speech in a process."""
    return SpeechService(
        host,
        catalog=RegistryCatalog(host.channel("registry")),
        leases=Leases(host.channel("downloader"), "speech"),
    )


class SpeechService:
    """The service; no model is loaded until one is asked for."""

    full_name = pb.DESCRIPTOR.services_by_name["SpeechService"].full_name

    def __init__(self, host: Host, *, catalog: ModelCatalog, leases: LeaseBroker) -> None:
        settings = host.load(SpeechSettings)
        self._spool = FileSpool(host.settings.home / "speech" / "tmp")
        self._pool = RecognizerPool(
            leases=leases,
            launcher=ProcessLauncher(
                EngineOptions(
                    num_threads=settings.num_threads,
                    device=settings.device,
                    compute_type=settings.compute_type,
                    skip_silence=settings.skip_silence,
                    load_timeout_s=settings.load_timeout_s,
                )
            ),
            limits=PoolLimits(
                max_loaded=settings.max_loaded,
                max_requests=settings.max_requests,
                keep_alive_s=settings.keep_alive_s,
            ),
        )
        self._servicer = SpeechServicer(
            Speech(
                catalog=catalog,
                pool=self._pool,
                spool=self._spool,
                limits=AudioLimits(
                    max_file_bytes=settings.max_file_bytes,
                    max_duration_s=settings.max_duration_s,
                    max_pending_s=settings.max_pending_s,
                ),
            ),
            self._pool,
        )

    def register(self, server: grpc.aio.Server) -> None:
        """Add the servicer."""
        rpc.add_SpeechServiceServicer_to_server(self._servicer, server)

    async def start(self) -> None:
        """Make the place for files on their way in."""
        self._spool.prepare()

    async def stop(self) -> None:
        """End the workers."""
        await self._pool.close()
