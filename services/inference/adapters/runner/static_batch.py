"""Decode steps of a few fixed shapes, so that what a card is told to do can be recorded once and replayed.

    shape       rows and blocks a row, both rounded up: a step of 19 sequences over up to 70 blocks is one of (24, 128)
    input       (rows, 2 + blocks): token id, position, block table of each row; all that differs between two steps
    batch       made of the input on the device, by operations that are recorded with the rest

A row that only fills up writes its keys and values to the pool's scrap block and looks at this one key, so that its
softmax is a number; tables are filled up with the block of zeros, which is hidden from every row.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from services.inference.adapters.runner.architecture import Architecture
from services.inference.adapters.runner.batch import AttentionPlan, Batch, DecodeGroup
from services.inference.adapters.runner.kv_pool import BLOCK_SIZE, KvPool
from services.inference.core.engine import Chunk

_SMALL_ROWS: Final = (1, 2, 4, 8)
_ROWS_STEP: Final = 8
_WIDE_ROWS_STEP: Final = 16
_MOST_ROWS: Final = 256
_FEWEST_BLOCKS: Final = 8
# Blocks looked at for nothing: so many times those there are, or so many in all, are cheaper than a step that
# is not replayed. Chosen, not measured.
_MOST_WASTE: Final = 4
_FREE_BLOCKS: Final = 1024


@dataclass(frozen=True, slots=True)
class StaticShape:
    """Rows, and blocks a row."""

    num_rows: int
    num_blocks: int

    @classmethod
    def of(cls, chunks: Sequence[Chunk]) -> "StaticShape | None":
        """The smallest that these chunks fit into. None for a step that is no decode, or of too unequal rows."""
        if len(chunks) > _MOST_ROWS or any(
            chunk.num_tokens != 1 or chunk.sequence.adapter is not None for chunk in chunks
        ):
            return None
        used = [chunk.start // BLOCK_SIZE + 1 for chunk in chunks]
        num_blocks = max(_FEWEST_BLOCKS, 1 << (max(used) - 1).bit_length())
        shape = cls(_rounded_rows(len(chunks)), num_blocks)
        most = max(_FREE_BLOCKS, _MOST_WASTE * sum(used))
        return shape if shape.num_rows * shape.num_blocks <= most else None


def _rounded_rows(num_rows: int) -> int:
    """1, 2, 4, 8, then by eights up to 32, then by sixteens."""
    for size in _SMALL_ROWS:
        if num_rows <= size:
            return size
    step = _ROWS_STEP if num_rows <= 32 else _WIDE_ROWS_STEP
    return -(-num_rows // step) * step


class StaticBatcher:
    """Makes inputs on the CPU, and batches of them on the device."""

    def __init__(
        self, architecture: Architecture, pool: KvPool, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._num_kv_heads = architecture.num_kv_heads
        self._num_shared = architecture.num_heads // architecture.num_kv_heads
        self._windows = tuple(dict.fromkeys(layer.window for layer in architecture.layers))
        self._null_block = pool.null_block
        self._scrap_block = pool.scrap_block
        self._dtype = dtype
        self._device = device
        # Row of (kind, head) within a block, for keys then values: (2, kv heads).
        self._head_rows = torch.arange(2 * self._num_kv_heads, device=device).view(2, -1)

    def input(self, chunks: Sequence[Chunk], shape: StaticShape) -> Tensor:
        """What these chunks say: (rows, 2 + blocks) int64, on the CPU. Chunk i is row i."""
        numbers = array("q")
        for chunk in chunks:
            start = chunk.start
            # Blocks may be there already for tokens to come.
            table = chunk.sequence.blocks[: start // BLOCK_SIZE + 1]
            numbers.append(chunk.sequence.tokens(start, start + 1)[0])
            numbers.append(start)
            numbers.extend(table)
            numbers.extend([self._null_block] * (shape.num_blocks - len(table)))
        filling = [0, 0, self._scrap_block, *[self._null_block] * (shape.num_blocks - 1)]
        numbers.extend(filling * (shape.num_rows - len(chunks)))
        return torch.frombuffer(numbers, dtype=torch.int64).view(shape.num_rows, -1)

    def batch(self, rows: Tensor) -> Batch:
        """rows: an input on the device. Knows no chunks."""
        token_ids, at, tables = rows[:, 0], rows[:, 1], rows[:, 2:]
        own = tables.gather(1, (at // BLOCK_SIZE)[:, None])  # (rows, 1)
        heads = own[:, :, None] * (2 * self._num_kv_heads) + self._head_rows  # (rows, 2, kv heads)
        kv_rows = heads * BLOCK_SIZE + (at % BLOCK_SIZE)[:, None, None]
        plans = {
            window: AttentionPlan(window, (self._group(at, tables, window),), ()) for window in self._windows
        }
        return Batch((), token_ids, at, kv_rows.flatten(), plans)

    def _group(self, at: Tensor, tables: Tensor, window: int | None) -> DecodeGroup:
        """at: (rows,) positions. tables: (rows, blocks)."""
        num_rows, num_blocks = tables.shape
        if window is not None:
            # As many blocks as a window can touch, from the first that it does. Columns beyond the table are its
            # last again; their keys count as later than the row's own, and are hidden.
            first = (at - window + 1).clamp_(min=0) // BLOCK_SIZE  # (rows,)
            num_blocks = min(num_blocks, (window - 2) // BLOCK_SIZE + 2)
            columns = first[:, None] + torch.arange(num_blocks, device=self._device)
            tables = tables.gather(1, columns.clamp_(max=tables.shape[1] - 1))
            at = at - first * BLOCK_SIZE
        keys = torch.arange(num_blocks * BLOCK_SIZE, device=self._device)  # (keys,)
        hidden = keys > at[:, None]  # (rows, keys)
        if window is not None:
            hidden |= keys <= at[:, None] - window
        mask = torch.zeros(hidden.shape, dtype=self._dtype, device=self._device)
        wide = mask.masked_fill_(hidden, -torch.inf)[:, None, None, :].expand(
            -1, self._num_kv_heads, self._num_shared, -1
        )
        gather = tables[None, :, None, :] * (2 * self._num_kv_heads) + self._head_rows[:, None, :, None]
        return DecodeGroup(
            (0, num_rows),
            gather.flatten(),
            wide.reshape(num_rows * self._num_kv_heads, self._num_shared, -1),
        )
