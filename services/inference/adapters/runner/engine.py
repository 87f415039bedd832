"""The runner as an Engine: chunks in, picked tokens out."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from services.inference.adapters.prompt_scores import Top, score_rows
from services.inference.adapters.runner.batch import Batch, Batcher, rows_of, sent
from services.inference.adapters.runner.graphs import DecodeSteps
from services.inference.adapters.runner.kv_pool import KvPool
from services.inference.adapters.runner.lora import ActiveAdapter, Adapter, load_adapter
from services.inference.adapters.runner.model import Decoder
from services.inference.adapters.sampler import pick
from services.inference.core.engine import Chunk, ChunkResult, EngineFacts, EngineSequence

# Rows of logits at once where a prompt is scored: a vocabulary of 256k in float32 is a megabyte a row.
_SCORED_ROWS: Final = 64


class RunnerEngine:
    """Implements the Engine port over a decoder and its pool of blocks. steps: for what may be replayed."""

    def __init__(
        self,
        decoder: Decoder,
        pool: KvPool,
        batcher: Batcher,
        facts: EngineFacts,
        steps: DecodeSteps | None = None,
    ) -> None:
        self.facts = facts
        self._decoder = decoder
        self._pool = pool
        self._batcher = batcher
        self._steps = steps
        self._adapters: dict[str, Adapter] = {}

    @torch.inference_mode()
    def step(self, chunks: Sequence[Chunk]) -> list[ChunkResult]:
        """One pass over all chunks."""
        ordered, hidden = self._hidden(chunks)
        scored = self._score(ordered, hidden)
        results = {id(chunk): scored.get(id(chunk), ChunkResult()) for chunk in ordered}
        picking = [(chunk, rows[-1]) for chunk, rows in rows_of(ordered) if chunk.picks]
        if picking:
            rows = sent(torch.tensor([row for _, row in picking]), hidden.device)
            logits = self._decoder.logits(hidden if len(rows) == len(hidden) else hidden[rows])
            picks = pick(logits, [chunk.sequence for chunk, _ in picking])  # From (picking, vocab).
            for (chunk, _), picked in zip(picking, picks, strict=True):
                results[id(chunk)] = replace(results[id(chunk)], picked=picked)
        return [results[id(chunk)] for chunk in chunks]

    def release(self, sequence: EngineSequence) -> None:
        """Nothing is kept of a sequence but what is in its blocks."""

    def load_adapter(self, name: str, folder: Path) -> None:
        """Bring a LoRA adapter into memory."""
        if name not in self._adapters:
            weight = self._pool.layers[0]
            self._adapters[name] = load_adapter(
                folder, self._decoder.architecture, weight.dtype, weight.device
            )

    def drop_adapter(self, name: str) -> None:
        """Take an adapter out of memory. One that is not there is no error."""
        self._adapters.pop(name, None)

    def _active(self, batch: Batch) -> list[ActiveAdapter]:
        """The adapters that this step needs, each with its rows."""
        users = [chunk.sequence.adapter for chunk in batch.chunks]
        names = dict.fromkeys(user for user in users if user is not None)
        if len(names) == 1 and None not in users:
            return [ActiveAdapter(self._adapters[name], None) for name in names]
        active = []
        for name in names:
            rows = [
                row for chunk, rows in rows_of(batch.chunks) if chunk.sequence.adapter == name for row in rows
            ]
            active.append(
                ActiveAdapter(self._adapters[name], sent(torch.tensor(rows), batch.token_ids.device))
            )
        return active

    def _hidden(self, chunks: Sequence[Chunk]) -> tuple[Sequence[Chunk], Tensor]:
        """The chunks in the order of the rows, and their rows: (T, hidden_size)."""
        if self._steps is not None and (replayed := self._steps.run(chunks)) is not None:
            return chunks, replayed
        batch = self._batcher.make(chunks)
        return batch.chunks, self._decoder.hidden(batch, self._pool, self._active(batch))

    def _score(self, ordered: Sequence[Chunk], hidden: Tensor) -> dict[int, ChunkResult]:
        """Log probabilities of prompt tokens, by the chunk that comes before each."""
        scored: dict[int, ChunkResult] = {}
        for chunk, rows in rows_of(ordered):
            if not chunk.sequence.wants_prompt_logprobs:
                continue
            prompt, start = chunk.sequence.prompt, chunk.start
            following = torch.tensor(prompt[start + 1 : start + chunk.num_tokens + 1], device=hidden.device)
            told: list[float] = []
            tops: list[Top] = []
            for begin in range(0, len(following), _SCORED_ROWS):
                wanted = following[begin : begin + _SCORED_ROWS]  # (rows,)
                known = hidden[rows.start + begin : rows.start + begin + len(wanted)]
                logits = self._decoder.logits(known)  # (rows, vocab)
                some, likely = score_rows(logits, wanted, chunk.sequence.num_logprobs or 0)
                told.extend(some)
                tops.extend(likely)
            scored[id(chunk)] = ChunkResult(prompt_logprobs=tuple(told), prompt_tops=tuple(tops))
        return scored
