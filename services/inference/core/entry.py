"""One model in the pool: its workers, its users, its timer."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from services.inference.core.memory import MemoryPlan
from services.inference.core.models import LoadedModel, LoadState, ResolvedModel
from services.inference.core.ports import ModelWorker
from services.inference.core.replica import Replica
from services.kit.errors import LaresError, WorkerLost


class PoolEntry:
    """State of one model in memory, and what may happen to it alone. The pool decides; this keeps the books.

    num_users: everyone who holds it, whether waiting or being answered. It is READY while one of its workers is.
    """

    def __init__(self, model: ResolvedModel, plans: Sequence[MemoryPlan], *, is_pinned: bool = False) -> None:
        self.model = model
        self.name = model.name
        self.is_pinned = is_pinned
        self.state = LoadState.LOADING
        self.replicas = [Replica(model.name, plan) for plan in plans]
        self.num_users = 0
        self.num_waiting = 0
        self.num_restarts = 0
        self.keep_alive_s = 0.0
        self.is_leaving = False
        self.load_progress = 0.0
        self.failure_message = ""
        self.load_time = self.last_use_time = datetime.now(UTC)
        self.gone = asyncio.Event()
        self.hurry = asyncio.Event()
        self._unused = asyncio.Event()
        self._unused.set()
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks: dict[int, asyncio.Task[None]] = {}  # By id of the replica that each tends.
        self._timer: asyncio.TimerHandle | None = None
        self._expire_time: datetime | None = None

    @property
    def is_idle(self) -> bool:
        """Whether nobody uses it, and it could be told to go."""
        return self.state is LoadState.READY and self.num_users == 0

    @property
    def ready_replicas(self) -> list[Replica]:
        """Those that answer."""
        return [replica for replica in self.replicas if replica.worker is not None]

    def reserved_bytes(self, device: str) -> int:
        """What it takes of a device, or may come to take."""
        return sum(replica.reserved_bytes(device) for replica in self.replicas)

    def resident_bytes(self, device: str) -> int:
        """What it takes of a device now."""
        return sum(replica.resident_bytes(device) for replica in self.replicas)

    def tend(self, replica: Replica, task: asyncio.Task[None]) -> None:
        """Remember who starts a replica, and starts it again."""
        self._tasks[id(replica)] = task

    def become_ready(self) -> None:
        """A worker is there."""
        self.state, self.load_progress = LoadState.READY, 1.0
        if len(self.ready_replicas) == len(self.replicas):
            self.failure_message = ""
        if not self._ready.done():
            self._ready.set_result(None)

    def lose_replica(self, cause: str) -> None:
        """A worker died, and will be replaced."""
        self.failure_message = cause
        self.num_restarts += 1
        if not self.ready_replicas:
            self.state, self.load_progress = LoadState.LOADING, 0.0
            self._ready = asyncio.get_running_loop().create_future()

    def fail(self, error: BaseException) -> None:
        """Tell those who wait for it. With nobody there, nobody is told."""
        if not self._ready.done():
            self._ready.set_exception(error)
            self._ready.exception()  # Looked at, so that asyncio does not complain that nobody did.

    async def wait_ready(self) -> None:
        """Wait for the load.

        Raises its error; a fresh one for each who waits. Who stops waiting does not stop it. Raises WorkerLost
        at once while the next start after crashes is some time away.
        """
        if self._ready.done() and self.ready_replicas:
            return
        backoff_s = min((replica.backoff_s for replica in self.replicas), default=0.0)
        if backoff_s > 0:
            raise WorkerLost(
                f"{self.name} died again ({self.failure_message}); the next start is in {backoff_s:.1f} s",
                retry_after_s=backoff_s,
            )
        try:
            await asyncio.shield(self._ready)
        except LaresError as error:
            raise type(error)(
                error.message,
                violations=error.violations,
                metadata=error.metadata,
                retry_after_s=error.retry_after_s,
            ) from error

    def least_loaded(self) -> Replica:
        """The ready worker with the fewest users. Raises WorkerLost if there is none."""
        ready = self.ready_replicas
        if not ready:
            raise WorkerLost(f"{self.name} is not in memory any more")
        return min(ready, key=lambda replica: replica.num_users)

    async def stop_workers(self) -> None:
        """End loads that are not done, and every worker."""
        if loading := self.cancel_loads():
            await asyncio.wait(loading)
        await asyncio.gather(*(replica.ready_worker.stop() for replica in self.ready_replicas))

    def cancel_loads(self) -> list[asyncio.Task[None]]:
        """Stop what is still loading, but for whoever asks. Returns who stops."""
        loading = [self._tasks[id(r)] for r in self.replicas if r.worker is None and id(r) in self._tasks]
        stopping = [task for task in loading if task is not asyncio.current_task()]
        for task in stopping:
            task.cancel()
        return stopping

    def hold(self) -> None:
        """One user more."""
        self.cancel_timer()
        self.num_users += 1
        self.last_use_time = datetime.now(UTC)
        self._unused.clear()

    def let_go(self) -> None:
        """One user less."""
        self.num_users -= 1
        self.last_use_time = datetime.now(UTC)
        if self.num_users == 0:
            self._unused.set()

    @contextlib.asynccontextmanager
    async def waiting(self) -> AsyncIterator[Callable[[], None]]:
        """Count a request among those that wait, until it calls what it is given, or leaves."""
        self.num_waiting += 1
        is_waiting = True

        def admitted() -> None:
            nonlocal is_waiting
            self.num_waiting -= is_waiting
            is_waiting = False

        try:
            yield admitted
        finally:
            admitted()

    async def wait_unused_or_hurried(self) -> None:
        """Wait for the last user to go, or for somebody to lose patience."""
        waits = [asyncio.create_task(event.wait()) for event in (self._unused, self.hurry)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def expire_after(self, on_expire: Callable[[], None]) -> None:
        """Call on_expire when the keep-alive is over, unless somebody holds it before."""
        self.cancel_timer()
        self._timer = asyncio.get_running_loop().call_later(self.keep_alive_s, on_expire)
        self._expire_time = datetime.now(UTC) + timedelta(seconds=self.keep_alive_s)

    def cancel_timer(self) -> None:
        """It does not expire, for now."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._expire_time = None

    def snapshot(self) -> LoadedModel:
        """How it stands now."""
        ready = self.ready_replicas
        first = ready[0].ready_worker if ready else None
        adapters = {adapter.name: None for replica in ready for adapter in replica.adapters}
        return LoadedModel(
            name=self.name,
            version=self.model.version.name,
            state=self.state,
            facts=first.facts if first is not None else None,
            memory_bytes=sum(replica.ready_worker.memory_bytes() for replica in ready),
            adapters=tuple(adapters),
            num_active_requests=self.num_users - self.num_waiting,
            num_waiting_requests=self.num_waiting,
            load_time=self.load_time,
            last_use_time=self.last_use_time,
            expire_time=self._expire_time,
            load_progress=self.load_progress,
            failure_message=self.failure_message,
            worker_pid=first.pid if first is not None else 0,
            note=self._note(first),
            num_workers=len(self.replicas),
            num_ready_workers=len(ready),
            num_restarts=self.num_restarts,
            load_s=max((replica.load_s for replica in ready), default=0.0),
        )

    def _note(self, worker: ModelWorker | None) -> str:
        """Where it runs, if that is not where it might."""
        planned = [replica.plan.note for replica in self.replicas[:1]]
        told = [worker.facts.note] if worker is not None else []
        return "; ".join(note for note in [*planned, *told] if note)


@dataclass(frozen=True, slots=True)
class Seat:
    """A user's place at one worker of a model."""

    entry: PoolEntry
    replica: Replica

    @property
    def ready_worker(self) -> ModelWorker:
        """The worker. Raises WorkerLost if it died since."""
        return self.replica.ready_worker

    def waiting(self) -> contextlib.AbstractAsyncContextManager[Callable[[], None]]:
        """As PoolEntry.waiting."""
        return self.entry.waiting()
