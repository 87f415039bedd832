"""How fast, and how much longer. Pure, with the clock passed in."""

from collections import deque
from typing import Final

_WINDOW_S: Final = 5.0


class Speed:
    """Bytes a second over the last seconds. A step back, as when a file is begun anew, begins the window anew."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def sample(self, now_s: float, num_bytes: int) -> int:
        """Tell how many bytes there are now. Returns bytes a second."""
        if self._samples and num_bytes < self._samples[-1][1]:
            self._samples.clear()
        self._samples.append((now_s, num_bytes))
        while len(self._samples) > 2 and now_s - self._samples[0][0] > _WINDOW_S:
            self._samples.popleft()
        since_s, before = self._samples[0]
        return int((num_bytes - before) / (now_s - since_s)) if now_s > since_s else 0


def eta_s(completed_bytes: int, total_bytes: int | None, bytes_per_second: int) -> float | None:
    """Seconds left at this speed; None while that is unknown."""
    if total_bytes is None or bytes_per_second <= 0:
        return None
    return max(0, total_bytes - completed_bytes) / bytes_per_second
