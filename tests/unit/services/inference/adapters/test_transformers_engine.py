import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    BambaConfig,
    BloomConfig,
    MambaConfig,
    MistralConfig,
    PreTrainedConfig,
    RwkvConfig,
)

from services.inference.core.engine import EngineSequence
from services.inference.core.sampling import Sampling
from services.kit.errors import UnsupportedFormat
from tests.contract.engine_driver import Driver, run, sequence
from tests.contract.tiny_llama import EOS, VOCAB_SIZE, tiny_engine, tiny_llama

# peft still asks transformers by the old name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def test_greedy_text_equals_generate_in_mixed_batches():
    rng, model = random.Random(11), tiny_llama()
    prompts = [tuple(rng.randrange(256) for _ in range(rng.randrange(1, 80))) for _ in range(56)]
    generator: Any = model
    expected = []
    for prompt in prompts:
        generated = generator.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            max_new_tokens=24,
            do_sample=False,
        )
        expected.append(generated[0, len(prompt) :].tolist())
    driver, outputs = Driver(tiny_engine(model), max_batch_tokens=64), {}
    waiting = [sequence(index, prompt) for index, prompt in enumerate(prompts)]
    live: list[EngineSequence] = []
    while waiting or live:
        new = [waiting.pop() for _ in range(min(len(waiting), rng.randrange(4), 8 - len(live)))]
        driver.add(*new)
        live += new
        driver.step()
        for each in [each for each in live if len(each.output) == 24 or each.output[-1:] == [EOS]]:
            outputs[each.sequence_id] = each.output
            live.remove(each)
            driver.end(each)
    assert [outputs[index] for index in range(len(prompts))] == expected


def test_log_probabilities_are_those_of_the_model():
    model = tiny_llama()
    asking = sequence(1, (1, 2, 3))
    asking.num_logprobs = 5
    driver = Driver(tiny_engine(model))
    driver.add(asking)
    ((_, result),) = driver.step()
    picked = result.picked
    assert picked is not None
    with torch.inference_mode():
        expected = model(torch.tensor([[1, 2, 3]])).logits[0, -1].log_softmax(-1).topk(5)
    assert [token for token, _ in picked.top] == expected.indices.tolist()
    assert [logprob for _, logprob in picked.top] == pytest.approx(expected.values.tolist(), abs=1e-5)


SMALL: dict[str, Any] = {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "num_hidden_layers": 2}
HEADS: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}
ARCHITECTURES: dict[str, Callable[[], PreTrainedConfig]] = {
    "sliding windows": lambda: MistralConfig(**SMALL, **HEADS, sliding_window=8),
    "no positions": lambda: BloomConfig(vocab_size=VOCAB_SIZE, hidden_size=32, n_layer=2, n_head=4),
    "states only": lambda: MambaConfig(**SMALL, state_size=8),
    "states and attention": lambda: BambaConfig(
        **SMALL, **HEADS, attn_layer_indices=[1], mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8
    ),
}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_other_architectures_say_and_score_in_chunks_what_one_pass_over_all_gives(kind: str):
    config = ARCHITECTURES[kind]()
    config.initializer_range = 0.3
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.train(False)
    prompt = tuple(range(20, 61))
    expected = list(prompt)
    with torch.inference_mode():
        for _ in range(8):
            logits = model(torch.tensor([expected]), use_cache=False).logits[0]  # (tokens, vocab)
            expected.append(int(logits[-1].argmax()))
    logprobs = logits[: len(prompt) - 1].log_softmax(-1)
    scores = [float(logprobs[i, token]) for i, token in enumerate(prompt[1:])]
    driver = Driver(tiny_engine(model), max_batch_tokens=7)
    plain, scored = sequence(1, prompt), sequence(2, prompt)
    scored.wants_prompt_logprobs = True
    assert driver.run([plain, scored], 8) == [expected[len(prompt) :]] * 2
    assert driver.prompt_logprobs[2] == pytest.approx(scores, abs=1e-3)


def test_an_architecture_that_keeps_its_state_elsewhere_is_refused():
    model = AutoModelForCausalLM.from_config(RwkvConfig(**SMALL, attention_hidden_size=32))
    with pytest.raises(UnsupportedFormat, match="RwkvForCausalLM"):
        tiny_engine(model)


@pytest.fixture
def adapters(tmp_path: Path) -> list[Path]:
    """Two random LoRA adapters for the tiny model."""
    folders = [tmp_path / "one", tmp_path / "two"]
    for seed, folder in enumerate(folders):
        config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        model = tiny_llama()  # It sets a seed of its own.
        torch.manual_seed(100 + seed)
        get_peft_model(model, config).save_pretrained(str(folder))
    return folders


def test_base_and_adapters_answer_in_one_batch_and_the_base_is_unchanged(adapters: list[Path]):
    hot = [Sampling(seed=seed, temperature=0.8) for seed in range(4)]
    before = run(tiny_engine(), [sequence(i, (7, 8, 9), hot[i]) for i in range(4)], 16)
    engine = tiny_engine()
    for name, folder in zip(("m:one", "m:two"), adapters, strict=True):
        engine.load_adapter(name, folder)
    alone = run(engine, [sequence(i, (7, 8, 9), hot[i]) for i in range(4)], 16)
    assert alone == before
    mixed = [sequence(10 + i, (7, 8, 9)) for i in range(5)]
    for each, adapter in zip(mixed, (None, "m:one", "m:two", None, "m:one"), strict=True):
        each.adapter = adapter
    base, one, two, base_again, one_again = run(engine, mixed, 16)
    assert base == base_again == run(tiny_engine(), [sequence(1, (7, 8, 9))], 16)[0]
    assert one == one_again
    assert len({tuple(base), tuple(one), tuple(two)}) == 3
    engine.drop_adapter("m:one")
    engine.drop_adapter("m:two")
    assert run(engine, [sequence(i + 50, (7, 8, 9), hot[i]) for i in range(4)], 16) == before


def test_an_adapter_that_is_pickled_or_of_another_shape_is_refused(tmp_path: Path):
    engine = tiny_engine()
    (tmp_path / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(UnsupportedFormat, match="pickled"):
        engine.load_adapter("m:bad", tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"broken")
    with pytest.raises(UnsupportedFormat, match="does not fit"):
        engine.load_adapter("m:bad", tmp_path)
    assert run(engine, [sequence(1)], 4) == run(tiny_engine(), [sequence(1)], 4)
