"""Messages <-> domain, in pairs, pure."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from lares.trainer.v1 import trainer_pb2 as pb
from services.kit.errors import InvalidArgument
from services.kit.names import parse_resource
from services.trainer.core.model import (
    Checkpoint,
    Dataset,
    DatasetFormat,
    EventLevel,
    Hyperparameters,
    Job,
    JobEvent,
    JobSpec,
    JobState,
    Lora,
    Progress,
)

_FORMATS = {
    DatasetFormat.CHAT: pb.DATASET_FORMAT_CHAT,
    DatasetFormat.PROMPT_COMPLETION: pb.DATASET_FORMAT_PROMPT_COMPLETION,
    DatasetFormat.INSTRUCTION: pb.DATASET_FORMAT_INSTRUCTION,
    DatasetFormat.TEXT: pb.DATASET_FORMAT_TEXT,
}
_STATES = {
    JobState.QUEUED: pb.JOB_STATE_QUEUED,
    JobState.RUNNING: pb.JOB_STATE_RUNNING,
    JobState.SUCCEEDED: pb.JOB_STATE_SUCCEEDED,
    JobState.FAILED: pb.JOB_STATE_FAILED,
    JobState.CANCELLED: pb.JOB_STATE_CANCELLED,
}
_LEVELS = {
    EventLevel.INFO: pb.EVENT_LEVEL_INFO,
    EventLevel.WARNING: pb.EVENT_LEVEL_WARNING,
    EventLevel.ERROR: pb.EVENT_LEVEL_ERROR,
}
_STATES_FROM_PROTO = {value: state for state, value in _STATES.items()}


def dataset_id_from_name(name: str, *, field: str = "name") -> str:
    """`datasets/x` -> `x`. Raises InvalidReference."""
    (dataset_id,) = parse_resource(name, "datasets/{dataset}", field=field)
    return dataset_id


def job_id_from_name(name: str, *, field: str = "name") -> str:
    """`jobs/x` -> `x`. Raises InvalidReference."""
    (job_id,) = parse_resource(name, "jobs/{job}", field=field)
    return job_id


def dataset_to_proto(dataset: Dataset) -> pb.Dataset:
    """A dataset as the contract has it."""
    return pb.Dataset(
        name=f"datasets/{dataset.dataset_id}",
        file_name=dataset.file_name,
        format=_FORMATS[dataset.format],
        size_bytes=dataset.size_bytes,
        digest=dataset.digest,
        num_examples=dataset.num_examples,
        create_time=_timestamp(dataset.create_time),
    )


def spec_from_proto(job: pb.Job) -> JobSpec:
    """What a caller asked for, its defaults filled in. Raises InvalidReference for datasets' names."""
    validation = job.validation_dataset
    return JobSpec(
        base_model=job.base_model,
        dataset_id=dataset_id_from_name(job.dataset, field="job.dataset"),
        validation_dataset_id=(
            dataset_id_from_name(validation, field="job.validation_dataset") if validation else None
        ),
        adapter_id=job.adapter_id,
        lora=_lora_from_proto(job.lora),
        hyperparameters=_hyperparameters_from_proto(job.hyperparameters),
        labels=dict(job.labels),
    )


def _lora_from_proto(lora: pb.LoraConfig) -> Lora:
    default = Lora()
    rank = lora.rank if lora.HasField("rank") else default.rank
    return Lora(
        rank=rank,
        alpha=lora.alpha if lora.HasField("alpha") else 2.0 * rank,
        dropout=lora.dropout if lora.HasField("dropout") else default.dropout,
        target_modules=tuple(lora.target_modules),
    )


def _hyperparameters_from_proto(given: pb.Hyperparameters) -> Hyperparameters:
    # Of optional scalars, ListFields tells those that were set.
    return Hyperparameters(**{field.name: value for field, value in given.ListFields()})


def job_to_proto(job: Job) -> pb.Job:
    """A job as the contract has it."""
    spec, given = job.spec, job.spec.hyperparameters
    return pb.Job(
        name=f"jobs/{job.job_id}",
        base_model=spec.base_model,
        dataset=f"datasets/{spec.dataset_id}",
        validation_dataset=f"datasets/{spec.validation_dataset_id}" if spec.validation_dataset_id else "",
        adapter_id=spec.adapter_id,
        lora=pb.LoraConfig(
            rank=spec.lora.rank,
            alpha=spec.lora.alpha,
            dropout=spec.lora.dropout,
            target_modules=spec.lora.target_modules,
        ),
        hyperparameters=pb.Hyperparameters(
            num_epochs=given.num_epochs,
            max_steps=given.max_steps,
            batch_size=given.batch_size,
            learning_rate=given.learning_rate,
            warmup_ratio=given.warmup_ratio,
            max_sequence_tokens=given.max_sequence_tokens,
            save_steps=given.save_steps,
            seed=given.seed,
        ),
        labels=spec.labels,
        state=_STATES[job.state],
        progress=progress_to_proto(job.progress),
        result_version=job.result_version,
        served_name=job.served_name,
        failure=pb.JobFailure(reason=job.failure.reason, message=job.failure.message)
        if job.failure
        else None,
        create_time=_timestamp(job.create_time),
        start_time=_timestamp(job.start_time) if job.start_time else None,
        end_time=_timestamp(job.end_time) if job.end_time else None,
        num_restarts=job.num_restarts,
    )


def progress_to_proto(progress: Progress) -> pb.JobProgress:
    """Progress as the contract has it."""
    return pb.JobProgress(
        step=progress.step,
        total_steps=progress.total_steps,
        epoch=progress.epoch,
        loss=progress.loss,
        learning_rate=progress.learning_rate,
        tokens_per_second=progress.tokens_per_second,
        num_tokens=progress.num_tokens,
        eta=_duration(progress.eta_s) if progress.eta_s is not None else None,
        validation_loss=progress.validation_loss,
    )


def checkpoint_to_proto(checkpoint: Checkpoint) -> pb.Checkpoint:
    """A checkpoint as the contract has it."""
    return pb.Checkpoint(
        step=checkpoint.step,
        loss=checkpoint.loss,
        size_bytes=checkpoint.size_bytes,
        create_time=_timestamp(checkpoint.create_time),
    )


def event_to_proto(event: JobEvent) -> pb.JobEvent:
    """An event as the contract has it."""
    message = pb.JobEvent(
        sequence=event.sequence,
        event_time=_timestamp(event.time),
        level=_LEVELS[event.level],
        message=event.message,
    )
    if event.state is not None:
        message.state = _STATES[event.state]
    elif event.progress is not None:
        message.progress.CopyFrom(progress_to_proto(event.progress))
    elif event.checkpoint is not None:
        message.checkpoint.CopyFrom(checkpoint_to_proto(event.checkpoint))
    return message


def states_from_proto(states: Sequence[int]) -> frozenset[JobState]:
    """States to filter by. Raises InvalidArgument for what is none."""
    unknown = [state for state in states if state not in _STATES_FROM_PROTO]
    if unknown:
        raise InvalidArgument.at("states", f"{unknown[0]} is no state of a job")
    return frozenset(_STATES_FROM_PROTO[state] for state in states)  # type: ignore[index]  # Enums are ints on the wire.


def _timestamp(time: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(time)
    return timestamp


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromTimedelta(timedelta(seconds=seconds))
    return duration
