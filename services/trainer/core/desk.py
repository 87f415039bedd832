"""The desk where jobs are asked for, looked up and called off."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from dataclasses import replace
from datetime import datetime
from typing import TypeVar

from services.kit.errors import FailedPrecondition, FieldViolation, InvalidArgument, NotFound, VersionExists
from services.trainer.core.ids import new_id
from services.trainer.core.jobs import cancelled, queued
from services.trainer.core.journal import Journal
from services.trainer.core.model import Checkpoint, DatasetFormat, Job, JobEvent, JobSpec, JobState, Progress
from services.trainer.core.ports import AdapterSink, CheckpointStore, DatasetStore, JobStore, ModelSource
from services.trainer.core.queue import Queue
from services.trainer.core.spec import check_spec, fit_to_base, total_steps

T = TypeVar("T")


class Desk:
    """What callers may do with jobs."""

    def __init__(
        self,
        *,
        store: JobStore,
        datasets: DatasetStore,
        journal: Journal,
        queue: Queue,
        models: ModelSource,
        adapters: AdapterSink,
        checkpoints: CheckpointStore,
        now: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._datasets = datasets
        self._journal = journal
        self._queue = queue
        self._models = models
        self._adapters = adapters
        self._checkpoints = checkpoints
        self._now = now

    async def create(self, spec: JobSpec, *, sequence_was_given: bool, request_id: str) -> Job:
        """Put a job into the queue. Raises InvalidArgument, ModelNotFound, WrongModelKind,
        DatasetNotFound, VersionExists.
        """
        check_spec(spec)
        if request_id and (earlier := await self._store.find_job(request_id)):
            return earlier
        job_id = new_id("job")
        if not spec.adapter_id:
            spec = replace(spec, adapter_id=f"lora-{job_id.removeprefix('job-')}")
        dataset = await _at("job.dataset", self._datasets.get_dataset(spec.dataset_id))
        formats = [("job.dataset", dataset.format)]
        if spec.validation_dataset_id:
            field = "job.validation_dataset"
            validation = await _at(field, self._datasets.get_dataset(spec.validation_dataset_id))
            formats.append((field, validation.format))
        base = await _at("job.base_model", self._models.resolve(spec.base_model))
        for field, form in formats:
            if form is DatasetFormat.CHAT and not base.has_chat_template:
                raise InvalidArgument.at(
                    field,
                    f"holds conversations, but {base.model_id} has no chat template; use prompt and "
                    f"completion",
                )
        if await self._adapters.exists(base.model_id, spec.adapter_id):
            raise VersionExists(
                f"{base.model_id} has a version '{spec.adapter_id}' already; choose another adapter_id",
                violations=[FieldViolation("job.adapter_id", "is taken")],
            )
        spec = fit_to_base(spec, base, sequence_was_given=sequence_was_given)
        steps = total_steps(spec.hyperparameters, dataset.num_examples)
        job = Job(job_id, spec, base, self._now(), progress=Progress(total_steps=steps))
        recorded = await self._journal.add(queued(job), request_id=request_id)
        self._queue.wake()
        return recorded

    async def get(self, job_id: str) -> Job:
        """Raises JobNotFound."""
        return await self._store.get_job(job_id)

    async def list_jobs(self, *, states: Collection[JobState], before: str | None, limit: int) -> list[Job]:
        """Newest first, those older than the id `before`; of any state if none is named."""
        return await self._store.list_jobs(states=states, before=before, limit=limit)

    async def cancel(self, job_id: str) -> Job:
        """End a job, its worker with it. Raises JobNotFound, JobFinished."""
        job = await self._journal.update(job_id, cancelled(self._now()))
        await self._queue.stop_run(job_id)
        return job

    def watch(self, job_id: str, *, after_sequence: int) -> AsyncGenerator[JobEvent, None]:
        """Events after a number, as they happen, until the job has ended. Raises JobNotFound,
        ServiceDraining.
        """
        return self._journal.watch(job_id, after_sequence)

    async def list_events(self, job_id: str, *, after_sequence: int, limit: int) -> list[JobEvent]:
        """Oldest first. Raises JobNotFound."""
        return await self._store.list_events(job_id, after_sequence=after_sequence, limit=limit)

    async def list_checkpoints(self, job_id: str, *, after_step: int, limit: int) -> list[Checkpoint]:
        """Those that are whole, oldest first. Raises JobNotFound."""
        await self._store.get_job(job_id)
        found = await asyncio.to_thread(self._checkpoints.list_checkpoints, job_id)
        return [checkpoint for checkpoint in found if checkpoint.step > after_step][:limit]


async def _at(field: str, asking: Awaitable[T]) -> T:
    """Say of an error which field of the request it is about."""
    try:
        return await asking
    except (NotFound, FailedPrecondition, InvalidArgument) as error:
        description = error.violations[0].description if error.violations else error.message
        raise type(error)(
            error.message, violations=[FieldViolation(field, description)], metadata=error.metadata
        ) from error
