"""The Trainer's own settings: LARES_TRAINER_<NAME>, table [trainer]."""

from typing import ClassVar

from pydantic import Field, SecretStr

from services.kit.settings import ServiceSettings


class TrainerSettings(ServiceSettings):
    """What can be chosen about training."""

    section: ClassVar[str] = "trainer"

    database: SecretStr = Field(
        default=SecretStr(""),
        description=(
            "URL of a PostgreSQL database for datasets' and jobs' records; SQLite in the home "
            "folder if empty."
        ),
    )
    max_dataset_bytes: int = Field(
        default=512 * 1024 * 1024, ge=1, description="The largest dataset file taken in, in bytes."
    )
    max_running_jobs: int = Field(
        default=1, ge=1, le=64, description="Jobs that train at the same time; the others wait."
    )
    num_threads: int = Field(
        default=0, ge=0, le=1024, description="Processor threads of a training worker; 0 takes one per core."
    )
    niceness: int = Field(
        default=10,
        ge=0,
        le=19,
        description="How far a training worker steps back for serving, 0 to 19, as nice(1) counts it.",
    )
    micro_batch_tokens: int = Field(
        default=256,
        ge=8,
        description=(
            "Tokens that go through the model at once; a larger batch is added up from several. "
            "Bounds memory."
        ),
    )
    max_fruitless_restarts: int = Field(
        default=3,
        ge=0,
        le=100,
        description=(
            "How often a job whose worker was lost is taken up again without reaching another checkpoint."
        ),
    )
    worker_silence_s: float = Field(
        default=300.0, gt=0, description="Seconds without a sign of life after which a worker is killed."
    )
    load_timeout_s: float = Field(
        default=600.0, gt=0, description="Seconds that a worker gets to load a base model in."
    )
    claim_s: float = Field(
        default=30.0,
        gt=0,
        description=(
            "Seconds after which another Trainer on the same database may take up a silent one's job."
        ),
    )
    patience_s: float = Field(
        default=600.0,
        ge=0,
        description="Seconds that a job waits for another service that does not answer before it fails.",
    )
