"""Datasets, jobs and events in SQL: both ports over one database, because a job and its datasets change
together.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.engine import URL
from sqlalchemy.orm import Session

from services.kit.database import Database
from services.kit.errors import (
    DatasetNotFound,
    FailedPrecondition,
    FieldViolation,
    JobNotFound,
    ServiceStarting,
    VersionExists,
)
from services.trainer.adapters.tables import DatasetRow, EventRow, JobRow
from services.trainer.core.jobs import Change, Step
from services.trainer.core.model import Dataset, Job, JobEvent, JobState

MIGRATIONS: Final = Path(__file__).parent / "migrations"

Row = TypeVar("Row", DatasetRow, JobRow)

_UNFINISHED: Final = (JobState.QUEUED.value, JobState.RUNNING.value)


class SqlStore:
    """The DatasetStore and JobStore ports."""

    def __init__(self, url: URL) -> None:
        """Open it before its first use, and close it after the last."""
        self._url = url
        self._opened: Database | None = None

    async def open(self) -> None:
        """Raises Unavailable, DiskFull, DataLoss."""
        self._opened = await Database.open(self._url, migrations=MIGRATIONS)

    async def close(self) -> None:
        """Once what is under way has ended."""
        if self._opened is not None:
            await self._opened.close()
            self._opened = None

    @property
    def _database(self) -> Database:
        if self._opened is None:
            raise ServiceStarting("the Trainer's database is not open")
        return self._opened

    async def add_dataset(self, dataset: Dataset, *, request_id: str) -> Dataset:
        """As DatasetStore.add_dataset."""

        def work(session: Session) -> Dataset:
            earlier = _by_request(session, DatasetRow, request_id)
            if earlier is not None:
                return _dataset(earlier)
            session.add(
                DatasetRow(
                    dataset_id=dataset.dataset_id,
                    request_id=request_id or None,
                    digest=dataset.digest,
                    document=_to_text(dataset),
                )
            )
            return dataset

        return await self._database.run(work)

    async def get_dataset(self, dataset_id: str) -> Dataset:
        """As DatasetStore.get_dataset."""
        return await self._database.read(lambda session: _dataset(_dataset_row(session, dataset_id)))

    async def list_datasets(self, *, before: str | None, limit: int) -> list[Dataset]:
        """As DatasetStore.list_datasets."""
        query = select(DatasetRow).order_by(DatasetRow.dataset_id.desc()).limit(limit)
        if before is not None:
            query = query.where(DatasetRow.dataset_id < before)
        return await self._database.read(lambda session: [_dataset(row) for row in session.scalars(query)])

    async def remove_dataset(self, dataset_id: str) -> bool:
        """As DatasetStore.remove_dataset."""

        def work(session: Session) -> bool:
            row = _dataset_row(session, dataset_id, for_update=True)
            needs = or_(JobRow.dataset_id == dataset_id, JobRow.validation_dataset_id == dataset_id)
            user = session.scalar(select(JobRow.job_id).where(needs, JobRow.state.in_(_UNFINISHED)).limit(1))
            if user is not None:
                raise FailedPrecondition(
                    f"datasets/{dataset_id} is needed by jobs/{user}; cancel it, or wait for its end"
                )
            session.delete(row)
            session.flush()
            same = select(DatasetRow.dataset_id).where(DatasetRow.digest == row.digest).limit(1)
            return session.scalar(same) is None

        return await self._database.run(work)

    async def add_job(self, change: Change, *, request_id: str) -> Job:
        """As JobStore.add_job."""

        def work(session: Session) -> Job:
            earlier = _by_request(session, JobRow, request_id)
            if earlier is not None:
                return _job(earlier)
            job = change.job
            for dataset_id in (job.spec.dataset_id, job.spec.validation_dataset_id):
                if dataset_id:
                    _dataset_row(session, dataset_id, for_update=True)
            _refuse_twin(session, job)
            row = JobRow(
                job_id=job.job_id,
                request_id=request_id or None,
                model_id=job.base.model_id,
                adapter_id=job.spec.adapter_id,
                dataset_id=job.spec.dataset_id,
                validation_dataset_id=job.spec.validation_dataset_id,
            )
            _write(session, row, change)
            return job

        return await self._database.run(work)

    async def find_job(self, request_id: str) -> Job | None:
        """As JobStore.find_job."""

        def work(session: Session) -> Job | None:
            row = _by_request(session, JobRow, request_id)
            return _job(row) if row is not None else None

        return await self._database.read(work)

    async def get_job(self, job_id: str) -> Job:
        """As JobStore.get_job."""
        return await self._database.read(lambda session: _job(_job_row(session, job_id)))

    async def list_jobs(self, *, states: Collection[JobState], before: str | None, limit: int) -> list[Job]:
        """As JobStore.list_jobs."""
        wanted: list[ColumnElement[bool]] = []
        if states:
            wanted.append(JobRow.state.in_([state.value for state in states]))
        if before is not None:
            wanted.append(JobRow.job_id < before)
        query = select(JobRow).where(*wanted).order_by(JobRow.job_id.desc()).limit(limit)
        return await self._database.read(lambda session: [_job(row) for row in session.scalars(query)])

    async def unfinished_jobs(self) -> list[Job]:
        """As JobStore.unfinished_jobs."""
        query = select(JobRow).where(JobRow.state.in_(_UNFINISHED)).order_by(JobRow.job_id)
        return await self._database.read(lambda session: [_job(row) for row in session.scalars(query)])

    async def update_job(self, job_id: str, step: Step) -> Job:
        """As JobStore.update_job."""

        def work(session: Session) -> Job:
            row = _job_row(session, job_id, for_update=True)
            change = step(_job(row))
            _write(session, row, change)
            return change.job

        return await self._database.run(work)

    async def list_events(self, job_id: str, *, after_sequence: int, limit: int) -> list[JobEvent]:
        """As JobStore.list_events."""
        query = (
            select(EventRow.document)
            .where(EventRow.job_id == job_id, EventRow.sequence > after_sequence)
            .order_by(EventRow.sequence)
            .limit(limit)
        )

        def work(session: Session) -> list[JobEvent]:
            _job_row(session, job_id)
            return [msgspec.json.decode(document, type=JobEvent) for document in session.scalars(query)]

        return await self._database.read(work)


def _write(session: Session, row: JobRow, change: Change) -> None:
    row.state = change.job.state.value
    row.document = _to_text(change.job)
    session.add(row)
    session.flush()
    session.add_all(
        EventRow(job_id=row.job_id, sequence=event.sequence, document=_to_text(event))
        for event in change.events
    )


def _refuse_twin(session: Session, job: Job) -> None:
    twin = select(JobRow.job_id).where(
        JobRow.model_id == job.base.model_id,
        JobRow.adapter_id == job.spec.adapter_id,
        JobRow.state.in_(_UNFINISHED),
    )
    found = session.scalar(twin.limit(1))
    if found is not None:
        raise VersionExists(
            f"jobs/{found} is making the version '{job.spec.adapter_id}' of {job.base.model_id};"
            " choose another adapter_id",
            violations=[FieldViolation("job.adapter_id", "is taken")],
        )


def _dataset_row(session: Session, dataset_id: str, *, for_update: bool = False) -> DatasetRow:
    row = session.get(DatasetRow, dataset_id, with_for_update=for_update)
    if row is None:
        raise DatasetNotFound.named(f"datasets/{dataset_id}")
    return row


def _job_row(session: Session, job_id: str, *, for_update: bool = False) -> JobRow:
    row = session.get(JobRow, job_id, with_for_update=for_update)
    if row is None:
        raise JobNotFound.named(f"jobs/{job_id}")
    return row


def _by_request(session: Session, table: type[Row], request_id: str) -> Row | None:
    return session.scalar(select(table).where(table.request_id == request_id)) if request_id else None


def _dataset(row: DatasetRow) -> Dataset:
    return msgspec.json.decode(row.document, type=Dataset)


def _job(row: JobRow) -> Job:
    return msgspec.json.decode(row.document, type=Job)


def _to_text(record: Dataset | Job | JobEvent) -> str:
    return msgspec.json.encode(record).decode()
