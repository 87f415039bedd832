"""Any architecture, through transformers' own module behind the Engine port. Correct before fast.

Each sequence has a cache of transformers' own kind (windows, recurrent states and all), and is computed by
itself. The loop's blocks are only counted, to bound what the caches take: none is shared.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache

from services.inference.adapters.checkpoint import load_causal_model, quiet_libraries
from services.inference.adapters.lora import LoraAdapters
from services.inference.adapters.messages import EngineInit
from services.inference.adapters.placement import Placement, num_kv_blocks
from services.inference.adapters.sampler import pick
from services.inference.core.engine import Chunk, ChunkResult, EngineFacts, EngineSequence

BLOCK_SIZE: Final = 16


@dataclass(slots=True)
class _Held:
    """What is kept of a sequence. blocks: those that were its own when it was computed last."""

    cache: DynamicCache
    blocks: Sequence[int] = ()


class TransformersEngine:
    """Runs one model on one device."""

    def __init__(self, model: PreTrainedModel, facts: EngineFacts) -> None:
        self._facts = facts
        self._model = model
        self._lora = LoraAdapters(model)
        self._held: dict[int, _Held] = {}  # By sequence.
        self._owner_of: dict[int, int] = {}  # The sequence that a block was last seen with.
        # State-space models take theirs under a name of their own.
        parameters = inspect.signature(model.forward).parameters
        self._cache_name = "cache_params" if "cache_params" in parameters else "past_key_values"

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
            logits = self._forward(chunk)  # (kept, vocab)
            results[index] = ChunkResult(prompt_logprobs=_prompt_logprobs(chunk, logits))
            if chunk.picks:
                picking.append(index)
                rows.append(logits[-1])
        if picking:
            picks = pick(torch.stack(rows), [chunks[index].sequence for index in picking])
            for index, picked in zip(picking, picks, strict=True):
                results[index] = ChunkResult(picked, results[index].prompt_logprobs)
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

    def _forward(self, chunk: Chunk) -> Tensor:
        """Logits after each token of the chunk, or after its last where that is enough: (kept, vocab)."""
        sequence = chunk.sequence
        self._lora.activate(sequence.adapter)
        token_ids = sequence.tokens(chunk.start, chunk.start + chunk.num_tokens)
        output = self._model(
            input_ids=torch.tensor([token_ids], device=self._model.device),  # (1, tokens)
            use_cache=True,
            logits_to_keep=0 if _num_scored(chunk) else 1,  # 0 keeps all.
            **{self._cache_name: self._held[sequence.sequence_id].cache},
        )
        logits: Tensor = output.logits[0]
        return logits


def load_transformers_engine(
    init: EngineInit, folder: Path, placement: Placement, end_token_ids: frozenset[int]
) -> TransformersEngine:
    """Weights into memory, and the caches' share measured. Raises UnsupportedFormat."""
    quiet_libraries()
    model = load_causal_model(folder, placement)
    text = model.config.get_text_config()
    weights_bytes = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    block_bytes = BLOCK_SIZE * kv_bytes_per_token(model.config, placement.dtype)
    context_length = int(text.max_position_embeddings)
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


def _prompt_logprobs(chunk: Chunk, logits: Tensor) -> tuple[float, ...]:
    """logits: (tokens of the chunk, vocab) where any are to be told."""
    num_scored = _num_scored(chunk)
    if not num_scored:
        return ()
    following = chunk.sequence.prompt[chunk.start + 1 : chunk.start + 1 + num_scored]
    token_ids = torch.tensor(following, device=logits.device)  # (scored,)
    logprobs = logits[:num_scored].float().log_softmax(dim=-1)  # (scored, vocab)
    return tuple(logprobs.gather(1, token_ids[:, None])[:, 0].tolist())
