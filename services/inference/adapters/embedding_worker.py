"""The worker of an embedding model or a reranker: `main` runs in a child process of its own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from services.inference.adapters.checkpoint import quiet_libraries
from services.inference.adapters.encoders import Encoder
from services.inference.adapters.messages import Embed, Embedded, EmbedderInit, LoadProgress, Rerank, Reranked
from services.inference.adapters.placement import use_all_cores
from services.inference.adapters.row_tokenizer import Row
from services.inference.core.embed_batches import EmbedBatches
from services.kit.errors import LaresError
from services.kit.worker_port import Incoming, WorkerPort

# A processor is busy with far fewer tokens than a card; a smaller batch is sooner done, and the next one's turn.
_BATCH_TOKENS: Final = {"cpu": 2048, "cuda": 32_768}


def main(init: EmbedderInit, port: WorkerPort[Embed | Rerank, Embedded | Reranked]) -> None:
    """Load, say so, and answer until told to stop."""
    quiet_libraries()
    use_all_cores()
    port.progress(LoadProgress(0.5))
    encoder = _load(init)
    port.ready(encoder.loaded)
    EmbeddingWorker(encoder, port).run()


def _load(init: EmbedderInit) -> Encoder:
    # One of the two is needed, and each imports its part of transformers.
    if init.reranks:
        from services.inference.adapters.cross_encoder import CrossEncoder

        return CrossEncoder(Path(init.folder), init.device)
    from services.inference.adapters.embedder import Embedder

    return Embedder(Path(init.folder), init.device)


@dataclass(frozen=True, slots=True)
class _Pending:
    """A request of which rows are to be computed. computed: (rows, size) float32, filled batch by batch."""

    request: Embed | Rerank
    rows: list[Row]
    computed: Tensor


class EmbeddingWorker:
    """Ties the batches to the pipes: what comes in between two batches, and what is complete out after each.

    Who hangs up, or whose deadline passes, is cancelled by the parent: no further batch holds a row of theirs.
    """

    def __init__(
        self, encoder: Encoder, port: WorkerPort[Embed | Rerank, Embedded | Reranked], max_tokens: int = 0
    ) -> None:
        """max_tokens: in a batch; 0 for what suits the device."""
        self._encoder = encoder
        self._port = port
        device = encoder.loaded.device.partition(":")[0]
        self._batches = EmbedBatches(max_tokens=max_tokens or _BATCH_TOKENS[device])
        self._pending: dict[int, _Pending] = {}

    def run(self) -> None:
        """Serve until the parent says stop."""
        while not self._port.closed:
            for incoming in self._port.receive(timeout_s=0 if self._batches.has_work else None):
                self._take(incoming)
            if self._batches.has_work:
                self._step()

    def _take(self, incoming: Incoming[Embed | Rerank]) -> None:
        call_id = incoming.call_id
        if incoming.kind == "cancel":
            self._batches.cancel(call_id)
            self._pending.pop(call_id, None)
        elif incoming.message is not None:
            try:
                rows = self._encoder.rows(incoming.message)
            except LaresError as error:
                self._port.fail(call_id, error)
                return
            computed = torch.empty(len(rows), self._encoder.size)
            self._pending[call_id] = _Pending(incoming.message, rows, computed)
            self._batches.add(call_id, [len(row.token_ids) for row in rows])

    def _step(self) -> None:
        """Compute a batch, and answer the requests that it completes."""
        batch = self._batches.next_batch()
        computed = self._encoder.compute([self._pending[ref.request_id].rows[ref.index] for ref in batch])
        for ref, values in zip(batch, computed, strict=True):
            self._pending[ref.request_id].computed[ref.index] = values
        for call_id in dict.fromkeys(ref.request_id for ref in batch):
            if not self._batches.waits(call_id):
                self._answer(call_id, self._pending.pop(call_id))

    def _answer(self, call_id: int, done: _Pending) -> None:
        num_tokens = sum(len(row.token_ids) for row in done.rows)
        try:
            answer = self._encoder.answer(done.request, done.computed, num_tokens)
        except LaresError as error:
            self._port.fail(call_id, error)
        else:
            self._port.post(events=[(call_id, answer)], finished=[call_id])
