"""The life of a job: pure, in milliseconds."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from services.kit.errors import InternalError, InvalidArgument, JobFinished, WorkerLost
from services.trainer.core.jobs import (
    StaleAttempt,
    Step,
    cancelled,
    checkpointed,
    claimed,
    failure_of,
    fenced,
    is_claimable,
    progressed,
    queued,
    released,
    succeeded,
    worker_lost,
)
from services.trainer.core.model import (
    BaseModel,
    Checkpoint,
    Hyperparameters,
    Job,
    JobSpec,
    JobState,
    Lora,
    Progress,
)
from services.trainer.core.schedule import learning_rate
from services.trainer.core.spec import check_spec, fit_to_base, total_steps

NOW = datetime(2026, 11, 21, tzinfo=UTC)
LATER = NOW + timedelta(seconds=30)
BASE = BaseModel("tiny", "tiny", "models/tiny/versions/1", 256, True)


def a_job() -> Job:
    return queued(Job("job-1", JobSpec("tiny", "dataset-1", adapter_id="a"), BASE, NOW)).job


def after(job: Job, *steps: Step) -> Job:
    for step in steps:
        job = step(job).job
    return job


def running() -> Job:
    return after(a_job(), claimed("me", NOW, LATER))


def test_events_are_numbered_without_gaps() -> None:
    job, sequences = a_job(), [1]
    steps = [
        claimed("me", NOW, LATER),
        progressed(Progress(step=1, total_steps=2), NOW),
        checkpointed(Checkpoint(2, 0.5, 10, NOW)),
        succeeded("models/tiny/versions/a", NOW),
    ]
    for step in steps:
        change = step(job)
        sequences += [event.sequence for event in change.events]
        job = change.job
    assert sequences == [1, 2, 3, 4, 5]
    assert job.last_sequence == 5
    assert job.served_name == "tiny:a"


def test_a_running_job_belongs_to_its_owner_until_the_claim_runs_out() -> None:
    job = running()
    assert not is_claimable(job, "other", NOW)
    assert is_claimable(job, "me", NOW), "its own service came back"
    assert is_claimable(job, "other", LATER)
    with pytest.raises(StaleAttempt):
        claimed("other", NOW, LATER)(job)
    taken = after(job, claimed("other", LATER, LATER + timedelta(seconds=30)))
    assert (taken.attempt, taken.num_restarts) == (2, 1)


def test_a_released_job_can_be_taken_up_at_once() -> None:
    assert is_claimable(after(running(), released()), "other", NOW)


def test_late_writes_of_an_older_attempt_are_refused() -> None:
    job = after(running(), claimed("other", LATER, LATER + timedelta(seconds=30)))
    with pytest.raises(StaleAttempt):
        fenced(1, progressed(Progress(step=1), NOW))(job)
    assert fenced(2, progressed(Progress(step=1), NOW))(job).job.progress.step == 1


def test_a_cancelled_job_takes_no_more_writes_and_cannot_be_cancelled_again() -> None:
    job = after(running(), cancelled(NOW))
    assert job.state is JobState.CANCELLED
    with pytest.raises(StaleAttempt):
        fenced(1, succeeded("models/tiny/versions/a", NOW))(job)
    with pytest.raises(JobFinished):
        cancelled(NOW)(job)


def test_a_job_fails_when_its_worker_is_lost_too_often_without_a_new_checkpoint() -> None:
    lost = worker_lost(WorkerLost("it died"), NOW, max_fruitless=3)
    job = after(running(), lost, lost, lost)
    assert (job.state, job.attempt, job.num_restarts) == (JobState.RUNNING, 4, 3)
    rescued = after(job, checkpointed(Checkpoint(50, 1.0, 10, NOW)), lost)
    assert rescued.state is JobState.RUNNING
    again = after(job, checkpointed(Checkpoint(0, 1.0, 10, NOW)), lost)
    assert again.state is JobState.FAILED, "the checkpoint was no progress"
    failed = after(job, lost)
    assert failed.failure is not None
    assert failed.failure.reason == "WORKER_LOST"


def test_a_bug_of_ours_does_not_show_its_insides() -> None:
    assert "secret" not in failure_of(InternalError("secret")).message


@pytest.mark.parametrize(
    ("field", "spec"),
    [
        ("job.base_model", JobSpec("", "d")),
        ("job.adapter_id", JobSpec("m", "d", adapter_id="A B")),
        ("job.lora.rank", JobSpec("m", "d", lora=Lora(rank=257))),
        ("job.lora.alpha", JobSpec("m", "d", lora=Lora(alpha=float("nan")))),
        ("job.lora.dropout", JobSpec("m", "d", lora=Lora(dropout=1.0))),
        ("job.lora.target_modules[0]", JobSpec("m", "d", lora=Lora(target_modules=("../x",)))),
        ("job.labels", JobSpec("m", "d", labels={str(i): "" for i in range(17)})),
    ],
)
def test_a_wrong_wish_is_named(field: str, spec: JobSpec) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_spec(spec)
    assert caught.value.violations[0].field == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_epochs", 0.0),
        ("num_epochs", float("inf")),
        ("max_steps", 0),
        ("batch_size", 1025),
        ("learning_rate", 1.5),
        ("learning_rate", float("nan")),
        ("warmup_ratio", -0.1),
        ("max_sequence_tokens", 7),
        ("save_steps", 0),
    ],
)
def test_a_wrong_hyperparameter_is_named(field: str, value: float) -> None:
    spec = JobSpec("m", "d", hyperparameters=replace(Hyperparameters(), **{field: value}))  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument) as caught:
        check_spec(spec)
    assert caught.value.violations[0].field == f"job.hyperparameters.{field}"


def test_the_default_length_gives_way_to_a_short_context_and_a_wish_does_not() -> None:
    spec = JobSpec("tiny", "d")
    assert fit_to_base(spec, BASE, sequence_was_given=False).hyperparameters.max_sequence_tokens == 256
    with pytest.raises(InvalidArgument, match="8 to 256"):
        fit_to_base(spec, BASE, sequence_was_given=True)
    assert fit_to_base(spec, replace(BASE, context_length=0), sequence_was_given=True) == spec


def test_steps_follow_from_the_epochs_unless_they_are_given() -> None:
    assert total_steps(Hyperparameters(num_epochs=1.5, batch_size=4), 10) == 4
    assert total_steps(Hyperparameters(max_steps=7), 10) == 7


def test_the_rate_rises_to_its_peak_and_falls() -> None:
    given = Hyperparameters(learning_rate=1.0, warmup_ratio=0.5)
    assert [learning_rate(step, 4, given) for step in range(4)] == [0.5, 1.0, 1.0, 0.5]
    assert learning_rate(9, 10, replace(given, warmup_ratio=1.0)) == 1.0
