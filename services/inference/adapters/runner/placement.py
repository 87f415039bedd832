"""Where a model computes, and in which numbers.

    auto        the card with the most free memory, if the model fits; else the CPU, and a note with the numbers
    cpu         bfloat16 where the processor computes with it, else float32
    cuda        as auto, but told; cuda:1 is this card, full or not
    mps         an Apple card, which auto passes over: nobody has run Lares on one yet

bfloat16 begins with compute capability 8.0 (Ampere); older cards compute in float16.
"""

import platform
from dataclasses import dataclass

import torch

from services.inference.adapters.hardware import cpu_features
from services.inference.adapters.runner.cuda_ops import CudaOps
from services.inference.adapters.runner.ops import Ops, TorchOps

_GIB = 1024**3
_BF16_CAPABILITY = (8, 0)
_BF16_MACOS = 14


@dataclass(frozen=True, slots=True)
class Card:
    """A CUDA card. capability: major, minor."""

    index: int
    free_bytes: int
    capability: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is to choose from, and the numbers that each computes with."""

    cards: tuple[Card, ...]
    cpu_dtype: torch.dtype
    mps_dtype: torch.dtype | None = None
    """None: no Apple card."""


@dataclass(frozen=True, slots=True)
class Placement:
    """The choice. note: what the operator should know of it, or empty."""

    device: torch.device
    dtype: torch.dtype
    note: str = ""


def probe_machine() -> Machine:
    """Ask torch. With a card, this takes the memory that CUDA itself needs there."""
    cards = tuple(
        Card(index, int(torch.cuda.mem_get_info(index)[0]), torch.cuda.get_device_capability(index))
        for index in range(torch.cuda.device_count())
    )
    # Without these instructions bfloat16 is emulated, and slower than float32.
    has_bf16 = {"avx512_bf16", "amx_bf16"} & set(cpu_features())
    cpu_dtype = torch.bfloat16 if has_bf16 else torch.float32
    if not torch.backends.mps.is_available():
        return Machine(cards, cpu_dtype)
    macos = int(platform.mac_ver()[0].partition(".")[0] or 0)
    return Machine(cards, cpu_dtype, torch.bfloat16 if macos >= _BF16_MACOS else torch.float16)


def place(device: str, needed_bytes: int, machine: Machine) -> Placement:
    """device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`. needed_bytes: weights, keys and values, and room to compute."""
    kind, _, number = device.partition(":")
    on_cpu = Placement(torch.device("cpu"), machine.cpu_dtype)
    if kind == "cpu":
        return on_cpu
    if kind == "mps":
        if machine.mps_dtype is not None:
            return Placement(torch.device("mps"), machine.mps_dtype)
        return _noted(on_cpu, "torch finds no Apple card here: on the CPU")
    cards = [card for card in machine.cards if not number or card.index == int(number)]
    if not cards:
        return on_cpu if kind == "auto" else _noted(on_cpu, f"torch finds no {device} here: on the CPU")
    card = max(cards, key=lambda each: each.free_bytes)
    dtype = torch.bfloat16 if card.capability >= _BF16_CAPABILITY else torch.float16
    on_card = Placement(torch.device("cuda", card.index), dtype)
    if needed_bytes <= card.free_bytes:
        return on_card
    short = (
        f"needs {needed_bytes / _GIB:.1f} GiB, and {on_card.device} has {card.free_bytes / _GIB:.1f} GiB free"
    )
    return _noted(on_card, f"{short}: may fail") if number else _noted(on_cpu, f"{short}: on the CPU")


def ops_on(device: torch.device) -> Ops:
    """What computes there."""
    return CudaOps() if device.type == "cuda" else TorchOps()


def _noted(placement: Placement, note: str) -> Placement:
    return Placement(placement.device, placement.dtype, note)
