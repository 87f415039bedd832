"""Each family's tiny random model says the same here and in transformers, in chunks, pages and mixed batches."""

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from services.inference.adapters.runner.architecture import Architecture
from services.inference.adapters.runner.batch import Batcher
from services.inference.adapters.runner.kv_pool import BLOCK_SIZE, KvPool
from services.inference.adapters.runner.model import Decoder
from services.inference.adapters.runner.ops import TorchOps
from services.inference.adapters.runner.weights import Checkpoint
from services.inference.core.engine import Chunk, EngineSequence
from services.inference.core.sampling import Sampling
from services.kit.errors import UnsupportedFormat

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

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        architecture = Architecture.parse(json.loads((folder / "config.json").read_text()))
        assert architecture is not None
        device = torch.device("cpu")
        checkpoint = Checkpoint(folder, dtype, device)
        self.decoder = Decoder(architecture, checkpoint, TorchOps(), lambda share: None)
        self.pool = KvPool.allocate(architecture, 64, dtype, device)
        self._batcher = Batcher(architecture, self.pool, dtype, device)
        self._free = list(range(64))
        random.Random(5).shuffle(self._free)  # Blocks of a sequence need not lie in order.

    @torch.inference_mode()
    def step(self, planned: list[tuple[EngineSequence, int]]) -> dict[int, Tensor]:
        """Logits of the rows of each sequence, (tokens, vocab), by its id."""
        for sequence, num_tokens in planned:
            while len(sequence.blocks) * BLOCK_SIZE < sequence.num_computed + num_tokens:
                sequence.blocks.append(self._free.pop())
        batch = self._batcher.make([Chunk(sequence, num_tokens) for sequence, num_tokens in planned])
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


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_those_of_transformers(family: str, tmp_path: Path):
    model = tiny_model(*FAMILIES[family])
    model.save_pretrained(tmp_path)
    runner = Runner(tmp_path)
    rng = random.Random(3)
    prompts = [[rng.randrange(3, 199) for _ in range(length)] for length in (70, 1, 41, 150)]
    sequences = [sequence(index, prompt) for index, prompt in enumerate(prompts)]
    seen: dict[int, list[Tensor]] = {each.sequence_id: [] for each in sequences}
    while any(each.num_computed < len(each.prompt) for each in sequences):
        waiting = [each for each in sequences if each.num_computed < len(each.prompt)]
        chosen = [each for each in waiting if rng.random() < 0.7] or waiting[:1]
        planned = [
            (each, min(rng.choice((1, 1, 5, 33, 140)), len(each.prompt) - each.num_computed))
            for each in chosen
        ]
        for sequence_id, logits in runner.step(planned).items():
            seen[sequence_id].append(logits)
    for each in sequences:
        with torch.inference_mode():
            wanted = model(torch.tensor([list(each.prompt)])).logits[0]  # (tokens, vocab)
        torch.testing.assert_close(torch.cat(seen[each.sequence_id]), wanted, atol=2e-4, rtol=1e-4)


def save(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    tiny_model("Llama", {}).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    return tmp_path


def test_a_shape_that_the_config_does_not_say_is_refused_by_name(tmp_path: Path):
    folder = save(tmp_path, lambda config: config.update(intermediate_size=81))
    with pytest.raises(UnsupportedFormat, match=r"model\.layers\.0\.mlp\.gate_proj\.weight is \[80, 48\]"):
        Runner(folder)


def test_weights_that_are_missing_are_named(tmp_path: Path):
    folder = save(tmp_path, lambda config: config.update(num_hidden_layers=5, layer_types=None))
    with pytest.raises(UnsupportedFormat, match=r"lack model\.layers\.4"):
        Runner(folder)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "mamba"},
        {**COMMON, "model_type": "llama", "hidden_act": "relu2"},
        {**COMMON, "model_type": "llama", "hidden_act": "silu", "rope_parameters": {"rope_type": "dynamic"}},
        {
            **COMMON,
            "model_type": "llama",
            "hidden_act": "silu",
            "quantization_config": {"quant_method": "gptq"},
        },
    ],
)
def test_what_the_runner_does_not_know_is_left_to_transformers(config: Mapping[str, Any]):
    assert Architecture.parse(config) is None


@pytest.mark.parametrize(
    "broken",
    [
        {"hidden_size": 0},
        {"num_attention_heads": -1},
        {"vocab_size": "many"},
        {"num_hidden_layers": 10**12},
        {"num_key_value_heads": 4},
        {"rope_parameters": {"rope_type": "llama3"}},
        {"layer_types": ["full_attention"]},
    ],
)
def test_impossible_numbers_are_refused(broken: Mapping[str, Any]):
    with pytest.raises(UnsupportedFormat):
        Architecture.parse({**COMMON, "model_type": "llama", "hidden_act": "silu", **broken})
