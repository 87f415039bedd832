"""What a model takes of a device's memory, part by part, and where it goes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

_GIB = 1024**3

# Of the budget, what keys and values may take unless a single context needs more.
_KV_SHARE: Final = 4

# Auto: room for each sequence to have so many tokens.
_TOKENS_PER_SEQUENCE: Final = 1024

CPU: Final = "cpu"


class Memory(Protocol):
    """The devices of this machine, and what memory they have."""

    @property
    def devices(self) -> Sequence[str]:
        """`cuda:0`, ..., `cpu`: the better first. Only what models may use."""
        ...

    def budget_bytes(self, device: str) -> int:
        """The most that all models together may take of it."""
        ...

    def available_bytes(self, device: str) -> int:
        """What nobody on this machine has taken of it."""
        ...


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """What a model will take on one device, as far as its files tell.

    kv_bytes_per_token: of all layers; 0 for what keeps none. workspace_bytes: activations and logits of the
    largest step. process_bytes: what a worker takes of the device without a model; host_bytes: what one on a
    card takes of the machine's own memory. weight_type: `bf16`, `int8`, ...; empty where there is no choice.
    """

    device: str
    weights_bytes: int
    kv_bytes_per_token: int
    context_length: int
    workspace_bytes: int
    process_bytes: int
    host_bytes: int = 0
    weight_type: str = ""

    @property
    def fixed_bytes(self) -> int:
        """All but keys and values."""
        return self.weights_bytes + self.workspace_bytes + self.process_bytes


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Where one worker's memory goes. note: why it is not on a better device or in better numbers, or empty."""

    estimate: MemoryEstimate
    kv_bytes: int
    note: str = ""

    @property
    def device(self) -> str:
        """Where the model computes."""
        return self.estimate.device

    @property
    def total_bytes(self) -> int:
        """On its device."""
        return self.estimate.fixed_bytes + self.kv_bytes

    def bytes_on(self, device: str) -> int:
        """On any device: a worker on a card takes of the machine's memory too."""
        if device == self.device:
            return self.total_bytes
        return self.estimate.host_bytes if device == CPU else 0

    def arithmetic(self) -> str:
        """The sum in words, for a refusal: the operator sees which part is too large."""
        parts = {
            "weights": self.estimate.weights_bytes,
            "keys and values": self.kv_bytes,
            "workspace": self.estimate.workspace_bytes,
            "process": self.estimate.process_bytes,
        }
        return " + ".join(f"{gib(size)} {name}" for name, size in parts.items() if size)


def plan_memory(
    estimate: MemoryEstimate, *, budget_bytes: int, max_sequences: int, kv_cache_bytes: int
) -> MemoryPlan:
    """Decide how much goes to keys and values. kv_cache_bytes: as the operator says; 0 decides here.

    Then it is enough for the larger of a full context and 1,024 tokens a sequence, at most a quarter of the
    budget, but a full context where that fits.
    """
    if not estimate.kv_bytes_per_token:
        return MemoryPlan(estimate, 0)
    if kv_cache_bytes:
        return MemoryPlan(estimate, kv_cache_bytes)
    one_context = estimate.context_length * estimate.kv_bytes_per_token
    many = max_sequences * _TOKENS_PER_SEQUENCE * estimate.kv_bytes_per_token
    kv_bytes = min(max(one_context, many), budget_bytes // _KV_SHARE)
    if kv_bytes < one_context <= budget_bytes - estimate.fixed_bytes:
        kv_bytes = one_context
    return MemoryPlan(estimate, kv_bytes)


def gib(num_bytes: int) -> str:
    """For a message."""
    return f"{num_bytes / _GIB:.2f} GiB"
