"""Inference over real gRPC with real workers and a tiny random model."""

import asyncio
import math
import os
import signal
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from lares.inference.v1 import inference_pb2 as pb
from lares.inference.v1 import inference_pb2_grpc as rpc
from lares.registry.v1 import registry_pb2 as rpb
from services.inference.service import build
from services.kit import tracing
from services.kit.address import Address
from services.kit.channels import translate_errors
from services.kit.errors import (
    ContextLengthExceeded,
    InsufficientMemory,
    InvalidArgument,
    LaresError,
    ModelNotFound,
    UnsupportedParameter,
    WorkerLost,
    WrongModelKind,
)
from services.kit.host import Host
from services.kit.server import GrpcServer
from services.kit.settings import Settings
from tests.unit.services.inference.conftest import Running
from tests.unit.services.inference.fake_house import FakeHouse

GENERATE = "lares.inference.v1.InferenceService/Generate"


def text_request(text: str = "hello", **fields: Any) -> pb.GenerateRequest:
    stop = fields.pop("stop", pb.StopConditions(max_tokens=12))
    return pb.GenerateRequest(model=fields.pop("model", "tiny"), text=text, stop=stop, **fields)


async def generate(running: Running, request: pb.GenerateRequest) -> list[pb.GenerateResponse]:
    with translate_errors():
        return [event async for event in running.stub.Generate(request)]


def text_of(events: list[pb.GenerateResponse], choice: int = 0) -> str:
    return "".join(e.delta.text for e in events if e.HasField("delta") and e.delta.choice == choice)


async def test_a_generation_is_started_then_deltas_then_usage_then_finished(running: Running):
    events = await generate(running, text_request(sampling=pb.SamplingParameters(temperature=0)))
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "started"
    assert kinds[-2:] == ["usage", "finished"]
    assert set(kinds[1:-2]) == {"delta"}
    assert events[0].started.version == "models/tiny/versions/v1"
    assert events[0].started.prompt_tokens == events[-2].usage.prompt_tokens == 5
    assert events[-2].usage.completion_tokens <= 12
    assert events[-1].finished.timing.load_ms > 0
    assert running.house.num_leases == 1, "while it is in memory"

    with translate_errors():
        listed = (await running.stub.ListLoadedModels(pb.ListLoadedModelsRequest())).loaded_models
        got = await running.stub.GetLoadedModel(pb.GetLoadedModelRequest(name="loadedModels/tiny"))
    assert [model.name for model in listed] == ["loadedModels/tiny"]
    assert got.loaded_model.state == pb.LOADED_MODEL_STATE_READY
    assert got.loaded_model.context_length == 512
    assert got.loaded_model.num_active_requests == got.loaded_model.num_waiting_requests == 0
    assert got.loaded_model.memory_bytes > 2**26

    # The same worker answers all that follows: a test that starts one takes seconds.
    await check_knobs(running)
    await check_scores(running)
    await check_refusals(running)
    await check_cancellation(running)
    await check_death(running)
    await check_unload(running)


async def check_knobs(running: Running) -> None:
    hot = pb.SamplingParameters(temperature=1.5, seed=7)
    first, second = [await generate(running, text_request(sampling=hot)) for _ in range(2)]
    assert text_of(first) == text_of(second)
    assert first[0].started.seed == 7

    unseeded = await generate(running, text_request(sampling=pb.SamplingParameters(temperature=1.5)))
    repeated = pb.SamplingParameters(temperature=1.5, seed=unseeded[0].started.seed)
    assert text_of(await generate(running, text_request(sampling=repeated))) == text_of(unseeded)

    biased = pb.SamplingParameters(temperature=0, logit_bias={65: 100.0})
    stop = pb.StopConditions(max_tokens=5, ignore_eos=True)
    output = pb.OutputOptions(num_choices=6, logprobs=True, top_logprobs=2, echo=True)
    events = await generate(running, text_request("ab", sampling=biased, stop=stop, output=output))
    assert len({text_of(events, choice) for choice in range(6)}) == 1
    assert text_of(events).startswith("ab")
    assert len(text_of(events)) == 7
    logprobs = [p for e in events if e.HasField("delta") and e.delta.choice == 5 for p in e.delta.logprobs]
    assert [p.token_id for p in logprobs] == [65] * 5
    assert all(len(p.top) == 2 and p.raw == p.text.encode() for p in logprobs)
    assert events[-2].usage.completion_tokens == 30
    assert [c.reason for c in events[-1].finished.choices] == [pb.FINISH_REASON_LENGTH] * 6

    letter = text_of(events)[-1]
    stop = pb.StopConditions(max_tokens=50, stop=[letter * 3], ignore_eos=True, min_tokens=10)
    stopped = await generate(running, text_request(sampling=biased, stop=stop))
    assert stopped[-1].finished.choices[0].reason == pb.FINISH_REASON_STOP
    assert stopped[-1].finished.choices[0].stop == letter * 3
    assert stopped[-2].usage.completion_tokens >= 10


async def check_scores(running: Running) -> None:
    text = "score this text"
    with translate_errors():
        score = await running.stub.Score(pb.ScoreRequest(model="tiny", text=text, top_logprobs=2))
        again = await running.stub.Score(
            pb.ScoreRequest(
                model="tiny", tokens=pb.TokenPrompt(token_ids=[token.token_id for token in score.tokens])
            )
        )
        single = await running.stub.Score(pb.ScoreRequest(model="tiny", text="s"))
    assert b"".join(token.raw for token in score.tokens) == text.encode()
    assert not score.tokens[0].HasField("logprob")
    logprobs = [token.logprob for token in score.tokens[1:]]
    assert score.sum_logprob == pytest.approx(sum(logprobs))
    assert score.perplexity == pytest.approx(math.exp(-sum(logprobs) / len(logprobs)))
    assert [len(token.top) for token in score.tokens] == [0] + [2] * len(logprobs)
    assert [token.logprob for token in again.tokens] == pytest.approx([0.0, *logprobs], abs=1e-4)
    assert score.usage.prompt_tokens == len(score.tokens)
    assert score.version == "models/tiny/versions/v1"
    assert (single.sum_logprob, single.HasField("perplexity")) == (0.0, False)

    # What an echo tells of the prompt is the same.
    output = pb.OutputOptions(echo=True, logprobs=True, top_logprobs=1, num_choices=2)
    stop = pb.StopConditions(max_tokens=2, ignore_eos=True)
    for request in (
        text_request(text, output=output, stop=stop),
        pb.GenerateRequest(
            model="tiny",
            tokens=pb.TokenPrompt(token_ids=[token.token_id for token in score.tokens]),
            output=output,
            stop=stop,
        ),
    ):
        events = await generate(running, request)
        assert text_of(events, 0).startswith(text)
        assert text_of(events, 1).startswith(text)
        (echoed,) = (event.delta.prompt for event in events if event.delta.prompt)
        assert [token.logprob for token in echoed] == pytest.approx([0.0, *logprobs], abs=1e-4)

    refusals: list[tuple[pb.ScoreRequest, type[LaresError], str]] = [
        (pb.ScoreRequest(model="tiny"), InvalidArgument, "prompt"),
        (pb.ScoreRequest(model="tiny", text=""), InvalidArgument, "text"),
        (pb.ScoreRequest(model="tiny", tokens=pb.TokenPrompt()), InvalidArgument, "tokens.token_ids"),
        (pb.ScoreRequest(model="tiny", tokens=pb.TokenPrompt(token_ids=[999])), InvalidArgument, "prompt"),
        (pb.ScoreRequest(model="tiny", text="x", top_logprobs=21), InvalidArgument, "top_logprobs"),
        (pb.ScoreRequest(model="tiny", text="x", cache_salt="x" * 129), InvalidArgument, "cache_salt"),
        (pb.ScoreRequest(model="tiny", text="x" * 513), ContextLengthExceeded, "messages"),
        (pb.ScoreRequest(model="", text="x"), InvalidArgument, "model"),
        (pb.ScoreRequest(model="nobody", text="x"), ModelNotFound, "model"),
    ]
    for refused, error_class, field in refusals:
        with pytest.raises(error_class) as caught, translate_errors():
            await running.stub.Score(refused)
        assert [violation.field for violation in caught.value.violations] == [field]
    with (
        translate_errors()
    ):  # A text that fills the context to the last token has no room for one more, nor needs it.
        whole = await running.stub.Score(pb.ScoreRequest(model="tiny", text="x" * 512))
    assert len(whole.tokens) == 512


async def check_refusals(running: Running) -> None:
    user = pb.ChatMessage(role=pb.ROLE_USER, content=[pb.ContentPart(text="hi")])
    image = pb.ChatMessage(role=pb.ROLE_USER, content=[pb.ContentPart(image=pb.Image(data=b"x"))])
    tool = pb.ChatMessage(role=pb.ROLE_TOOL, content=[pb.ContentPart(text="hi")])
    refusals: list[tuple[pb.GenerateRequest, type[LaresError], str]] = [
        (
            text_request(sampling=pb.SamplingParameters(temperature=3)),
            InvalidArgument,
            "sampling.temperature",
        ),
        (
            text_request(sampling=pb.SamplingParameters(logit_bias={999: 1})),
            InvalidArgument,
            "sampling.logit_bias",
        ),
        (text_request(output=pb.OutputOptions(num_choices=17)), InvalidArgument, "output.num_choices"),
        (text_request(stop=pb.StopConditions(stop=[""])), InvalidArgument, "stop.stop[0]"),
        (pb.GenerateRequest(model="tiny"), InvalidArgument, "prompt"),
        (text_request(model=""), InvalidArgument, "model"),
        (text_request(model="nobody"), ModelNotFound, "model"),
        (text_request("x" * 600), ContextLengthExceeded, "messages"),
        (
            text_request(response_format=pb.ResponseFormat(regex="a+")),
            UnsupportedParameter,
            "response_format.regex",
        ),
        (
            pb.GenerateRequest(model="tiny", chat=pb.ChatPrompt(messages=[user, image])),
            UnsupportedParameter,
            "chat.messages[1].content[0].image",
        ),
        (
            pb.GenerateRequest(model="tiny", chat=pb.ChatPrompt(messages=[user], tools=[pb.Tool(name="f")])),
            UnsupportedParameter,
            "chat.tools",
        ),
        (
            pb.GenerateRequest(model="tiny", chat=pb.ChatPrompt(messages=[tool])),
            InvalidArgument,
            "chat.messages",
        ),
    ]
    for request, error_class, field in refusals:
        with pytest.raises(error_class) as caught:
            await generate(running, request)
        assert [violation.field for violation in caught.value.violations] == [field]
    with pytest.raises(WrongModelKind, match="not for embedding"), translate_errors():
        await running.stub.Embed(pb.EmbedRequest(model="tiny", inputs=[pb.EmbedInput(text="x")]))
    chat = pb.GenerateRequest(
        model="tiny", chat=pb.ChatPrompt(messages=[user]), stop=pb.StopConditions(max_tokens=3)
    )
    events = await generate(running, chat)
    assert events[0].started.prompt_tokens == len("u:hi\na:")


async def following(call: Any) -> Any:
    """The next message; the types have it that there may be none."""
    return await call.read()


async def check_cancellation(running: Running) -> None:
    endless = text_request(stop=pb.StopConditions(ignore_eos=True, max_tokens=480))
    calls = [running.stub.Generate(endless) for _ in range(8)]  # Twice as many as there are slots.
    for call in calls[:4]:
        assert (await following(call)).HasField("started")
    for call in calls:
        call.cancel()
    # Were their slots not free, this would wait for hundreds of steps.
    async with asyncio.timeout(5):
        await generate(running, text_request())
    with translate_errors():
        listed = (await running.stub.ListLoadedModels(pb.ListLoadedModelsRequest())).loaded_models
    assert (listed[0].num_active_requests, listed[0].num_waiting_requests) == (0, 0)


async def check_death(running: Running) -> None:
    watch = running.stub.WatchLoadedModels(pb.WatchLoadedModelsRequest())
    ready = (await following(watch)).loaded_model
    assert ready.state == pb.LOADED_MODEL_STATE_READY
    endless = text_request(stop=pb.StopConditions(ignore_eos=True, max_tokens=480))
    calls = [running.stub.Generate(endless) for _ in range(3)]
    for call in calls:
        await call.read()
    os.kill(ready.worker_pid, signal.SIGKILL)
    for call in calls:
        with pytest.raises(WorkerLost) as caught:
            await read_to_end(call)
        assert caught.value.retry_after_s is not None
    # It was in use, so it is replaced without being asked for.
    lost = (await following(watch)).loaded_model
    assert lost.state == pb.LOADED_MODEL_STATE_LOADING
    assert "SIGKILL" in lost.failure_message
    assert len(await generate(running, text_request())) > 3
    states = [(await following(watch)).loaded_model.state]
    while states[-1] != pb.LOADED_MODEL_STATE_READY:
        states.append((await following(watch)).loaded_model.state)
    assert set(states[:-1]) <= {pb.LOADED_MODEL_STATE_LOADING}
    with translate_errors():
        got = await running.stub.GetLoadedModel(pb.GetLoadedModelRequest(name="loadedModels/tiny"))
    assert (got.loaded_model.num_worker_restarts, got.loaded_model.num_ready_workers) == (1, 1)
    watch.cancel()


async def read_to_end(call: Any) -> None:
    with translate_errors():
        while await call.read() is not grpc.aio.EOF:
            pass


async def check_unload(running: Running) -> None:
    with translate_errors():
        await running.stub.UnloadModel(pb.UnloadModelRequest(name="loadedModels/tiny"))
        assert not (await running.stub.ListLoadedModels(pb.ListLoadedModelsRequest())).loaded_models
    with pytest.raises(ModelNotFound), translate_errors():
        await running.stub.UnloadModel(pb.UnloadModelRequest(name="loadedModels/tiny"))


async def test_a_generation_is_traced_with_its_phases_and_what_it_called(running: Running):
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.use(provider)
    try:
        await generate(running, text_request())
        async with asyncio.timeout(10):
            while GENERATE not in {span.name for span in exporter.get_finished_spans()}:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0)
    finally:
        tracing.use(None)
        provider.shutdown()
    spans = {span.name: span for span in exporter.get_finished_spans()}
    whole = spans[GENERATE]
    below = {name for name, span in spans.items() if span.parent == whole.context}
    assert {"load", "queue", "prefill", "decode"} <= below
    assert any(name.endswith("/ResolveModel") for name in spans)
    assert len({span.context.trace_id for span in spans.values()}) == 1
    assert whole.attributes is not None
    assert whole.attributes["gen_ai.request.model"] == "tiny"
    assert whole.attributes["gen_ai.usage.input_tokens"] == 5
    assert float(str(whole.attributes["lares.ttft_ms"])) > 0


async def test_the_hardware_is_told(running: Running):
    with translate_errors():
        hardware = await running.stub.GetHardware(pb.GetHardwareRequest())
    assert hardware.num_cpus >= 1
    assert hardware.cpu_model
    assert 0 < hardware.memory_available_bytes <= hardware.memory_total_bytes


async def test_a_model_of_pickles_is_refused(running: Running, tmp_path: Any):
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "config.json").write_text("{}")
    running.house.add("pickled", folder, rpb.MODEL_KIND_TEXT_GENERATION, rpb.FORMAT_SAFETENSORS)
    with pytest.raises(LaresError, match="pickles that can run code") as caught:
        await generate(running, text_request(model="pickled"))
    assert caught.value.reason == "UNSUPPORTED_FORMAT"


async def test_a_model_that_does_not_fit_is_refused_with_the_sum_before_it_is_loaded(
    tmp_path: Path, tiny_folder: Path
):
    house = FakeHouse(tmp_path)  # type: ignore[abstract]  # It answers only what Inference asks.
    house.add("tiny", tiny_folder, rpb.MODEL_KIND_TEXT_GENERATION, rpb.FORMAT_SAFETENSORS)
    limits = {"inference.memory_bytes": 100 * 1024**2, "inference.device": "cpu"}
    host = Host(Settings(home=tmp_path), limits)
    server = GrpcServer(host, [lambda _: house, build], address=Address("127.0.0.1", 0))
    await server.start()
    try:
        stub: rpc.InferenceServiceAsyncStub = rpc.InferenceServiceStub(host.channel("inference"))
        with pytest.raises(InsufficientMemory, match="GiB weights") as caught, translate_errors():
            await stub.LoadModel(pb.LoadModelRequest(model="tiny"))
        assert (
            int(caught.value.metadata["needs_bytes"])
            > int(caught.value.metadata["has_bytes"])
            == 100 * 1024**2
        )
        assert caught.value.metadata["would_free_bytes"] == "0"
        assert not (await stub.ListLoadedModels(pb.ListLoadedModelsRequest())).loaded_models
        assert house.num_leases == 0
    finally:
        await server.stop()
        await host.close()
