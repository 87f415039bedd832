"""What a check for updates finds of a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Protocol


class UpdateVerdict(IntEnum):
    """How a model compares to its source. Numbers as in the contract."""

    UNSPECIFIED = 0
    UP_TO_DATE = 1
    AVAILABLE = 2
    HELD_BACK = 3
    UNKNOWN = 4


@dataclass(frozen=True, slots=True)
class Update:
    """One model as its source had it then. version, latest_version: resource names, or empty.

    latest_source: pinned; download_bytes: None while unknown; download: the name of the one that was begun.
    """

    model_id: str
    version: str
    verdict: UpdateVerdict
    check_time: datetime
    latest_source: str = ""
    latest_version: str = ""
    download_bytes: int | None = None
    reason: str = ""
    download: str = ""


class UpdateStore(Protocol):
    """What the last checks found, over a restart."""

    async def save_updates(self, found: Sequence[Update], *, are_all: bool) -> None:
        """Insert or replace; are_all: what was found of other models is forgotten."""

    async def updates(self, *, after_id: str, limit: int) -> Sequence[Update]:
        """By model id, from the first after `after_id`."""
