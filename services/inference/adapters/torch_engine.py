"""The first engine: transformers' own modules behind the Engine port. Correct before fast.

A prompt is prefilled by itself into transformers' cache. Where all layers are plain rotary full attention,
decoding is one forward pass over all sequences of an adapter (`kv_rows.py`); any other architecture decodes a
sequence at a time.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from services.inference.adapters.kv_rows import KvRows
from services.inference.adapters.lora import LoraAdapters
from services.inference.adapters.sampler import Sampler
from services.inference.core.engine import EngineFacts, EngineSequence, PickedToken


class TorchEngine:
    """Runs one model on one device."""

    def __init__(self, model: PreTrainedModel, facts: EngineFacts) -> None:
        self._facts = facts
        self._model = model
        self._lora = LoraAdapters(model)
        self._sampler = Sampler()
        self._rows: dict[str | None, KvRows] = {}  # By adapter: those decode together.
        self._caches: dict[int, DynamicCache] = {}  # By sequence: what rows cannot hold.
        self._adapter_of: dict[int, str | None] = {}

    @property
    def facts(self) -> EngineFacts:
        """What the model is."""
        return self._facts

    @torch.inference_mode()
    def prefill(self, sequences: Sequence[EngineSequence]) -> list[PickedToken]:
        """Prompts one by one; choices of one prompt share its pass."""
        rows: list[Tensor] = []
        prompt: Sequence[int] = ()
        adapter: str | None = None
        cache, logits = DynamicCache(config=self._model.config), torch.empty(0)
        for sequence in sequences:
            shares = sequence.prompt is prompt and sequence.adapter == adapter
            if not shares or not self._can_batch(cache):
                prompt, adapter = sequence.prompt, sequence.adapter
                cache = DynamicCache(config=self._model.config)
                logits = self._forward(adapter, [prompt], past_key_values=cache)  # (1, vocab)
            self._keep(sequence, cache)
            rows.append(logits)
        return self._sampler.pick(torch.cat(rows), sequences)  # (batch, vocab)

    @torch.inference_mode()
    def decode(self, sequences: Sequence[EngineSequence]) -> list[PickedToken]:
        """One forward pass for each adapter in use, the base being one of them."""
        place = {sequence.sequence_id: index for index, sequence in enumerate(sequences)}
        logits: list[Tensor | None] = [None] * len(sequences)
        for adapter in dict.fromkeys(sequence.adapter for sequence in sequences):
            group = [sequence for sequence in sequences if sequence.adapter == adapter]
            for sequence, row in zip(group, self._decode_group(adapter, group), strict=True):
                logits[place[sequence.sequence_id]] = row
        return self._sampler.pick(torch.stack([row for row in logits if row is not None]), sequences)

    @torch.inference_mode()
    def release(self, sequence: EngineSequence) -> None:
        """Forget a sequence and its keys and values."""
        sequence_id = sequence.sequence_id
        self._sampler.release(sequence_id)
        self._caches.pop(sequence_id, None)
        rows = self._rows.get(self._adapter_of.pop(sequence_id, None))
        if rows is not None and sequence_id in rows.sequence_ids:
            rows.remove(sequence_id)

    def load_adapter(self, name: str, folder: Path) -> None:
        """Bring a LoRA adapter into memory."""
        self._lora.load(name, folder)

    def drop_adapter(self, name: str) -> None:
        """Take an adapter out of memory."""
        self._lora.drop(name)
        self._rows.pop(name, None)

    def _keep(self, sequence: EngineSequence, cache: DynamicCache) -> None:
        self._adapter_of[sequence.sequence_id] = sequence.adapter
        if not self._can_batch(cache):
            self._caches[sequence.sequence_id] = cache
            return
        rows = self._rows.setdefault(sequence.adapter, KvRows(len(cache.layers)))
        rows.add(sequence.sequence_id, cache)

    def _can_batch(self, cache: DynamicCache) -> bool:
        # Without rotary positions, some architectures read positions out of a two-dimensional mask.
        is_rotary = getattr(self._model.config, "rope_parameters", None) is not None
        return is_rotary and KvRows.can_hold(cache)

    def _decode_group(self, adapter: str | None, group: Sequence[EngineSequence]) -> Sequence[Tensor]:
        """Logits, (vocab,) each, of sequences that share an adapter."""
        rows = self._rows.get(adapter)
        if rows is None or group[0].sequence_id in self._caches:
            return [
                self._forward(adapter, [s.output[-1:]], past_key_values=self._caches[s.sequence_id])[0]
                for s in group
            ]
        by_id = {sequence.sequence_id: sequence for sequence in group}
        batch, positions, mask = rows.begin_step(by_id, self._model.device, self._model.dtype)
        logits = self._forward(
            adapter,
            [by_id[sequence_id].output[-1:] for sequence_id in batch],
            position_ids=positions,  # (batch, 1)
            attention_mask=mask,  # (batch, 1, 1, span)
            past_key_values=rows.cache,
        )  # (batch, vocab)
        row_of = {sequence_id: row for row, sequence_id in enumerate(batch)}
        return [logits[row_of[sequence.sequence_id]] for sequence in group]

    def _forward(self, adapter: str | None, token_ids: Sequence[Sequence[int]], **inputs: Any) -> Tensor:
        """Logits after the last token of each row: (rows, vocab). token_ids: (rows, tokens)."""
        self._lora.activate(adapter)
        input_ids = torch.tensor(token_ids, device=self._model.device)  # (rows, tokens)
        output = self._model(input_ids=input_ids, use_cache=True, logits_to_keep=1, **inputs)
        last: Tensor = output.logits[:, -1]  # (rows, vocab)
        return last
