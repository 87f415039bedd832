from pathlib import Path

import gguf
import numpy as np
import pytest

from bench.models import write_gguf


@pytest.fixture
def original(tmp_path: Path) -> Path:
    file = tmp_path / "original.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(30)
    writer.add_token_list(["a", "b"])
    writer.add_file_type(3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return file


def test_metadata_is_kept_but_for_what_is_changed(original: Path, tmp_path: Path) -> None:
    target = tmp_path / "new" / "model.gguf"
    write_gguf(target, original, {"llama.block_count": 22}, [], "Q8_0")
    fields = gguf.GGUFReader(target).fields
    assert fields["llama.block_count"].contents() == 22
    assert fields["tokenizer.ggml.tokens"].contents() == ["a", "b"]
    assert fields["general.architecture"].contents() == "llama"


@pytest.mark.parametrize(("kind", "error"), [("Q8_0", 0.01), ("Q4_0", 0.15)])
def test_matrices_are_quantized_and_vectors_are_not(
    kind: str, error: float, original: Path, tmp_path: Path
) -> None:
    matrix = np.random.default_rng(0).uniform(-1, 1, (4, 64)).astype(np.float32)
    vector = np.ones(64, np.float32)
    target = tmp_path / "model.gguf"
    write_gguf(target, original, {}, [("blk.0.attn_q.weight", matrix), ("output_norm.weight", vector)], kind)
    quantized, plain = gguf.GGUFReader(target).tensors
    assert quantized.tensor_type.name == kind
    assert plain.tensor_type.name == "F32"
    read = gguf.dequantize(quantized.data, quantized.tensor_type)
    assert read.shape == matrix.shape
    assert np.abs(read - matrix).max() < error
