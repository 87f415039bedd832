"""Settings of the downloader: LARES_DOWNLOADER_*, or [downloader] in the settings file."""

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from services.downloader.core.trust import TrustedSources
from services.kit.errors import InvalidArgument
from services.kit.settings import ServiceSettings, Texts


class DownloaderSettings(ServiceSettings):
    """What the downloader needs to know beyond the shared settings."""

    section: ClassVar[str] = "downloader"

    aliases: ClassVar[Mapping[str, str]] = {
        "max_concurrent": "MAX_CONCURRENT_DOWNLOADS",
        "timeout_s": "MODEL_DOWNLOAD_TIMEOUT",
        "hf_token": "HF_TOKEN",
        "update_interval_s": "MODEL_UPDATE_INTERVAL",
    }

    database: SecretStr = Field(
        default=SecretStr(""),
        description="Where downloads and leases are recorded: a URL such as postgresql://user@host/lares; "
        "downloader.db in the home folder if unset.",
    )
    max_concurrent: int = Field(
        default=2, ge=1, le=64, description="How many downloads run at once; the others wait in their order."
    )
    timeout_s: float = Field(
        default=0.0,
        ge=0,
        le=604_800,
        description="Seconds that a download may run, unless it says otherwise; 0 for as long as it takes.",
    )
    required: Texts = Field(
        default=("smollm2-135m-instruct",),
        description="Models that this house needs, by short name or reference, with commas between them. They are "
        "pulled by `lares ensure`, and by `lares up` in a house without any model; the first is the starter.",
    )
    update_check: Literal["off", "report", "pull"] = Field(
        default="off",
        description="Whether the service asks the sources of models for newer versions by itself: off, report (for "
        "`lares updates`), or pull, which lets the newer one answer.",
    )
    update_interval_s: float = Field(
        default=86_400.0, ge=60, le=31_536_000, description="Seconds between two such checks."
    )
    hf_endpoint: str = Field(
        default="", description="URL of the hub that hf: means; huggingface_hub's own default if unset."
    )
    hf_token: SecretStr = Field(
        default=SecretStr(""),
        description="Token for that hub, sent to no other host.",
    )
    ollama_endpoint: str = Field(
        default="https://registry.ollama.ai",
        description="URL of the registry that ollama: means; any that speaks the OCI distribution protocol.",
    )
    vosk_endpoint: str = Field(
        default="https://alphacephei.com/vosk/models",
        description="URL of the folder with the model-list.json that vosk: means.",
    )
    local_folders: Texts = Field(
        default=(),
        description="Absolute paths of folders with models that `lares import` looks into beside the caches of Hugging "
        "Face and Ollama.",
    )
    stall_timeout_s: float = Field(
        default=30.0, gt=0, le=600, description="Seconds without a byte after which a connection is given up."
    )
    min_bytes_per_second: int = Field(
        default=1024,
        ge=0,
        description="A connection that is slower than this over a whole window is given up.",
    )
    speed_window_s: float = Field(
        default=60.0, gt=0, le=3600, description="Seconds over which that speed is measured."
    )
    max_connections: int = Field(
        default=8,
        ge=1,
        le=32,
        description="Connections for one file at most; each beyond the first is kept only while it makes it faster.",
    )
    max_bytes_per_second: int = Field(
        default=0,
        ge=0,
        description="What all downloads together may take of the line, in bytes a second; 0 for all there is.",
    )
    ca_file: str = Field(
        default="",
        description="File of certificate authorities to trust beside the system's: those of a company's own network.",
    )
    max_attempts: int = Field(
        default=8,
        ge=1,
        le=100,
        description="How many times in a row a connection may fail without a new byte before a download fails.",
    )
    max_store_bytes: int = Field(
        default=0,
        ge=0,
        description="The most bytes that the store may have, what is on its way included; 0 for no limit.",
    )
    min_free_bytes: int = Field(
        default=1024**3,
        ge=0,
        description="Bytes that stay free on the store's disk, at most a twentieth of it: a pull that would take "
        "them is refused.",
    )
    secure_delete: bool = Field(
        default=False,
        description="Overwrite what is deleted with zeros first. No promise on flash disks, on file systems that copy "
        "on write, nor for snapshots and backups.",
    )
    trusted_sources: Texts = Field(
        default=(),
        description="Patterns of references that may be pulled, such as hf:meta-llama/*, with commas between them. "
        "Short names always may; empty: everything.",
    )
    licenses: Texts = Field(
        default=(),
        description="Licences under which a model may be pulled, such as Apache-2.0, with commas between them; empty: "
        "any, and none.",
    )
    trusted_keys: Texts = Field(
        default=(),
        description="Files with public keys or certificates (PEM) of those who sign models, with commas between them; "
        "what they signed is checked.",
    )
    require_signature: bool = Field(
        default=False, description="Refuse a model that is not signed with one of the trusted keys."
    )
    collect_interval_s: float = Field(
        default=3600.0,
        ge=0,
        le=31_536_000,
        description="Seconds between two collections of what no model refers to; 0 only when asked.",
    )

    @field_validator("trusted_sources")
    @classmethod
    def _parse(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        try:
            TrustedSources(patterns)
        except InvalidArgument as error:
            raise ValueError(error.message) from error
        return patterns

    @model_validator(mode="after")
    def _have_keys(self) -> Self:
        if self.require_signature and not self.trusted_keys:
            raise ValueError("require_signature without trusted_keys would refuse every model")
        return self
