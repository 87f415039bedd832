"""Where a model computes, and in which numbers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from services.inference.adapters.hardware import cpu_features, num_usable_cpus, probe_memory
from services.inference.adapters.messages import EngineInit

# Beyond the weights, a card needs room for the KV cache and activations.
_CUDA_HEADROOM: Final = 1.3

# Of the memory that is free once the weights are in it, what keys and values may take unless told otherwise.
_KV_SHARE: Final = 0.25


@dataclass(frozen=True, slots=True)
class Placement:
    """A device, `cpu` or `cuda:0`, and the number type of weights and activations."""

    device: str
    dtype: torch.dtype


def place(folder: Path, device: str) -> Placement:
    """Choose device and dtype. device: `auto`, `cpu`, `cuda`, `cuda:1`. Auto passes over a card that is too small."""
    num_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if device != "cpu" and torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info(0)
        if device != "auto" or num_bytes * _CUDA_HEADROOM < free:
            return Placement(device if ":" in device else "cuda:0", torch.bfloat16)
    # Without these instructions bfloat16 is emulated, and slower than float32.
    has_bf16 = {"avx512_bf16", "amx_bf16"} & set(cpu_features())
    return Placement("cpu", torch.bfloat16 if has_bf16 else torch.float32)


def num_kv_blocks(init: EngineInit, placement: Placement, *, block_bytes: int, context_blocks: int) -> int:
    """How many blocks of keys and values to have. context_blocks: what one sequence at its longest fills."""
    kv_bytes = init.kv_bytes or int(free_bytes(placement.device) * _KV_SHARE)
    # No more than all sequences at their longest could use.
    return max(1, min(kv_bytes // block_bytes, init.max_sequences * context_blocks))


def free_bytes(device: str) -> int:
    """Memory of a device, `cpu` or `cuda:0`, that nobody has taken."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    return probe_memory().available_bytes


def card_bytes(device: str) -> int:
    """What torch has taken of a graphics card in this process; 0 on the CPU."""
    return int(torch.cuda.memory_reserved(device)) if device.startswith("cuda") else 0


def use_all_cores() -> None:
    """One thread a core that this process may use."""
    torch.set_num_threads(num_usable_cpus())
