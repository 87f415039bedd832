"""Wiring: settings -> adapters -> core -> servicer. The only file that knows all of them."""

from datetime import UTC, datetime, timedelta

import grpc

from lares.trainer.v1 import trainer_pb2 as pb
from lares.trainer.v1 import trainer_pb2_grpc as rpc
from services.kit.database import database_url
from services.kit.server import Host
from services.trainer.adapters.checkpoint_files import CheckpointFiles
from services.trainer.adapters.dataset_files import DatasetFolder
from services.trainer.adapters.house_adapters import HouseAdapterSink
from services.trainer.adapters.house_models import HouseModelSource
from services.trainer.adapters.identity import owner_id
from services.trainer.adapters.sql_store import SqlStore
from services.trainer.adapters.train_worker import ProcessTrainWorker
from services.trainer.core.desk import Desk
from services.trainer.core.journal import Journal
from services.trainer.core.library import Library
from services.trainer.core.queue import Queue
from services.trainer.core.runner import Policy, Workshop
from services.trainer.servicer import TrainerServicer
from services.trainer.settings import TrainerSettings


def build(host: Host) -> "TrainerService":
    """The Trainer of a process. Touches nothing outside until it is started."""
    return TrainerService(host, host.load(TrainerSettings))


class TrainerService:
    """The Trainer as `services.kit.server` runs it."""

    full_name = pb.DESCRIPTOR.services_by_name["TrainerService"].full_name

    def __init__(self, host: Host, settings: TrainerSettings) -> None:
        home = host.settings.home
        self._folder = home / "trainer"
        self._store = SqlStore(database_url(settings.database.get_secret_value(), home / "trainer.db"))
        self._files = DatasetFolder(self._folder / "datasets")
        journal = Journal(self._store, host.draining)
        models = HouseModelSource(host.channel, convert_timeout_s=settings.load_timeout_s)
        adapters = HouseAdapterSink(host.channel)
        checkpoints = CheckpointFiles(self._folder / "jobs")
        workshop = Workshop(
            journal=journal,
            datasets=self._store,
            dataset_files=self._files,
            models=models,
            adapters=adapters,
            checkpoints=checkpoints,
            worker=ProcessTrainWorker(settings),
            policy=Policy(
                claim=timedelta(seconds=settings.claim_s),
                max_fruitless_restarts=settings.max_fruitless_restarts,
                patience=timedelta(seconds=settings.patience_s),
            ),
            now=_now,
        )
        self._queue = Queue(self._store, workshop, max_running=settings.max_running_jobs)
        library = Library(self._store, self._files, max_bytes=settings.max_dataset_bytes, now=_now)
        desk = Desk(
            store=self._store,
            datasets=self._store,
            journal=journal,
            queue=self._queue,
            models=models,
            adapters=adapters,
            checkpoints=checkpoints,
            now=_now,
        )
        self._servicer = TrainerServicer(library, desk)

    def register(self, server: grpc.aio.Server) -> None:
        """Put the RPCs on a server."""
        rpc.add_TrainerServiceServicer_to_server(self._servicer, server)

    async def start(self) -> None:
        """Open the database and take up what was left. Raises Unavailable, DiskFull, DataLoss."""
        self._files.prepare()
        await self._store.open()
        self._queue.start(owner_id(self._folder))

    async def stop(self) -> None:
        """Stop the workers, whose jobs go on at the next start, and close the database."""
        await self._queue.stop()
        await self._store.close()


def _now() -> datetime:
    return datetime.now(UTC)
