"""Each family's tiny random model says the same here and in transformers, in chunks, pages and mixed batches."""

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from services.inference.adapters.runner.architecture import Architecture
from services.inference.adapters.runner.cuda_ops import CudaOps
from services.inference.adapters.runner.ops import Ops, TorchOps
from services.inference.core.engine import Chunk
from services.kit.errors import UnsupportedFormat
from tests.unit.services.inference.adapters.runner.tiny_models import (
    COMMON,
    FAMILIES,
    Runner,
    sequence,
    tiny_model,
)


@pytest.mark.parametrize("ops", [TorchOps(), CudaOps()], ids=["reference", "CUDA's"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_those_of_transformers(family: str, ops: Ops, tmp_path: Path):
    model = tiny_model(*FAMILIES[family])
    model.save_pretrained(tmp_path)
    runner = Runner(tmp_path, ops=ops)
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


@pytest.mark.parametrize("ops", [TorchOps(), CudaOps()], ids=["reference", "CUDA's"])
@pytest.mark.parametrize("family", ["llama", "gemma 2", "qwen 3", "mistral with a window"])
def test_a_beginning_that_many_share_is_read_once_and_says_the_same(family: str, ops: Ops, tmp_path: Path):
    model = tiny_model(*FAMILIES[family])
    model.save_pretrained(tmp_path)
    runner = Runner(tmp_path, ops=ops)
    rng = random.Random(5)
    beginning = [rng.randrange(3, 199) for _ in range(144)]
    first = sequence(0, [*beginning, 7, 8, 9])
    runner.step([(first, 147)])
    sharers, loner = [], sequence(99, [5, 6, 7, 8])
    for index in range(1, 15):
        own = [rng.randrange(3, 199) for _ in range(rng.randrange(2, 6))]
        each = sequence(index, [*beginning, *own])
        each.blocks, each.num_computed = list(first.blocks[:9]), 144
        sharers.append(each)
    seen: dict[int, list[Tensor]] = {}
    while live := [each for each in [*sharers, loner] if each.num_computed < len(each.prompt)]:
        for each in live:
            runner.make_room(each, 1)
        if len(live) == 15:
            plan = runner.batcher.make([Chunk(each, 1) for each in live]).plans.get(None)
            assert plan is None or [group.shared is not None for group in plan.groups] == [True, False]
        for sequence_id, logits in runner.step([(each, 1) for each in live]).items():
            seen.setdefault(sequence_id, []).append(logits)
    for each in [*sharers, loner]:
        with torch.inference_mode():
            wanted = model(torch.tensor([list(each.prompt)])).logits[0]
        told = torch.cat(seen[each.sequence_id])
        torch.testing.assert_close(told, wanted[-len(told) :], atol=2e-4, rtol=1e-4)


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
