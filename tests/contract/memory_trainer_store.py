"""The Trainer's stores in memory, for tests of the core."""

from collections.abc import Collection

from services.kit.errors import DatasetNotFound, FailedPrecondition, JobNotFound, VersionExists
from services.trainer.core.jobs import Change, Step
from services.trainer.core.model import Dataset, Job, JobEvent, JobState


class MemoryTrainerStore:
    """The DatasetStore and JobStore ports over dictionaries."""

    def __init__(self) -> None:
        self._datasets: dict[str, Dataset] = {}
        self._jobs: dict[str, Job] = {}
        self._events: dict[str, list[JobEvent]] = {}
        self._requests: dict[tuple[str, str], str] = {}

    async def add_dataset(self, dataset: Dataset, *, request_id: str) -> Dataset:
        first = self._requests.setdefault(("dataset", request_id or dataset.dataset_id), dataset.dataset_id)
        return self._datasets.setdefault(first, dataset)

    async def get_dataset(self, dataset_id: str) -> Dataset:
        if dataset_id not in self._datasets:
            raise DatasetNotFound.named(f"datasets/{dataset_id}")
        return self._datasets[dataset_id]

    async def list_datasets(self, *, before: str | None, limit: int) -> list[Dataset]:
        ids = sorted((i for i in self._datasets if before is None or i < before), reverse=True)
        return [self._datasets[dataset_id] for dataset_id in ids[:limit]]

    async def remove_dataset(self, dataset_id: str) -> bool:
        dataset = await self.get_dataset(dataset_id)
        for job in await self.unfinished_jobs():
            if dataset_id in (job.spec.dataset_id, job.spec.validation_dataset_id):
                raise FailedPrecondition(f"datasets/{dataset_id} is needed by jobs/{job.job_id}")
        del self._datasets[dataset_id]
        return all(other.digest != dataset.digest for other in self._datasets.values())

    async def add_job(self, change: Change, *, request_id: str) -> Job:
        earlier = await self.find_job(request_id)
        if earlier is not None:
            return earlier
        job = change.job
        for dataset_id in (job.spec.dataset_id, job.spec.validation_dataset_id):
            if dataset_id:
                await self.get_dataset(dataset_id)
        made = (job.base.model_id, job.spec.adapter_id)
        if any((j.base.model_id, j.spec.adapter_id) == made for j in await self.unfinished_jobs()):
            raise VersionExists(f"{made} is being made")
        self._requests["job", request_id or job.job_id] = job.job_id
        self._write(change)
        return job

    async def find_job(self, request_id: str) -> Job | None:
        job_id = self._requests.get(("job", request_id)) if request_id else None
        return self._jobs[job_id] if job_id else None

    async def get_job(self, job_id: str) -> Job:
        if job_id not in self._jobs:
            raise JobNotFound.named(f"jobs/{job_id}")
        return self._jobs[job_id]

    async def list_jobs(self, *, states: Collection[JobState], before: str | None, limit: int) -> list[Job]:
        jobs = sorted(self._jobs.values(), key=lambda job: job.job_id, reverse=True)
        wanted = [
            j for j in jobs if (not states or j.state in states) and (before is None or j.job_id < before)
        ]
        return wanted[:limit]

    async def unfinished_jobs(self) -> list[Job]:
        return sorted((j for j in self._jobs.values() if not j.state.is_final), key=lambda job: job.job_id)

    async def update_job(self, job_id: str, step: Step) -> Job:
        change = step(await self.get_job(job_id))
        self._write(change)
        return change.job

    async def list_events(self, job_id: str, *, after_sequence: int, limit: int) -> list[JobEvent]:
        await self.get_job(job_id)
        return [event for event in self._events[job_id] if event.sequence > after_sequence][:limit]

    def _write(self, change: Change) -> None:
        self._jobs[change.job.job_id] = change.job
        self._events.setdefault(change.job.job_id, []).extend(change.events)
