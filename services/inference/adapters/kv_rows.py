"""A KV cache with one row a sequence, so that sequences of different lengths decode in one forward pass.

Rows are kept without gaps: the last row moves into the place of one that is released, and a step reads views
of the first rows, never copies. Tokens lie left-aligned; what is behind a row's end is masked.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer

_TOKEN_STEP = 256


class _RowsLayer(CacheLayerMixin):
    """Keys and values of one layer: (row capacity, kv heads, token capacity, head size)."""

    is_sliding = False

    def __init__(self, rows: "KvRows") -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # The base's has no annotations.
        self._rows = rows
        self.key_rows = self.value_rows = torch.empty(0)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate for the first row. Each: (1, kv heads, tokens, head size)."""
        self.key_rows = key_states.new_zeros(0, key_states.shape[1], 0, key_states.shape[3])
        self.value_rows = value_states.new_zeros(0, value_states.shape[1], 0, value_states.shape[3])
        self.is_initialized = True

    def reserve(self, num_rows: int, num_tokens: int) -> None:
        """Grow to hold so much. Doubles rows and takes tokens in steps, so that growing is rare."""
        self.key_rows = _grown(self.key_rows, num_rows, num_tokens)
        self.value_rows = _grown(self.value_rows, num_rows, num_tokens)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """One new token a row: (rows, kv heads, 1, head size). Returns all: (rows, kv heads, span, head size)."""
        rows = self._rows
        self.key_rows[rows.indices, :, rows.positions] = key_states[:, :, 0]
        self.value_rows[rows.indices, :, rows.positions] = value_states[:, :, 0]
        chosen = slice(len(rows.indices)) if rows.is_whole else rows.indices  # A slice is a view: no copy.
        return self.key_rows[chosen, :, : rows.span], self.value_rows[chosen, :, : rows.span]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(length, offset) of the keys that a mask must cover."""
        return self._rows.span, 0

    def get_seq_length(self) -> int:
        """The longest row."""
        return self._rows.span

    def get_max_length(self) -> int:
        """No bound of its own."""
        return -1


class KvRows:
    """The rows of the sequences that decode together."""

    def __init__(self, num_layers: int) -> None:
        self._layers = [_RowsLayer(self) for _ in range(num_layers)]
        self.cache = Cache(layers=list(self._layers))
        self.sequence_ids: list[int] = []
        self._lengths: list[int] = []
        self.span = 0
        self.is_whole = True
        self.positions = torch.empty(0, dtype=torch.long)
        self.indices = torch.empty(0, dtype=torch.long)

    @staticmethod
    def can_hold(cache: DynamicCache) -> bool:
        """Whether every layer is plain full attention: no sliding window, no recurrent state."""
        return all(type(layer) is DynamicLayer for layer in cache.layers)

    def add(self, sequence_id: int, cache: DynamicCache) -> None:
        """Take over a prefilled sequence: a copy, so that choices may share one prefill."""
        row, num_tokens = len(self.sequence_ids), cache.get_seq_length()
        for layer, filled in zip(self._layers, cache.layers, strict=True):
            assert isinstance(filled, DynamicLayer)
            assert filled.keys is not None
            assert filled.values is not None
            if not layer.is_initialized:
                layer.lazy_initialization(filled.keys, filled.values)
            layer.reserve(row + 1, num_tokens)
            layer.key_rows[row, :, :num_tokens] = filled.keys[0]
            layer.value_rows[row, :, :num_tokens] = filled.values[0]
        self.sequence_ids.append(sequence_id)
        self._lengths.append(num_tokens)

    def remove(self, sequence_id: int) -> None:
        """Drop a row; the last one moves into its place. Memory goes back when no row is left."""
        row, last = self.sequence_ids.index(sequence_id), len(self.sequence_ids) - 1
        if row != last:
            num_tokens = self._lengths[last]
            for layer in self._layers:
                layer.key_rows[row, :, :num_tokens] = layer.key_rows[last, :, :num_tokens]
                layer.value_rows[row, :, :num_tokens] = layer.value_rows[last, :, :num_tokens]
        for items in (self.sequence_ids, self._lengths):
            items[row] = items[last]
            items.pop()
        if not self.sequence_ids:
            for layer in self._layers:
                layer.key_rows, layer.value_rows = layer.key_rows.new_zeros(0), layer.value_rows.new_zeros(0)
                layer.is_initialized = False

    def begin_step(
        self, wanted: Iterable[int], device: torch.device, dtype: torch.dtype
    ) -> tuple[list[int], Tensor, Tensor]:
        """Make room for one token in each wanted row.

        Returns the wanted sequences in the order of their rows, which is the batch's; position ids (batch,
        1); and an additive mask (batch, 1, 1, span).
        """
        chosen = set(wanted)
        rows = [row for row, sequence_id in enumerate(self.sequence_ids) if sequence_id in chosen]
        self.is_whole = len(rows) == len(self.sequence_ids)
        self.indices = torch.tensor(rows, device=device)  # (batch,)
        self.positions = torch.tensor([self._lengths[row] for row in rows], device=device)  # (batch,)
        for row in rows:
            self._lengths[row] += 1
        self.span = max(self._lengths[row] for row in rows)
        for layer in self._layers:
            layer.reserve(len(self.sequence_ids), self.span)
        visible = torch.arange(self.span, device=device) <= self.positions[:, None]  # (batch, span)
        mask = torch.zeros(len(rows), self.span, dtype=dtype, device=device)
        mask.masked_fill_(~visible, torch.finfo(dtype).min)
        batch = [self.sequence_ids[row] for row in rows]
        return batch, self.positions[:, None], mask[:, None, None, :]


def _grown(tensor: Tensor, num_rows: int, num_tokens: int) -> Tensor:
    """The same content in a tensor that is big enough. (rows, kv heads, tokens, head size) in and out."""
    old_rows, num_heads, old_tokens, head_size = tensor.shape
    if num_rows <= old_rows and num_tokens <= old_tokens:
        return tensor
    rows = old_rows if num_rows <= old_rows else max(num_rows, 2 * old_rows)
    tokens = max(old_tokens, -(-num_tokens // _TOKEN_STEP) * _TOKEN_STEP)
    grown = tensor.new_zeros(rows, num_heads, tokens, head_size)
    grown[:old_rows, :, :old_tokens] = tensor
    return grown
