"""A Trainer served over gRPC with the rest of the house beside it, and a client."""

import contextlib
import json
from collections.abc import AsyncGenerator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from lares.trainer.v1 import trainer_pb2 as pb
from lares.trainer.v1 import trainer_pb2_grpc as rpc
from services.kit.address import Address
from services.kit.channels import connect, translate_errors
from services.kit.host import Host
from services.kit.server import GrpcServer
from services.kit.settings import Settings
from services.trainer import service
from tests.unit.services.trainer.house import House


@dataclass
class Served:
    """A running Trainer. Errors of `client` calls are gRPC's; the methods here raise Lares's own."""

    house: House
    host: Host
    server: GrpcServer
    client: "rpc.TrainerServiceAsyncStub"

    async def upload(
        self, content: bytes, *, file_name: str = "data.jsonl", request_id: str = ""
    ) -> pb.Dataset:
        def parts() -> Iterator[pb.CreateDatasetRequest]:
            yield pb.CreateDatasetRequest(header=pb.DatasetHeader(file_name=file_name, request_id=request_id))
            for start in range(0, len(content), 1000):
                yield pb.CreateDatasetRequest(chunk=content[start : start + 1000])

        with translate_errors():
            return (await self.client.CreateDataset(parts())).dataset

    async def upload_examples(self, count: int = 12) -> pb.Dataset:
        return await self.upload(chat_lines((f"What is {i}?", f"It is {i * i}.") for i in range(count)))

    async def create(self, dataset: pb.Dataset, *, request_id: str = "", **fields: Any) -> pb.Job:
        job = pb.Job(**{"base_model": "tiny", "dataset": dataset.name, **fields})
        with translate_errors():
            return (await self.client.CreateJob(pb.CreateJobRequest(job=job, request_id=request_id))).job

    async def get(self, job: pb.Job) -> pb.Job:
        with translate_errors():
            return (await self.client.GetJob(pb.GetJobRequest(name=job.name))).job

    async def cancel(self, job: pb.Job) -> pb.Job:
        with translate_errors():
            return (await self.client.CancelJob(pb.CancelJobRequest(name=job.name))).job

    async def watch(self, job: pb.Job, after: int = 0) -> AsyncGenerator[pb.JobEvent, None]:
        call = self.client.WatchJob(pb.WatchJobRequest(name=job.name, after_sequence=after))
        try:
            with translate_errors():
                async for message in call:
                    yield message.event
        finally:
            call.cancel()

    async def finish(self, job: pb.Job) -> pb.Job:
        async for _ in self.watch(job):
            pass
        return await self.get(job)


@contextlib.asynccontextmanager
async def serve(house: House, home: Path, **settings: Any) -> AsyncGenerator[Served, None]:
    """Serve from `home`, anew or again. settings: of the Trainer."""
    overrides = {"trainer.num_threads": 1, **{f"trainer.{key}": value for key, value in settings.items()}}
    host = Host(Settings(home=home, grpc=Address("127.0.0.1", 0)), overrides)
    server = GrpcServer(host, [house.build_registry, house.build_downloader, service.build])
    await server.start()
    channel: grpc.aio.Channel = connect(str(server.address))
    try:
        yield Served(house, host, server, rpc.TrainerServiceStub(channel))
    finally:
        await channel.close()
        await server.stop(grace_s=0)


def chat_lines(pairs: Iterable[tuple[str, str]]) -> bytes:
    """Questions and answers as OpenAI's fine-tuning format."""
    lines = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in pairs
    ]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()
