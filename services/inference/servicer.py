"""Inference's RPCs: parse the request, ask the core, convert the answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from lares.inference.v1 import inference_pb2 as pb
from lares.inference.v1 import inference_pb2_grpc as rpc
from services.inference import convert, convert_models, convert_texts
from services.inference.adapters.hardware import probe_hardware
from services.inference.adapters.metrics import GenerationMeter
from services.inference.core.inference import Inference
from services.inference.core.pool import ModelPool
from services.kit.host import Host
from services.kit.paging import decode_cursor, encode_cursor, page_size

Context = grpc.aio.ServicerContext[Any, Any]

_LIST_SCOPE = "loadedModels"


class InferenceServicer(rpc.InferenceServiceServicer):
    """Translates, no more: rules are in the core, and errors become statuses in the kit's interceptor."""

    def __init__(self, host: Host, inference: Inference, pool: ModelPool) -> None:
        self._host = host
        self._inference = inference
        self._pool = pool

    async def Generate(
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        """Closing the core's generator, however the call ends, frees the slot."""
        meter = GenerationMeter(request.model)
        generation = self._inference.generate(convert.generation_request_from_proto(request))
        async with aclosing(generation) as events:
            async for event in events:
                meter.see(event)
                for response in convert.generation_event_to_proto(event):
                    yield response

    async def Embed(self, request: pb.EmbedRequest, context: Context) -> pb.EmbedResponse:
        """Vectors of texts."""
        embeddings, version = await self._inference.embed(convert_texts.embed_request_from_proto(request))
        return convert_texts.embeddings_to_proto(embeddings, version)

    async def Rerank(self, request: pb.RerankRequest, context: Context) -> pb.RerankResponse:
        """Documents, best first."""
        reranking = await self._inference.rerank(convert_texts.rerank_request_from_proto(request))
        return convert_texts.reranking_to_proto(reranking)

    async def Score(self, request: pb.ScoreRequest, context: Context) -> pb.ScoreResponse:
        """How likely a text is."""
        return convert_texts.score_to_proto(
            await self._inference.score(convert_texts.score_request_from_proto(request))
        )

    async def LoadModel(self, request: pb.LoadModelRequest, context: Context) -> pb.LoadModelResponse:
        """Begin to load; the answer does not wait for the end."""
        keep_alive_s = convert.keep_alive_from_proto(request)
        loaded = await self._inference.load(
            convert.required_model(request.model),
            keep_alive_s,
            convert_models.quantization_from_proto(request.quantization),
        )
        return pb.LoadModelResponse(loaded_model=convert_models.loaded_model_to_proto(loaded))

    async def UnloadModel(self, request: pb.UnloadModelRequest, context: Context) -> pb.UnloadModelResponse:
        """Answers when the model is out of memory."""
        await self._inference.unload(convert_models.served_name_from_proto(request.name), force=request.force)
        return pb.UnloadModelResponse()

    async def GetLoadedModel(
        self, request: pb.GetLoadedModelRequest, context: Context
    ) -> pb.GetLoadedModelResponse:
        """One model in memory."""
        loaded = await self._inference.find(convert_models.served_name_from_proto(request.name))
        return pb.GetLoadedModelResponse(loaded_model=convert_models.loaded_model_to_proto(loaded))

    async def ListLoadedModels(
        self, request: pb.ListLoadedModelsRequest, context: Context
    ) -> pb.ListLoadedModelsResponse:
        """A page, by name."""
        size = page_size(request.page_size)
        cursor = decode_cursor(request.page_token, _LIST_SCOPE, (str,))
        after = str(cursor[0]) if cursor else ""
        models = [model for model in self._pool.loaded_models() if model.name > after]
        token = encode_cursor(_LIST_SCOPE, (models[size - 1].name,)) if len(models) > size else ""
        shown = [convert_models.loaded_model_to_proto(model) for model in models[:size]]
        return pb.ListLoadedModelsResponse(loaded_models=shown, next_page_token=token)

    async def WatchLoadedModels(
        self, request: pb.WatchLoadedModelsRequest, context: Context
    ) -> AsyncIterator[pb.WatchLoadedModelsResponse]:
        """How each stands, then each change, until the client or the process goes."""
        async with aclosing(self._host.until_draining(self._pool.watch())) as watched:
            async for sequence, loaded in watched:
                yield pb.WatchLoadedModelsResponse(
                    sequence=sequence, loaded_model=convert_models.loaded_model_to_proto(loaded)
                )

    async def GetHardware(self, request: pb.GetHardwareRequest, context: Context) -> pb.GetHardwareResponse:
        """Off the loop: a graphics driver may take its time."""
        return convert_models.hardware_to_proto(await asyncio.to_thread(probe_hardware))
