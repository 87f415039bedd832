"""A random Llama of two layers: real architecture, no real weights."""

import tempfile
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from services.inference.adapters.messages import EngineInit
from services.inference.adapters.placement import Placement
from services.inference.adapters.runner.engine import RunnerEngine
from services.inference.adapters.runner.load import load_runner
from services.inference.adapters.transformers_engine import TransformersEngine
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


def tiny_facts(*, shares_blocks: bool = False, block_size: int = 4, num_blocks: int = 512) -> EngineFacts:
    """What it is, in blocks small enough that a test fills some."""
    return EngineFacts(
        context_length=CONTEXT_LENGTH,
        vocab_size=VOCAB_SIZE,
        eos_token_ids=frozenset({EOS}),
        device="cpu",
        dtype="float32",
        block_size=block_size,
        num_blocks=num_blocks,
        shares_blocks=shares_blocks,
    )


def tiny_runner(model: PreTrainedModel | None = None) -> RunnerEngine:
    """Our own engine over it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (model or tiny_llama()).save_pretrained(folder)
        init = EngineInit(name, "cpu", max_sequences=64, kv_bytes=2**20)
        engine = load_runner(init, folder, Placement("cpu", torch.float32), frozenset({EOS}))
    assert engine is not None
    return engine


def tiny_engine(model: PreTrainedModel | None = None) -> TransformersEngine:
    """Transformers' engine over it, or over a model of the same vocabulary."""
    return TransformersEngine(model or tiny_llama(), tiny_facts())
