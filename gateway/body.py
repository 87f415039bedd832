"""The bodies of requests: JSON, and uploads, which go to disk and never whole into memory."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from gateway.errors import ClientDisconnected
from gateway.validation import parse_json, validate
from services.kit.errors import InvalidArgument, PayloadTooLarge

M = TypeVar("M", bound=BaseModel)

CHUNK_BYTES = 256 * 1024
"""What an upload is passed on in; the contract allows 1 MiB a message."""

_MAX_PARTS = 64
_MAX_FIELD_BYTES = 64 * 1024


async def read_json(request: Request, model: type[M]) -> M:
    """The body as a model. Raises InvalidArgument, HTTPException 415, ClientDisconnected."""
    _require_media_type(request, "application/json")
    try:
        return parse_json(await request.body(), model)
    except ClientDisconnect:
        raise ClientDisconnected from None


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that has arrived. name: as the client gave it; size_bytes: its length."""

    name: str
    size_bytes: int
    file: UploadFile

    @property
    def base_name(self) -> str:
        """The name without folders or control characters, at most 255 characters."""
        name = "".join(char for char in re.split(r"[/\\\\]", self.name)[-1] if char.isprintable())
        return name[-255:] or "upload"

    async def chunks(self) -> AsyncIterator[bytes]:
        """The file in pieces of CHUNK_BYTES, from its beginning."""
        await self.file.seek(0)
        while chunk := await self.file.read(CHUNK_BYTES):
            yield chunk


@asynccontextmanager
async def read_form(request: Request, model: type[M]) -> AsyncIterator[tuple[M, Upload]]:
    """A multipart form with one file, in the field `file`; its temporary file goes when the block ends.

    Raises InvalidArgument, PayloadTooLarge, HTTPException 415, ClientDisconnected.
    """
    _require_media_type(request, "multipart/form-data")
    parser = _CappedParser(
        request.headers, request.stream(), max_files=1, max_fields=_MAX_PARTS, max_part_size=_MAX_FIELD_BYTES
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise InvalidArgument(f"the form cannot be read: {error.message}") from None
    except ClientDisconnect:
        raise ClientDisconnected from None
    if not parser.is_whole:
        parser.close()
        raise InvalidArgument("the form breaks off before its last boundary")
    try:
        fields: dict[str, object] = {}
        upload: Upload | None = None
        for key, value in form.multi_items():
            if isinstance(value, UploadFile):
                if key == "file":
                    upload = Upload(value.filename or "upload", value.size or 0, value)
            elif key.endswith("[]"):
                existing = fields.setdefault(key, [])
                assert isinstance(existing, list)
                existing.append(value)
            else:
                fields[key] = value
        if upload is None:
            raise InvalidArgument.at("file", "is required: send the file in a part of that name")
        yield validate(fields, model, strict=False), upload
    finally:
        await form.close()


class _CappedParser(MultiPartParser):
    """Starlette's parser, which also stops at a number of parts and tells a form that breaks off."""

    is_whole = False
    """Whether the form's last boundary has come."""

    _num_parts = 0

    def on_part_begin(self) -> None:
        self._num_parts += 1
        if self._num_parts > _MAX_PARTS:
            raise PayloadTooLarge(f"the form has more than {_MAX_PARTS} parts")
        super().on_part_begin()

    def on_end(self) -> None:
        self.is_whole = True
        super().on_end()

    def close(self) -> None:
        """Close the temporary files."""
        for file in self._files_to_close_on_error:
            file.close()


def _require_media_type(request: Request, wanted: str) -> None:
    found = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if found != wanted:
        raise HTTPException(
            415, f"content-type must be {wanted}" + (f", not '{found[:80]}'" if found else "")
        )
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise HTTPException(415, f"content-encoding '{encoding[:40]}' is not taken; send the body as it is")
