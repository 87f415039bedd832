"""Settings of the registry: LARES_REGISTRY_*, or [registry] in the settings file."""

from typing import ClassVar

from pydantic import Field, SecretStr

from services.kit.settings import ServiceSettings


class RegistrySettings(ServiceSettings):
    """What the registry needs to know beyond the shared settings."""

    section: ClassVar[str] = "registry"

    database: SecretStr = Field(
        default=SecretStr(""),
        description="Where the records are: a URL such as postgresql://user@host/lares; "
        "registry.db in the home folder if unset.",
    )
    kept_events: int = Field(
        default=10_000,
        ge=100,
        le=1_000_000,
        description="How many changes are kept for watchers that come back.",
    )
