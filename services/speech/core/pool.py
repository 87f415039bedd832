"""The recognisers in memory: loaded once for all who ask, unloaded when idle, least recently used first."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from services.kit.errors import ModelInUse, NotFound, QueueFull, WorkerLost
from services.speech.core.domain import SpeechModel
from services.speech.core.ports import Lease, LeaseBroker, RecognizerWorker, WorkerLauncher


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """keep_alive_s: how long an idle recogniser stays; max_requests: at one recogniser, those that wait included."""

    max_loaded: int
    max_requests: int
    keep_alive_s: float


@dataclass(frozen=True, slots=True)
class RecognizerInfo:
    """A recogniser in memory, as it is now."""

    model_id: str
    version: str
    device: str
    memory_bytes: int
    num_active_requests: int
    load_time: datetime
    last_use_time: datetime
    worker_pid: int


@dataclass(slots=True, eq=False)
class _Slot:
    """A model's place in the pool, from the moment that somebody asked for it."""

    model: SpeechModel
    last_use_time: datetime
    num_active: int = 0
    loading: asyncio.Task[None] | None = None
    lease: Lease | None = None
    worker: RecognizerWorker | None = None
    load_time: datetime | None = None
    timer: asyncio.TimerHandle | None = None
    watch: asyncio.Task[None] | None = None
    # A newer version took its name, or it is being unloaded: it ends with its last request.
    is_leaving: bool = False


class RecognizerPool:
    """At most `max_loaded` workers, one a model."""

    def __init__(
        self,
        *,
        leases: LeaseBroker,
        launcher: WorkerLauncher,
        limits: PoolLimits,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._leases = leases
        self._launcher = launcher
        self._limits = limits
        self._now = now
        self._slots: dict[str, _Slot] = {}
        self._superseded: set[_Slot] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def use(self, model: SpeechModel) -> AsyncIterator[RecognizerWorker]:
        """The model's worker, loaded if it is not. It stays at least until the block is left.

        Raises UnsupportedFormat, QueueFull, and what loading raises.
        """
        model.require_engine()
        slot = self._claim(model)
        try:
            if slot.loading is not None:
                # One caller that hangs up must not end the loading that others wait for.
                await asyncio.shield(slot.loading)
            if slot.worker is None:
                raise WorkerLost(f"the recogniser of '{model.model_id}' was unloaded; ask again")
            yield slot.worker
        finally:
            self._release(slot)

    def list(self) -> list[RecognizerInfo]:
        """Those that are loaded, by name."""
        infos = []
        for model_id, slot in sorted(self._slots.items()):
            if slot.worker is not None and slot.load_time is not None:
                infos.append(
                    RecognizerInfo(
                        model_id=model_id,
                        version=slot.model.version,
                        device=slot.worker.device,
                        memory_bytes=slot.worker.memory_bytes(),
                        num_active_requests=slot.num_active,
                        load_time=slot.load_time,
                        last_use_time=slot.last_use_time,
                        worker_pid=slot.worker.pid,
                    )
                )
        return infos

    async def unload(self, model_id: str) -> None:
        """End an idle recogniser now. Raises NotFound, ModelInUse."""
        slot = self._slots.get(model_id)
        if slot is None:
            raise NotFound(f"'{model_id}' is not in memory; ListRecognizers shows what is")
        if slot.num_active:
            raise ModelInUse(
                f"'{model_id}' is at {slot.num_active} request(s); end them, or wait until they are done"
            )
        await self._unload(slot)

    async def close(self) -> None:
        """End all recognisers, whatever they are at."""
        slots = [*self._slots.values(), *self._superseded]
        for slot in slots:
            if slot.loading is not None:
                slot.loading.cancel()
        await asyncio.gather(*(self._unload(slot) for slot in slots))
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _claim(self, model: SpeechModel) -> _Slot:
        slot = self._slots.get(model.model_id)
        if slot is not None and slot.model.version != model.version:
            self._supersede(slot)
            slot = None
        if slot is None:
            victim = self._make_room()
            slot = _Slot(model, self._now())
            self._slots[model.model_id] = slot
            slot.loading = self._spawn(self._load(slot, victim))
            slot.loading.add_done_callback(_retrieve)
        if slot.num_active >= self._limits.max_requests:
            raise QueueFull(
                f"'{model.model_id}' is at {slot.num_active} requests already, which is its limit; try again soon"
            )
        slot.num_active += 1
        if slot.timer is not None:
            slot.timer.cancel()
            slot.timer = None
        return slot

    def _release(self, slot: _Slot) -> None:
        slot.num_active -= 1
        slot.last_use_time = self._now()
        if slot.num_active:
            return
        if slot.is_leaving:
            self._spawn(self._unload(slot))
        elif slot.worker is not None:
            self._start_timer(slot)

    def _start_timer(self, slot: _Slot) -> None:
        loop = asyncio.get_running_loop()
        slot.timer = loop.call_later(self._limits.keep_alive_s, self._expire, slot)

    def _expire(self, slot: _Slot) -> None:
        self._forget(slot)  # Now, not when the task runs: nobody may claim it in between.
        self._spawn(self._unload(slot))

    def _supersede(self, slot: _Slot) -> None:
        """Another version answers to its name from now on."""
        del self._slots[slot.model.model_id]
        self._superseded.add(slot)
        slot.is_leaving = True
        if not slot.num_active and slot.worker is not None:
            self._spawn(self._unload(slot))

    def _make_room(self) -> _Slot | None:
        """Take out the idle one that was used longest ago, if there are too many. Raises QueueFull if none is idle."""
        if len(self._slots) + len(self._superseded) < self._limits.max_loaded:
            return None
        idle = [slot for slot in self._slots.values() if not slot.num_active and slot.worker is not None]
        if not idle:
            raise QueueFull(
                f"{self._limits.max_loaded} recognisers are in memory, which is the limit, and all are busy;"
                " try again soon, or raise LARES_SPEECH_MAX_LOADED"
            )
        victim = min(idle, key=lambda slot: slot.last_use_time)
        del self._slots[victim.model.model_id]
        return victim

    async def _load(self, slot: _Slot, victim: _Slot | None) -> None:
        try:
            if victim is not None:
                await self._unload(victim)
            slot.lease = await self._leases.lease(slot.model.version)
            slot.worker = await self._launcher.start(
                slot.model.model_id, slot.model.require_engine(), slot.lease.path
            )
        except BaseException:
            self._forget(slot)
            if slot.lease is not None:
                await slot.lease.release()
            raise
        finally:
            slot.loading = None
        slot.load_time = self._now()
        slot.watch = self._spawn(self._watch(slot, slot.worker))
        if slot.is_leaving and not slot.num_active:
            await self._unload(slot)
        elif not slot.num_active:
            self._start_timer(slot)

    async def _watch(self, slot: _Slot, worker: RecognizerWorker) -> None:
        """Clear the place of a worker that died, so that the next request loads a new one."""
        await worker.wait_dead()
        slot.watch = None
        await self._unload(slot)

    async def _unload(self, slot: _Slot) -> None:
        self._forget(slot)
        slot.is_leaving = True
        worker, slot.worker = slot.worker, None
        if worker is None:
            return
        if slot.watch is not None:
            slot.watch.cancel()
        await worker.stop()
        if slot.lease is not None:
            await slot.lease.release()

    def _forget(self, slot: _Slot) -> None:
        if slot.timer is not None:
            slot.timer.cancel()
            slot.timer = None
        self._superseded.discard(slot)
        if self._slots.get(slot.model.model_id) is slot:
            del self._slots[slot.model.model_id]

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _retrieve(task: asyncio.Task[None]) -> None:
    """Those who wait for a load see its error; if all of them have left, nobody needs to."""
    if not task.cancelled():
        task.exception()
