"""How a worker's loop stands, told to whoever watches: when it changed, and not more often than once a second."""

import time
from collections.abc import Callable
from typing import Any, Final

from services.inference.adapters.messages import Stats
from services.inference.core.events import LoopStats
from services.kit.worker_port import WorkerPort

_EVERY_S: Final = 1.0


class StatsReporter:
    """One thread uses it: the one that steps."""

    def __init__(self, port: WorkerPort[Any, Any], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._port = port
        self._clock = clock
        self._call_ids: set[int] = set()
        self._told: LoopStats | None = None
        self._told_s = -_EVERY_S
        self._is_late = False

    @property
    def due_in_s(self) -> float | None:
        """Seconds until what is not told yet may be told; None if there is nothing."""
        return max(0.0, self._told_s + _EVERY_S - self._clock()) if self._is_late else None

    def watch(self, call_id: int) -> None:
        """A call that wants stats, and gets the first at the next `tell`."""
        self._call_ids.add(call_id)
        self._told = None

    def unwatch(self, call_id: int) -> None:
        """One that wants them no more."""
        self._call_ids.discard(call_id)

    def tell(self, stats: Callable[[], LoopStats]) -> None:
        """Tell, if it is time. stats: asked only then."""
        if not self._call_ids:
            self._is_late = False
            return
        now_s = self._clock()
        if now_s - self._told_s < _EVERY_S:
            self._is_late = True
            return
        self._is_late = False
        if (newest := stats()) != self._told:
            self._told, self._told_s = newest, now_s
            self._port.send([(call_id, Stats(newest)) for call_id in self._call_ids])
