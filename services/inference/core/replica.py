"""One worker of a model in the pool: its process, those it answers, its adapters, its crashes."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from services.inference.core.memory import CPU, MemoryPlan, gib
from services.inference.core.models import ModelVersion
from services.inference.core.ports import ModelWorker
from services.kit.errors import QueueFull, WorkerLost

_MAX_BACKOFF_S: Final = 30.0

# A worker that lived so long did not die of its start: the count of crashes begins anew.
_SETTLED_S: Final = 60.0

# Beyond this, an estimate was wrong enough to tell the operator.
_TOLERANCE: Final = 0.2


class Replica:
    """The place of one worker, which may be empty while it loads or is replaced."""

    def __init__(self, name: str, plan: MemoryPlan, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self.plan = plan
        self.worker: ModelWorker | None = None
        self.num_users = 0
        self.load_s = 0.0
        self.retry_at_s = 0.0
        self._clock = clock
        self._device = plan.device
        self._reserved_bytes = plan.total_bytes
        self._began_s = 0.0
        self._ready_s = 0.0
        self._num_crashes = 0
        self._lost_requests = False
        self._adapters: OrderedDict[str, ModelVersion] = OrderedDict()  # By key, least recently used first.
        self._num_adapter_users: dict[str, int] = {}
        self._adapter_lock = asyncio.Lock()

    @property
    def ready_worker(self) -> ModelWorker:
        """The worker. Raises WorkerLost if there is none now."""
        if self.worker is None:
            raise WorkerLost(f"{self.name} is not in memory any more")
        return self.worker

    @property
    def adapters(self) -> list[ModelVersion]:
        """Those in memory."""
        return list(self._adapters.values())

    def reserved_bytes(self, device: str) -> int:
        """What it takes of a device, or may come to take."""
        if device == self._device:
            return max(self._reserved_bytes, self.resident_bytes(device))
        return max(self.plan.bytes_on(device), self.resident_bytes(device)) if device == CPU else 0

    def resident_bytes(self, device: str) -> int:
        """What it takes of a device now, as far as can be told."""
        if self.worker is None:
            return 0
        if device == CPU:
            return self.worker.memory_bytes()
        return self.worker.card_bytes or self._reserved_bytes if device == self._device else 0

    def begin(self) -> None:
        """It is being started."""
        self._began_s = self._clock()

    def become_ready(self, worker: ModelWorker) -> str:
        """The worker is there. Returns what the operator should know of the estimate, or nothing."""
        self.worker = worker
        self._lost_requests = False
        self._ready_s = self._clock()
        self.load_s = self._ready_s - self._began_s
        self._device = worker.facts.device
        taken = worker.card_bytes or worker.memory_bytes()
        return self._correct(taken) if taken else ""

    def lose(self) -> bool:
        """The worker is dead. Returns whether somebody used it."""
        was_used = self._lost_requests or self.num_users > 0
        if self._clock() - self._ready_s >= _SETTLED_S:
            self._num_crashes = 0
        self.count_crash()
        self.worker = None
        self._adapters.clear()
        return was_used

    def count_crash(self) -> None:
        """It died, or did not come up: each further time, the next start waits longer."""
        self._num_crashes += 1
        doublings = min(self._num_crashes - 2, 10)
        backoff_s = 0.0 if self._num_crashes == 1 else min(_MAX_BACKOFF_S, 2.0**doublings)
        self.retry_at_s = self._clock() + backoff_s

    @property
    def backoff_s(self) -> float:
        """Seconds until the next start."""
        return max(0.0, self.retry_at_s - self._clock())

    def sit_down(self) -> None:
        """One user more."""
        self.num_users += 1

    def stand_up(self, *, lost: bool) -> None:
        """One user less. lost: because the worker died."""
        self.num_users -= 1
        self._lost_requests |= lost

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

    def _correct(self, taken_bytes: int) -> str:
        """Put what was measured in the estimate's place.

        Keys, values and workspace may not have been touched yet: they count as if they had been.
        """
        estimate, planned_bytes = self.plan.estimate, self.plan.total_bytes
        to_come_bytes = self.plan.kv_bytes + estimate.workspace_bytes
        self._reserved_bytes = max(taken_bytes, min(planned_bytes, taken_bytes + to_come_bytes))
        least = (estimate.weights_bytes + estimate.process_bytes) * (1 - _TOLERANCE)
        if least <= taken_bytes <= planned_bytes * (1 + _TOLERANCE):
            return ""
        return (
            f"{self.name} took {gib(taken_bytes)} of {self._device}, and {gib(planned_bytes)} were estimated:"
            f" {self.plan.arithmetic()}"
        )
