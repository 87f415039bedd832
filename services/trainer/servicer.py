"""The Trainer's RPCs: parse the request, ask the core, convert the answer."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Final

import grpc

from lares.trainer.v1 import trainer_pb2 as pb
from lares.trainer.v1 import trainer_pb2_grpc as rpc
from services.kit.errors import InvalidArgument
from services.kit.paging import decode_cursor, encode_cursor, page_size
from services.kit.request_stream import RequestStream
from services.trainer import convert
from services.trainer.core.desk import Desk
from services.trainer.core.library import Library

Context = grpc.aio.ServicerContext[Any, Any]

_MAX_REQUEST_ID_CHARS: Final = 256


class TrainerServicer(rpc.TrainerServiceServicer):
    """Translates, no more: rules are in the core, and errors become statuses in the kit's interceptor."""

    def __init__(self, library: Library, desk: Desk) -> None:
        self._library = library
        self._desk = desk

    async def CreateDataset(
        self, request_iterator: AsyncIterator[pb.CreateDatasetRequest], context: Context
    ) -> pb.CreateDatasetResponse:
        """Take a file in."""
        async with RequestStream(request_iterator) as requests:
            first = await requests.first("header")
            if first.WhichOneof("part") != "header":
                raise InvalidArgument.at("header", "must be the first message")
            header = first.header
            dataset = await self._library.take_in(
                header.file_name, _chunks(requests), request_id=_request_id(header.request_id)
            )
        return pb.CreateDatasetResponse(dataset=convert.dataset_to_proto(dataset))

    async def GetDataset(self, request: pb.GetDatasetRequest, context: Context) -> pb.GetDatasetResponse:
        """Return one dataset."""
        dataset = await self._library.get(convert.dataset_id_from_name(request.name))
        return pb.GetDatasetResponse(dataset=convert.dataset_to_proto(dataset))

    async def ListDatasets(
        self, request: pb.ListDatasetsRequest, context: Context
    ) -> pb.ListDatasetsResponse:
        """Return a page of datasets; its token holds the last one's id."""
        limit = page_size(request.page_size)
        cursor = decode_cursor(request.page_token, "datasets", (str,))
        found = await self._library.list_datasets(before=str(cursor[0]) if cursor else None, limit=limit + 1)
        return pb.ListDatasetsResponse(
            datasets=[convert.dataset_to_proto(dataset) for dataset in found[:limit]],
            next_page_token=(
                encode_cursor("datasets", (found[limit - 1].dataset_id,)) if len(found) > limit else ""
            ),
        )

    async def ReadDataset(
        self, request: pb.ReadDatasetRequest, context: Context
    ) -> AsyncIterator[pb.ReadDatasetResponse]:
        """Stream a file."""
        async with aclosing(self._library.read(convert.dataset_id_from_name(request.name))) as chunks:
            async for chunk in chunks:
                yield pb.ReadDatasetResponse(chunk=chunk)

    async def DeleteDataset(
        self, request: pb.DeleteDatasetRequest, context: Context
    ) -> pb.DeleteDatasetResponse:
        """Delete a dataset."""
        await self._library.remove(convert.dataset_id_from_name(request.name))
        return pb.DeleteDatasetResponse()

    async def CreateJob(self, request: pb.CreateJobRequest, context: Context) -> pb.CreateJobResponse:
        """Put a job into the queue."""
        job = await self._desk.create(
            convert.spec_from_proto(request.job),
            sequence_was_given=request.job.hyperparameters.HasField("max_sequence_tokens"),
            request_id=_request_id(request.request_id),
        )
        return pb.CreateJobResponse(job=convert.job_to_proto(job))

    async def GetJob(self, request: pb.GetJobRequest, context: Context) -> pb.GetJobResponse:
        """Return one job."""
        job = await self._desk.get(convert.job_id_from_name(request.name))
        return pb.GetJobResponse(job=convert.job_to_proto(job))

    async def ListJobs(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsResponse:
        """Return a page of jobs; its token holds the last one's id."""
        limit = page_size(request.page_size)
        states = convert.states_from_proto(request.states)
        scope = f"jobs {sorted(states)}"
        cursor = decode_cursor(request.page_token, scope, (str,))
        found = await self._desk.list_jobs(
            states=states, before=str(cursor[0]) if cursor else None, limit=limit + 1
        )
        return pb.ListJobsResponse(
            jobs=[convert.job_to_proto(job) for job in found[:limit]],
            next_page_token=encode_cursor(scope, (found[limit - 1].job_id,)) if len(found) > limit else "",
        )

    async def CancelJob(self, request: pb.CancelJobRequest, context: Context) -> pb.CancelJobResponse:
        """End a job."""
        job = await self._desk.cancel(convert.job_id_from_name(request.name))
        return pb.CancelJobResponse(job=convert.job_to_proto(job))

    async def WatchJob(
        self, request: pb.WatchJobRequest, context: Context
    ) -> AsyncIterator[pb.WatchJobResponse]:
        """Stream a job's events."""
        job_id = convert.job_id_from_name(request.name)
        async with aclosing(self._desk.watch(job_id, after_sequence=request.after_sequence)) as events:
            async for event in events:
                yield pb.WatchJobResponse(event=convert.event_to_proto(event))

    async def ListJobEvents(
        self, request: pb.ListJobEventsRequest, context: Context
    ) -> pb.ListJobEventsResponse:
        """Return a page of events; its token holds the last one's number."""
        limit = page_size(request.page_size)
        job_id = convert.job_id_from_name(request.parent, field="parent")
        scope = f"events {job_id}"
        (after,) = decode_cursor(request.page_token, scope, (int,)) or (0,)
        found = await self._desk.list_events(job_id, after_sequence=int(after), limit=limit + 1)
        return pb.ListJobEventsResponse(
            events=[convert.event_to_proto(event) for event in found[:limit]],
            next_page_token=encode_cursor(scope, (found[limit - 1].sequence,)) if len(found) > limit else "",
        )

    async def ListCheckpoints(
        self, request: pb.ListCheckpointsRequest, context: Context
    ) -> pb.ListCheckpointsResponse:
        """Return a page of checkpoints; its token holds the last one's step."""
        limit = page_size(request.page_size)
        job_id = convert.job_id_from_name(request.parent, field="parent")
        scope = f"checkpoints {job_id}"
        (after,) = decode_cursor(request.page_token, scope, (int,)) or (0,)
        found = await self._desk.list_checkpoints(job_id, after_step=int(after), limit=limit + 1)
        return pb.ListCheckpointsResponse(
            checkpoints=[convert.checkpoint_to_proto(checkpoint) for checkpoint in found[:limit]],
            next_page_token=encode_cursor(scope, (found[limit - 1].step,)) if len(found) > limit else "",
        )


async def _chunks(requests: AsyncIterator[pb.CreateDatasetRequest]) -> AsyncIterator[bytes]:
    async for request in requests:
        if request.WhichOneof("part") != "chunk":
            raise InvalidArgument.at("chunk", "must be what follows the header")
        yield request.chunk


def _request_id(text: str) -> str:
    if len(text) > _MAX_REQUEST_ID_CHARS:
        raise InvalidArgument.at("request_id", f"must be at most {_MAX_REQUEST_ID_CHARS} characters")
    return text
