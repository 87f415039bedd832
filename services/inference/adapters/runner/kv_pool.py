"""Keys and values of all sequences, in blocks of a fixed number of tokens.

    pool[layer]     (num_blocks + 2, 2, kv heads, block_size, head size): keys are [:, 0], values [:, 1]

Heads come before tokens, so that the gathered keys of a head lie in one piece, which matrix products want. The last
two blocks are never given to a sequence. One stays zero: tables of unequal length are filled up with it. To the other
go keys and values of rows that only fill up a batch of a fixed size.
"""

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from services.inference.adapters.runner.architecture import Architecture

BLOCK_SIZE: Final = 16


@dataclass(frozen=True, slots=True)
class KvPool:
    """The blocks of one model."""

    layers: tuple[Tensor, ...]
    num_blocks: int

    @classmethod
    def allocate(
        cls, architecture: Architecture, num_blocks: int, dtype: torch.dtype, device: torch.device
    ) -> "KvPool":
        """Room for num_blocks blocks. On a CPU, memory is taken as blocks are first written."""
        shape = (
            len(architecture.layers),
            num_blocks + 2,
            2,
            architecture.num_kv_heads,
            BLOCK_SIZE,
            architecture.head_size,
        )
        return cls(_zeros(shape, dtype, device).unbind(), num_blocks)

    @property
    def null_block(self) -> int:
        """The block of zeros."""
        return self.num_blocks

    @property
    def scrap_block(self) -> int:
        """The block that no sequence reads."""
        return self.num_blocks + 1

    @property
    def num_bytes(self) -> int:
        """Of all blocks together."""
        return sum(layer.nbytes for layer in self.layers)


def _zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on a CPU in fresh pages, which torch.zeros would write to, and so take, at once."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)
    # Blocks are read in any order: small pages would cost a step as many misses as it reads blocks.
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(*shape)
