"""Which bytes of a file are here, and who fetches which of the others. Pure: no disk, no network, no clock.

A file is a row of segments; each is filled from its beginning, so one number a segment says what is here, and a kill
costs no more than what was not counted yet. Several connections work on ranges that do not overlap: the first takes
all that is missing, the next half of what the busiest has left.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

SEGMENT_BYTES: Final = 8 * 1024**2

# What is left of a range must be so long that another connection pays: four segments.
_MIN_SPLIT_BYTES: Final = 4 * SEGMENT_BYTES


@dataclass(slots=True, eq=False)
class Range:
    """What one connection fetches: from `next` on, up to `end`, which another one may bring nearer. None: to the end
    of a file whose length nobody told.
    """

    next: int
    end: int | None

    def room(self, num_bytes: int) -> int:
        """How many of so many bytes belong to it."""
        return num_bytes if self.end is None else max(0, min(num_bytes, self.end - self.next))

    @property
    def is_done(self) -> bool:
        """Whether all of it is here."""
        return self.end is not None and self.next >= self.end


class Parts:
    """The state of one file. size_bytes: None while unknown. counts: of each segment, the bytes that are here."""

    def __init__(self, size_bytes: int | None, counts: Sequence[int] = ()) -> None:
        self._counts = list(counts)
        self._busy: list[Range] = []
        self.size_bytes = size_bytes
        self.num_bytes = sum(self._counts)
        self.frontier = 0
        """So many bytes from the beginning are here without a gap."""
        self._advance()

    @classmethod
    def contiguous(cls, size_bytes: int | None, num_bytes: int) -> "Parts":
        """The first so many bytes are here."""
        full, rest = divmod(num_bytes, SEGMENT_BYTES)
        return cls(size_bytes, [SEGMENT_BYTES] * full + ([rest] if rest else []))

    @property
    def counts(self) -> Sequence[int]:
        """Of each segment, up to the last that has any."""
        return self._counts

    @property
    def extent(self) -> int:
        """How long a file is at least that has these bytes."""
        ends = [index * SEGMENT_BYTES + count for index, count in enumerate(self._counts) if count]
        return max(ends, default=0)

    @property
    def is_whole(self) -> bool:
        """Whether every byte of a file of known length is here."""
        return self.size_bytes is not None and self.num_bytes == self.size_bytes

    def learn_size(self, size_bytes: int) -> None:
        """The source told how long the file is."""
        self.size_bytes = size_bytes
        for busy in self._busy:
            busy.end = size_bytes if busy.end is None else busy.end

    def take(self) -> Range | None:
        """The first missing range that nobody fetches."""
        start = self.frontier
        while self.size_bytes is None or start < self.size_bytes:
            owner = next((busy for busy in self._busy if busy.next <= start and _reaches(busy, start)), None)
            if owner is not None:
                if owner.end is None:
                    return None
                start = self._missing_from(owner.end)
                continue
            taken = Range(start, self._end_of_gap(start))
            self._busy.append(taken)
            return taken
        return None

    def split(self) -> Range | None:
        """Half of what the busiest connection has left. None if that is too little."""
        left = [(busy.end - busy.next, busy) for busy in self._busy if busy.end is not None]
        num_left, busiest = max(left, key=lambda each: each[0], default=(0, None))
        if busiest is None or busiest.end is None or num_left < _MIN_SPLIT_BYTES:
            return None
        middle = busiest.next + num_left // 2
        middle -= middle % SEGMENT_BYTES
        taken = Range(middle, busiest.end)
        busiest.end = middle
        self._busy.append(taken)
        return taken

    def wrote(self, taken: Range, num_bytes: int) -> range:
        """So many bytes more of a range are here. Returns the segments whose counts changed."""
        first = taken.next // SEGMENT_BYTES
        while num_bytes:
            index, offset = divmod(taken.next, SEGMENT_BYTES)
            self._counts.extend([0] * (index + 1 - len(self._counts)))
            step = min(num_bytes, SEGMENT_BYTES - offset)
            self._counts[index] += step
            self.num_bytes += step
            taken.next += step
            num_bytes -= step
        self._advance()
        return range(first, (taken.next - 1) // SEGMENT_BYTES + 1)

    def give_back(self, taken: Range) -> None:
        """Its connection ended; what is missing of it is anybody's. One of a file begun anew meanwhile is forgotten."""
        if taken in self._busy:
            self._busy.remove(taken)

    def _advance(self) -> None:
        index = self.frontier // SEGMENT_BYTES
        while index < len(self._counts) and self._counts[index] == SEGMENT_BYTES:
            index += 1
        self.frontier = index * SEGMENT_BYTES + (self._counts[index] if index < len(self._counts) else 0)

    def _missing_from(self, start: int) -> int:
        """The first missing byte at or after the beginning of a segment, or the file's end."""
        index = start // SEGMENT_BYTES
        while index < len(self._counts) and self._counts[index] == SEGMENT_BYTES:
            index += 1
        count = self._counts[index] if index < len(self._counts) else 0
        return max(start, index * SEGMENT_BYTES + count)  # The end of a file need not be that of a segment.

    def _end_of_gap(self, start: int) -> int | None:
        """Where the next range begins that is here or on its way."""
        index = start // SEGMENT_BYTES + 1
        while index < len(self._counts) and not self._counts[index]:
            index += 1
        ends = [index * SEGMENT_BYTES] if index < len(self._counts) else []
        ends += [busy.next - busy.next % SEGMENT_BYTES for busy in self._busy if busy.next > start]
        ends += [] if self.size_bytes is None else [self.size_bytes]
        return min(ends, default=None)


def _reaches(busy: Range, start: int) -> bool:
    return busy.end is None or start < busy.end
