"""Which models are in memory: load on demand, keep alive, evict who is idle, refuse what does not fit.

    async with pool.use(resolved, keep_alive_s=None) as seat:    loads if need be; seat.ready_worker answers

One event loop uses it. Nothing polls: an idle model has one timer. Decisions are made without awaiting, so
that two requests never see the same room; only then is anything stopped or started.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping

import structlog

from services.inference.core.entry import PoolEntry, Seat
from services.inference.core.events import LoopStats
from services.inference.core.memory import Memory, MemoryEstimate
from services.inference.core.models import LoadedModel, LoadState, PoolLimits, ResolvedModel
from services.inference.core.ports import ModelWorker, WorkerFactory
from services.inference.core.replica import Replica
from services.inference.core.room import RoomFinder
from services.inference.core.watchers import Watchers
from services.kit.errors import LaresError, ModelNotFound, QueueFull, WorkerLost

_log = structlog.get_logger(__name__)


class ModelPool:
    """All models in memory."""

    def __init__(self, factory: WorkerFactory, limits: PoolLimits, memory: Memory) -> None:
        self._factory = factory
        self._limits = limits
        self._memory = memory
        self._entries: dict[str, PoolEntry] = {}  # By version name.
        self._watchers = Watchers()
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def use(self, model: ResolvedModel, keep_alive_s: float | None = None) -> AsyncIterator[Seat]:
        """A place at the model's least loaded worker, kept while the block runs.

        Raises what loading raises; QueueFull, InsufficientMemory.
        """
        entry = await self._hold(model)
        try:
            entry.keep_alive_s = self._limits.keep_alive_s if keep_alive_s is None else keep_alive_s
            async with entry.waiting() as admitted:
                await entry.wait_ready()
                replica = entry.least_loaded()
                async with self._seat(replica, model):
                    admitted()
                    yield Seat(entry, replica)
        finally:
            self._let_go(entry)

    async def load(self, model: ResolvedModel, keep_alive_s: float | None = None) -> LoadedModel:
        """Begin to load, without waiting for the end. Returns how it stands."""
        entry = await self._hold(model)
        entry.keep_alive_s = self._limits.keep_alive_s if keep_alive_s is None else keep_alive_s
        self._let_go(entry)
        return entry.snapshot()

    async def unload(self, version: str, *, force: bool) -> None:
        """Take a model out of memory when its requests have ended, or at once.

        Returns when it is gone. Raises ModelNotFound.
        """
        entry = self.find(version)
        self._begin_unload(entry, force=force)
        await entry.gone.wait()

    def find(self, version: str) -> PoolEntry:
        """The entry of a version. Raises ModelNotFound if it is not in memory."""
        entry = self._entries.get(version)
        if entry is None:
            raise ModelNotFound(
                f"{version} is not in memory; `lares ps` lists what is", metadata={"version": version}
            )
        return entry

    def is_ready(self, version: str) -> bool:
        """Whether a version would answer at once."""
        entry = self._entries.get(version)
        return entry is not None and entry.state is LoadState.READY and not entry.is_leaving

    def loaded_models(self) -> list[LoadedModel]:
        """All models in memory, by name."""
        return sorted(
            (entry.snapshot() for entry in list(self._entries.values())), key=lambda model: model.name
        )

    def stats(self) -> Mapping[str, list[LoopStats]]:
        """By name of the model, how the loops of its workers stood a moment ago."""
        return {
            entry.name: [
                replica.ready_worker.stats
                for replica in entry.ready_replicas
                if replica.ready_worker.stats is not None
            ]
            for entry in list(self._entries.values())
        }

    def watch(self) -> AsyncGenerator[tuple[int, LoadedModel], None]:
        """How each model stands, then each change, numbered. A slow reader gets the newest of each model."""
        return self._watchers.watch(self.loaded_models)

    async def close(self) -> None:
        """End every worker."""
        for entry in list(self._entries.values()):
            self._begin_unload(entry, force=True)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def _seat(self, replica: Replica, model: ResolvedModel) -> AsyncIterator[None]:
        """Count a user of a worker, with the adapter that it needs."""
        is_lost = False
        replica.sit_down()
        try:
            if model.adapter is not None:
                await replica.hold_adapter(model.adapter, max_adapters=self._limits.max_adapters)
            try:
                yield
            finally:
                if model.adapter is not None:
                    replica.let_go_adapter(model.adapter)
        except WorkerLost:
            is_lost = True
            raise
        finally:
            replica.stand_up(lost=is_lost)

    async def _hold(self, model: ResolvedModel) -> PoolEntry:
        """The model's entry with one user more."""
        estimates: list[MemoryEstimate] = []
        while (entry := self._entries.get(model.version.name)) is None or entry.is_leaving:
            if entry is not None:
                await entry.gone.wait()
            elif not estimates:  # Others may have begun to load it when this comes back.
                estimates = list(await self._factory.estimate(model))
            else:
                entry = self._begin_load(model, estimates)
                break
        if entry.num_waiting >= self._limits.max_waiting:
            raise QueueFull(
                f"{entry.name} has {entry.num_waiting} requests waiting; try again in a moment",
                metadata={"waiting": str(entry.num_waiting)},
            )
        entry.hold()
        return entry

    def _let_go(self, entry: PoolEntry) -> None:
        entry.let_go()
        if entry.num_users == 0 and entry.state is LoadState.READY:
            self._rest(entry)

    def _rest(self, entry: PoolEntry) -> None:
        """Nobody uses it now: set its timer."""
        if entry.is_pinned:
            return
        if entry.keep_alive_s == 0:
            self._begin_unload(entry, force=False)
        elif entry.keep_alive_s > 0:
            entry.expire_after(lambda: self._begin_unload(entry, force=False))

    def _begin_load(self, model: ResolvedModel, estimates: list[MemoryEstimate]) -> PoolEntry:
        room = RoomFinder(self._entries.values(), self._limits, self._memory).find(model.name, estimates)
        entry = PoolEntry(model, room.plans, is_pinned=model.name in self._limits.pinned)
        if note := room.plans[0].note:
            _log.warning("model runs on a lesser device", model=model.name, why=note)
        self._entries[model.version.name] = entry
        for victim in room.victims:
            self._begin_unload(victim, force=False)
        self._publish(entry)
        before = [*room.victims, *room.leaving]
        for replica in entry.replicas:
            entry.tend(replica, self._start(self._tend(entry, replica, before)))
        return entry

    async def _tend(self, entry: PoolEntry, replica: Replica, before: list[PoolEntry]) -> None:
        """Load a worker once those before it are gone; load it again when it dies, as long as it is wanted."""
        for other in before:
            await other.gone.wait()
        if replica is not entry.replicas[0]:  # The first answers sooner if the others do not load beside it.
            with contextlib.suppress(Exception):  # Whatever kept it from coming up is told to its users.
                await entry.wait_ready()
        while not entry.gone.is_set():
            await asyncio.sleep(replica.backoff_s)
            if not await self._load(entry, replica):
                return
            cause = await replica.ready_worker.wait_dead()
            if entry.state is LoadState.UNLOADING or entry.gone.is_set():
                return
            was_used = replica.lose()
            is_wanted = was_used or entry.num_users or entry.ready_replicas or entry.name in self._limits.kept
            if entry.is_leaving or not is_wanted:
                if not entry.ready_replicas:
                    self._remove(entry, LoadState.FAILED, WorkerLost(cause))
                return
            entry.lose_replica(cause)
            self._publish(entry)

    async def _load(self, entry: PoolEntry, replica: Replica) -> bool:
        """Bring a worker up. Returns whether there is one now, or another attempt is worth while."""

        def on_progress(share: float) -> None:
            if entry.state is LoadState.LOADING:
                entry.load_progress = share
                self._publish(entry)

        while True:
            replica.begin()
            try:
                worker = await self._factory.start(entry.model, replica.plan, on_progress)
            except WorkerLost as error:
                replica.count_crash()
                is_kept = entry.num_restarts and entry.name in self._limits.kept
                if not entry.ready_replicas and not is_kept:
                    self._remove(entry, LoadState.FAILED, error)
                    return False
                _log.warning("worker did not come up again", model=entry.name, why=error.message)
                entry.failure_message = error.message
                self._publish(entry)
                await asyncio.sleep(replica.backoff_s)
            except Exception as error:  # Whatever it is, those who wait for the model are told.
                self._give_up(entry, replica, error)
                return False
            else:
                self._become_ready(entry, replica, worker)
                return True

    def _become_ready(self, entry: PoolEntry, replica: Replica, worker: ModelWorker) -> None:
        if surprise := replica.become_ready(worker):
            _log.warning("memory was not estimated well", model=entry.name, what=surprise)
        if worker.facts.note:
            _log.warning("model runs otherwise than planned", model=entry.name, why=worker.facts.note)
        entry.become_ready()
        self._publish(entry)
        if entry.num_users == 0:
            self._rest(entry)

    def _give_up(self, entry: PoolEntry, replica: Replica, error: Exception) -> None:
        """A worker cannot be loaded, now or later. The others go on."""
        if not isinstance(error, LaresError):
            _log.error("model could not be loaded", model=entry.name, exc_info=error)
        if not entry.ready_replicas:
            self._remove(entry, LoadState.FAILED, error)
            return
        _log.warning("one worker less", model=entry.name, why=str(error))
        entry.replicas.remove(replica)
        self._publish(entry)

    def _begin_unload(self, entry: PoolEntry, *, force: bool) -> None:
        if not entry.is_leaving:
            entry.is_leaving = True
            self._start(self._unload(entry))
        if force:
            entry.hurry.set()

    async def _unload(self, entry: PoolEntry) -> None:
        await entry.wait_unused_or_hurried()
        if entry.gone.is_set():
            return
        entry.state = LoadState.UNLOADING
        self._publish(entry)
        await entry.stop_workers()
        self._remove(entry, LoadState.UNLOADED, WorkerLost(f"{entry.name} was unloaded"))

    def _remove(self, entry: PoolEntry, state: LoadState, error: Exception) -> None:
        """It is out of memory. error: for those who still wait for it."""
        if entry.gone.is_set():
            return
        entry.state = state
        if state is LoadState.FAILED:
            entry.failure_message = (
                error.message if isinstance(error, LaresError) else "it could not be loaded; the log says why"
            )
        entry.cancel_timer()
        if self._entries.get(entry.model.version.name) is entry:
            del self._entries[entry.model.version.name]
        entry.fail(error)
        entry.cancel_loads()
        self._publish(entry)
        entry.gone.set()

    def _publish(self, entry: PoolEntry) -> None:
        self._watchers.tell(entry.snapshot())

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
