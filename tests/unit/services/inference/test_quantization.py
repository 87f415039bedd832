"""Models in fewer bits over the real service: made once, measured, kept; made at every load if nothing is kept."""

import math
from pathlib import Path

import grpc
import pytest

from lares.inference.v1 import inference_pb2 as pb
from lares.registry.v1 import registry_pb2 as rpb
from services.inference.adapters.estimates import weight_types
from services.inference.adapters.runner.perplexity import measured_text
from services.inference.core.memory import MemoryEstimate
from services.inference.core.models import ModelKind, PoolLimits, Quantization
from services.inference.core.room import RoomFinder
from tests.unit.services.inference.conftest import Running

TEXT = ModelKind.TEXT_GENERATION


async def loaded(running: Running, quantization: str) -> pb.LoadedModel:
    """The model once it is ready."""
    request = pb.LoadModelRequest(model="tiny", quantization=quantization)
    await running.stub.LoadModel(request)
    watch = running.stub.WatchLoadedModels(pb.WatchLoadedModelsRequest())
    try:
        async for change in watch:
            model = change.loaded_model
            assert model.state != pb.LOADED_MODEL_STATE_FAILED, model.failure_message
            if model.state == pb.LOADED_MODEL_STATE_READY:
                return model
    finally:
        watch.cancel()
    raise AssertionError("the watch ended")


async def answer(running: Running) -> str:
    request = pb.GenerateRequest(
        model="tiny",
        text="Once",
        sampling=pb.SamplingParameters(temperature=0),
        stop=pb.StopConditions(max_tokens=8, ignore_eos=True),
    )
    return "".join([event.delta.text async for event in running.stub.Generate(request)])


async def unload(running: Running) -> None:
    await running.stub.UnloadModel(pb.UnloadModelRequest(name="loadedModels/tiny", force=True))


@pytest.mark.parametrize("scheme", ["int8", "int4"])
async def test_a_model_is_quantized_once_and_kept_with_its_perplexity(running: Running, scheme: str) -> None:
    model = await loaded(running, scheme)
    assert model.dtype == scheme
    assert len(await answer(running)) > 0
    artifact = running.house.artifacts["models/tiny/versions/v1", scheme]
    assert artifact.quantization == scheme
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= {file.path for file in artifact.files}
    measured = artifact.perplexity
    assert measured.text_digest == measured_text()[1]
    assert measured.num_tokens == 2048
    assert math.isclose(measured.value, measured.baseline, rel_tol=0.3)
    assert measured.value != measured.baseline
    await unload(running)
    num_blobs = len(running.house.blobs)
    assert (await loaded(running, scheme)).dtype == scheme
    assert len(running.house.blobs) == num_blobs


async def test_a_store_that_refuses_leaves_quantizing_to_every_load(running: Running) -> None:
    running.house.is_full = True
    assert (await loaded(running, "int8")).dtype == "int8"
    assert len(await answer(running)) > 0
    assert not running.house.artifacts


@pytest.mark.parametrize(("name", "dtype"), [("fp16", "float16"), ("fp32", "float32"), ("bf16", "bfloat16")])
async def test_floats_are_taken_by_name(running: Running, name: str, dtype: str) -> None:
    assert (await loaded(running, name)).dtype == dtype
    assert len(await answer(running)) > 0
    assert not running.house.artifacts


async def test_numbers_that_are_not_known_are_refused_by_the_fields_name(running: Running) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.stub.LoadModel(pb.LoadModelRequest(model="tiny", quantization="int3"))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "quantization" in (caught.value.details() or "")


async def test_a_family_that_is_not_quantized_says_so(running: Running, tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path / "gpt2"
    GPT2LMHeadModel(GPT2Config(vocab_size=258, n_embd=32, n_layer=1, n_head=2)).save_pretrained(folder)
    running.house.add("gpt2", folder, rpb.MODEL_KIND_TEXT_GENERATION, rpb.FORMAT_SAFETENSORS)
    request = pb.GenerateRequest(model="gpt2", text="Once", stop=pb.StopConditions(max_tokens=1))
    await running.stub.LoadModel(pb.LoadModelRequest(model="gpt2", quantization="int8"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in running.stub.Generate(request):
            pass
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "families" in (caught.value.details() or "")


def test_auto_prefers_the_devices_own_floats_and_then_more_bits() -> None:
    own = weight_types(TEXT, "cuda:0", Quantization.AUTO, can_quantize=True)
    assert own == ("bf16", "int8", "int4")
    assert weight_types(TEXT, "cuda:0", Quantization.AUTO, can_quantize=False) == ("bf16",)
    assert weight_types(TEXT, "cpu", Quantization.INT4, can_quantize=True) == ("int4",)
    assert weight_types(ModelKind.EMBEDDING, "cpu", Quantization.INT4, can_quantize=True) == ("fp32",)


class Small:
    """Memory of one device."""

    devices = ("cpu",)

    def __init__(self, num_bytes: int) -> None:
        self._num_bytes = num_bytes

    def budget_bytes(self, device: str) -> int:
        return self._num_bytes

    def available_bytes(self, device: str) -> int:
        return self._num_bytes


@pytest.mark.parametrize(("num_bytes", "chosen"), [(2500, "bf16"), (1500, "int8"), (1000, "int4")])
def test_what_does_not_fit_in_floats_is_planned_in_fewer_bits(num_bytes: int, chosen: str) -> None:
    estimates = [
        MemoryEstimate("cpu", weights_bytes, 0, 100, 10, 100, weight_type=weight_type)
        for weight_type, weights_bytes in (("bf16", 2000), ("int8", 1000), ("int4", 600))
    ]
    plan = RoomFinder([], PoolLimits(), Small(num_bytes)).find("tiny", estimates).plans[0]
    assert plan.estimate.weight_type == chosen
    assert (f"as {chosen} on cpu" in plan.note) == (chosen != "bf16")
