"""Jobs as they change: every change goes through here, so that those who watch hear of it at once."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Final
from weakref import WeakValueDictionary

from services.kit.errors import ServiceDraining
from services.trainer.core.jobs import Change, Step
from services.trainer.core.model import Job, JobEvent
from services.trainer.core.ports import JobStore

_PAGE: Final = 200
# Where several Trainers share a database, another may change the job: look now and then.
_LOOK_AGAIN_S: Final = 2.0


class Journal:
    """Writes jobs and tells their watchers."""

    def __init__(self, store: JobStore, draining: asyncio.Event) -> None:
        self._store = store
        self._draining = draining
        # Held by the watchers alone: an entry goes with the last of them.
        self._changed: WeakValueDictionary[str, asyncio.Event] = WeakValueDictionary()

    async def add(self, change: Change, *, request_id: str) -> Job:
        """As JobStore.add_job."""
        return await self._store.add_job(change, request_id=request_id)

    async def get(self, job_id: str) -> Job:
        """As JobStore.get_job."""
        return await self._store.get_job(job_id)

    async def update(self, job_id: str, step: Step) -> Job:
        """As JobStore.update_job."""
        job = await self._store.update_job(job_id, step)
        changed = self._changed.pop(job_id, None)
        if changed is not None:
            changed.set()
        return job

    async def watch(self, job_id: str, after_sequence: int) -> AsyncGenerator[JobEvent, None]:
        """Events after a number, as they happen, until the job has ended. Raises JobNotFound,
        ServiceDraining.
        """
        while True:
            changed = self._changed.setdefault(job_id, asyncio.Event())
            job = await self._store.get_job(job_id)
            events = await self._store.list_events(job_id, after_sequence=after_sequence, limit=_PAGE)
            for event in events:
                yield event
                after_sequence = event.sequence
            if after_sequence < job.last_sequence:
                continue
            if job.state.is_final:
                return
            if self._draining.is_set():
                raise ServiceDraining(
                    f"the Trainer is going down; watch jobs/{job_id} again from number {after_sequence}"
                )
            await self._wait(changed)

    async def _wait(self, changed: asyncio.Event) -> None:
        waits = [asyncio.create_task(event.wait()) for event in (changed, self._draining)]
        try:
            await asyncio.wait(waits, timeout=_LOOK_AGAIN_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
