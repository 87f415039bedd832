"""The header of a GGUF file: what the model is, without its tensors.

Layout after https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The file is not trusted: every count and
length is checked against a cap and against the end of the file before it is used.
"""

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

from services.kit.errors import UnsupportedFormat

MAGIC: Final = b"GGUF"

_MAX_KEYS: Final = 65_536
_MAX_TENSORS: Final = 65_536
_MAX_KEY_BYTES: Final = 65_535
_MAX_ELEMENTS: Final = 8_000_000
# Over all arrays: each is read by itself. The largest vocabularies have half of that, with their merges.
_MAX_TEXTS: Final = 1_500_000
_MAX_DIMENSIONS: Final = 8
_MAX_PARAMETERS: Final = 2**48
# Of all keys and texts that are kept.
_MAX_TEXT_BYTES: Final = 16 * 1024 * 1024

_TEXT: Final = 8
_ARRAY: Final = 9
# type -> struct code; 8 is text, 9 an array.
_SCALARS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

Value = int | float | bool | str


@dataclass(slots=True)
class GgufHeader:
    """values: metadata that is not an array, by key. lengths: of the arrays, by key."""

    values: dict[str, Value] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    num_parameters: int = 0

    def text(self, key: str) -> str:
        """A text, or empty."""
        value = self.values.get(key)
        return value if isinstance(value, str) else ""

    def number(self, key: str) -> int | None:
        """A whole number, or None."""
        value = self.values.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None


def read_gguf_header(path: Path) -> GgufHeader:
    """Parse it. Raises UnsupportedFormat for what is no GGUF file, or a damaged one."""
    with path.open("rb") as file:
        return _Reader(file, path.stat().st_size).header()


class _Reader:
    def __init__(self, file: BinaryIO, size_bytes: int) -> None:
        self._file = file
        self._left = size_bytes
        self._num_texts = 0
        self._num_text_bytes = 0

    def header(self) -> GgufHeader:
        if self._take(4) != MAGIC:
            raise _damaged("it does not begin with GGUF")
        version = self._number("I")
        if version not in (2, 3):
            raise _damaged(f"its version is {version}; 2 and 3 are read")
        num_tensors = self._count("Q", _MAX_TENSORS, "tensors")
        num_keys = self._count("Q", _MAX_KEYS, "keys")
        header = GgufHeader()
        for _ in range(num_keys):
            self._read_value_into(header)
        header.num_parameters = sum(self._tensor_elements() for _ in range(num_tensors))
        if header.num_parameters > _MAX_PARAMETERS:
            raise _damaged("its tensors are larger than any model")
        return header

    def _read_value_into(self, header: GgufHeader) -> None:
        key = self._text(_MAX_KEY_BYTES)
        kind = self._number("I")
        if kind == _ARRAY:
            header.lengths[key] = self._skip_array()
        elif kind == _TEXT:
            header.values[key] = self._text(_MAX_TEXT_BYTES)
        else:
            header.values[key] = self._scalar(kind)

    def _skip_array(self) -> int:
        kind = self._number("I")
        length = self._count("Q", _MAX_ELEMENTS, "elements")
        if kind == _TEXT:
            self._skip_texts(length)
        else:
            self._skip(length * struct.calcsize(f"<{self._code(kind)}"))
        return length

    def _skip_texts(self, num_texts: int) -> None:
        """As `_skip` does, but spelled out: a vocabulary has hundreds of thousands."""
        self._num_texts += num_texts
        if self._num_texts > _MAX_TEXTS:
            raise _damaged(
                f"it claims to have {self._num_texts} texts; {_MAX_TEXTS} are the most that are read"
            )
        read, seek = self._file.read, self._file.seek
        for _ in range(num_texts):
            num_bytes = int.from_bytes(read(8), "little")
            self._left -= 8 + num_bytes
            if self._left < 0:
                raise _damaged("it ends in the middle of its header")
            seek(num_bytes, 1)

    def _tensor_elements(self) -> int:
        self._skip(self._count("Q", _MAX_KEY_BYTES, "characters"))
        elements = 1
        for _ in range(self._count("I", _MAX_DIMENSIONS, "dimensions")):
            elements *= self._count("Q", _MAX_PARAMETERS, "elements")
        if elements > _MAX_PARAMETERS:
            raise _damaged("a tensor is larger than any model")
        self._skip(4 + 8)  # Its type and offset.
        return elements

    def _scalar(self, kind: int) -> Value:
        value: Value = struct.unpack(
            f"<{(code := self._code(kind))}", self._take(struct.calcsize(f"<{code}"))
        )[0]
        return value

    def _code(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise _damaged(f"it holds a value of the unknown type {kind}")
        return _SCALARS[kind]

    def _text(self, max_bytes: int) -> str:
        num_bytes = self._count("Q", max_bytes, "characters")
        self._num_text_bytes += num_bytes
        if self._num_text_bytes > _MAX_TEXT_BYTES:
            raise _damaged("its texts are longer than those of any model")
        return self._take(num_bytes).decode("utf-8", "replace")

    def _count(self, code: str, cap: int, what: str) -> int:
        count = self._number(code)
        if count > cap:
            raise _damaged(f"it claims to have {count} {what}; {cap} is the most that is read")
        return count

    def _number(self, code: str) -> int:
        return int(struct.unpack(f"<{code}", self._take(struct.calcsize(f"<{code}")))[0])

    def _take(self, num_bytes: int) -> bytes:
        self._left -= num_bytes
        if self._left < 0:
            raise _damaged("it ends in the middle of its header")
        return self._file.read(num_bytes)

    def _skip(self, num_bytes: int) -> None:
        self._left -= num_bytes
        if self._left < 0:
            raise _damaged("it ends in the middle of its header")
        self._file.seek(num_bytes, 1)


def _damaged(why: str) -> UnsupportedFormat:
    return UnsupportedFormat(f"this is no GGUF file that can be read: {why}")
