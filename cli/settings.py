"""Settings of the command itself."""

from typing import ClassVar

from pydantic import Field

from services.kit.settings import ServiceSettings


class CliSettings(ServiceSettings):
    """What `lares up` does beside serving."""

    section: ClassVar[str] = "cli"

    starter: str = Field(
        default="smollm2-135m-instruct",
        description="Model that `lares up` pulls into a house that has none yet, and begins to load; none: neither.",
    )
