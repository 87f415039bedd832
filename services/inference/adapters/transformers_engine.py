"""Any architecture, through transformers' own module behind the Engine port. Correct before fast.

Each sequence has a cache of transformers' own kind (windows, recurrent states and all), and is computed by
itself. The loop's blocks are only counted, to bound what the caches take: none is shared.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache, LinearAttentionCacheLayerMixin

from services.inference.adapters.checkpoint import context_length_of, load_model, quiet_libraries
from services.inference.adapters.lora import LoraAdapters
from services.inference.adapters.messages import EngineInit
from services.inference.adapters.placement import Placement, num_kv_blocks
from services.inference.adapters.prompt_scores import score_rows
from services.inference.adapters.sampler import pick
from services.inference.core.engine import Chunk, ChunkResult, EngineFacts, EngineSequence
from services.kit.errors import UnsupportedFormat

BLOCK_SIZE: Final = 16


@dataclass(slots=True)
class _Held:
    """What is kept of a sequence. blocks: its own when it was computed last. num_tokens: that the cache covers."""

    cache: DynamicCache
    blocks: Sequence[int] = ()
    num_tokens: int = 0


class TransformersEngine:
    """Runs one model on one device. Raises UnsupportedFormat for one that keeps its state in no such cache."""

    def __init__(self, model: PreTrainedModel, facts: EngineFacts) -> None:
        self._facts = facts
        self._model = model
        self._lora = LoraAdapters(model)
        self._held: dict[int, _Held] = {}  # By sequence.
        self._owner_of: dict[int, int] = {}  # The sequence that a block was last seen with.
        parameters = inspect.signature(model.forward).parameters
        # State-space models take the cache under a name of their own.
        names = [name for name in ("past_key_values", "cache_params") if name in parameters]
        if not names:
            kind = type(model).__name__
            raise UnsupportedFormat(
                f"the model is a {kind}, which keeps its state in a way that is not known"
            )
        self._cache_name = names[0]
        # Not all that take positions count on from the cache by themselves (Bamba begins at 0 again).
        self._takes_positions = "position_ids" in parameters
        self._is_recurrent = any(
            isinstance(layer, LinearAttentionCacheLayerMixin)
            for layer in DynamicCache(config=model.config).layers
        )

    @property
    def facts(self) -> EngineFacts:
        """What the model is."""
        return self._facts

    @torch.inference_mode()
    def step(self, chunks: Sequence[Chunk]) -> list[ChunkResult]:
        """One forward pass a chunk, those of an adapter after one another."""
        for chunk in chunks:
            self._claim_blocks(chunk.sequence)
        results = [ChunkResult()] * len(chunks)
        picking: list[int] = []
        rows: list[Tensor] = []
        # By when an adapter comes first: to switch means to visit every layer.
        place_of = {
            name: place for place, name in enumerate(dict.fromkeys(c.sequence.adapter for c in chunks))
        }
        for index in sorted(range(len(chunks)), key=lambda index: place_of[chunks[index].sequence.adapter]):
            chunk = chunks[index]
            if self._waits(chunk):
                continue
            logits = self._compute(chunk)  # (kept, vocab)
            results[index] = _scored(chunk, logits)
            if chunk.picks:
                picking.append(index)
                rows.append(logits[-1])
        if picking:
            picks = pick(torch.stack(rows), [chunks[index].sequence for index in picking])
            for index, picked in zip(picking, picks, strict=True):
                results[index] = replace(results[index], picked=picked)
        return results

    def release(self, sequence: EngineSequence) -> None:
        """Forget a sequence's cache."""
        self._drop_cache(sequence.sequence_id)

    def load_adapter(self, name: str, folder: Path) -> None:
        """Bring a LoRA adapter into memory."""
        self._lora.load(name, folder)

    def drop_adapter(self, name: str) -> None:
        """Take an adapter out of memory."""
        self._lora.drop(name)

    def _claim_blocks(self, sequence: EngineSequence) -> None:
        """Drop the caches of those who had this sequence's blocks: they gave way, and come back from the start."""
        held = self._held.get(sequence.sequence_id)
        if sequence.num_computed == 0:
            self._drop_cache(sequence.sequence_id)
            held = None
        if held is None:
            held = self._held[sequence.sequence_id] = _Held(DynamicCache(config=self._model.config))
        for block in sequence.blocks[len(held.blocks) :]:
            former = self._owner_of.get(block, sequence.sequence_id)
            if former != sequence.sequence_id:
                self._drop_cache(former)
            self._owner_of[block] = sequence.sequence_id
        if len(held.blocks) != len(sequence.blocks):
            held.blocks = tuple(sequence.blocks)

    def _drop_cache(self, sequence_id: int) -> None:
        held = self._held.pop(sequence_id, None)
        for block in held.blocks if held is not None else ():
            if self._owner_of.get(block) == sequence_id:
                del self._owner_of[block]

    def _waits(self, chunk: Chunk) -> bool:
        """Whether a chunk is left for the prompt's last one.

        Recurrent layers go on from a state by one token only; some ignore the state for more (Mamba). So their
        prompts are computed in one pass, but for those that must tell of each chunk.
        """
        return self._is_recurrent and not chunk.picks and not chunk.sequence.wants_prompt_logprobs

    def _compute(self, chunk: Chunk) -> Tensor:
        """Logits after each token of the chunk, or after its last where that is enough: (kept, vocab)."""
        sequence, held = chunk.sequence, self._held[chunk.sequence.sequence_id]
        self._lora.activate(sequence.adapter)
        token_ids = sequence.tokens(held.num_tokens, chunk.start + chunk.num_tokens)
        size = 1 if self._is_recurrent and held.num_tokens else len(token_ids)
        keeps_all = _num_scored(chunk) > 0
        parts = [
            self._forward(held, token_ids[start : start + size], keeps_all)
            for start in range(0, len(token_ids), size)
        ]
        return torch.cat(parts)

    def _forward(self, held: _Held, token_ids: Sequence[int], keeps_all: bool) -> Tensor:
        """Logits after all of these tokens, or after the last: (kept, vocab)."""
        device, inputs = self._model.device, dict[str, Any]()
        stop = held.num_tokens + len(token_ids)
        if self._takes_positions:
            inputs["position_ids"] = torch.arange(held.num_tokens, stop, device=device)[None]  # (1, tokens)
        output = self._model(
            input_ids=torch.tensor([token_ids], device=device),  # (1, tokens)
            use_cache=True,
            logits_to_keep=0 if keeps_all else 1,  # 0 keeps all.
            **{self._cache_name: held.cache},
            **inputs,
        )
        held.num_tokens = stop
        logits: Tensor = output.logits[0]
        return logits


def load_transformers_engine(
    init: EngineInit, folder: Path, placement: Placement, end_token_ids: frozenset[int]
) -> TransformersEngine:
    """Weights into memory, and the caches' share measured. Raises UnsupportedFormat."""
    quiet_libraries()
    model = load_model(AutoModelForCausalLM, folder, placement)
    text = model.config.get_text_config()
    weights_bytes = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    block_bytes = BLOCK_SIZE * kv_bytes_per_token(model.config, placement.dtype)
    context_length = context_length_of(model.config)
    num_blocks = num_kv_blocks(
        init, placement, block_bytes=block_bytes, context_blocks=-(-context_length // BLOCK_SIZE)
    )
    facts = EngineFacts(
        context_length=context_length,
        vocab_size=int(text.vocab_size),
        eos_token_ids=end_token_ids,
        device=placement.device,
        dtype=str(placement.dtype).removeprefix("torch."),
        block_size=BLOCK_SIZE,
        num_blocks=num_blocks,
        shares_blocks=False,
        weights_bytes=weights_bytes,
        kv_bytes=num_blocks * block_bytes,
        note=placement.note,
    )
    return TransformersEngine(model, facts)


def kv_bytes_per_token(config: PreTrainedConfig, dtype: torch.dtype) -> int:
    """What keys and values of one token take in all layers, as if each were plain attention over all tokens."""
    text: Any = config.get_text_config()
    num_heads = getattr(text, "num_attention_heads", None) or 1
    num_kv_heads = getattr(text, "num_key_value_heads", None) or num_heads
    head_size = getattr(text, "head_dim", None) or int(text.hidden_size) // num_heads
    return 2 * int(text.num_hidden_layers) * int(num_kv_heads) * int(head_size) * dtype.itemsize


def _num_scored(chunk: Chunk) -> int:
    """How many prompt tokens follow a token of the chunk and are to be told."""
    sequence = chunk.sequence
    if not sequence.wants_prompt_logprobs:
        return 0
    return max(0, min(chunk.num_tokens, len(sequence.prompt) - 1 - chunk.start))


def _scored(chunk: Chunk, logits: Tensor) -> ChunkResult:
    """What is to be told of the prompt. logits: (tokens of the chunk, vocab) where anything is."""
    num_scored = _num_scored(chunk)
    if not num_scored:
        return ChunkResult()
    following = chunk.sequence.prompt[chunk.start + 1 : chunk.start + 1 + num_scored]
    token_ids = torch.tensor(following, device=logits.device)  # (scored,)
    told, tops = score_rows(logits[:num_scored], token_ids, chunk.sequence.num_logprobs or 0)
    return ChunkResult(prompt_logprobs=tuple(told), prompt_tops=tuple(tops))
