"""What the Trainer expects of its stores, whatever they keep things in."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import inspect
from sqlalchemy.engine import URL

from services.kit.database import alembic_config, downgrade, make_engine, upgrade
from services.kit.errors import DatasetNotFound, FailedPrecondition, JobNotFound, VersionExists
from services.trainer.adapters.sql_store import MIGRATIONS, SqlStore
from services.trainer.adapters.tables import Base
from services.trainer.core.jobs import StaleAttempt, cancelled, claimed, fenced, progressed, queued
from services.trainer.core.model import (
    BaseModel,
    Dataset,
    DatasetFormat,
    Failure,
    Job,
    JobSpec,
    JobState,
    Lora,
    Progress,
)
from tests.contract.memory_trainer_store import MemoryTrainerStore

NOW = datetime(2026, 11, 21, 12, 0, 0, 123456, tzinfo=UTC)
LATER = NOW + timedelta(seconds=30)
Store = MemoryTrainerStore | SqlStore


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    if request.param == "memory":
        yield MemoryTrainerStore()
        return
    sql = SqlStore(URL.create("sqlite", database=str(tmp_path / "trainer.db")))
    await sql.open()
    yield sql
    await sql.close()


def a_dataset(number: int, digest: str = "sha256:" + "a" * 64) -> Dataset:
    return Dataset(f"dataset-{number}", "dữ liệu.jsonl", DatasetFormat.CHAT, 10, digest, 2, NOW)


def a_job(number: int, *, dataset: str = "dataset-1", adapter_id: str = "") -> Job:
    spec = JobSpec(
        "tiny",
        dataset,
        adapter_id=adapter_id or f"lora-{number}",
        lora=Lora(target_modules=("q_proj",)),
        labels={"team": "a"},
    )
    return Job(f"job-{number}", spec, BaseModel("tiny", "tiny", "models/tiny/versions/1", 256, True), NOW)


async def test_what_is_written_is_read_back_equal(store: Store) -> None:
    dataset = await store.add_dataset(a_dataset(1), request_id="")
    assert await store.get_dataset("dataset-1") == dataset == a_dataset(1)
    job = replace(a_job(1), failure=Failure("X", "y"), progress=Progress(1, 2, eta_s=0.5), end_time=NOW)
    await store.add_job(queued(job), request_id="")
    assert await store.get_job("job-1") == queued(job).job
    assert await store.list_events("job-1", after_sequence=0, limit=10) == list(queued(job).events)


async def test_unknown_ids_are_told_by_their_kind(store: Store) -> None:
    with pytest.raises(DatasetNotFound):
        await store.get_dataset("none")
    with pytest.raises(DatasetNotFound):
        await store.remove_dataset("none")
    with pytest.raises(JobNotFound):
        await store.get_job("none")
    with pytest.raises(JobNotFound):
        await store.list_events("none", after_sequence=0, limit=1)
    with pytest.raises(JobNotFound):
        await store.update_job("none", cancelled(NOW))
    with pytest.raises(DatasetNotFound):
        await store.add_job(queued(a_job(1)), request_id="")


async def test_a_repeated_request_returns_the_first_ones_record(store: Store) -> None:
    first = await store.add_dataset(a_dataset(1), request_id="r")
    assert await store.add_dataset(a_dataset(2), request_id="r") == first
    job = await store.add_job(queued(a_job(1)), request_id="r")
    assert await store.add_job(queued(a_job(2)), request_id="r") == job
    assert await store.find_job("r") == job
    assert await store.find_job("other") is None
    assert await store.find_job("") is None


async def test_lists_are_newest_first_and_go_on_after_an_id(store: Store) -> None:
    for number in range(1, 5):
        await store.add_dataset(a_dataset(number), request_id="")
        await store.add_job(queued(a_job(number)), request_id="")
    await store.update_job("job-3", cancelled(NOW))
    datasets = await store.list_datasets(before="dataset-4", limit=2)
    assert [dataset.dataset_id for dataset in datasets] == ["dataset-3", "dataset-2"]
    jobs = await store.list_jobs(states=(), before="job-4", limit=2)
    assert [job.job_id for job in jobs] == ["job-3", "job-2"]
    jobs = await store.list_jobs(states={JobState.QUEUED}, before=None, limit=10)
    assert [job.job_id for job in jobs] == ["job-4", "job-2", "job-1"]
    assert [job.job_id for job in await store.unfinished_jobs()] == ["job-1", "job-2", "job-4"]


async def test_a_dataset_in_use_stays_and_its_bytes_go_with_the_last_record(store: Store) -> None:
    await store.add_dataset(a_dataset(1), request_id="")
    await store.add_dataset(a_dataset(2), request_id="")
    await store.add_job(queued(a_job(1)), request_id="")
    with pytest.raises(FailedPrecondition):
        await store.remove_dataset("dataset-1")
    await store.update_job("job-1", cancelled(NOW))
    assert not await store.remove_dataset("dataset-1")
    assert await store.remove_dataset("dataset-2")


async def test_two_unfinished_jobs_cannot_make_the_same_version(store: Store) -> None:
    await store.add_dataset(a_dataset(1), request_id="")
    await store.add_job(queued(a_job(1, adapter_id="x")), request_id="")
    with pytest.raises(VersionExists):
        await store.add_job(queued(a_job(2, adapter_id="x")), request_id="")
    await store.update_job("job-1", cancelled(NOW))
    await store.add_job(queued(a_job(3, adapter_id="x")), request_id="")


async def test_a_step_that_is_refused_changes_nothing(store: Store) -> None:
    await store.add_dataset(a_dataset(1), request_id="")
    await store.add_job(queued(a_job(1)), request_id="")
    claimed_job = await store.update_job("job-1", claimed("me", NOW, LATER))
    with pytest.raises(StaleAttempt):
        await store.update_job("job-1", fenced(7, progressed(Progress(step=1), NOW)))
    assert await store.get_job("job-1") == claimed_job


async def test_of_many_who_claim_a_job_one_gets_it(store: Store) -> None:
    await store.add_dataset(a_dataset(1), request_id="")
    await store.add_job(queued(a_job(1)), request_id="")
    claims = [store.update_job("job-1", claimed(f"t-{i}", NOW, LATER)) for i in range(8)]
    results = await asyncio.gather(*claims, return_exceptions=True)
    assert sum(isinstance(result, Job) for result in results) == 1


async def test_events_are_numbered_and_read_from_a_number_on(store: Store) -> None:
    await store.add_dataset(a_dataset(1), request_id="")
    await store.add_job(queued(a_job(1)), request_id="")
    await store.update_job("job-1", claimed("me", NOW, LATER))
    steps = [fenced(1, progressed(Progress(step=i), NOW)) for i in range(20)]
    await asyncio.gather(*(store.update_job("job-1", step) for step in steps))
    events = await store.list_events("job-1", after_sequence=2, limit=100)
    assert [event.sequence for event in events] == list(range(3, 23))
    assert len(await store.list_events("job-1", after_sequence=0, limit=5)) == 5


def test_migrations_go_up_down_and_up_and_leave_the_tables_of_the_code(tmp_path: Path) -> None:
    from alembic import command

    engine = make_engine(URL.create("sqlite", database=str(tmp_path / "trainer.db")))
    upgrade(engine, MIGRATIONS)
    downgrade(engine, MIGRATIONS, "base")
    assert inspect(engine).get_table_names() == ["alembic_version"]
    upgrade(engine, MIGRATIONS)
    with engine.begin() as connection:
        command.check(alembic_config(connection, MIGRATIONS, Base.metadata))
    engine.dispose()
