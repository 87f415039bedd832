"""Lengths of time as people write them."""

import re
from typing import Final

from google.protobuf.duration_pb2 import Duration

_DURATION: Final = re.compile(r"(-?\d{1,9}(?:\.\d{1,6})?)(ms|s|m|h)?")
_UNIT_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}
_MAX_S: Final = 10 * 365 * 86400.0


def duration_s(value: float | str) -> float:
    """`300`, `5m`, `-1` in seconds. Raises ValueError."""
    if isinstance(value, str):
        match = _DURATION.fullmatch(value)
        if match is None:
            raise ValueError("must be a number of seconds, or a number with ms, s, m or h")
        value = float(match[1]) * _UNIT_S[match[2]]
    if abs(value) > _MAX_S:
        raise ValueError("must be at most ten years")
    return value


def duration_to_proto(value: float | str) -> Duration:
    """As `duration_s`, to the millisecond. Raises ValueError."""
    duration = Duration()
    duration.FromMilliseconds(round(duration_s(value) * 1000))
    return duration
