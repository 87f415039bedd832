"""Decode steps that are recorded once and replayed: a CUDA graph launches hundreds of kernels as one.

`StaticDecode` is such a step without the recording, and computes the same anywhere: the tests run it on the CPU, beside
steps of the ordinary kind. `GraphedDecode` adds the recording; it has not been run on a card yet.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from services.inference.adapters.runner.batch import sent
from services.inference.adapters.runner.kv_pool import KvPool
from services.inference.adapters.runner.model import Decoder
from services.inference.adapters.runner.static_batch import StaticBatcher, StaticShape
from services.inference.core.engine import Chunk

if TYPE_CHECKING:
    from torch.cuda import _POOL_HANDLE

# A graph holds its input, its output and what the driver keeps of each kernel: some megabytes.
_MOST_SHAPES: Final = 64


class StaticDecode:
    """Decode steps of one shape, always through the same tensors."""

    def __init__(
        self, decoder: Decoder, pool: KvPool, batcher: StaticBatcher, shape: StaticShape, device: torch.device
    ) -> None:
        self._decoder = decoder
        self._pool = pool
        self._batcher = batcher
        self._shape = shape
        self._device = device
        self._input = torch.zeros(
            (shape.num_rows, 2 + shape.num_blocks), dtype=torch.int64, device=device
        )  # (rows, 2 + blocks)

    def run(self, chunks: Sequence[Chunk]) -> Tensor:
        """(chunks, hidden_size), in their order; the next run writes over it."""
        self._input.copy_(sent(self._batcher.input(chunks, self._shape), self._device))
        return self._replay()[: len(chunks)]

    def _replay(self) -> Tensor:
        """What the input asks for, now. (rows, hidden_size)."""
        return self._compute()

    def _compute(self) -> Tensor:
        return self._decoder.hidden(self._batcher.batch(self._input), self._pool)


class GraphedDecode(StaticDecode):
    """Records its first step, and replays it from then on. memory: shared by graphs that never run at once."""

    def __init__(
        self,
        decoder: Decoder,
        pool: KvPool,
        batcher: StaticBatcher,
        shape: StaticShape,
        device: torch.device,
        memory: "_POOL_HANDLE",
    ) -> None:
        super().__init__(decoder, pool, batcher, shape, device)
        self._memory = memory
        self._recorded: tuple[torch.cuda.CUDAGraph, Tensor] | None = None

    def _replay(self) -> Tensor:
        if self._recorded is None:
            self._recorded = self._record()
        graph, output = self._recorded
        graph.replay()
        return output

    def _record(self) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """The graph and what it writes to. To compute a step twice does no harm: it writes the same again."""
        # Once before, apart: libraries make their workspaces and choose their kernels in a first call.
        apart = torch.cuda.Stream(self._device)
        apart.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(apart):
            self._compute()
        torch.cuda.current_stream(self._device).wait_stream(apart)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory):
            output = self._compute()
        return graph, output


class DecodeSteps:
    """A static step for each shape asked for, the least recently used dropped beyond max_shapes."""

    def __init__(
        self, make: Callable[[StaticShape], StaticDecode], *, max_shapes: int = _MOST_SHAPES
    ) -> None:
        self._make = make
        self._max_shapes = max_shapes
        self._by_shape: OrderedDict[StaticShape, StaticDecode] = OrderedDict()
        self._is_off = False

    @classmethod
    def graphed(
        cls, decoder: Decoder, pool: KvPool, batcher: StaticBatcher, device: torch.device
    ) -> "DecodeSteps":
        """Replayed on a CUDA card."""
        memory = torch.cuda.graph_pool_handle()
        return cls(lambda shape: GraphedDecode(decoder, pool, batcher, shape, device, memory))

    @property
    def shapes(self) -> tuple[StaticShape, ...]:
        """Those that are kept, least recently used first."""
        return tuple(self._by_shape)

    def run(self, chunks: Sequence[Chunk]) -> Tensor | None:
        """(chunks, hidden_size), in their order, until the next run; None where the ordinary way is to be taken."""
        shape = None if self._is_off else StaticShape.of(chunks)
        if shape is None:
            return None
        try:
            if shape not in self._by_shape:
                while len(self._by_shape) >= self._max_shapes:
                    self._by_shape.popitem(last=False)
                self._by_shape[shape] = self._make(shape)
            self._by_shape.move_to_end(shape)
            return self._by_shape[shape].run(chunks)
        except torch.OutOfMemoryError:
            # A full card computes on without graphs: the ordinary way looks at fewer blocks for nothing.
            self._is_off = True
            self._by_shape.clear()
            return None
