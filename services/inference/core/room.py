"""Whether a model has room, on which device, and who must go for it. Pure: it looks, and changes nothing."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from services.inference.core.entry import PoolEntry
from services.inference.core.memory import CPU, Memory, MemoryEstimate, MemoryPlan, gib, plan_memory
from services.inference.core.models import PoolLimits
from services.kit.errors import InsufficientMemory, QueueFull


@dataclass(frozen=True, slots=True)
class Room:
    """plans: one for each worker. victims: must be unloaded. leaving: on their way out, and to be waited for."""

    plans: tuple[MemoryPlan, ...]
    victims: tuple[PoolEntry, ...] = ()
    leaving: tuple[PoolEntry, ...] = ()


class RoomFinder:
    """Looks at who is in memory now. Made anew for each question."""

    def __init__(self, entries: Collection[PoolEntry], limits: PoolLimits, memory: Memory) -> None:
        self._limits = limits
        self._memory = memory
        # Asked once: a card's driver takes its time.
        self._available_bytes = {device: memory.available_bytes(device) for device in memory.devices}
        self._staying = [entry for entry in entries if not entry.is_leaving]
        self._leaving = [entry for entry in entries if entry.is_leaving]
        evictable = [entry for entry in self._staying if entry.is_idle and not entry.is_pinned]
        self._evictable = sorted(evictable, key=lambda entry: entry.last_use_time)

    def find(self, name: str, estimates: Sequence[MemoryEstimate]) -> Room:
        """The first device, of those that the model may run on, that it fits.

        Raises InsufficientMemory with numbers, QueueFull when all models that may be in memory are busy. Then
        nobody has to go.
        """
        num_too_many = len(self._staying) + 1 - self._limits.max_models
        if len(self._evictable) < num_too_many:
            raise QueueFull(
                f"all {self._limits.max_models} models in memory are busy, so {name} cannot be loaded now",
                metadata={"max_models": str(self._limits.max_models)},
            )
        refusal: InsufficientMemory | None = None
        for estimate in estimates:
            plan = plan_memory(
                estimate,
                budget_bytes=self._memory.budget_bytes(estimate.device),
                max_sequences=self._limits.max_sequences,
                kv_cache_bytes=self._limits.kv_cache_bytes,
            )
            try:
                room = self._on_device(name, plan, num_too_many)
            except InsufficientMemory as error:
                refusal = error
                continue
            note = f"{_where(estimate)}: {refusal.message}" if refusal is not None else ""
            return replace(room, plans=tuple(replace(plan, note=note) for plan in room.plans))
        assert refusal is not None
        raise refusal

    def _on_device(self, name: str, plan: MemoryPlan, num_too_many: int) -> Room:
        victims: list[PoolEntry] = []
        rest = list(self._evictable)
        while rest and (len(victims) < num_too_many or not self._fits(plan, victims)):
            victims.append(rest.pop(0))
        if not self._fits(plan, victims):
            raise self._refusal(name, plan)
        # The oldest need not be those whose memory helps: who goes for nothing stays.
        for victim in reversed(victims[:]):
            others = [other for other in victims if other is not victim]
            if len(others) >= num_too_many and self._fits(plan, others):
                victims = others
        plans = [plan]
        # Nobody is unloaded for a second worker of the same model.
        while len(plans) < self._limits.workers_per_model and self._fits(plan, victims, len(plans) + 1):
            plans.append(plan)
        needs_leaving = not self._fits(plan, victims, len(plans), counts_leaving=False)
        return Room(tuple(plans), tuple(victims), tuple(self._leaving) if needs_leaving else ())

    def _fits(
        self, plan: MemoryPlan, without: Sequence[PoolEntry], times: int = 1, *, counts_leaving: bool = True
    ) -> bool:
        return all(
            self._has_bytes(device, counts_leaving=counts_leaving)
            + sum(entry.reserved_bytes(device) for entry in without)
            >= plan.bytes_on(device) * times
            for device in {plan.device, CPU}
        )

    def _has_bytes(self, device: str, *, counts_leaving: bool = True) -> int:
        """What is left of a device, by the budget and by what the machine has."""
        reserved = sum(entry.reserved_bytes(device) for entry in self._staying)
        # What is promised has not been taken from the machine yet: weights that load, keys and values to come.
        resident = sum(entry.resident_bytes(device) for entry in self._staying)
        leaving = sum(entry.resident_bytes(device) for entry in self._leaving)
        budget = self._memory.budget_bytes(device) - reserved
        available = self._available_bytes[device] - max(0, reserved - resident)
        if counts_leaving:
            return min(budget, available + leaving)
        return min(budget - leaving, available)

    def _refusal(self, name: str, plan: MemoryPlan) -> InsufficientMemory:
        # Of a model on a card, the machine's own memory may be what is short.
        device = plan.device
        if self._has_bytes(device) + self._freed_bytes(device) >= plan.bytes_on(device):
            device = CPU
        needs, has, frees = plan.bytes_on(device), max(0, self._has_bytes(device)), self._freed_bytes(device)
        parts = f" ({plan.arithmetic()})" if device == plan.device else ""
        return InsufficientMemory(
            f"{name} needs {gib(needs)} of memory on {device}{parts}, and there is {gib(has)};"
            f" unloading idle models would free {gib(frees)}",
            metadata={
                "device": device,
                "needs_bytes": str(needs),
                "has_bytes": str(has),
                "would_free_bytes": str(frees),
            },
        )

    def _freed_bytes(self, device: str) -> int:
        return sum(entry.reserved_bytes(device) for entry in self._evictable)


def _where(estimate: MemoryEstimate) -> str:
    """For a note."""
    form = f"as {estimate.weight_type} " if estimate.weight_type else ""
    return f"{form}on {estimate.device}"
