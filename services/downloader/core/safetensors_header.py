"""The header of a safetensors file: shapes and types of its tensors, without their bytes.

Layout after https://github.com/huggingface/safetensors#format. The file is not trusted.
"""

import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from services.kit.errors import UnsupportedFormat

# Parsed, it takes forty times as much memory at worst. A hundred thousand tensors fit.
_MAX_HEADER_BYTES: Final = 8 * 1024 * 1024
_MAX_DIMENSIONS: Final = 16
_MAX_PARAMETERS: Final = 2**48
_DTYPE: Final = re.compile(r"[A-Z0-9_]{1,16}")
_FLOATS: Final = ("F16", "BF16", "F32", "F64")
_EMBEDDINGS: Final = (
    "model.embed_tokens.weight",
    "embeddings.word_embeddings.weight",
    "bert.embeddings.word_embeddings.weight",
    "roberta.embeddings.word_embeddings.weight",
)


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """dtype: of most elements, as the format names it, for example `BF16`.

    embedding: shape of the table of tokens, if it is here under one of its usual names and in floats.
    """

    num_parameters: int
    dtype: str
    embedding: tuple[int, ...] | None = None


def read_safetensors_header(path: Path) -> SafetensorsHeader:
    """Parse it. Raises UnsupportedFormat for what is no safetensors file, or a damaged one."""
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        num_header_bytes = int.from_bytes(file.read(8), "little")
        if size_bytes < 8 or not 2 <= num_header_bytes <= min(_MAX_HEADER_BYTES, size_bytes - 8):
            raise _damaged("the length of its header makes no sense")
        raw = file.read(num_header_bytes)
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _damaged("its header is no JSON") from error
    if not isinstance(header, dict):
        raise _damaged("its header is no table")
    return _summary(header, size_bytes - 8 - num_header_bytes)


def _summary(header: dict[str, Any], num_data_bytes: int) -> SafetensorsHeader:
    num_elements: Counter[str] = Counter()
    embedding: tuple[int, ...] | None = None
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        match tensor:
            case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
                if not 0 <= begin <= end <= num_data_bytes:
                    raise _damaged("a tensor lies outside of the file")
                if not _DTYPE.fullmatch(dtype):
                    raise _damaged("a tensor has a type that makes no sense")
                num_elements[dtype] += _elements(shape)
                if name in _EMBEDDINGS and dtype in _FLOATS:
                    embedding = tuple(shape)
            case _:
                raise _damaged("a tensor is not described as it should be")
    if num_elements.total() > _MAX_PARAMETERS:
        raise _damaged("its tensors are larger than any model")
    most = num_elements.most_common(1)
    return SafetensorsHeader(num_elements.total(), most[0][0] if most else "", embedding)


def _elements(shape: list[Any]) -> int:
    if len(shape) > _MAX_DIMENSIONS or any(
        type(length) is not int or not 0 <= length <= _MAX_PARAMETERS for length in shape
    ):
        raise _damaged("a tensor has a shape that makes no sense")
    return math.prod(shape)


def _damaged(why: str) -> UnsupportedFormat:
    return UnsupportedFormat(f"this is no safetensors file that can be read: {why}")
