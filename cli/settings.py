"""Settings of the command itself."""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from services.kit.settings import ServiceSettings


class CliSettings(ServiceSettings):
    """What `lares up` does beside serving."""

    section: ClassVar[str] = "cli"

    aliases: ClassVar[Mapping[str, str]] = {"skip_downloads": "SKIP_MODEL_DOWNLOADS"}

    skip_downloads: bool = Field(
        default=False,
        description="Have `lares up` pull nothing into a house without any model: what `downloader.required` names "
        "waits for `lares ensure`.",
    )
