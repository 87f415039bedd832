"""Which rows of tokens an encoder computes together: rows of all waiting requests, fairly, with little padding.

batches.add(request_id, [12, 7, 30])   three rows, so many tokens each
rows = batches.next_batch()            compute these together
batches.waits(request_id)              false once its last row was given out
batches.cancel(request_id)             what is not given out yet is dropped

A batch is as wide as its longest row; what is added to the others is padding, and is computed too.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

# A batch is cut out of rows of so many batches: the more to choose from, the nearer their lengths.
_WINDOW_BATCHES: Final = 4
# Padding that costs less than a batch of its own would, and the share of a batch that may be padding beyond that.
FREE_PADDING_TOKENS: Final = 256
MAX_PADDING_SHARE: Final = 0.25


@dataclass(frozen=True, slots=True)
class RowRef:
    """One row of a request. index: which of its rows."""

    request_id: int
    index: int
    num_tokens: int


class EmbedBatches:
    """The rows that wait. One thread uses it; nothing here computes or waits.

    Each of n waiting requests is served at least once in n batches, whatever their sizes.
    """

    def __init__(self, *, max_tokens: int) -> None:
        """max_tokens: in a batch, padding counted; a row that is longer is a batch of its own."""
        self._max_tokens = max_tokens
        # Of each request the lengths of its rows by index, longest first. The request in front leads the next batch.
        self._waiting: OrderedDict[int, dict[int, int]] = OrderedDict()

    @property
    def has_work(self) -> bool:
        """Whether a row waits."""
        return bool(self._waiting)

    def waits(self, request_id: int) -> bool:
        """Whether a row of this request was not given out yet."""
        return request_id in self._waiting

    def add(self, request_id: int, lengths: Sequence[int]) -> None:
        """Queue a request: tokens in each of its rows, at least one row."""
        longest_first = sorted(range(len(lengths)), key=lambda index: -lengths[index])
        self._waiting[request_id] = {index: lengths[index] for index in longest_first}

    def cancel(self, request_id: int) -> None:
        """Drop the rows of a request. One that is not known is no error."""
        self._waiting.pop(request_id, None)

    def next_batch(self) -> list[RowRef]:
        """The rows to compute now, at least one. Something must wait."""
        window = self._window()
        batch = self._around(window[0], window)
        # The leader's turn is over; who joined its batch keeps their place.
        self._waiting.move_to_end(window[0].request_id)
        for row in batch:
            rows = self._waiting[row.request_id]
            del rows[row.index]
            if not rows:
                del self._waiting[row.request_id]
        return batch

    def _window(self) -> list[RowRef]:
        """Rows dealt out in turn, one of each request a round, the leader's longest first of all."""
        window: list[RowRef] = []
        num_tokens = 0
        for row in self._dealt():
            window.append(row)
            num_tokens += row.num_tokens
            if num_tokens >= _WINDOW_BATCHES * self._max_tokens:
                break
        return window

    def _dealt(self) -> Iterator[RowRef]:
        hands = [(request_id, iter(rows.items())) for request_id, rows in self._waiting.items()]
        while hands:
            left = []
            for request_id, hand in hands:
                if (dealt := next(hand, None)) is not None:
                    yield RowRef(request_id, *dealt)
                    left.append((request_id, hand))
            hands = left

    def _around(self, leader: RowRef, window: Sequence[RowRef]) -> list[RowRef]:
        """The leader and the rows nearest to it in length, as many as fit."""
        ordered = sorted(window, key=lambda row: row.num_tokens)
        low = high = ordered.index(leader)
        width = num_tokens = leader.num_tokens
        while True:
            num_rows = high - low + 2
            # (padding that the row adds, the row, whether it is the longer neighbour)
            neighbours: list[tuple[int, RowRef, bool]] = []
            if low > 0:
                neighbours.append((width - ordered[low - 1].num_tokens, ordered[low - 1], False))
            if high + 1 < len(ordered):
                added = (ordered[high + 1].num_tokens - width) * (num_rows - 1)
                neighbours.append((added, ordered[high + 1], True))
            for _, row, is_longer in sorted(neighbours, key=lambda neighbour: neighbour[0]):
                wider = max(width, row.num_tokens)
                if self._fits(num_rows * wider, num_tokens + row.num_tokens):
                    width, num_tokens = wider, num_tokens + row.num_tokens
                    low, high = (low, high + 1) if is_longer else (low - 1, high)
                    break
            else:
                return ordered[low : high + 1]

    def _fits(self, num_padded: int, num_tokens: int) -> bool:
        padding = num_padded - num_tokens
        return num_padded <= self._max_tokens and padding <= max(
            FREE_PADDING_TOKENS, MAX_PADDING_SHARE * num_padded
        )
