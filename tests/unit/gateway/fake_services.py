"""The services as the gateway sees them: the contract's own answers, deterministic, over a real gRPC server.

A chat is answered with the last message's words, one a step. Words of a prompt that mean something:
`!model-not-found`, `!queue-full`, `!bug` fail before the first event; `!break` fails amid the stream; `!hang` never
ends; `!wait` waits for `go_on`.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2_grpc

from gateway.upstream import FULL_NAMES
from lares.downloader.v1 import downloader_pb2_grpc as downloader_rpc
from lares.inference.v1 import inference_pb2 as inference
from lares.inference.v1 import inference_pb2_grpc as inference_rpc
from lares.registry.v1 import registry_pb2 as registry
from lares.registry.v1 import registry_pb2_grpc as registry_rpc
from lares.speech.v1 import speech_pb2 as speech
from lares.speech.v1 import speech_pb2_grpc as speech_rpc
from lares.trainer.v1 import trainer_pb2 as trainer
from lares.trainer.v1 import trainer_pb2_grpc as trainer_rpc
from services.kit import context
from services.kit.errors import (
    DatasetNotFound,
    InvalidArgument,
    InvalidAudio,
    InvalidDataset,
    JobFinished,
    JobNotFound,
    ModelNotAvailable,
    ModelNotFound,
    QueueFull,
    WorkerLost,
)
from services.kit.health import Health
from services.kit.interceptors import ServeInterceptor
from tests.unit.gateway.fake_downloader import FakeDownloader

MODEL, ADAPTER = "tiny", "tiny:pirate"
WHEN = Timestamp(seconds=1_790_000_000)
Context = Any


class FakeInference(inference_rpc.InferenceServiceServicer):
    """Echoes. num_active counts the streams that are open; `requests` keeps what was asked."""

    def __init__(self) -> None:
        self.requests: list[inference.GenerateRequest] = []
        self.request_ids: list[str] = []
        self.num_active = 0
        self.idle = asyncio.Event()
        self.busy = asyncio.Event()
        self.idle.set()
        self.go_on = asyncio.Event()

    async def Generate(
        self, request: inference.GenerateRequest, context_: Context
    ) -> AsyncIterator[inference.GenerateResponse]:
        self.requests.append(request)
        self.request_ids.append(context.request_id.get())
        words = _words(request)
        _fail_on_demand(request, words)
        self.num_active += 1
        self.idle.clear()
        self.busy.set()
        try:
            async for event in self._events(request, words):
                yield event
        finally:
            self.num_active -= 1
            if not self.num_active:
                self.idle.set()

    async def _events(
        self, request: inference.GenerateRequest, words: list[str]
    ) -> AsyncIterator[inference.GenerateResponse]:
        digest = hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()[:12]
        yield inference.GenerateResponse(
            started=inference.GenerateStarted(
                generation_id=digest,
                version="models/tiny/versions/1",
                prompt_tokens=len(words),
                create_time=WHEN,
            )
        )
        num_choices = request.output.num_choices or 1
        if request.output.echo:
            for choice in range(num_choices):
                yield inference.GenerateResponse(
                    delta=inference.TextDelta(choice=choice, text=" ".join(words))
                )
            if request.output.logprobs:
                yield inference.GenerateResponse(delta=inference.TextDelta(prompt=_scored(words)))
        max_tokens = request.stop.max_tokens or 1_000_000
        tokens = words[:max_tokens]
        for position, word in enumerate(tokens):
            if word == "!hang":
                await asyncio.Event().wait()
            if word == "!wait":
                await self.go_on.wait()
            if word == "!break" and position:
                raise WorkerLost("the worker died; ask again")
            for choice in range(num_choices):
                yield self._step(request, choice, word if not position else f" {word}", position)
        yield inference.GenerateResponse(
            usage=inference.Usage(
                prompt_tokens=len(words), completion_tokens=len(tokens) * num_choices, cached_prompt_tokens=1
            )
        )
        reason = inference.FINISH_REASON_LENGTH if len(tokens) < len(words) else inference.FINISH_REASON_STOP
        if request.chat.tools:
            reason = inference.FINISH_REASON_TOOL_CALLS
        yield inference.GenerateResponse(
            finished=inference.GenerateFinished(
                choices=[
                    inference.ChoiceFinish(choice=choice, reason=reason) for choice in range(num_choices)
                ]
            )
        )

    def _step(
        self, request: inference.GenerateRequest, choice: int, text: str, position: int
    ) -> inference.GenerateResponse:
        if request.chat.tools:
            first = position == 0
            return inference.GenerateResponse(
                tool_call_delta=inference.ToolCallDelta(
                    choice=choice,
                    index=0,
                    id="call_1" if first else "",
                    name=request.chat.tools[0].name if first else "",
                    arguments_json=text,
                )
            )
        delta = inference.TextDelta(choice=choice, text=text)
        if request.output.logprobs:
            top = [
                inference.TopLogprob(token_id=rank, text=text, raw=text.encode(), logprob=-0.5 - rank)
                for rank in range(request.output.top_logprobs)
            ]
            delta.logprobs.add(token_id=1, text=text, raw=text.encode(), logprob=-0.5, top=top)
        return inference.GenerateResponse(delta=delta)

    async def Embed(self, request: inference.EmbedRequest, context_: Context) -> inference.EmbedResponse:
        if request.model != MODEL:
            raise ModelNotFound.named(request.model)
        vectors = []
        for item in request.inputs:
            seed = hashlib.sha256(item.SerializeToString(deterministic=True)).digest()
            values = [(byte - 128) / 128 for byte in seed[: request.dimensions or 8]]
            vectors.append(inference.Embedding(values=values))
        return inference.EmbedResponse(
            embeddings=vectors,
            usage=inference.Usage(prompt_tokens=3 * len(vectors)),
            version="models/tiny/versions/1",
        )

    async def Score(self, request: inference.ScoreRequest, context_: Context) -> inference.ScoreResponse:
        words = _words(request)
        if request.model != MODEL:
            raise ModelNotFound.named(request.model)
        return inference.ScoreResponse(
            tokens=_scored(words),
            sum_logprob=-0.5 * (len(words) - 1),
            usage=inference.Usage(prompt_tokens=len(words)),
            version="models/tiny/versions/1",
        )

    async def Rerank(self, request: inference.RerankRequest, context_: Context) -> inference.RerankResponse:
        """A document's score is the share of the query's words that it has."""
        if request.model != MODEL:
            raise ModelNotFound.named(request.model)
        wanted = set(request.query.split())
        scores = [len(wanted & set(text.split())) / len(wanted) for text in request.documents]
        best = sorted(enumerate(scores), key=lambda result: -result[1])
        return inference.RerankResponse(
            results=[inference.RerankResult(index=index, score=score) for index, score in best][
                : request.top_n or None
            ],
            usage=inference.Usage(prompt_tokens=7),
            version="models/tiny/versions/1",
        )


def _scored(words: list[str]) -> list[inference.ScoredToken]:
    """A token a word; before them one that begins every text and is no part of it."""
    texts = ["<s>", *(word if not place else f" {word}" for place, word in enumerate(words))]
    return [
        inference.ScoredToken(
            token_id=place,
            text=text,
            raw=text.encode(),
            logprob=-0.5 * place if place else None,
            top=[inference.TopLogprob(token_id=9, text="top", logprob=-0.25)] if place else [],
        )
        for place, text in enumerate(texts)
    ]


def _words(request: inference.GenerateRequest | inference.ScoreRequest) -> list[str]:
    if isinstance(request, inference.GenerateRequest) and request.HasField("chat"):
        return " ".join(part.text for part in request.chat.messages[-1].content).split()
    match request.WhichOneof("prompt"):
        case "text":
            return request.text.split()
        case _:
            return [str(token) for token in request.tokens.token_ids]


def _fail_on_demand(request: inference.GenerateRequest, words: list[str]) -> None:
    if request.model not in (MODEL, ADAPTER) or "!model-not-found" in words:
        raise ModelNotFound.named(request.model)
    if "!queue-full" in words:
        raise QueueFull("16 requests wait already; try again later", retry_after_s=2.5)
    if "!bug" in words:
        raise ZeroDivisionError("secret insides")
    if request.response_format.WhichOneof("format") is not None:
        raise InvalidArgument.at("response_format", "is not supported by this engine yet")


class FakeRegistry(registry_rpc.RegistryServiceServicer):
    """One model with one adapter."""

    def __init__(self) -> None:
        self.model = registry.Model(
            name="models/tiny",
            kind=registry.MODEL_KIND_TEXT_GENERATION,
            capabilities=[registry.CAPABILITY_CHAT, registry.CAPABILITY_ADAPTERS],
            provider="pypi",
            context_length=2048,
            state=registry.MODEL_STATE_AVAILABLE,
            default_version="models/tiny/versions/1",
            size_bytes=1000,
            create_time=WHEN,
        )
        self.weights = registry.Version(
            name="models/tiny/versions/1",
            kind=registry.VERSION_KIND_WEIGHTS,
            state=registry.VERSION_STATE_AVAILABLE,
            create_time=WHEN,
        )
        self.adapter: registry.Version | None = registry.Version(
            name="models/tiny/versions/pirate",
            kind=registry.VERSION_KIND_ADAPTER,
            state=registry.VERSION_STATE_AVAILABLE,
            base_version="models/tiny/versions/1",
            size_bytes=10,
            create_time=WHEN,
        )

    async def ListModels(
        self, request: registry.ListModelsRequest, context_: Context
    ) -> registry.ListModelsResponse:
        return registry.ListModelsResponse(models=[self.model])

    async def ListVersions(
        self, request: registry.ListVersionsRequest, context_: Context
    ) -> registry.ListVersionsResponse:
        # Two pages, so that the gateway must ask twice.
        if not request.page_token:
            return registry.ListVersionsResponse(versions=[self.weights], next_page_token="more")
        return registry.ListVersionsResponse(versions=[self.adapter] if self.adapter else [])

    async def ResolveModel(
        self, request: registry.ResolveModelRequest, context_: Context
    ) -> registry.ResolveModelResponse:
        if request.reference == ADAPTER and self.adapter is not None:
            return registry.ResolveModelResponse(model=self.model, version=self.weights, adapter=self.adapter)
        if request.reference == MODEL and self.weights.state == registry.VERSION_STATE_QUARANTINED:
            raise ModelNotAvailable("models/tiny/versions/1 is quarantined", metadata={"model": MODEL})
        if request.reference == MODEL:
            return registry.ResolveModelResponse(model=self.model, version=self.weights)
        if request.reference == "hf:tiny-org/Tiny":
            return registry.ResolveModelResponse(model=self.model, version=self.weights)
        raise ModelNotFound.named(request.reference)

    async def GetModel(
        self, request: registry.GetModelRequest, context_: Context
    ) -> registry.GetModelResponse:
        return registry.GetModelResponse(model=self.model)

    async def DeleteVersion(
        self, request: registry.DeleteVersionRequest, context_: Context
    ) -> registry.DeleteVersionResponse:
        self.adapter = None
        return registry.DeleteVersionResponse()


class FakeSpeech(speech_rpc.SpeechServiceServicer):
    """Hears two segments in anything that begins with RIFF."""

    def __init__(self) -> None:
        self.config = speech.TranscriptionConfig()
        self.num_bytes = 0
        self.largest_chunk_bytes = 0

    async def Transcribe(
        self, requests: AsyncIterator[speech.TranscribeRequest], context_: Context
    ) -> AsyncIterator[speech.TranscribeResponse]:
        sound = b""
        self.num_bytes = self.largest_chunk_bytes = 0
        async for part in requests:
            if part.HasField("config"):
                self.config = part.config
            sound = sound or part.chunk[:4]
            self.num_bytes += len(part.chunk)
            self.largest_chunk_bytes = max(self.largest_chunk_bytes, len(part.chunk))
        if sound != b"RIFF":
            raise InvalidAudio("the file is no audio that can be read; send WAV, MP3, FLAC or OGG")
        started = speech.TranscriptionStarted(
            version="models/ear/versions/1", language="en", language_probability=0.9
        )
        started.audio_duration.FromMilliseconds(3500)
        yield speech.TranscribeResponse(started=started)
        for index, text in enumerate((" Hello there.", " General Kenobi.")):
            segment = speech.Segment(index=index, text=text, average_logprob=-0.25)
            segment.start_offset.FromMilliseconds(1500 * index)
            segment.end_offset.FromMilliseconds(1500 * (index + 1))
            if self.config.words:
                segment.words.add(text=text.split()[0], confidence=0.5).end_offset.FromMilliseconds(700)
            yield speech.TranscribeResponse(segment=segment)
        finished = speech.TranscriptionFinished()
        finished.audio_duration.FromMilliseconds(3500)
        yield speech.TranscribeResponse(finished=finished)


class FakeTrainer(trainer_rpc.TrainerServiceServicer):
    """Keeps datasets and jobs in memory. Nothing is taught: a job is as the test sets it."""

    def __init__(self) -> None:
        self.datasets: dict[str, trainer.Dataset] = {}
        self.bytes: dict[str, bytes] = {}
        self.jobs: dict[str, trainer.Job] = {}

    async def CreateDataset(
        self, requests: AsyncIterator[trainer.CreateDatasetRequest], context_: Context
    ) -> trainer.CreateDatasetResponse:
        header, data = trainer.DatasetHeader(), b""
        async for part in requests:
            if part.HasField("header"):
                header = part.header
            data += part.chunk
        if not data.startswith(b"{"):
            raise InvalidDataset("line 1 is not a JSON object")
        name = f"datasets/d{len(self.datasets) + 1}"
        self.bytes[name] = data
        self.datasets[name] = trainer.Dataset(
            name=name, file_name=header.file_name, size_bytes=len(data), create_time=WHEN
        )
        return trainer.CreateDatasetResponse(dataset=self.datasets[name])

    def _dataset(self, name: str) -> trainer.Dataset:
        if name not in self.datasets:
            raise DatasetNotFound.named(name)
        return self.datasets[name]

    async def GetDataset(
        self, request: trainer.GetDatasetRequest, context_: Context
    ) -> trainer.GetDatasetResponse:
        return trainer.GetDatasetResponse(dataset=self._dataset(request.name))

    async def ListDatasets(
        self, request: trainer.ListDatasetsRequest, context_: Context
    ) -> trainer.ListDatasetsResponse:
        return trainer.ListDatasetsResponse(datasets=reversed(self.datasets.values()))

    async def ReadDataset(
        self, request: trainer.ReadDatasetRequest, context_: Context
    ) -> AsyncIterator[trainer.ReadDatasetResponse]:
        self._dataset(request.name)
        data = self.bytes[request.name]
        for start in range(0, len(data), 10):
            yield trainer.ReadDatasetResponse(chunk=data[start : start + 10])

    async def DeleteDataset(
        self, request: trainer.DeleteDatasetRequest, context_: Context
    ) -> trainer.DeleteDatasetResponse:
        self._dataset(request.name)
        del self.datasets[request.name]
        return trainer.DeleteDatasetResponse()

    async def CreateJob(
        self, request: trainer.CreateJobRequest, context_: Context
    ) -> trainer.CreateJobResponse:
        self._dataset(request.job.dataset)
        job = trainer.Job()
        job.CopyFrom(request.job)
        job.name = f"jobs/j{len(self.jobs) + 1}"
        job.state = trainer.JOB_STATE_QUEUED
        job.create_time.CopyFrom(WHEN)
        self.jobs[job.name] = job
        return trainer.CreateJobResponse(job=job)

    def _job(self, name: str) -> trainer.Job:
        if name not in self.jobs:
            raise JobNotFound.named(name)
        return self.jobs[name]

    async def GetJob(self, request: trainer.GetJobRequest, context_: Context) -> trainer.GetJobResponse:
        return trainer.GetJobResponse(job=self._job(request.name))

    async def ListJobs(self, request: trainer.ListJobsRequest, context_: Context) -> trainer.ListJobsResponse:
        return trainer.ListJobsResponse(jobs=reversed(self.jobs.values()))

    async def CancelJob(
        self, request: trainer.CancelJobRequest, context_: Context
    ) -> trainer.CancelJobResponse:
        job = self._job(request.name)
        if job.state == trainer.JOB_STATE_CANCELLED:
            raise JobFinished(f"{job.name} has ended already")
        job.state = trainer.JOB_STATE_CANCELLED
        return trainer.CancelJobResponse(job=job)

    async def ListJobEvents(
        self, request: trainer.ListJobEventsRequest, context_: Context
    ) -> trainer.ListJobEventsResponse:
        self._job(request.parent)
        return trainer.ListJobEventsResponse(
            events=[
                trainer.JobEvent(
                    sequence=1,
                    event_time=WHEN,
                    level=trainer.EVENT_LEVEL_INFO,
                    message="the job began",
                    state=trainer.JOB_STATE_RUNNING,
                ),
                trainer.JobEvent(
                    sequence=2,
                    event_time=WHEN,
                    level=trainer.EVENT_LEVEL_INFO,
                    message="step 1 of 20",
                    progress=trainer.JobProgress(step=1, total_steps=20, loss=2.5),
                ),
            ]
        )

    async def ListCheckpoints(
        self, request: trainer.ListCheckpointsRequest, context_: Context
    ) -> trainer.ListCheckpointsResponse:
        self._job(request.parent)
        checkpoint = trainer.Checkpoint(step=10, loss=1.5, size_bytes=9, create_time=WHEN)
        return trainer.ListCheckpointsResponse(checkpoints=[checkpoint])


class FakeServices:
    """A gRPC server with all of them. What they do not implement, the gateway does not call."""

    def __init__(self) -> None:
        self.downloader = FakeDownloader()  # type: ignore[abstract]
        self.inference = FakeInference()  # type: ignore[abstract]
        self.registry = FakeRegistry()  # type: ignore[abstract]
        self.speech = FakeSpeech()  # type: ignore[abstract]
        self.trainer = FakeTrainer()  # type: ignore[abstract]
        self.health = Health()
        self.port = 0
        self._server = grpc.aio.server(interceptors=[ServeInterceptor()])

    async def start(self) -> None:
        downloader_rpc.add_DownloaderServiceServicer_to_server(self.downloader, self._server)
        inference_rpc.add_InferenceServiceServicer_to_server(self.inference, self._server)
        registry_rpc.add_RegistryServiceServicer_to_server(self.registry, self._server)
        speech_rpc.add_SpeechServiceServicer_to_server(self.speech, self._server)
        trainer_rpc.add_TrainerServiceServicer_to_server(self.trainer, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        for full_name in FULL_NAMES.values():
            self.health.set(full_name, True)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(0.1)
