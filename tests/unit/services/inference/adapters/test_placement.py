"""Devices are chosen as the operator asks and memory allows, and a card passed over is named with numbers."""

from pathlib import Path

import pytest
import torch

from services.inference.adapters.placement import Card, Machine, Placement, choose, place, probe_machine

GIB = 1024**3
BARE = Machine((), torch.bfloat16)
CARD = Machine((Card(0, 8 * GIB, (8, 6)),), torch.float32)
TWO = Machine((Card(0, 4 * GIB, (8, 0)), Card(1, 20 * GIB, (9, 0))), torch.float32)


@pytest.mark.parametrize(
    ("device", "machine", "chosen", "dtype"),
    [
        ("auto", BARE, "cpu", torch.bfloat16),
        ("cpu", CARD, "cpu", torch.float32),
        ("auto", CARD, "cuda:0", torch.bfloat16),
        ("cuda", CARD, "cuda:0", torch.bfloat16),
        ("auto", TWO, "cuda:1", torch.bfloat16),
        ("cuda:0", TWO, "cuda:0", torch.bfloat16),
        ("auto", Machine((Card(0, 8 * GIB, (7, 5)),), torch.float32), "cuda:0", torch.float16),
        ("mps", Machine((), torch.float32, torch.float16), "mps", torch.float16),
        ("auto", Machine((), torch.float32, torch.bfloat16), "cpu", torch.float32),
    ],
)
def test_a_model_that_fits_goes_where_it_is_told(
    device: str, machine: Machine, chosen: str, dtype: torch.dtype
):
    assert choose(device, 3 * GIB, machine) == Placement(chosen, dtype)


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_card_that_is_too_small_is_passed_over_with_the_numbers(device: str):
    placement = choose(device, 15 * GIB, CARD)
    assert placement.device == "cpu"
    assert placement.note == "needs 15.0 GiB, and cuda:0 has 8.0 GiB free: on the CPU"


def test_a_card_told_by_its_number_is_taken_though_it_may_not_do():
    placement = choose("cuda:0", 5 * GIB, TWO)
    assert placement.device == "cuda:0"
    assert placement.note == "needs 5.0 GiB, and cuda:0 has 4.0 GiB free: may fail"


@pytest.mark.parametrize(
    ("device", "note"),
    [
        ("cuda", "torch finds no cuda here: on the CPU"),
        ("cuda:1", "torch finds no cuda:1 here: on the CPU"),
        ("mps", "torch finds no Apple card here: on the CPU"),
    ],
)
def test_a_device_that_is_not_there_is_said(device: str, note: str):
    assert choose(device, 1, BARE) == Placement("cpu", torch.bfloat16, note)


def test_a_cpu_needs_no_memory_of_a_card():
    assert choose("cpu", 10**15, CARD).note == ""


def test_a_folder_needs_what_its_weights_take_and_room_to_compute(tmp_path: Path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    machine = probe_machine(with_cards=False)
    assert place(tmp_path, "cpu") == Placement("cpu", machine.cpu_dtype)
