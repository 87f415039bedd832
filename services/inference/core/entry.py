"""One model in the pool: its worker, its users, its timer."""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta

from services.inference.core.models import LoadedModel, LoadState, ModelVersion, ResolvedModel
from services.inference.core.ports import ModelWorker
from services.kit.errors import LaresError, QueueFull, WorkerLost


class PoolEntry:
    """State of one model in memory, and what may happen to it alone. The pool decides; this keeps the books.

    num_users: everyone who holds it, whether waiting or being answered.
    """

    def __init__(self, model: ResolvedModel, estimated_bytes: int) -> None:
        self.model = model
        self.name = model.name
        self.state = LoadState.LOADING
        self.worker: ModelWorker | None = None
        self.num_users = 0
        self.num_waiting = 0
        self.keep_alive_s = 0.0
        self.is_leaving = False
        self.load_progress = 0.0
        self.failure_message = ""
        self.load_time = self.last_use_time = datetime.now(UTC)
        self.gone = asyncio.Event()
        self.hurry = asyncio.Event()
        self._unused = asyncio.Event()
        self._unused.set()
        self._estimated_bytes = estimated_bytes
        self._loading: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._expire_time: datetime | None = None
        self._adapters: OrderedDict[str, ModelVersion] = OrderedDict()  # By key, least recently used first.
        self._num_adapter_users: dict[str, int] = {}
        self._adapter_lock = asyncio.Lock()

    @property
    def is_idle(self) -> bool:
        """Whether it may be evicted."""
        return self.state is LoadState.READY and self.num_users == 0

    @property
    def memory_bytes(self) -> int:
        """What it takes, or will take as far as can be told before it is loaded."""
        return self.worker.memory_bytes() if self.worker is not None else self._estimated_bytes

    @property
    def ready_worker(self) -> ModelWorker:
        """The worker, within `ModelPool.use`."""
        if self.worker is None:
            raise WorkerLost(f"{self.name} is not in memory any more")
        return self.worker

    def begin(self, loading: asyncio.Task[None]) -> None:
        """Remember the load. Its error is each user's to hear; with no user, nobody's."""
        self._loading = loading
        loading.add_done_callback(lambda task: task.cancelled() or task.exception())

    def become_ready(self, worker: ModelWorker) -> None:
        """The load is done."""
        self.worker, self.state, self.load_progress = worker, LoadState.READY, 1.0

    async def wait_ready(self) -> None:
        """Wait for the load.

        Raises its error; a fresh one for each who waits. Who stops waiting does not stop it.
        """
        assert self._loading is not None
        try:
            await asyncio.shield(self._loading)
        except asyncio.CancelledError:
            if self._loading.cancelled():
                raise WorkerLost(f"{self.name} was unloaded before it was ready") from None
            raise
        except LaresError as error:
            raise type(error)(
                error.message,
                violations=error.violations,
                metadata=error.metadata,
                retry_after_s=error.retry_after_s,
            ) from error

    async def cancel_load(self) -> None:
        """Stop a load that is not done."""
        if self._loading is not None:
            self._loading.cancel()
            with contextlib.suppress(asyncio.CancelledError, LaresError):
                await self._loading

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

    async def hold_adapter(self, adapter: ModelVersion, *, max_adapters: int) -> None:
        """Have an adapter in memory and keep it there.

        Raises QueueFull when all that may be loaded are in use.
        """
        async with self._adapter_lock:
            if adapter.key not in self._adapters:
                await self._drop_adapters_beyond(max_adapters - 1)
                await self.ready_worker.load_adapter(adapter)
                self._adapters[adapter.key] = adapter
            self._adapters.move_to_end(adapter.key)
            self._num_adapter_users[adapter.key] = self._num_adapter_users.get(adapter.key, 0) + 1

    def let_go_adapter(self, adapter: ModelVersion) -> None:
        """One user of an adapter less."""
        self._num_adapter_users[adapter.key] -= 1

    async def _drop_adapters_beyond(self, most: int) -> None:
        while len(self._adapters) > most:
            idle = [key for key in self._adapters if not self._num_adapter_users.get(key)]
            if not idle:
                raise QueueFull(f"all {len(self._adapters)} adapters of {self.name} in memory are in use")
            await self.ready_worker.drop_adapter(idle[0])
            del self._adapters[idle[0]]
            self._num_adapter_users.pop(idle[0], None)

    def snapshot(self) -> LoadedModel:
        """How it stands now."""
        return LoadedModel(
            name=self.name,
            version=self.model.version.name,
            state=self.state,
            facts=self.worker.facts if self.worker is not None else None,
            memory_bytes=self.worker.memory_bytes() if self.worker is not None else 0,
            adapters=tuple(adapter.name for adapter in self._adapters.values()),
            num_active_requests=self.num_users - self.num_waiting,
            num_waiting_requests=self.num_waiting,
            load_time=self.load_time,
            last_use_time=self.last_use_time,
            expire_time=self._expire_time,
            load_progress=self.load_progress,
            failure_message=self.failure_message,
            worker_pid=self.worker.pid if self.worker is not None else 0,
        )
