"""Fine-tuning jobs, their events and checkpoints, as OpenAI tells of them."""

from typing import Any, Literal

from gateway.openai.common import ResponseModel
from gateway.openai.files import file_id
from gateway.openai.fine_tuning import multiplier_of
from gateway.openai.paging import Identified
from lares.trainer.v1 import trainer_pb2 as pb
from services.kit import names
from services.kit.errors import InvalidReference, JobNotFound

_PREFIX = "ftjob-"

Status = Literal["validating_files", "queued", "running", "succeeded", "failed", "cancelled"]
_STATUSES: dict[int, Status] = {
    pb.JOB_STATE_QUEUED: "queued",
    pb.JOB_STATE_RUNNING: "running",
    pb.JOB_STATE_SUCCEEDED: "succeeded",
    pb.JOB_STATE_FAILED: "failed",
    pb.JOB_STATE_CANCELLED: "cancelled",
}
_LEVELS: dict[int, Literal["info", "warn", "error"]] = {
    pb.EVENT_LEVEL_WARNING: "warn",
    pb.EVENT_LEVEL_ERROR: "error",
}


class JobError(ResponseModel):
    """Why a job failed."""

    code: str
    message: str
    param: str | None = None


class JobHyperparameters(ResponseModel):
    """How the job teaches."""

    n_epochs: float | Literal["auto"]
    batch_size: int | Literal["auto"]
    learning_rate_multiplier: float | Literal["auto"]


class JobSupervised(ResponseModel):
    """Learning from examples."""

    hyperparameters: JobHyperparameters


class JobMethod(ResponseModel):
    """How the job teaches."""

    type: Literal["supervised"] = "supervised"
    supervised: JobSupervised


class JobDetails(ResponseModel):
    """What Lares knows beside OpenAI's fields. loss: nats a token."""

    step: int
    total_steps: int | None
    loss: float | None
    tokens_per_second: float | None
    num_restarts: int


class JobObject(Identified):
    """A job."""

    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    model: str
    created_at: int
    finished_at: int | None
    estimated_finish: int | None
    fine_tuned_model: str | None
    organization_id: str = "lares"
    result_files: tuple[str, ...] = ()
    status: Status
    training_file: str
    validation_file: str | None
    hyperparameters: JobHyperparameters
    method: JobMethod
    seed: int
    trained_tokens: int | None
    error: JobError | None
    integrations: tuple[str, ...] = ()
    metadata: dict[str, str]
    lares: JobDetails


class JobEvent(Identified):
    """Something that happened to a job."""

    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any] | None


class CheckpointMetrics(ResponseModel):
    """How the job stood. train_loss: nats a token."""

    step: int
    train_loss: float


class JobCheckpoint(Identified):
    """A checkpoint. It cannot be chatted with: only a job's result can."""

    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuning_job_id: str
    fine_tuned_model_checkpoint: str | None = None
    step_number: int
    metrics: CheckpointMetrics


class JobList(ResponseModel):
    """A page of jobs, newest first."""

    object: Literal["list"] = "list"
    data: list[JobObject]
    has_more: bool


class JobEventList(ResponseModel):
    """A page of events, newest first."""

    object: Literal["list"] = "list"
    data: list[JobEvent]
    has_more: bool


class JobCheckpointList(ResponseModel):
    """A page of checkpoints, newest first."""

    object: Literal["list"] = "list"
    data: list[JobCheckpoint]
    first_id: str | None
    last_id: str | None
    has_more: bool


def job_id(name: str) -> str:
    """`jobs/x` -> `ftjob-x`."""
    (job,) = names.parse_resource(name, "jobs/{job}")
    return _PREFIX + job


def job_name(job: str) -> str:
    """`ftjob-x` -> `jobs/x`. Raises JobNotFound for what is no id of a job."""
    try:
        return names.resource_name("jobs/{job}", job.removeprefix(_PREFIX) if job.startswith(_PREFIX) else "")
    except InvalidReference:
        raise JobNotFound(
            f"there is no job '{job[:80]}'; GET /v1/fine_tuning/jobs lists those there are"
        ) from None


def job_from_proto(job: pb.Job, *, now_s: float) -> JobObject:
    """A job as OpenAI shapes it. now_s: Unix seconds, from which its end is estimated."""
    hyperparameters = _hyperparameters_from_proto(job.hyperparameters)
    progress = job.progress
    return JobObject(
        id=job_id(job.name),
        model=job.base_model,
        created_at=job.create_time.seconds,
        finished_at=job.end_time.seconds if job.HasField("end_time") else None,
        estimated_finish=_estimated_finish(job, now_s),
        fine_tuned_model=job.served_name or None,
        status=_STATUSES.get(job.state, "validating_files"),
        training_file=file_id(job.dataset),
        validation_file=file_id(job.validation_dataset) if job.validation_dataset else None,
        hyperparameters=hyperparameters,
        method=JobMethod(supervised=JobSupervised(hyperparameters=hyperparameters)),
        seed=job.hyperparameters.seed,
        trained_tokens=progress.num_tokens if job.state == pb.JOB_STATE_SUCCEEDED else None,
        error=JobError(code=job.failure.reason.lower(), message=job.failure.message)
        if job.HasField("failure")
        else None,
        metadata=dict(job.labels),
        lares=JobDetails(
            step=progress.step,
            total_steps=progress.total_steps or None,
            loss=progress.loss if progress.step else None,
            tokens_per_second=progress.tokens_per_second or None,
            num_restarts=job.num_restarts,
        ),
    )


def _estimated_finish(job: pb.Job, now_s: float) -> int | None:
    if job.state != pb.JOB_STATE_RUNNING or not job.progress.HasField("eta"):
        return None
    return round(now_s + job.progress.eta.seconds)


def _hyperparameters_from_proto(chosen: pb.Hyperparameters) -> JobHyperparameters:
    return JobHyperparameters(
        n_epochs=chosen.num_epochs if chosen.HasField("num_epochs") else "auto",
        batch_size=chosen.batch_size if chosen.HasField("batch_size") else "auto",
        learning_rate_multiplier=multiplier_of(chosen.learning_rate)
        if chosen.HasField("learning_rate")
        else "auto",
    )


def event_from_proto(event: pb.JobEvent, *, job: str) -> JobEvent:
    """job: its id as OpenAI's clients know it."""
    is_metrics = event.WhichOneof("detail") == "progress"
    progress = event.progress
    data: dict[str, Any] = {
        "step": progress.step,
        "total_steps": progress.total_steps,
        "train_loss": progress.loss,
        "learning_rate": progress.learning_rate,
        "tokens_per_second": progress.tokens_per_second,
    }
    if progress.HasField("validation_loss"):
        data["valid_loss"] = progress.validation_loss
    return JobEvent(
        id=f"ftevent-{job.removeprefix(_PREFIX)}-{event.sequence}",
        created_at=event.event_time.seconds,
        level=_LEVELS.get(event.level, "info"),
        message=event.message,
        type="metrics" if is_metrics else "message",
        data=data if is_metrics else None,
    )


def checkpoint_from_proto(checkpoint: pb.Checkpoint, *, job: str) -> JobCheckpoint:
    """job: its id as OpenAI's clients know it."""
    return JobCheckpoint(
        id=f"ftckpt-{job.removeprefix(_PREFIX)}-{checkpoint.step}",
        created_at=checkpoint.create_time.seconds,
        fine_tuning_job_id=job,
        step_number=checkpoint.step,
        metrics=CheckpointMetrics(step=checkpoint.step, train_loss=checkpoint.loss),
    )


def checkpoint_list(checkpoints: list[JobCheckpoint], has_more: bool) -> JobCheckpointList:
    """A page as OpenAI shapes it."""
    return JobCheckpointList(
        data=checkpoints,
        first_id=checkpoints[0].id if checkpoints else None,
        last_id=checkpoints[-1].id if checkpoints else None,
        has_more=has_more,
    )
