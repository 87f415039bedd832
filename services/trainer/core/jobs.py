"""The life of a job. Each step is a pure function from a job to a `Change`: the job afterwards, and the
events that tell of it.

A store applies a step in one transaction, so a step sees the newest job and none is lost. What a runner
asks for is fenced by
the attempt that it holds: a runner whose job was cancelled or taken over learns so from `StaleAttempt`,
and writes nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from services.kit.errors import InternalError, JobFinished, LaresError, WorkerLost
from services.trainer.core.model import (
    Checkpoint,
    Claim,
    EventLevel,
    Failure,
    Job,
    JobEvent,
    JobState,
    Progress,
)


class StaleAttempt(Exception):
    """The job is not this attempt's any more. Never leaves the Trainer: whoever gets it stops."""


@dataclass(frozen=True, slots=True)
class Change:
    """A job after a step, and the events of that step, numbered."""

    job: Job
    events: tuple[JobEvent, ...] = ()


Step = Callable[[Job], Change]

_LEVELS: Final = {JobState.FAILED: EventLevel.ERROR}


def _tell(
    job: Job,
    now: datetime,
    message: str,
    *,
    level: EventLevel = EventLevel.INFO,
    state: JobState | None = None,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
) -> Change:
    event = JobEvent(job.last_sequence + 1, now, level, message, state, progress, checkpoint)
    return Change(replace(job, last_sequence=event.sequence), (event,))


def _enter(job: Job, state: JobState, now: datetime, message: str) -> Change:
    level = _LEVELS.get(state, EventLevel.INFO)
    return _tell(replace(job, state=state), now, message, level=level, state=state)


def queued(job: Job) -> Change:
    """The first step: the job is in the queue."""
    return _enter(job, JobState.QUEUED, job.create_time, "waiting for its turn")


def claimed(owner: str, now: datetime, expire_time: datetime) -> Step:
    """Take a job up: one that waits, or one whose owner is gone. Raises StaleAttempt if it is somebody
    else's.
    """

    def step(job: Job) -> Change:
        if not is_claimable(job, owner, now):
            raise StaleAttempt(job.job_id)
        mine = replace(job, attempt=job.attempt + 1, claim=Claim(owner, expire_time))
        if job.state is JobState.QUEUED:
            return _enter(replace(mine, start_time=now), JobState.RUNNING, now, "taken up")
        return _tell(
            replace(mine, num_restarts=job.num_restarts + 1),
            now,
            "taken up again after the service stopped",
            level=EventLevel.WARNING,
        )

    return step


def is_claimable(job: Job, owner: str, now: datetime) -> bool:
    """Whether `owner`, who is not at work on it, may take the job up."""
    if job.state is JobState.QUEUED:
        return True
    if job.state.is_final:
        return False
    return job.claim is None or job.claim.owner == owner or job.claim.expire_time <= now


def fenced(attempt: int, step: Step) -> Step:
    """The step, for the holder of `attempt` only. Raises StaleAttempt."""

    def guarded(job: Job) -> Change:
        if job.state is not JobState.RUNNING or job.attempt != attempt:
            raise StaleAttempt(job.job_id)
        return step(job)

    return guarded


def renewed(expire_time: datetime) -> Step:
    """The owner is still there."""

    def step(job: Job) -> Change:
        return Change(replace(job, claim=Claim(job.claim.owner, expire_time) if job.claim else None))

    return step


def released() -> Step:
    """The owner leaves it as it is, for whoever comes next: the service is going down."""
    return lambda job: Change(replace(job, claim=None))


def progressed(progress: Progress, now: datetime) -> Step:
    """A step was done."""

    def step(job: Job) -> Change:
        message = f"step {progress.step} of {progress.total_steps}: loss {progress.loss:.4f}"
        return _tell(replace(job, progress=progress), now, message, progress=progress)

    return step


def checkpointed(checkpoint: Checkpoint) -> Step:
    """A checkpoint is whole: whatever was lost before it no longer counts."""

    def step(job: Job) -> Change:
        forward = replace(
            job,
            checkpoint_step=checkpoint.step,
            num_fruitless_restarts=0 if checkpoint.step > job.checkpoint_step else job.num_fruitless_restarts,
        )
        message = f"checkpoint at step {checkpoint.step}"
        return _tell(forward, checkpoint.create_time, message, checkpoint=checkpoint)

    return step


def noted(message: str, now: datetime) -> Step:
    """Something worth a look."""
    return lambda job: _tell(job, now, message, level=EventLevel.WARNING)


def worker_lost(error: WorkerLost, now: datetime, *, max_fruitless: int) -> Step:
    """The worker died: try again from the last checkpoint, unless that was in vain too often."""

    def step(job: Job) -> Change:
        if job.num_fruitless_restarts >= max_fruitless:
            reason = Failure(
                error.reason,
                f"its worker was lost {max_fruitless + 1} times without reaching another checkpoint; lower"
                f" batch_size, max_sequence_tokens or save_steps. The last time: {error.message}",
            )
            return failed(reason, now)(job)
        again = replace(
            job,
            attempt=job.attempt + 1,
            num_restarts=job.num_restarts + 1,
            num_fruitless_restarts=job.num_fruitless_restarts + 1,
        )
        return _tell(
            again, now, f"taken up again after its worker was lost: {error.message}", level=EventLevel.WARNING
        )

    return step


def succeeded(result_version: str, now: datetime) -> Step:
    """The adapter is recorded."""

    def step(job: Job) -> Change:
        done = replace(job, result_version=result_version, claim=None, end_time=now)
        return _enter(done, JobState.SUCCEEDED, now, f"ready to chat with as {done.served_name}")

    return step


def failed(failure: Failure, now: datetime) -> Step:
    """It cannot go on."""

    def step(job: Job) -> Change:
        done = replace(job, failure=failure, claim=None, end_time=now)
        return _enter(done, JobState.FAILED, now, failure.message)

    return step


def failure_of(error: LaresError) -> Failure:
    """What a job says of the error that ended it. Our own bugs say nothing of our insides."""
    message = (
        "the Trainer failed inside; its log says how" if isinstance(error, InternalError) else str(error)
    )
    return Failure(error.reason, message)


def cancelled(now: datetime) -> Step:
    """The caller ends it. Raises JobFinished if it has ended."""

    def step(job: Job) -> Change:
        if job.state.is_final:
            raise JobFinished(f"jobs/{job.job_id} has ended already: it is {job.state.value}")
        return _enter(replace(job, claim=None, end_time=now), JobState.CANCELLED, now, "cancelled")

    return step
