"""Which models are in memory: load on demand, keep alive, evict who is idle, refuse what does not fit.

    async with pool.use(resolved, keep_alive_s=None) as entry:    loads if need be; entry.worker answers

One event loop uses it. Nothing polls: an idle model has one timer. Decisions are made without awaiting, so
that two requests never see the same room; only then is anything stopped or started.
"""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine

from services.inference.core.entry import PoolEntry
from services.inference.core.models import LoadedModel, LoadState, PoolLimits, ResolvedModel
from services.inference.core.ports import WorkerFactory
from services.kit.errors import InsufficientMemory, LaresError, ModelNotFound, QueueFull

_GIB = 1024**3


class ModelPool:
    """All models in memory. available_bytes tells how much memory the machine has left."""

    def __init__(
        self,
        factory: WorkerFactory,
        limits: PoolLimits,
        *,
        available_bytes: Callable[[], int] = lambda: 2**63,
    ) -> None:
        self._factory = factory
        self._limits = limits
        self._available_bytes = available_bytes
        self._entries: dict[str, PoolEntry] = {}  # By version name.
        self._watchers: set[asyncio.Queue[tuple[int, LoadedModel]]] = set()
        self._sequence = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def use(self, model: ResolvedModel, keep_alive_s: float | None = None) -> AsyncIterator[PoolEntry]:
        """The model, ready, kept while the block runs.

        Raises what loading raises; QueueFull, InsufficientMemory.
        """
        entry = await self._hold(model)
        try:
            entry.keep_alive_s = self._limits.keep_alive_s if keep_alive_s is None else keep_alive_s
            async with entry.waiting():
                await entry.wait_ready()
                if model.adapter is not None:
                    await entry.hold_adapter(model.adapter, max_adapters=self._limits.max_adapters)
            try:
                yield entry
            finally:
                if model.adapter is not None:
                    entry.let_go_adapter(model.adapter)
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
        return sorted((entry.snapshot() for entry in self._entries.values()), key=lambda model: model.name)

    async def watch(self) -> AsyncGenerator[tuple[int, LoadedModel], None]:
        """How each model stands, then each change, numbered."""
        queue: asyncio.Queue[tuple[int, LoadedModel]] = asyncio.Queue()
        self._watchers.add(queue)
        try:
            for model in self.loaded_models():
                yield next(self._sequence), model
            while True:
                yield await queue.get()
        finally:
            self._watchers.discard(queue)

    async def close(self) -> None:
        """End every worker."""
        for entry in list(self._entries.values()):
            self._begin_unload(entry, force=True)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _hold(self, model: ResolvedModel) -> PoolEntry:
        """The model's entry with one user more."""
        while (entry := self._entries.get(model.version.name)) is not None and entry.is_leaving:
            await entry.gone.wait()
        if entry is None:
            entry = self._begin_load(model)
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
        if entry.keep_alive_s == 0:
            self._begin_unload(entry, force=False)
        elif entry.keep_alive_s > 0:
            entry.expire_after(lambda: self._begin_unload(entry, force=False))

    def _begin_load(self, model: ResolvedModel) -> PoolEntry:
        needs_bytes = self._factory.estimate_bytes(model)
        victims = self._make_room(model, needs_bytes)
        entry = PoolEntry(model, needs_bytes)
        self._entries[model.version.name] = entry
        for victim in victims:
            self._begin_unload(victim, force=False)
        self._publish(entry)
        entry.begin(self._start(self._load(entry, victims)))
        return entry

    def _make_room(self, model: ResolvedModel, needs_bytes: int) -> list[PoolEntry]:
        """Who must go, least recently used first. Raises before anyone went if that would not suffice."""
        staying = [entry for entry in self._entries.values() if not entry.is_leaving]
        idle = sorted((entry for entry in staying if entry.is_idle), key=lambda entry: entry.last_use_time)
        used_bytes = sum(entry.memory_bytes for entry in staying)
        leaving_bytes = sum(entry.memory_bytes for entry in self._entries.values() if entry.is_leaving)
        # What is being loaded has not taken its memory from the machine yet.
        promised_bytes = sum(entry.memory_bytes for entry in staying if entry.worker is None)
        has_bytes = min(
            self._limits.memory_bytes - used_bytes, self._available_bytes() + leaving_bytes - promised_bytes
        )
        victims: list[PoolEntry] = []
        freed_bytes = 0
        num_too_many = len(staying) + 1 - self._limits.max_models
        while idle and (has_bytes + freed_bytes < needs_bytes or len(victims) < num_too_many):
            victims.append(idle.pop(0))
            freed_bytes += victims[-1].memory_bytes
        if has_bytes + freed_bytes < needs_bytes:
            raise InsufficientMemory(
                f"{model.name} needs {needs_bytes / _GIB:.2f} GiB of memory, and there is"
                f" {max(0, has_bytes) / _GIB:.2f} GiB; unloading idle models would free {freed_bytes / _GIB:.2f} GiB",
                metadata={
                    "needs_bytes": str(needs_bytes),
                    "has_bytes": str(max(0, has_bytes)),
                    "would_free_bytes": str(freed_bytes),
                },
            )
        if len(victims) < num_too_many:
            raise QueueFull(
                f"all {self._limits.max_models} models in memory are busy, so {model.name} cannot be loaded now",
                metadata={"max_models": str(self._limits.max_models)},
            )
        return victims

    async def _load(self, entry: PoolEntry, victims: list[PoolEntry]) -> None:
        def on_progress(share: float) -> None:
            entry.load_progress = share
            self._publish(entry)

        try:
            for victim in victims:
                await victim.gone.wait()
            worker = await self._factory.start(entry.model, on_progress)
        except asyncio.CancelledError:
            self._remove(entry, LoadState.UNLOADED)
            raise
        except LaresError as error:
            self._remove(entry, LoadState.FAILED, error.message)
            raise
        except BaseException:
            self._remove(entry, LoadState.FAILED, "it could not be loaded; the log says why")
            raise
        entry.become_ready(worker)
        self._publish(entry)
        self._start(self._bury(entry))
        if entry.num_users == 0:
            self._rest(entry)

    async def _bury(self, entry: PoolEntry) -> None:
        """Wait for the worker's death; one that was not asked for is a failure."""
        assert entry.worker is not None
        cause = await entry.worker.wait_dead()
        if entry.state is LoadState.READY:
            self._remove(entry, LoadState.FAILED, cause)

    def _begin_unload(self, entry: PoolEntry, *, force: bool) -> None:
        if not entry.is_leaving:
            entry.is_leaving = True
            self._start(self._unload(entry))
        if force:
            entry.hurry.set()

    async def _unload(self, entry: PoolEntry) -> None:
        await entry.wait_unused_or_hurried()
        if entry.worker is None:
            await entry.cancel_load()
        if entry.worker is None or entry.gone.is_set():
            return
        entry.state = LoadState.UNLOADING
        self._publish(entry)
        await entry.worker.stop()
        self._remove(entry, LoadState.UNLOADED)

    def _remove(self, entry: PoolEntry, state: LoadState, failure: str = "") -> None:
        if entry.gone.is_set():
            return
        entry.state, entry.failure_message = state, failure
        entry.cancel_timer()
        if self._entries.get(entry.model.version.name) is entry:
            del self._entries[entry.model.version.name]
        self._publish(entry)
        entry.gone.set()

    def _publish(self, entry: PoolEntry) -> None:
        for queue in self._watchers:
            queue.put_nowait((next(self._sequence), entry.snapshot()))

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
