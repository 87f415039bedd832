"""/v1/files: what fine-tuning learns from."""

from collections.abc import AsyncIterator
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from gateway.body import Upload, read_form
from gateway.endpoint import Endpoint, Gateway, json_response, read_query, until_disconnect
from gateway.openai import files, paging
from gateway.openai.common import Deleted
from gateway.openai.files import FileForm, FileList, FileObject, FileQuery, dataset_name, file_from_proto
from gateway.upstream import EventStream, all_pages, unary
from lares.trainer.v1 import trainer_pb2 as pb
from services.kit import context


async def create_file(gateway: Gateway, request: Request) -> Response:
    """Take in a file of examples."""
    async with read_form(request, FileForm) as (_, upload):
        return json_response(await until_disconnect(request.receive, _create(gateway, upload)))


async def _create(gateway: Gateway, upload: Upload) -> FileObject:
    async def parts() -> AsyncIterator[pb.CreateDatasetRequest]:
        header = pb.DatasetHeader(file_name=upload.base_name, request_id=context.request_id.get())
        yield pb.CreateDatasetRequest(header=header)
        async for chunk in upload.chunks():
            yield pb.CreateDatasetRequest(chunk=chunk)

    call = gateway.upstream.trainer.CreateDataset(parts(), timeout=gateway.settings.generation_timeout_s)
    return file_from_proto((await unary(call)).dataset)


async def list_files(gateway: Gateway, request: Request) -> Response:
    """The files there are, newest first unless asked otherwise."""
    query = read_query(request, FileQuery)

    async def datasets(page_token: str) -> tuple[list[pb.Dataset], str]:
        message = pb.ListDatasetsRequest(page_size=1000, page_token=page_token)
        call = gateway.upstream.trainer.ListDatasets(message, timeout=gateway.settings.request_timeout_s)
        answer = await unary(call)
        return list(answer.datasets), answer.next_page_token

    found = [file_from_proto(dataset) for dataset in await all_pages(datasets)]
    if query.order == "asc":
        found.reverse()
    if query.purpose not in (None, "fine-tune"):
        found = []
    shown, has_more = paging.page(found, after=query.after, limit=query.limit)
    return json_response(files.list_of(shown, has_more))


async def get_file(gateway: Gateway, request: Request) -> Response:
    """One file's record."""
    message = pb.GetDatasetRequest(name=dataset_name(request.path_params["file_id"]))
    call = gateway.upstream.trainer.GetDataset(message, timeout=gateway.settings.request_timeout_s)
    return json_response(file_from_proto((await unary(call)).dataset))


async def get_file_content(gateway: Gateway, request: Request) -> Response:
    """The file as it was taken in."""
    message = pb.ReadDatasetRequest(name=dataset_name(request.path_params["file_id"]))
    call = gateway.upstream.trainer.ReadDataset(message, timeout=gateway.settings.generation_timeout_s)
    stream = await EventStream.open(call)

    async def chunks() -> AsyncIterator[bytes]:
        yield stream.first.chunk
        async with aclosing(stream.rest()) as rest:
            async for part in rest:
                yield part.chunk

    return StreamingResponse(chunks(), media_type="application/octet-stream")


async def delete_file(gateway: Gateway, request: Request) -> Response:
    """Delete a file."""
    file_id = request.path_params["file_id"]
    message = pb.DeleteDatasetRequest(name=dataset_name(file_id))
    await unary(gateway.upstream.trainer.DeleteDataset(message, timeout=gateway.settings.request_timeout_s))
    return json_response(Deleted(id=file_id, object="file"))


ENDPOINTS = [
    Endpoint("POST", "/v1/files", create_file, "Upload a file", form=FileForm, response=FileObject),
    Endpoint("GET", "/v1/files", list_files, "List files", query=FileQuery, response=FileList),
    Endpoint("GET", "/v1/files/{file_id}", get_file, "Tell of a file", response=FileObject),
    Endpoint(
        "GET",
        "/v1/files/{file_id}/content",
        get_file_content,
        "Download a file",
        media_type="application/octet-stream",
    ),
    Endpoint("DELETE", "/v1/files/{file_id}", delete_file, "Delete a file", response=Deleted),
]
