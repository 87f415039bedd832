"""Ids that sort by the time they were made."""

import os
import re
import time
from typing import Final

_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"
_TIME_CHARS: Final = 10
_RANDOM_CHARS: Final = 12
_NOT_OF_AN_ID = re.compile(r"[^a-z0-9._-]+")


def new_id() -> str:
    """22 characters of base 32: the milliseconds since 1970, then 60 random bits."""
    random = int.from_bytes(os.urandom(8)) >> 4
    return _base32(time.time_ns() // 1_000_000, _TIME_CHARS) + _base32(random, _RANDOM_CHARS)


def as_id(text: str) -> str:
    """The nearest thing to `text` that is spelled like an id; empty if nothing of it can be kept."""
    spelled = _NOT_OF_AN_ID.sub("-", text.lower())
    spelled = re.sub(r"\.{2,}", ".", spelled).lstrip("._-").rstrip("._-")
    return spelled[:128].rstrip("._-")


def _base32(number: int, num_chars: int) -> str:
    chars = [_ALPHABET[number >> (5 * place) & 31] for place in range(num_chars)]
    return "".join(reversed(chars))
