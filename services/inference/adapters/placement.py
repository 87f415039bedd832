"""Where a model computes, and in which numbers.

    auto        the CUDA card with the most free memory, if the model fits; else the CPU, and a note with the numbers
    cpu         bfloat16 where the processor computes with it, else float32
    cuda        as auto, and a note if there is none; cuda:1 is this card, whether the model fits or not
    mps         an Apple card, which auto passes over: Lares has not been run on one

bfloat16 begins with compute capability 8.0 (Ampere); older cards compute in float16.
"""

import platform
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch

from services.inference.adapters.hardware import cpu_features, num_usable_cpus, probe_memory
from services.inference.adapters.messages import EngineInit

# Beyond the weights, a card needs room for the KV cache and activations.
_CUDA_HEADROOM: Final = 1.3

# Of the memory that is free once the weights are in it, what keys and values may take unless told otherwise.
_KV_SHARE: Final = 0.25

_FLOATS: Final = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

_GIB: Final = 1024**3
_BF16_CAPABILITY: Final = (8, 0)
_BF16_MACOS: Final = 14


@dataclass(frozen=True, slots=True)
class Placement:
    """A device, `cpu` or `cuda:0`, and the number type of weights and activations.

    note: what the operator should know of the choice, or empty.
    """

    device: str
    dtype: torch.dtype
    note: str = ""


@dataclass(frozen=True, slots=True)
class Card:
    """A CUDA card. capability: major, minor."""

    index: int
    free_bytes: int
    capability: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is to choose from, and the numbers that each computes with. mps_dtype: None for no Apple card."""

    cards: tuple[Card, ...]
    cpu_dtype: torch.dtype
    mps_dtype: torch.dtype | None = None


def place(folder: Path, device: str, weight_type: str = "") -> Placement:
    """Choose for this model. device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.

    weight_type: floats by name, `bf16`, are taken instead of the device's own; any other leaves those.
    """
    num_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    chosen = choose(device, int(num_bytes * _CUDA_HEADROOM), probe_machine(with_cards=device != "cpu"))
    return replace(chosen, dtype=_FLOATS.get(weight_type, chosen.dtype))


def probe_machine(*, with_cards: bool) -> Machine:
    """Ask torch. To ask for cards makes CUDA take the memory that it needs itself on each."""
    # Without these instructions bfloat16 is emulated, and slower than float32.
    has_bf16 = {"avx512_bf16", "amx_bf16"} & set(cpu_features())
    cpu_dtype = torch.bfloat16 if has_bf16 else torch.float32
    if not with_cards:
        return Machine((), cpu_dtype)
    cards = tuple(
        Card(index, free_bytes(f"cuda:{index}"), torch.cuda.get_device_capability(index))
        for index in range(torch.cuda.device_count())
    )
    if not torch.backends.mps.is_available():
        return Machine(cards, cpu_dtype)
    macos = int(platform.mac_ver()[0].partition(".")[0] or 0)
    return Machine(cards, cpu_dtype, torch.bfloat16 if macos >= _BF16_MACOS else torch.float16)


def choose(device: str, needed_bytes: int, machine: Machine) -> Placement:
    """As `place`, on a machine that is known. needed_bytes: weights, keys and values, and room to compute."""
    kind, _, number = device.partition(":")
    on_cpu = Placement("cpu", machine.cpu_dtype)
    if kind == "cpu":
        return on_cpu
    if kind == "mps":
        if machine.mps_dtype is not None:
            return Placement("mps", machine.mps_dtype)
        return replace(on_cpu, note="torch finds no Apple card here: on the CPU")
    cards = [card for card in machine.cards if not number or card.index == int(number)]
    if not cards:
        return on_cpu if kind == "auto" else replace(on_cpu, note=f"torch finds no {device} here: on the CPU")
    card = max(cards, key=lambda each: each.free_bytes)
    dtype = torch.bfloat16 if card.capability >= _BF16_CAPABILITY else torch.float16
    on_card = Placement(f"cuda:{card.index}", dtype)
    if needed_bytes <= card.free_bytes:
        return on_card
    needed, free = f"{needed_bytes / _GIB:.1f} GiB", f"{card.free_bytes / _GIB:.1f} GiB"
    short = f"needs {needed}, and {on_card.device} has {free} free"
    return (
        replace(on_card, note=f"{short}: may fail")
        if number
        else replace(on_cpu, note=f"{short}: on the CPU")
    )


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
