"""One step's chunks as tensors: what is computed, where it is written, what it looks at.

Rows are tokens. Chunks of one token come first, those that share blocks side by side, then longer chunks.
Everything here is made once a step and shared by all layers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from services.inference.adapters.runner.architecture import Architecture
from services.inference.adapters.runner.kv_pool import BLOCK_SIZE, KvPool
from services.inference.core.engine import Chunk

# A further group costs about as much as this many tokens looked at for nothing (measured on 2 cores, 135M).
_GROUP_COST_TOKENS = 1500


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Rows of one token each that look back over about equally long pasts, computed as one.

    rows: start, stop. gather: (2 * rows * kv heads * blocks,) into the pool's rows of (block_size * head size).
    mask: (rows * kv heads, heads a kv head, keys), added to scores. shared: (2 * kv heads * blocks,) blocks that all
    rows look at before their own, gathered once for all of them; None for none.
    """

    rows: tuple[int, int]
    gather: Tensor
    mask: Tensor
    shared: Tensor | None = None


@dataclass(frozen=True, slots=True)
class PrefillPart:
    """Rows of one chunk. gather: (2 * kv heads * blocks,). first_key: position of the first key gathered.

    start: position of the first row.
    """

    rows: tuple[int, int]
    gather: Tensor
    first_key: int
    start: int


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """What the layers of one window look at."""

    window: int | None
    groups: tuple[DecodeGroup, ...]
    parts: tuple[PrefillPart, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """A step. T rows.

    chunks: in the order of the rows. token_ids, positions: (T,). kv_rows: (T * 2 * kv heads,) into the pool's rows of
    (head size,). plans: by window.
    """

    chunks: tuple[Chunk, ...]
    token_ids: Tensor
    positions: Tensor
    kv_rows: Tensor
    plans: dict[int | None, AttentionPlan]


class Batcher:
    """Makes batches for one model and its pool."""

    def __init__(
        self, architecture: Architecture, pool: KvPool, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._num_kv_heads = architecture.num_kv_heads
        self._num_shared = architecture.num_heads // architecture.num_kv_heads
        self._windows = tuple(dict.fromkeys(layer.window for layer in architecture.layers))
        self._null_block = pool.null_block
        self._dtype = dtype
        self._device = device
        # Row of (kind, head) within a block, for keys then values: (2, kv heads).
        self._head_rows = torch.arange(2 * self._num_kv_heads).view(2, -1)

    def make(self, chunks: Sequence[Chunk]) -> Batch:
        """The batch of these chunks, in an order of its own."""
        singles = sorted((chunk for chunk in chunks if chunk.num_tokens == 1), key=lambda chunk: -chunk.start)
        families = _families(singles)
        num_single = len(singles)
        ordered = [
            *(chunk for family, _ in families for chunk in family),
            *(chunk for chunk in chunks if chunk.num_tokens > 1),
        ]
        token_ids: list[int] = []
        positions: list[int] = []
        blocks: list[int] = []
        for chunk in ordered:
            sequence, start = chunk.sequence, chunk.start
            stop = start + chunk.num_tokens
            token_ids.extend(sequence.tokens(start, stop))
            positions.extend(range(start, stop))
            table = sequence.blocks
            blocks.extend(table[position // BLOCK_SIZE] for position in range(start, stop))
        at = torch.tensor(positions)  # (T,)
        # (T, 2, kv heads) rows of (head size,), from (block, kind and head, place in the block).
        rows = torch.tensor(blocks)[:, None, None] * (2 * self._num_kv_heads) + self._head_rows
        kv_rows = rows * BLOCK_SIZE + (at % BLOCK_SIZE)[:, None, None]
        plans = {
            window: AttentionPlan(
                window,
                tuple(self._groups(families, window)),
                tuple(self._parts(ordered[num_single:], num_single, window)),
            )
            for window in self._windows
        }
        return Batch(
            tuple(ordered),
            sent(torch.tensor(token_ids), self._device),
            sent(at, self._device),
            sent(kv_rows.flatten(), self._device),
            plans,
        )

    def _groups(
        self, families: Sequence[tuple[Sequence[Chunk], int]], window: int | None
    ) -> list[DecodeGroup]:
        """families: chunks, and how many leading blocks they share."""
        groups: list[DecodeGroup] = []
        first_row = 0
        for chunks, num_shared in families:
            # What a window shows of the shared blocks differs from row to row.
            skipped = num_shared if window is None else 0
            tables = [_visible_blocks(chunk, window, skipped) for chunk in chunks]
            for begin, end in _cuts([len(table) for table, _ in tables]):
                shared = chunks[begin].sequence.blocks[:skipped]
                groups.append(
                    self._group(chunks[begin:end], tables[begin:end], shared, first_row + begin, window)
                )
            first_row += len(chunks)
        return groups

    def _group(
        self,
        chunks: Sequence[Chunk],
        tables: Sequence[tuple[Sequence[int], int]],
        shared: Sequence[int],
        first_row: int,
        window: int | None,
    ) -> DecodeGroup:
        num_blocks = max(len(table) for table, _ in tables)
        padded = [[*table, *[self._null_block] * (num_blocks - len(table))] for table, _ in tables]
        # The position of a row, counted from the first key gathered for it: (rows, 1).
        own = torch.tensor(
            [chunk.start - first_key for chunk, (_, first_key) in zip(chunks, tables, strict=True)]
        )
        keys = torch.arange(num_blocks * BLOCK_SIZE)  # (keys,)
        hidden = keys > own[:, None]  # (rows, keys)
        if window is not None:
            hidden |= keys <= own[:, None] - window
        mask = torch.zeros(hidden.shape, dtype=self._dtype).masked_fill_(hidden, -torch.inf)
        wide = mask[:, None, None, :].expand(-1, self._num_kv_heads, self._num_shared, -1)
        return DecodeGroup(
            (first_row, first_row + len(chunks)),
            self._gather(torch.tensor(padded)),
            sent(wide.reshape(len(chunks) * self._num_kv_heads, self._num_shared, -1), self._device),
            self._gather(torch.tensor([shared])) if shared else None,
        )

    def _parts(self, chunks: Sequence[Chunk], first_row: int, window: int | None) -> list[PrefillPart]:
        parts: list[PrefillPart] = []
        for chunk in chunks:
            table, first_key = _visible_blocks(chunk, window)
            rows = (first_row, first_row + chunk.num_tokens)
            parts.append(PrefillPart(rows, self._gather(torch.tensor([table])), first_key, chunk.start))
            first_row = rows[1]
        return parts

    def _gather(self, tables: Tensor) -> Tensor:
        """tables: (rows, blocks). Returns (2 * rows * kv heads * blocks,), keys before values."""
        rows = tables[None, :, None, :] * (2 * self._num_kv_heads) + self._head_rows[:, None, :, None]
        return sent(rows.flatten(), self._device)


def rows_of(chunks: Sequence[Chunk]) -> Iterator[tuple[Chunk, range]]:
    """Each chunk and its rows, of chunks in the order of the rows."""
    first = 0
    for chunk in chunks:
        yield chunk, range(first, first + chunk.num_tokens)
        first += chunk.num_tokens


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on its way to the device. A CUDA card fetches it from pinned memory, and nobody waits."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _visible_blocks(chunk: Chunk, window: int | None, num_skipped: int = 0) -> tuple[Sequence[int], int]:
    """Blocks that a chunk looks at, but the first num_skipped, and the position of the first key in them."""
    num_blocks = -(-(chunk.start + chunk.num_tokens) // BLOCK_SIZE)
    first = num_skipped if window is None else max(0, chunk.start - window + 1) // BLOCK_SIZE
    return chunk.sequence.blocks[first:num_blocks], first * BLOCK_SIZE


def _families(chunks: Sequence[Chunk]) -> list[tuple[list[Chunk], int]]:
    """Chunks of one token, the longest pasts first, by the leading blocks that they share, with how many those are.

    Only where reading them once instead of a time each pays for a group of its own.
    """
    by_first: dict[int, list[Chunk]] = {}
    for chunk in chunks:
        by_first.setdefault(chunk.sequence.blocks[0], []).append(chunk)
    families: list[tuple[list[Chunk], int]] = []
    others: list[Chunk] = []
    for family in by_first.values():
        num_shared = _num_shared_blocks(family) if len(family) > 1 else 0
        if num_shared * BLOCK_SIZE * (len(family) - 1) > _GROUP_COST_TOKENS:
            families.append((family, num_shared))
        else:
            others.extend(family)
    if others:
        others.sort(key=lambda chunk: -chunk.start)
        families.append((others, 0))
    return families


def _num_shared_blocks(chunks: Sequence[Chunk]) -> int:
    """Leading blocks that all have, full ones only: each has a token of its own behind them."""
    first = chunks[0].sequence.blocks
    most = min(chunk.start for chunk in chunks) // BLOCK_SIZE
    for index in range(most):
        if any(chunk.sequence.blocks[index] != first[index] for chunk in chunks):
            return index
    return most


def _cuts(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Cut falling numbers of blocks where tokens looked at for nothing would cost more than one more group."""
    cuts: list[tuple[int, int]] = []
    begin = 0
    while begin < len(lengths):
        end = begin + 1
        while end < len(lengths):
            missing = (lengths[begin] - lengths[end]) * BLOCK_SIZE
            if missing * (len(lengths) - end) > _GROUP_COST_TOKENS:
                break
            end += 1
        cuts.append((begin, end))
        begin = end
    return cuts
