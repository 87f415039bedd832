"""Parts of a chat message: text, pictures and sound, all inside the request: nothing is fetched for a client."""

import base64
import binascii
import re
from typing import Annotated, Literal

from pydantic import Field

from gateway.openai.common import RequestModel
from lares.inference.v1 import inference_pb2 as pb
from services.kit.errors import InvalidArgument

_DATA_URL = re.compile(r"data:(image/[a-z0-9.+-]{1,64});base64,", re.IGNORECASE)


class TextPart(RequestModel):
    """Text."""

    type: Literal["text"]
    text: str


class ImageUrl(RequestModel):
    """Where a picture is: only a `data:` URL."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(RequestModel):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageUrl


class InputAudio(RequestModel):
    """Sound, in base64."""

    data: str
    format: Literal["wav", "mp3"]


class AudioPart(RequestModel):
    """Sound."""

    type: Literal["input_audio"]
    input_audio: InputAudio


ContentPart = Annotated[TextPart | ImagePart | AudioPart, Field(discriminator="type")]


def part_to_proto(part: TextPart | ImagePart | AudioPart, *, field: str) -> pb.ContentPart:
    """field: the part's path in the request. Raises InvalidArgument."""
    match part:
        case TextPart():
            return pb.ContentPart(text=part.text)
        case ImagePart():
            found = _DATA_URL.match(part.image_url.url)
            if found is None:
                raise InvalidArgument.at(
                    f"{field}.image_url.url",
                    "must be data:image/...;base64,...: Lares fetches nothing from the web",
                )
            data = _decode(part.image_url.url[found.end() :], f"{field}.image_url.url")
            return pb.ContentPart(image=pb.Image(data=data, media_type=found[1].lower()))
        case AudioPart():
            data = _decode(part.input_audio.data, f"{field}.input_audio.data")
            media_type = "audio/mpeg" if part.input_audio.format == "mp3" else "audio/wav"
            return pb.ContentPart(audio=pb.Audio(data=data, media_type=media_type))


def _decode(text: str, field: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidArgument.at(field, "must be base64") from None
