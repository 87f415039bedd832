"""Files: the Trainer's datasets, under OpenAI's name for them."""

from typing import Annotated, Any, Literal

from pydantic import Field

from gateway.openai.common import Only, RequestModel, ResponseModel
from gateway.openai.paging import Identified
from lares.trainer.v1 import trainer_pb2 as pb
from services.kit import names
from services.kit.errors import DatasetNotFound, InvalidReference

_PREFIX = "file-"


class FileForm(RequestModel):
    """The fields of POST /v1/files beside `file`."""

    purpose: Literal["fine-tune"]
    expires_after: Annotated[Any, Only()] = None


class FileQuery(RequestModel):
    """Which files."""

    purpose: str | None = None
    order: Literal["asc", "desc"] = "desc"
    after: Annotated[str, Field(max_length=256)] | None = None
    limit: Annotated[int, Field(ge=1, le=10_000)] = 10_000


class FileObject(Identified):
    """A file. Its examples were checked before it was taken in, so its status is always `processed`."""

    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None = None
    filename: str
    purpose: Literal["fine-tune"] = "fine-tune"
    status: Literal["processed"] = "processed"
    status_details: str | None = None


class FileList(ResponseModel):
    """A page of files."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


def file_id(dataset_name: str) -> str:
    """`datasets/x` -> `file-x`."""
    (dataset_id,) = names.parse_resource(dataset_name, "datasets/{dataset}")
    return _PREFIX + dataset_id


def dataset_name(file: str) -> str:
    """`file-x` -> `datasets/x`. Raises DatasetNotFound for what is no id of a file."""
    try:
        return names.resource_name(
            "datasets/{dataset}", file.removeprefix(_PREFIX) if file.startswith(_PREFIX) else ""
        )
    except InvalidReference:
        raise DatasetNotFound(
            f"there is no file '{file[:80]}'; GET /v1/files lists those there are"
        ) from None


def file_from_proto(dataset: pb.Dataset) -> FileObject:
    """A dataset as a file."""
    return FileObject(
        id=file_id(dataset.name),
        bytes=dataset.size_bytes,
        created_at=dataset.create_time.seconds,
        filename=dataset.file_name,
    )


def list_of(files: list[FileObject], has_more: bool) -> FileList:
    """A page as OpenAI shapes it."""
    return FileList(
        data=files,
        first_id=files[0].id if files else None,
        last_id=files[-1].id if files else None,
        has_more=has_more,
    )
