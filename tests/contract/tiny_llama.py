"""A random Llama of two layers: real architecture, no real weights."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from services.inference.adapters.torch_engine import TorchEngine
from services.inference.core.engine import EngineFacts

VOCAB_SIZE = 258
EOS = 257
CONTEXT_LENGTH = 512


def tiny_llama(seed: int = 0) -> LlamaForCausalLM:
    """float32, on the CPU, the same for the same seed."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_LENGTH,
        initializer_range=0.3,
        bos_token_id=256,
        eos_token_id=EOS,
        pad_token_id=EOS,
    )
    model = LlamaForCausalLM(config)
    model.train(False)
    return model


def tiny_engine(model: LlamaForCausalLM | None = None) -> TorchEngine:
    """An engine over it."""
    facts = EngineFacts(CONTEXT_LENGTH, VOCAB_SIZE, frozenset({EOS}), "cpu", "float32")
    return TorchEngine(model or tiny_llama(), facts)
