"""Jobs take their turns: oldest first, a few at a time. What ran when the service stopped goes on at the
next start.
"""

import asyncio
import contextlib
import logging
from typing import Final

from services.kit.errors import LaresError
from services.trainer.core.jobs import StaleAttempt, claimed, fenced, is_claimable, released
from services.trainer.core.model import Job, JobState
from services.trainer.core.ports import JobStore
from services.trainer.core.runner import Run, Workshop

_log = logging.getLogger(__name__)

# How long a worker may take to end before CancelJob answers without it; it is being killed by then.
_STOP_S: Final = 4.5


class Queue:
    """Runs jobs. Nothing happens until it is started."""

    def __init__(self, store: JobStore, workshop: Workshop, *, max_running: int) -> None:
        self._store = store
        self._shop = workshop
        self._owner = ""
        self._max_running = max_running
        self._runs: dict[str, asyncio.Task[None]] = {}
        self._awake = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    def start(self, owner: str) -> None:
        """Begin to take jobs up. owner: this Trainer's own id, the same at every start: its jobs are its
        own again at once.
        """
        self._owner = owner
        self._loop = asyncio.create_task(self._serve())

    def wake(self) -> None:
        """There may be something to do."""
        self._awake.set()

    async def stop(self) -> None:
        """Stop the workers and leave their jobs for the next start."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        for job_id in list(self._runs):
            await self.stop_run(job_id)

    async def stop_run(self, job_id: str) -> None:
        """End the worker of a job, if one runs here."""
        run = self._runs.get(job_id)
        if run is not None:
            run.cancel()
            await asyncio.wait([run], timeout=_STOP_S)

    async def _serve(self) -> None:
        period_s = self._shop.policy.claim.total_seconds()
        while True:
            self._awake.clear()
            try:
                await self._take_up()
            except LaresError as error:
                _log.warning("the queue could not be read: %s", error)
            # Somebody else's claim may run out unnoticed: look now and then.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._awake.wait(), period_s)

    async def _take_up(self) -> None:
        for job in await self._store.unfinished_jobs():
            if len(self._runs) >= self._max_running:
                return
            now = self._shop.now()
            if job.job_id in self._runs or not is_claimable(job, self._owner, now):
                continue
            step = claimed(self._owner, now, now + self._shop.policy.claim)
            with contextlib.suppress(StaleAttempt):
                self._begin(await self._shop.journal.update(job.job_id, step))

    def _begin(self, job: Job) -> None:
        run = asyncio.create_task(self._run(job), name=f"jobs/{job.job_id}")
        self._runs[job.job_id] = run
        run.add_done_callback(lambda _: self._end(job.job_id))

    def _end(self, job_id: str) -> None:
        del self._runs[job_id]
        self.wake()

    async def _run(self, job: Job) -> None:
        try:
            await Run(self._shop, job).finish()
        except asyncio.CancelledError:
            await self._release(job)
            raise

    async def _release(self, job: Job) -> None:
        current = await self._store.get_job(job.job_id)
        if current.state is JobState.RUNNING and current.claim and current.claim.owner == self._owner:
            with contextlib.suppress(StaleAttempt, LaresError):
                await self._shop.journal.update(job.job_id, fenced(current.attempt, released()))
