import contextlib
import json
import resource
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.adapters.estimate import read_checkpoint
from services.kit.errors import UnsupportedFormat

CONFIG: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 258,
    "max_position_embeddings": 512,
}


def tensor(begin: int, end: int, shape: list[int], dtype: str = "BF16") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write(folder: Path, header: Any, *, num_data_bytes: int = 64, config: Any = None) -> Path:
    body = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(body)) + body + bytes(num_data_bytes))
    (folder / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    return folder


def test_a_real_folder_is_told_to_the_byte(tiny_folder: Path):
    from tests.contract.tiny_llama import tiny_llama

    num_parameters = sum(parameter.numel() for parameter in tiny_llama().parameters())
    found = read_checkpoint(tiny_folder)
    assert found.weights_bytes("fp32") == found.num_stored_bytes == num_parameters * 4
    assert found.weights_bytes("bf16") == num_parameters * 2
    assert found.weights_bytes("int4") < found.weights_bytes("int8") < found.weights_bytes("bf16")
    assert found.shape.context_length == 512
    # Layers x keys and values x heads for them x size of a head x bytes.
    assert found.kv_bytes_per_token("bf16") == 2 * 2 * 2 * 8 * 2
    assert found.workspace_bytes("fp32", 512) > 512 * 258 * 4


def test_an_index_names_the_files_and_others_do_not_count(tmp_path: Path):
    write(tmp_path, {"a.weight": tensor(0, 64, [4, 8])})
    (tmp_path / "model.safetensors").rename(tmp_path / "part-1.safetensors")
    (tmp_path / "consolidated.safetensors").write_bytes((tmp_path / "part-1.safetensors").read_bytes())
    index = {"weight_map": {"a.weight": "part-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert read_checkpoint(tmp_path).num_stored_bytes == 64
    index["weight_map"]["a.weight"] = "../elsewhere.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UnsupportedFormat, match="does not name"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "header",
    [
        {"a": tensor(0, 64, [4, 8]), "b": tensor(32, 64, [16])},
        {"a": tensor(0, 128, [8, 8])},
        {"a": tensor(64, 0, [4, 8])},
        {"a": tensor(0, 64, [4, 9])},
        {"a": tensor(0, 64, [-4, -8])},
        {"a": tensor(0, 64, [2**63, 2**63])},
        {"a": tensor(0, 64, [1] * 100_000)},
        {"a": tensor(0, 64, [4, 8], "Q7")},
        {"a": tensor(-64, 0, [4, 8])},
        {"a": {"dtype": "F32"}},
        {"a": 10**400},
        [1, 2],
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\xff\xfe",
        b"",
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, header: Any):
    with pytest.raises(UnsupportedFormat):
        read_checkpoint(write(tmp_path, header))


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**63, 2**64 - 1])
def test_a_length_that_lies_allocates_nothing(tmp_path: Path, length: int):
    write(tmp_path, {})
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", length) + b"{}")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UnsupportedFormat, match="header"):
        read_checkpoint(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 * 1024


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": -1},
        {"num_hidden_layers": 10**30},
        {"head_dim": 1.5},
        {"vocab_size": True},
        {"max_position_embeddings": "many"},
    ],
)
def test_a_config_with_absurd_numbers_is_refused_by_name(tmp_path: Path, change: dict[str, Any]):
    with pytest.raises(UnsupportedFormat, match=next(iter(change))):
        read_checkpoint(write(tmp_path, {"a": tensor(0, 64, [4, 8])}, config={**CONFIG, **change}))


@given(at=st.integers(0, 200), byte=st.integers(0, 255), length=st.integers(0, 250))
def test_mutated_files_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, at: int, byte: int, length: int
):
    folder = tmp_path_factory.getbasetemp() / "mutated"
    folder.mkdir(exist_ok=True)
    write(folder, {"a": tensor(0, 32, [4, 4]), "b": tensor(32, 64, [16])})
    path = folder / "model.safetensors"
    whole = bytearray(path.read_bytes())
    whole[min(at, len(whole) - 1)] = byte
    path.write_bytes(whole[: len(whole) - length] if length % 2 else whole)
    with contextlib.suppress(UnsupportedFormat):
        assert read_checkpoint(folder).weights_bytes("bf16") >= 0
