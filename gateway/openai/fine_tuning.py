"""Fine-tuning jobs: the request. What is told of a job is in `fine_tuning_jobs`."""

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from gateway.openai.common import UINT32_MAX, UINT64_MAX, ModelName, Only, RequestModel
from gateway.openai.files import dataset_name
from lares.trainer.v1 import trainer_pb2 as pb
from services.kit import names

_LEARNING_RATE = 2e-4  # The contract's default, which OpenAI's multiplier multiplies.

Uint32 = Annotated[int, Field(ge=1, le=UINT32_MAX)]
Label = Annotated[str, StringConstraints(max_length=512)]


class Hyperparameters(RequestModel):
    """OpenAI's knobs. `auto` is the trainer's default."""

    n_epochs: Literal["auto"] | Annotated[float, Field(gt=0, le=1000)] | None = None
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] | None = None
    learning_rate_multiplier: Literal["auto"] | Annotated[float, Field(gt=0, le=5000)] | None = None


class Supervised(RequestModel):
    """Learning from examples."""

    hyperparameters: Hyperparameters | None = None


class Method(RequestModel):
    """How to teach: from examples."""

    type: Literal["supervised"]
    supervised: Supervised | None = None


class TrainerOptions(RequestModel):
    """Lares extension: the trainer's own knobs, as in `lares.trainer.v1`."""

    max_steps: Uint32 | None = None
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] | None = None
    max_sequence_tokens: Annotated[int, Field(ge=8, le=UINT32_MAX)] | None = None
    save_steps: Uint32 | None = None
    rank: Annotated[int, Field(ge=1, le=256)] | None = None
    alpha: Annotated[float, Field(gt=0, le=1e6)] | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    target_modules: (
        Annotated[list[Annotated[str, Field(max_length=128)]], Field(fail_fast=True, max_length=64)] | None
    ) = None


class JobRequest(RequestModel):
    """The body of POST /v1/fine_tuning/jobs. suffix: the adapter's id; it is served as `{model}:{suffix}`."""

    model: ModelName
    training_file: str
    validation_file: str | None = None
    suffix: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    seed: Annotated[int, Field(ge=0, le=UINT64_MAX)] | None = None
    method: Method | None = None
    hyperparameters: Hyperparameters | None = None
    metadata: (
        Annotated[dict[Annotated[str, StringConstraints(max_length=64)], Label], Field(max_length=16)] | None
    ) = None
    integrations: Annotated[Any, Only([])] = None
    lares: TrainerOptions | None = None


def request_to_proto(request: JobRequest, *, request_id: str) -> pb.CreateJobRequest:
    """Raises DatasetNotFound for what is no id of a file, InvalidReference for a suffix that is no id."""
    own = request.lares or TrainerOptions()
    return pb.CreateJobRequest(
        request_id=request_id,
        job=pb.Job(
            base_model=request.model,
            dataset=dataset_name(request.training_file),
            validation_dataset=dataset_name(request.validation_file) if request.validation_file else "",
            adapter_id=names.parse_id(request.suffix.lower(), field="suffix") if request.suffix else "",
            labels=request.metadata or {},
            lora=pb.LoraConfig(
                rank=own.rank, alpha=own.alpha, dropout=own.dropout, target_modules=own.target_modules or ()
            ),
            hyperparameters=_hyperparameters_to_proto(request, own),
        ),
    )


def _hyperparameters_to_proto(request: JobRequest, own: TrainerOptions) -> pb.Hyperparameters:
    supervised = request.method.supervised if request.method else None
    chosen = (
        (supervised.hyperparameters if supervised else None) or request.hyperparameters or Hyperparameters()
    )
    multiplier = _unless_auto(chosen.learning_rate_multiplier)
    batch_size = _unless_auto(chosen.batch_size)
    return pb.Hyperparameters(
        num_epochs=_unless_auto(chosen.n_epochs),
        batch_size=None if batch_size is None else int(batch_size),
        learning_rate=own.learning_rate or (None if multiplier is None else multiplier * _LEARNING_RATE),
        max_steps=own.max_steps,
        warmup_ratio=own.warmup_ratio,
        max_sequence_tokens=own.max_sequence_tokens,
        save_steps=own.save_steps,
        seed=request.seed,
    )


def _unless_auto(value: str | float | None) -> float | None:
    return None if isinstance(value, str) else value


def multiplier_of(learning_rate: float) -> float:
    """The other way: a learning rate as OpenAI's multiplier."""
    return round(learning_rate / _LEARNING_RATE, 6)
