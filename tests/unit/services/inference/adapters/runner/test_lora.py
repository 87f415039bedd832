"""Adapters equal peft's, several of them and the base in one batch."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from services.inference.adapters.runner.engine import RunnerEngine
from services.inference.adapters.runner.lora import MAX_RANK
from services.inference.core.engine import Chunk, EngineSequence
from services.kit.errors import UnsupportedFormat
from tests.unit.services.inference.adapters.runner.tiny_models import sequence, tiny_model
from tests.unit.services.inference.adapters.runner.tiny_runner import runner_engine

# peft reads every attribute of a module by name, deprecated ones too.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

ADAPTERS: dict[str, dict[str, Any]] = {
    "attention": {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
    "everything": {"r": 8, "lora_alpha": 8, "target_modules": "all-linear", "use_rslora": True},
    "mlp": {"r": 2, "lora_alpha": 32, "target_modules": ["down_proj", "up_proj"]},
    "ranks": {
        "r": 4,
        "target_modules": ["q_proj", "k_proj", "o_proj"],
        "rank_pattern": {"k_proj": 7},
        "alpha_pattern": {"k_proj": 40},
    },
}


def save_adapter(folder: Path, settings: dict[str, Any], kind: str = "Llama") -> PreTrainedModel:
    """Write base and adapter; returns peft's model."""
    base = tiny_model(
        kind, {} if kind != "Phi3" else {"head_dim": None, "hidden_size": 96, "sliding_window": None}
    )
    base.save_pretrained(folder / "base")
    torch.manual_seed(len(str(settings)))
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # They begin as zeros, which would say nothing.
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(str(folder / "adapter"))
    assert isinstance(model, PeftModel)
    model.train(False)
    return model  # type: ignore[return-value]  # A PeftModel calls like the model in it.


def scores(engine: RunnerEngine, sequences: list[EngineSequence], *, chunk: int = 30) -> list[list[float]]:
    """Log probabilities of each prompt's tokens, all prompts together, in chunks of random length."""
    rng = random.Random(4)
    found: list[list[float]] = [[] for _ in sequences]
    free = iter(range(engine.facts.num_blocks))
    while live := [each for each in sequences if each.num_computed < len(each.prompt)]:
        chunks = []
        for each in live:
            each.wants_prompt_logprobs = True
            num_tokens = min(rng.randrange(1, chunk), len(each.prompt) - each.num_computed)
            while len(each.blocks) * engine.facts.block_size < each.num_computed + num_tokens:
                each.blocks.append(next(free))
            chunks.append(Chunk(each, num_tokens))
        for one, result in zip(chunks, engine.step(chunks), strict=True):
            found[sequences.index(one.sequence)].extend(result.prompt_logprobs)
            one.sequence.num_computed += one.num_tokens
    return found


def test_adapters_and_the_base_in_one_batch_equal_peft(tmp_path: Path):
    models = {name: save_adapter(tmp_path / name, settings) for name, settings in ADAPTERS.items()}
    engine = runner_engine(tmp_path / "mlp" / "base")
    for name in ADAPTERS:
        engine.load_adapter(name, tmp_path / name / "adapter")
    rng = random.Random(9)
    users = [*ADAPTERS, None, "attention", None]
    sequences = []
    for index, user in enumerate(users):
        each = sequence(index, [rng.randrange(3, 199) for _ in range(rng.randrange(5, 60))])
        each.adapter = user
        sequences.append(each)
    base = tiny_model("Llama", {})
    for each, found in zip(sequences, scores(engine, sequences), strict=True):
        model = models[each.adapter] if each.adapter else base
        with torch.inference_mode():
            logprobs = model(torch.tensor([list(each.prompt)])).logits[0].log_softmax(-1)
        wanted = logprobs[range(len(each.prompt) - 1), list(each.prompt[1:])]
        torch.testing.assert_close(torch.tensor(found), wanted, atol=2e-4, rtol=1e-4)


def test_an_adapter_of_fused_matrices_equals_peft(tmp_path: Path):
    model = save_adapter(tmp_path, {"r": 4, "target_modules": ["qkv_proj", "gate_up_proj"]}, kind="Phi3")
    engine = runner_engine(tmp_path / "base")
    engine.load_adapter("fused", tmp_path / "adapter")
    each = sequence(1, list(range(5, 40)))
    each.adapter = "fused"
    with torch.inference_mode():
        logprobs = model(torch.tensor([list(each.prompt)])).logits[0].log_softmax(-1)
    wanted = logprobs[range(len(each.prompt) - 1), list(each.prompt[1:])]
    torch.testing.assert_close(torch.tensor(scores(engine, [each])[0]), wanted, atol=2e-4, rtol=1e-4)


def test_a_dropped_adapter_may_come_back_as_another(tmp_path: Path):
    for name in ("attention", "mlp"):
        save_adapter(tmp_path / name, ADAPTERS[name])
    engine = runner_engine(tmp_path / "mlp" / "base")

    def said() -> list[float]:
        each = sequence(1, list(range(5, 40)))
        each.adapter = "mine"
        return scores(engine, [each])[0]

    engine.load_adapter("mine", tmp_path / "attention" / "adapter")
    first = said()
    engine.drop_adapter("mine")
    engine.drop_adapter("mine")
    engine.load_adapter("mine", tmp_path / "mlp" / "adapter")
    assert said() != first


def _set(name: str, value: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))

    return change


def _weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
        change(tensors)
        save_file(tensors, path)

    return rewrite


_A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
_B = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (_set("use_dora", True), "use_dora"),
        (_set("bias", "all"), "biases"),
        (_set("peft_type", "IA3"), "not one of a LoRA"),
        (_set("lora_alpha", "much"), "lora_alpha"),
        (lambda folder: (folder / "adapter_config.json").write_text("[]"), "not one of a LoRA"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "pickled"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x" * 99), "not a safetensors"),
        (_weights(lambda tensors: tensors.pop(_B)), "lack"),
        (_weights(lambda tensors: tensors.pop(_A)), "pairs"),
        (_weights(lambda tensors: tensors.update({_A: torch.zeros(4, 47)})), r"\[4, 47\]"),
        (_weights(lambda tensors: tensors.update({_A: torch.zeros(MAX_RANK + 1, 48)})), "rank"),
        (
            _weights(
                lambda tensors: tensors.update({_A.replace("layers.0", "layers.9"): tensors[_A].clone()})
            ),
            "not have",
        ),
        (
            _weights(lambda tensors: tensors.update({"base_model.model.lm_head.weight": torch.zeros(1)})),
            "more than",
        ),
    ],
)
def test_what_is_no_adapter_of_this_model_is_refused(tmp_path: Path, spoil: Callable[[Path], None], why: str):
    save_adapter(tmp_path, ADAPTERS["attention"])
    engine = runner_engine(tmp_path / "base")
    spoil(tmp_path / "adapter")
    with pytest.raises(UnsupportedFormat, match=why):
        engine.load_adapter("bad", tmp_path / "adapter")
