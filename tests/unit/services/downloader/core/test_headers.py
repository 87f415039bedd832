"""Headers of GGUF and safetensors: what they say. Mutated ones are read in tests/torture."""

import json
import struct
from pathlib import Path

import pytest

from services.downloader.core.gguf_header import read_gguf_header
from services.downloader.core.safetensors_header import read_safetensors_header
from services.kit.errors import UnsupportedFormat
from tests.unit.services.downloader.wheels import gguf_bytes


def test_a_gguf_header_tells_its_values_and_counts_parameters(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(gguf_bytes(tensors=((4, 8), (3,))))
    header = read_gguf_header(tmp_path / "m.gguf")
    assert header.text("general.architecture") == "llama"
    assert header.number("llama.context_length") == 2048
    assert header.lengths["tokenizer.ggml.tokens"] == 2
    assert header.num_parameters == 35


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GGUF",
        b"PK\x03\x04" + bytes(100),
        b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**62),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 9, 1),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 4, 2**40),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<I", 77),
    ],
)
def test_what_is_no_gguf_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(UnsupportedFormat):
        read_gguf_header(tmp_path / "m.gguf")


def safetensors_bytes(header: object, data: bytes = bytes(64)) -> bytes:
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


TENSOR = {"dtype": "BF16", "shape": [4, 8], "data_offsets": [0, 64]}


def test_a_safetensors_header_tells_parameters_and_dtype(tmp_path: Path) -> None:
    small = {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}
    content = safetensors_bytes({"__metadata__": {"format": "pt"}, "a": TENSOR, "b": small})
    (tmp_path / "m.safetensors").write_bytes(content)
    header = read_safetensors_header(tmp_path / "m.safetensors")
    assert (header.num_parameters, header.dtype) == (35, "BF16")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        bytes(8),
        struct.pack("<Q", 2**63),
        struct.pack("<Q", 10**9) + b"{}",
        struct.pack("<Q", 2) + b"xx",
        safetensors_bytes([]),
        safetensors_bytes({"a": {}}),
        safetensors_bytes({"a": TENSOR | {"data_offsets": [0, 65]}}),
        safetensors_bytes({"a": TENSOR | {"data_offsets": [9, 1]}}),
        safetensors_bytes({"a": TENSOR | {"shape": [-1]}}),
        safetensors_bytes({"a": TENSOR | {"shape": [2.5]}}),
        struct.pack("<Q", 20_000) + b"[" * 20_000,
    ],
)
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(UnsupportedFormat):
        read_safetensors_header(tmp_path / "m.safetensors")
