"""Tiny random models of each family, and a decoder over one that a test drives by hand."""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from services.inference.adapters.runner.architecture import Architecture
from services.inference.adapters.runner.batch import Batcher
from services.inference.adapters.runner.kv_pool import BLOCK_SIZE, KvPool
from services.inference.adapters.runner.model import Decoder
from services.inference.adapters.runner.ops import Ops, TorchOps
from services.inference.adapters.runner.quantize import Scheme
from services.inference.adapters.runner.static_batch import StaticBatcher
from services.inference.adapters.runner.weights import Checkpoint
from services.inference.core.engine import Chunk, EngineSequence
from services.inference.core.sampling import Sampling

NUM_BLOCKS = 64
CPU = torch.device("cpu")

COMMON: Mapping[str, Any] = {
    "vocab_size": 199,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.25,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

# (kind, what differs from COMMON), by a name for the test.
FAMILIES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama tied, one key head, head size of its own": (
        "Llama",
        {"tie_word_embeddings": True, "num_key_value_heads": 1, "head_dim": 32},
    ),
    "llama with biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama 3.1 positions": (
        "Llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500_000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "llama linear positions": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}},
    ),
    "mistral with a window": ("Mistral", {"sliding_window": 24}),
    "mistral without": ("Mistral", {"sliding_window": None}),
    "qwen 2": ("Qwen2", {}),
    "qwen 2 with yarn": (
        "Qwen2",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10_000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "qwen 2 with windows in its upper layers": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 2},
    ),
    "qwen 3": ("Qwen3", {}),
    "gemma 2": (
        "Gemma2",
        {
            "sliding_window": 24,
            "query_pre_attn_scalar": 20,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma 3": ("Gemma3Text", {"sliding_window": 24, "query_pre_attn_scalar": 20, "num_hidden_layers": 7}),
    "phi 3": ("Phi3", {"head_dim": None, "hidden_size": 96, "sliding_window": None}),
    "phi 3 rotating a part of each head": (
        "Phi3",
        {"head_dim": None, "hidden_size": 96, "partial_rotary_factor": 0.5, "sliding_window": 30},
    ),
}


def tiny_model(kind: str, changed: Mapping[str, Any]) -> PreTrainedModel:
    values = {
        key: value for key, value in {**COMMON, **changed}.items() if value is not None or key not in COMMON
    }
    config = getattr(transformers, f"{kind}Config")(**values)
    torch.manual_seed(7)
    model: PreTrainedModel = getattr(transformers, f"{kind.removesuffix('Text')}ForCausalLM")(config)
    model.train(False)
    with torch.no_grad():  # Norms begin as ones, or zeros: make them say something, biases too.
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


class Runner:
    """A decoder over its own pool, driven by hand; collects the logits of every token."""

    def __init__(
        self,
        folder: Path,
        dtype: torch.dtype = torch.float32,
        ops: Ops | None = None,
        device: torch.device = CPU,
        scheme: Scheme | None = None,
    ) -> None:
        architecture = Architecture.parse(json.loads((folder / "config.json").read_text()))
        assert architecture is not None
        checkpoint = Checkpoint(folder, dtype, device, scheme)
        self.decoder = Decoder(architecture, checkpoint, ops or TorchOps(), lambda share: None)
        self.pool = KvPool.allocate(architecture, NUM_BLOCKS, dtype, device)
        self.batcher = Batcher(architecture, self.pool, dtype, device)
        self.static_batcher = StaticBatcher(architecture, self.pool, dtype, device)
        self._free = list(range(NUM_BLOCKS))
        random.Random(5).shuffle(self._free)  # Blocks of a sequence need not lie in order.

    def make_room(self, sequence: EngineSequence, num_tokens: int) -> None:
        """Blocks for the next num_tokens tokens."""
        while len(sequence.blocks) * BLOCK_SIZE < sequence.num_computed + num_tokens:
            sequence.blocks.append(self._free.pop())

    @torch.inference_mode()
    def step(self, planned: list[tuple[EngineSequence, int]]) -> dict[int, Tensor]:
        """Logits of the rows of each sequence, (tokens, vocab), by its id."""
        for sequence, num_tokens in planned:
            self.make_room(sequence, num_tokens)
        batch = self.batcher.make([Chunk(sequence, num_tokens) for sequence, num_tokens in planned])
        logits = self.decoder.logits(self.decoder.hidden(batch, self.pool))
        found: dict[int, Tensor] = {}
        first = 0
        for chunk in batch.chunks:
            found[chunk.sequence.sequence_id] = logits[first : first + chunk.num_tokens]
            first += chunk.num_tokens
        for sequence, num_tokens in planned:
            sequence.num_computed += num_tokens
        return found


def sequence(sequence_id: int, prompt: list[int]) -> EngineSequence:
    return EngineSequence(sequence_id, prompt, Sampling(seed=1, temperature=0.0))
