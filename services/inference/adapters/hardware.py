"""What this machine computes with. Needs no running server: `lares doctor` asks the same functions."""

import functools
import importlib.metadata
import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

# As /proc/cpuinfo spells them -> as we do.
_FEATURES: Final = {
    "avx2": "avx2",
    "avx512f": "avx512f",
    "avx512_bf16": "avx512_bf16",
    "amx_bf16": "amx_bf16",
    "asimd": "neon",
}
_CGROUP: Final = Path("/sys/fs/cgroup")

# Of a device's memory, for models: the rest is for everybody else, and for what was estimated too low.
_DEFAULT_SHARE: Final = 0.85


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory that this process may use, in bytes. A cgroup's limit counts."""

    total_bytes: int
    available_bytes: int


@dataclass(frozen=True, slots=True)
class Gpu:
    """A graphics card, numbered as CUDA counts."""

    index: int
    model: str
    memory: Memory
    driver_version: str


@dataclass(frozen=True, slots=True)
class Hardware:
    """All of it."""

    cpu_model: str
    num_cpus: int
    cpu_features: tuple[str, ...]
    memory: Memory
    gpus: tuple[Gpu, ...]


class MachineMemory:
    """Implements the core's Memory: the graphics cards that models may use, and the machine itself.

    device: `auto`, `cpu` or `cuda`. limit_bytes: of all models on one device; 0 for a share of what is there.
    """

    def __init__(self, *, device: str, limit_bytes: int = 0) -> None:
        self._limit_bytes = limit_bytes
        cards = probe_gpus() if device != "cpu" and _torch_knows_cuda() else ()
        self._cards = {f"cuda:{card.index}": card.memory.total_bytes for card in cards}
        self._may_use_cpu = device != "cuda" or not cards

    @property
    def devices(self) -> Sequence[str]:
        """The card with the most memory first, the machine last. It is always there: a card's worker needs it."""
        return [*sorted(self._cards, key=lambda name: -self._cards[name]), "cpu"]

    @property
    def model_devices(self) -> Sequence[str]:
        """Those on which a model may compute."""
        return self.devices if self._may_use_cpu else self.devices[:-1]

    def budget_bytes(self, device: str) -> int:
        """The operator's limit, or 85% of what there is."""
        total = self._cards[device] if device in self._cards else probe_memory().total_bytes
        return self._limit_bytes or int(total * _DEFAULT_SHARE)

    def available_bytes(self, device: str) -> int:
        """What is free now. Of a card, as its driver says."""
        if device not in self._cards:
            return probe_memory().available_bytes
        return next((c.memory.available_bytes for c in probe_gpus() if f"cuda:{c.index}" == device), 0)


def _torch_knows_cuda() -> bool:
    """Whether the installed torch can use a card, without importing it."""
    try:
        return not importlib.metadata.version("torch").endswith("+cpu")
    except importlib.metadata.PackageNotFoundError:
        return False


def probe_hardware() -> Hardware:
    """Look at the machine. Takes some milliseconds; with a card, as long as its driver needs."""
    return Hardware(cpu_model(), num_usable_cpus(), cpu_features(), probe_memory(), probe_gpus())


def num_usable_cpus(root: Path = _CGROUP) -> int:
    """Cores that this process may use: its affinity, within a cgroup's quota."""
    num_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cpu_quota(root)
    return max(1, min(num_cpus, int(quota))) if quota is not None else num_cpus


def probe_memory(root: Path = _CGROUP) -> Memory:
    """The machine's memory, or less where a cgroup (v2 or v1) says so."""
    machine = psutil.virtual_memory()
    total, available = int(machine.total), int(machine.available)
    for limit_name, usage_name in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        limit, usage = _read_int(root / limit_name), _read_int(root / usage_name)
        # A v1 cgroup without a limit says a number beyond any memory.
        if limit is not None and limit < total:
            total = limit
            available = min(available, max(0, limit - (usage or 0)))
    return Memory(total, available)


@functools.cache
def cpu_model() -> str:
    """The processor's name, as it calls itself."""
    return _cpuinfo().get("model name", "") or platform.processor() or platform.machine()


@functools.cache
def cpu_features() -> tuple[str, ...]:
    """Instruction sets that matter for models."""
    flags = (_cpuinfo().get("flags") or _cpuinfo().get("Features") or "").split()
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return ("neon",)
    return tuple(ours for theirs, ours in _FEATURES.items() if theirs in flags)


def probe_gpus() -> tuple[Gpu, ...]:
    """NVIDIA cards, through their driver's library. None where there is no driver."""
    try:
        import pynvml
    except ImportError:
        return ()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
        return tuple(_gpu(index, driver) for index in range(pynvml.nvmlDeviceGetCount()))
    except pynvml.NVMLError:
        return ()
    finally:
        pynvml.nvmlShutdown()


def _gpu(index: int, driver: str) -> Gpu:
    import pynvml

    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    name = _text(pynvml.nvmlDeviceGetName(handle))
    return Gpu(index, name, Memory(int(memory.total), int(memory.free)), driver)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _cpuinfo() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo."""
    found: dict[str, str] = {}
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines():
            key, colon, value = line.partition(":")
            if colon:
                found.setdefault(key.strip(), value.strip())
    return found


def _cpu_quota(root: Path) -> float | None:
    """Cores that the cgroup allows; None for no limit."""
    with suppress(OSError, ValueError):  # v2: "max 100000" or "200000 100000"
        quota, period = (root / "cpu.max").read_text("utf-8").split()
        return None if quota == "max" else int(quota) / int(period)
    old_quota = _read_int(root / "cpu/cpu.cfs_quota_us")
    old_period = _read_int(root / "cpu/cpu.cfs_period_us")
    return old_quota / old_period if old_quota and old_quota > 0 and old_period else None


def _read_int(path: Path) -> int | None:
    try:
        return int(path.read_text("utf-8"))
    except (OSError, ValueError):  # No such file, or "max".
        return None
