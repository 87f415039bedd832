"""How much memory a folder of safetensors will take, by its headers and its config alone.

Nothing here trusts a file: lengths are capped before anything is read, and every number is checked before it is
used. The layout is https://huggingface.co/docs/safetensors: 8 bytes of length, so many of JSON, the data.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from services.inference.adapters.model_folder import check_folder
from services.kit.errors import UnsupportedFormat

WeightType = Literal["fp32", "fp16", "bf16", "int8", "int4"]

# Some 60,000 tensors in one file; what this JSON becomes in memory stays in the low hundreds of MiB.
_MAX_HEADER_BYTES: Final = 8 * 1024**2
_MAX_CONFIG_BYTES: Final = 4 * 1024**2
_MAX_FILES: Final = 1000
_MAX_RANK: Final = 8
_MAX_DIM: Final = 2**40

# Beyond any model there is; a product of them stays small enough to print.
_MAX_CONFIG_NUMBER: Final = 2**27

# What an engine takes beside activations: rope tables, sampler, block tables, allocator slack.
_WORKSPACE_BYTES: Final = 64 * 1024**2

_TYPE_BITS: Final = {
    "BOOL": 8, "U8": 8, "I8": 8, "I16": 16, "U16": 16, "I32": 32, "U32": 32, "I64": 64, "U64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip

# Bits of a weight in a linear layer. Quantized in groups of 32 with a scale of 16 bits; eight bits by rows.
_WEIGHT_BITS: Final = {"fp32": 32.0, "fp16": 16.0, "bf16": 16.0, "int8": 8.0, "int4": 4.5}
_ROW_SCALE_BYTES: Final = 4

# What is looked up or multiplied once a token stays in sixteen bits when the rest is quantized.
_NEVER_QUANTIZED: Final = ("embed", "wte", "wpe", "lm_head", "norm")


class _Tensor(msgspec.Struct):
    """One entry of a safetensors header."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Shape:
    """What config.json says that matters for memory. 0 for what it does not say."""

    num_layers: int
    num_kv_heads: int
    head_size: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    context_length: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder's weights and shape, known without loading it."""

    shape: Shape
    num_stored_bytes: int
    _tensors: tuple[tuple[bool, int, int], ...]  # (may be quantized, number of weights, rows); floats only.
    _num_other_bytes: int

    def weights_bytes(self, weight_type: WeightType) -> int:
        """What the weights take as this type."""
        plain = _WEIGHT_BITS[weight_type] if weight_type not in ("int8", "int4") else _WEIGHT_BITS["bf16"]
        bits = 0.0
        scale_bytes = 0
        for may_be_quantized, num_weights, num_rows in self._tensors:
            bits += num_weights * (_WEIGHT_BITS[weight_type] if may_be_quantized else plain)
            if may_be_quantized and weight_type == "int8":
                scale_bytes += num_rows * _ROW_SCALE_BYTES
        return math.ceil(bits / 8) + scale_bytes + self._num_other_bytes

    def kv_bytes_per_token(self, kv_type: WeightType) -> int:
        """Keys and values of a token in all layers. Layers with a window count as if they had none."""
        shape = self.shape
        num_bytes = 4 if kv_type == "fp32" else 2
        return 2 * shape.num_layers * shape.num_kv_heads * shape.head_size * num_bytes

    def workspace_bytes(self, compute_type: WeightType, max_batch_tokens: int) -> int:
        """Activations of the largest step, and its logits in float32."""
        shape = self.shape
        num_bytes = 4 if compute_type == "fp32" else 2
        a_token = (6 * shape.hidden_size + 3 * shape.intermediate_size) * num_bytes + shape.vocab_size * 4
        return _WORKSPACE_BYTES + max_batch_tokens * a_token


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a folder's headers. Raises UnsupportedFormat for what is no sound checkpoint."""
    check_folder(folder)
    shape = _read_shape(folder / "config.json")
    tensors: list[tuple[bool, int, int]] = []
    num_stored_bytes = num_other_bytes = 0
    for path in _weight_files(folder):
        for name, tensor in _read_header(path).items():
            stored = tensor.data_offsets[1] - tensor.data_offsets[0]
            num_stored_bytes += stored
            if tensor.dtype.startswith(("F", "BF")):
                is_matrix = len(tensor.shape) >= 2 and not any(part in name for part in _NEVER_QUANTIZED)
                tensors.append((is_matrix, math.prod(tensor.shape), tensor.shape[0] if tensor.shape else 1))
            else:
                num_other_bytes += stored
    return Checkpoint(shape, num_stored_bytes, tuple(tensors), num_other_bytes)


def _weight_files(folder: Path) -> list[Path]:
    """The files that a loader reads: one, or those that the index names, or all there are."""
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    index_path = folder / "model.safetensors.index.json"
    if index_path.is_file():
        weight_map = _read_json(index_path, _MAX_HEADER_BYTES).get("weight_map")
        names = set(weight_map.values()) if isinstance(weight_map, dict) and _all_text(weight_map) else set()
        if not names or any(Path(name).name != name for name in names):
            raise UnsupportedFormat(f"{index_path.name} does not name the files of the weights")
        paths = [folder / name for name in sorted(names)]
    else:
        paths = sorted(folder.glob("*.safetensors"))
    if len(paths) > _MAX_FILES:
        raise UnsupportedFormat(f"the model's weights are in more than {_MAX_FILES} files")
    return paths


def _all_text(values: dict[Any, Any]) -> bool:
    return all(isinstance(value, str) for value in values.values())


def _read_header(path: Path) -> dict[str, _Tensor]:
    """A file's tensors, checked against the file's size and against each other."""
    try:
        num_file_bytes = path.stat().st_size
        with path.open("rb") as file:
            num_header_bytes = int.from_bytes(file.read(8), "little")
            if not 2 <= num_header_bytes <= min(_MAX_HEADER_BYTES, num_file_bytes - 8):
                raise UnsupportedFormat(f"{path.name} has a header of {num_header_bytes} bytes")
            entries = msgspec.json.decode(file.read(num_header_bytes), type=dict[str, msgspec.Raw])
            entries.pop("__metadata__", None)
            tensors = {name: msgspec.json.decode(raw, type=_Tensor) for name, raw in entries.items()}
    except OSError as error:
        raise UnsupportedFormat(f"{path.name} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # msgspec's are ValueErrors.
        raise UnsupportedFormat(f"{path.name} has a header that is not understood: {error}") from error
    _check_layout(path.name, tensors, num_file_bytes - 8 - num_header_bytes)
    return tensors


def _check_layout(file: str, tensors: dict[str, _Tensor], num_data_bytes: int) -> None:
    """Raises UnsupportedFormat unless every tensor has its own bytes, as many as its shape needs."""
    end_of_last = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
        where = f"{file}: tensor '{name[:100]}'"
        begin, end = tensor.data_offsets
        if not end_of_last <= begin <= end <= num_data_bytes:
            raise UnsupportedFormat(f"{where} lies over another, or outside of the file")
        end_of_last = end
        bits = _TYPE_BITS.get(tensor.dtype)
        if bits is None:
            raise UnsupportedFormat(f"{where} has the type {tensor.dtype[:20]!r}, which is not known")
        if len(tensor.shape) > _MAX_RANK or any(not 0 <= size <= _MAX_DIM for size in tensor.shape):
            raise UnsupportedFormat(f"{where} has a shape that cannot be")
        if math.prod(tensor.shape) * bits != (end - begin) * 8:
            raise UnsupportedFormat(f"{where} has not as many bytes as its shape needs")


def _read_shape(path: Path) -> Shape:
    config = _read_json(path, _MAX_CONFIG_BYTES)
    text = config.get("text_config")
    if isinstance(text, dict):  # Of a model that also sees or hears.
        config = text
    hidden_size = _number(config, "hidden_size", "n_embd", "d_model")
    num_heads = _number(config, "num_attention_heads", "n_head", "num_heads")
    return Shape(
        num_layers=_number(config, "num_hidden_layers", "n_layer", "num_layers"),
        num_kv_heads=_number(config, "num_key_value_heads", "num_kv_heads") or num_heads,
        head_size=_number(config, "head_dim") or (hidden_size // num_heads if num_heads else 0),
        hidden_size=hidden_size,
        intermediate_size=_number(config, "intermediate_size", "n_inner", "ffn_dim") or 4 * hidden_size,
        vocab_size=_number(config, "vocab_size"),
        context_length=_number(config, "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"),
    )


def _number(config: dict[str, Any], *names: str) -> int:
    """The first of these that is there, or 0. Raises UnsupportedFormat for what cannot be."""
    for name in names:
        value = config.get(name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_CONFIG_NUMBER:
            raise UnsupportedFormat(f"config.json: {name} is {str(value)[:40]}, which cannot be")
        return value
    return 0


def _read_json(path: Path, max_bytes: int) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            body = file.read(max_bytes + 1)
        if len(body) > max_bytes:
            raise UnsupportedFormat(f"{path.name} is larger than {max_bytes} bytes")
        return msgspec.json.decode(body, type=dict[str, Any])
    except OSError as error:
        raise UnsupportedFormat(f"{path.name} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # msgspec's are ValueErrors.
        raise UnsupportedFormat(f"{path.name} is not understood: {error}") from error
