"""How often: a few times in every run, many times in `make torture-store`, which sets LARES_TORTURE."""

import os
from typing import Final

IS_LONG: Final = bool(os.environ.get("LARES_TORTURE"))


def num(short: int, long: int) -> int:
    """The number of RELIABILITY.md that this run is to reach."""
    return long if IS_LONG else short
