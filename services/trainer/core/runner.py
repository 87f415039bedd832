"""One job, from its claim to its end: train in a worker, keep the checkpoints, record the adapter."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from services.kit.errors import InternalError, LaresError, Unavailable, WorkerLost
from services.kit.unbroken import see_through
from services.trainer.core.jobs import (
    StaleAttempt,
    Step,
    checkpointed,
    failed,
    failure_of,
    fenced,
    noted,
    progressed,
    renewed,
    succeeded,
    worker_lost,
)
from services.trainer.core.journal import Journal
from services.trainer.core.model import Job, JobState, Progress
from services.trainer.core.ports import (
    AdapterSink,
    CheckpointStore,
    DatasetFiles,
    DatasetStore,
    DraftWritten,
    ModelSource,
    Remark,
    Report,
    StepDone,
    StoredFile,
    TrainingTask,
    TrainWorker,
)

_log = logging.getLogger(__name__)

_PROGRESS_INTERVAL: Final = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Policy:
    """How patient the Trainer is. claim: how long a job is held without a sign of life of its service."""

    claim: timedelta
    max_fruitless_restarts: int
    patience: timedelta
    retry_delay_s: float = 2.0


@dataclass(frozen=True, slots=True)
class Workshop:
    """All that a run works with."""

    journal: Journal
    datasets: DatasetStore
    dataset_files: DatasetFiles
    models: ModelSource
    adapters: AdapterSink
    checkpoints: CheckpointStore
    worker: TrainWorker
    policy: Policy
    now: Callable[[], datetime]


class Run:
    """One claim on one job. Every write is fenced by the attempt it holds."""

    def __init__(self, workshop: Workshop, job: Job) -> None:
        self._shop = workshop
        self._job = job
        self._told_at: datetime | None = None
        self._unavailable_since: datetime | None = None

    async def finish(self) -> None:
        """Work until the job has ended or is not ours any more. Being cancelled stops the worker and
        leaves the job as it is.
        """
        work = asyncio.create_task(self._work())
        claim = asyncio.create_task(self._keep_claim())
        try:
            await asyncio.wait({work, claim}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, claim):
                task.cancel()
            for result in await asyncio.gather(work, claim, return_exceptions=True):
                if isinstance(result, Exception):
                    _log.error("jobs/%s cannot be written: %s", self._job.job_id, result)

    async def _keep_claim(self) -> None:
        period_s = self._shop.policy.claim.total_seconds() / 3
        while True:
            await asyncio.sleep(period_s)
            try:
                await self._update(renewed(self._shop.now() + self._shop.policy.claim))
            except StaleAttempt:
                return
            except LaresError as error:
                _log.warning("the claim on %s could not be renewed: %s", self._job.job_id, error)

    async def _work(self) -> None:
        with contextlib.suppress(StaleAttempt):
            while True:
                try:
                    return await self._train_and_record()
                except StaleAttempt:
                    raise
                except WorkerLost as error:
                    if not await self._survive(error):
                        return
                except Unavailable as error:
                    await self._wait_for_service(error)
                except LaresError as error:
                    return await self._fail(error)
                except Exception:  # A bug of ours ends this job, told and logged; the queue goes on.
                    _log.exception("jobs/%s failed inside", self._job.job_id)
                    return await self._fail(InternalError("see the log"))

    async def _train_and_record(self) -> None:
        job_id = self._job.job_id
        await asyncio.to_thread(self._shop.checkpoints.clean, job_id)
        latest = await asyncio.to_thread(self._shop.checkpoints.latest, job_id)
        if latest is not None and latest[0].step > self._job.checkpoint_step:
            # It got its name, and the service died before it could tell.
            await self._update(checkpointed(latest[0]))
        if latest is None or not latest[0].is_last:
            await self._train(latest[1] if latest else None)
            latest = await asyncio.to_thread(self._shop.checkpoints.latest, job_id)
        if latest is None or not latest[0].is_last:
            raise WorkerLost("the worker ended without its last checkpoint")
        files = await self._shop.adapters.upload(latest[1])
        # A version that was asked for must not be forgotten half-way: whoever cancels waits for its answer.
        await see_through(self._record(list(files)))

    async def _train(self, resume_from: Path | None) -> None:
        job, shop = self._job, self._shop
        async with shop.models.hold(job.base) as model_folder:
            task = await self._task(model_folder, resume_from)
            async with contextlib.aclosing(shop.worker.train(task)) as reports:
                async for report in reports:
                    self._unavailable_since = None
                    await self._take(report)

    async def _task(self, model_folder: Path, resume_from: Path | None) -> TrainingTask:
        job, shop = self._job, self._shop
        dataset = await shop.datasets.get_dataset(job.spec.dataset_id)
        validation = None
        if job.spec.validation_dataset_id:
            measured = await shop.datasets.get_dataset(job.spec.validation_dataset_id)
            validation = (shop.dataset_files.path(measured.digest), measured.format)
        return TrainingTask(
            job_id=job.job_id,
            attempt=job.attempt,
            spec=job.spec,
            base_version=job.base.version,
            model_folder=model_folder,
            dataset_path=shop.dataset_files.path(dataset.digest),
            dataset_format=dataset.format,
            num_examples=dataset.num_examples,
            validation=validation,
            checkpoint_folder=await asyncio.to_thread(shop.checkpoints.folder, job.job_id),
            resume_from=resume_from,
        )

    async def _take(self, report: Report) -> None:
        match report:
            case StepDone(progress):
                await self._tell_progress(progress)
            case DraftWritten(draft):
                # The fence before the name: a draft of a worker that was given up never becomes a checkpoint.
                await self._update(renewed(self._shop.now() + self._shop.policy.claim))
                checkpoint = await asyncio.to_thread(self._shop.checkpoints.commit, self._job.job_id, draft)
                await self._update(checkpointed(checkpoint))
            case Remark(message):
                await self._update(noted(message, self._shop.now()))

    async def _tell_progress(self, progress: Progress) -> None:
        now = self._shop.now()
        is_last = progress.step >= progress.total_steps
        if is_last or self._told_at is None or now - self._told_at >= _PROGRESS_INTERVAL:
            self._told_at = now
            await self._update(progressed(progress, now))

    async def _record(self, files: list[StoredFile]) -> None:
        version = await self._shop.adapters.record(self._job, files)
        try:
            await self._update(succeeded(version, self._shop.now()))
        except StaleAttempt:
            job = await self._shop.journal.get(self._job.job_id)
            if job.state is JobState.CANCELLED:
                await self._shop.adapters.discard(version)
            raise

    async def _survive(self, error: WorkerLost) -> bool:
        limit = self._shop.policy.max_fruitless_restarts
        await self._update(worker_lost(error, self._shop.now(), max_fruitless=limit))
        return self._job.state is JobState.RUNNING

    async def _wait_for_service(self, error: Unavailable) -> None:
        now = self._shop.now()
        if self._unavailable_since is None:
            self._unavailable_since = now
            await self._update(noted(f"waiting: {error.message}", now))
        elif now - self._unavailable_since > self._shop.policy.patience:
            return await self._fail(error)
        await asyncio.sleep(max(error.retry_after_s or 0.0, self._shop.policy.retry_delay_s))

    async def _fail(self, error: LaresError) -> None:
        await self._update(failed(failure_of(error), self._shop.now()))

    async def _update(self, step: Step) -> None:
        self._job = await self._shop.journal.update(self._job.job_id, fenced(self._job.attempt, step))
