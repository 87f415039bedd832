"""What can be set about the gateway; where it listens is in the shared settings (`http`)."""

from typing import ClassVar

from pydantic import Field

from services.kit.settings import SERVICES, ServiceSettings

_MIB = 1024 * 1024


class GatewaySettings(ServiceSettings):
    """Limits, timeouts and who may call."""

    section: ClassVar[str] = "gateway"

    max_body_bytes: int = Field(
        default=25 * _MIB,
        ge=1024,
        description="The largest body of a request that is not an upload, in bytes.",
    )
    max_audio_bytes: int = Field(
        default=100 * _MIB, ge=1024, description="The largest audio upload, in bytes."
    )
    max_dataset_bytes: int = Field(
        default=512 * _MIB, ge=1024, description="The largest upload to /v1/files, in bytes."
    )
    request_timeout_s: float = Field(
        default=30.0, gt=0, description="Seconds that a call which only reads or records may take."
    )
    generation_timeout_s: float = Field(
        default=1800.0,
        gt=0,
        description="Seconds that one generation, embedding, transcription or upload may take.",
    )
    header_timeout_s: float = Field(
        default=10.0, gt=0, description="Seconds in which a client must have sent a request's headers."
    )
    body_timeout_s: float = Field(
        default=60.0,
        gt=0,
        description="Seconds in which a client must have sent a request's body, longer if it keeps up 64 KiB/s; and in"
        " which it must take each 256 KiB of a file.",
    )
    keep_alive_timeout_s: int = Field(
        default=30, ge=1, description="Seconds that an idle connection is kept open."
    )
    remember_repos_s: float = Field(
        default=1.0,
        ge=0,
        le=60,
        description="Seconds for which what a repository below /hf holds is remembered; 0 asks anew for each file.",
    )
    allowed_hosts: tuple[str, ...] = Field(
        default=(),
        description="Names that a Host header may have, beside this machine's loopback names. Empty: on loopback only"
        " those; on another address any.",
    )
    allowed_origins: tuple[str, ...] = Field(
        default=(),
        description="Origins of web pages that may call, such as https://chat.example.org. Pages of other origins are"
        " refused.",
    )
    required_services: tuple[str, ...] = Field(
        default=SERVICES, description="Services that must answer for /readyz to say ready."
    )
