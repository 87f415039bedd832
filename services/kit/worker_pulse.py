"""Whether a child still lives behind its pipes: a stopped or deadlocked process holds them open and says nothing."""

import asyncio
from collections.abc import Callable
from typing import Final

_ASK_EVERY_S: Final = 2.0
_IDLE_ASK_EVERY_S: Final = 30.0

# Asked so often in vain, a child that does not compute is hung: 6 to 8 s after it stopped.
_MAX_MISSES: Final = 3

# One that computes meanwhile holds the interpreter's lock in native code, as a tokenizer does over a very
# long text: it gets about a minute.
_MAX_BUSY_MISSES: Final = 30
_BUSY_SHARE: Final = 0.25


class Pulse:
    """Asks now and then, and counts the times in which nothing was heard.

    Silence is counted in our own ticks and not by a clock: when it was this process that slept, one tick is
    missed, however long the night. While the child has no work it is asked rarely.
    """

    def __init__(
        self,
        *,
        ask: Callable[[], None],
        is_busy: Callable[[], bool],
        cpu_s: Callable[[], float],
        on_hung: Callable[[float], None],
        every_s: float = _ASK_EVERY_S,
        idle_every_s: float = _IDLE_ASK_EVERY_S,
    ) -> None:
        """ask: have the child say something. is_busy: whether anybody waits for it. cpu_s: seconds that it has
        computed since it began. on_hung: told the seconds of silence, once.
        """
        self._ask = ask
        self._is_busy = is_busy
        self._cpu_s = cpu_s
        self._on_hung = on_hung
        self._every_s = every_s
        self._idle_every_s = idle_every_s
        self._timer: asyncio.TimerHandle | None = None
        self._is_slow = False
        self._was_heard = True
        self._num_misses = 0
        self._num_idle_misses = 0
        self._silent_s = 0.0
        self._last_cpu_s = 0.0

    def start(self) -> None:
        """Begin to ask."""
        self._arm()

    def stop(self) -> None:
        """Ask no more."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None

    def heard(self) -> None:
        """It said something, whatever it was."""
        self._was_heard = True

    def hasten(self) -> None:
        """Somebody waits now: ask soon."""
        if self._timer is not None and self._is_slow:
            self._timer.cancel()
            self._arm()

    def tick(self) -> None:
        """Judge the time since the last tick, and ask again."""
        self.stop()
        if self._was_heard:
            self._num_misses = self._num_idle_misses = 0
            self._silent_s = 0.0
        else:
            self._num_misses += 1
            self._silent_s += self._every_s
            self._num_idle_misses += not self._computed()
        if self._num_idle_misses >= _MAX_MISSES or self._num_misses >= _MAX_BUSY_MISSES:
            self._on_hung(self._silent_s)
            return
        self._last_cpu_s = self._cpu_s()
        self._was_heard = False
        self._ask()
        self._arm()

    def _computed(self) -> bool:
        return self._cpu_s() - self._last_cpu_s >= _BUSY_SHARE * self._every_s

    def _arm(self) -> None:
        # Found silent, it is asked fast although nobody waits: it is either well or gone soon.
        self._is_slow = not self._is_busy() and self._num_misses == 0
        delay_s = self._idle_every_s if self._is_slow else self._every_s
        self._timer = asyncio.get_running_loop().call_later(delay_s, self.tick)
