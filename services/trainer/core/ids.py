"""Ids that sort by the time they were made."""

import secrets
import time

# Crockford's base 32, lower case: no i, l, o, u.
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def new_id(prefix: str) -> str:
    """`job-01kdf6...`: 48 bits of milliseconds and 80 of chance, laid out as a ULID (https://github.com/ulid/spec)."""
    value = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    return f"{prefix}-" + "".join(_ALPHABET[value >> shift & 31] for shift in range(125, -1, -5))
