"""Speech's settings: `LARES_SPEECH_*`, table `[speech]`."""

import os
from typing import ClassVar, Literal

from pydantic import Field

from services.kit.settings import ServiceSettings


class SpeechSettings(ServiceSettings):
    """How many recognisers, on what, and how much sound."""

    section: ClassVar[str] = "speech"

    max_loaded: int = Field(
        default=3,
        ge=1,
        le=64,
        description="Recognisers in memory at most; the idle one used longest ago makes room.",
    )
    keep_alive_s: float = Field(
        default=300.0, ge=0, le=7 * 86400, description="Seconds that an idle recogniser stays in memory."
    )
    max_requests: int = Field(
        default=32,
        ge=1,
        le=4096,
        description="Streams and files at one recogniser at most, waiting ones included.",
    )
    load_timeout_s: float = Field(
        default=120.0, gt=0, le=3600, description="Seconds that a model may take to load."
    )
    num_threads: int = Field(
        default_factory=lambda: min(4, os.cpu_count() or 1),
        ge=1,
        le=256,
        description="Processor threads of one recogniser; up to 4 of the machine's if unset.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="What Whisper runs on: auto takes a GPU if there is one."
    )
    compute_type: Literal["auto", "int8", "int8_float16", "float16", "bfloat16", "float32"] = Field(
        default="auto", description="Whisper's arithmetic; auto is int8 on a processor and float16 on a GPU."
    )
    skip_silence: bool = Field(
        default=True,
        description="Leave out what is not speech before Whisper hears it; silence makes it invent words.",
    )
    max_file_bytes: int = Field(
        default=100 * 1024 * 1024, ge=1024, le=16 * 1024**3, description="Largest audio file taken, in bytes."
    )
    max_duration_s: float = Field(
        default=2 * 3600.0, gt=0, le=24 * 3600, description="Longest sound in a file, in seconds."
    )
    max_pending_s: float = Field(
        default=10.0,
        ge=1,
        le=600,
        description="Seconds of live sound that may wait for a recogniser, a stream.",
    )
