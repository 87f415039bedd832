"""The Range of a request, after https://www.rfc-editor.org/rfc/rfc9110#section-14."""

import re
from dataclasses import dataclass
from typing import Final

_RANGE: Final = re.compile(r"bytes=[ \t]*(\d{0,18})-(\d{0,18})[ \t]*", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ByteRange:
    """A part of a file: its first byte, and how many there are, at least one."""

    first: int
    num_bytes: int

    def content_range(self, size_bytes: int) -> str:
        """The header that tells which part of how many bytes an answer is."""
        return f"bytes {self.first}-{self.first + self.num_bytes - 1}/{size_bytes}"


class UnsatisfiableRange(Exception):
    """No byte of the file lies in the range."""


def parse_range(header: str, size_bytes: int) -> ByteRange | None:
    """The part that is asked for; None for all of it.

    What is no range of bytes, and several at once, may be answered with the whole, and are. Raises UnsatisfiableRange.
    """
    match = _RANGE.fullmatch(header)
    if match is None or not (match[1] or match[2]):
        return None
    if match[1]:
        first = int(match[1])
        last = min(int(match[2]), size_bytes - 1) if match[2] else size_bytes - 1
        if match[2] and int(match[2]) < first:
            return None
    else:
        first, last = max(0, size_bytes - int(match[2])), size_bytes - 1
    if first > last:
        raise UnsatisfiableRange
    return ByteRange(first, last - first + 1)
