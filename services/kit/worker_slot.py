"""A place for one worker that is there when it is needed: started on demand, started again after it died."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Generic

from services.kit.errors import WorkerLost
from services.kit.worker import Ev, OnProgress, Req, Worker, WorkerSpec

_MAX_BACKOFF_S = 30.0

# A worker that lived so long did not die of its start: the count of crashes begins anew.
_SETTLED_S = 60.0


class WorkerSlot(Generic[Req, Ev]):
    """Holds at most one live worker. All of it belongs to one event loop.

    After a crash the next `get` starts again at once; if that one dies soon too, the next waits 1 s, 2 s, 4
    s, ... up to 30 s. Meanwhile `get` raises WorkerLost at once, with the time that is left in
    `retry_after_s`.
    """

    def __init__(
        self,
        spec_factory: Callable[[], WorkerSpec[Req, Ev]],
        *,
        on_progress: OnProgress | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """spec_factory: asked anew for every start."""
        self._spec_factory = spec_factory
        self._on_progress = on_progress
        self._clock = clock
        self._worker: Worker[Req, Ev] | None = None
        self._starting: asyncio.Task[Worker[Req, Ev]] | None = None
        self._started_at = 0.0
        self._num_crashes = 0
        self._retry_at = 0.0
        self._closed = False

    @property
    def worker(self) -> Worker[Req, Ev] | None:
        """The live worker, if there is one now."""
        return self._worker if self._worker is not None and self._worker.alive else None

    async def get(self) -> Worker[Req, Ev]:
        """The live worker; starts one if there is none. Those who ask meanwhile wait for the same start.

        Raises what `Worker.start` raises, and WorkerLost while backing off and after `close`. Who gives up
        waiting does not stop the start for the others, nor for the next who asks.
        """
        if self._closed:
            raise WorkerLost("the worker was unloaded")
        if (worker := self.worker) is not None:
            return worker
        if self._starting is None:
            self._bury()
            wait_s = self._retry_at - self._clock()
            if wait_s > 0:
                why = (
                    f"the worker died {self._num_crashes} times in a row; the next start is in {wait_s:.1f} s"
                )
                raise WorkerLost(why, retry_after_s=wait_s)
            self._starting = asyncio.create_task(self._start())
        return await asyncio.shield(self._starting)

    async def close(self, grace_s: float = 5.0) -> None:
        """End the worker, or its start; its memory is free on return. No other is started."""
        self._closed = True
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait([self._starting])
        if self._worker is not None:
            await self._worker.stop(grace_s)

    def _bury(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None and worker.crashed:
            if self._clock() - self._started_at >= _SETTLED_S:
                self._num_crashes = 0
            self._count_crash()

    def _count_crash(self) -> None:
        self._num_crashes += 1
        backoff_s = 0.0 if self._num_crashes == 1 else min(_MAX_BACKOFF_S, 2.0 ** (self._num_crashes - 2))
        self._retry_at = self._clock() + backoff_s

    async def _start(self) -> Worker[Req, Ev]:
        try:
            self._started_at = self._clock()
            self._worker = await Worker.start(self._spec_factory(), self._on_progress)
            return self._worker
        except WorkerLost:
            self._count_crash()
            raise
        finally:
            # Nobody may be waiting any more; then nobody else would fetch the error, and asyncio complains
            # of that.
            if (task := self._starting) is not None:
                task.add_done_callback(_fetch_error)
            self._starting = None


def _fetch_error(task: "asyncio.Task[Worker[Req, Ev]]") -> None:
    with contextlib.suppress(asyncio.CancelledError):
        task.exception()
