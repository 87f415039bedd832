"""/v1/models."""

import asyncio

from starlette.requests import Request
from starlette.responses import Response

from gateway.endpoint import Endpoint, Gateway, json_response
from gateway.openai.common import Deleted
from gateway.openai.models import (
    ModelList,
    ModelObject,
    adapter_from_proto,
    model_from_proto,
    models_from_proto,
)
from gateway.upstream import all_pages, unary
from lares.registry.v1 import registry_pb2 as pb
from services.kit.errors import FailedPrecondition
from services.kit.names import ServedName


async def list_models(gateway: Gateway, request: Request) -> Response:
    """Every model that can be used, and every adapter, under the name that it is asked by."""
    registry, timeout_s = gateway.upstream.registry, gateway.settings.request_timeout_s
    available = pb.ModelFilter(states=[pb.MODEL_STATE_AVAILABLE])

    async def models(page_token: str) -> tuple[list[pb.Model], str]:
        message = pb.ListModelsRequest(filter=available, page_size=1000, page_token=page_token)
        answer = await unary(registry.ListModels(message, timeout=timeout_s))
        return list(answer.models), answer.next_page_token

    async def versions(page_token: str) -> tuple[list[pb.Version], str]:
        message = pb.ListVersionsRequest(parent="models/-", page_size=1000, page_token=page_token)
        answer = await unary(registry.ListVersions(message, timeout=timeout_s))
        return list(answer.versions), answer.next_page_token

    both = asyncio.gather(all_pages(models), all_pages(versions))
    return json_response(models_from_proto(*await both))


async def get_model(gateway: Gateway, request: Request) -> Response:
    """One model or adapter."""
    resolved = await _resolve(gateway, request)
    if resolved.HasField("adapter"):
        return json_response(adapter_from_proto(resolved.adapter, resolved.model))
    return json_response(model_from_proto(resolved.model))


async def delete_model(gateway: Gateway, request: Request) -> Response:
    """Delete an adapter. A base model is not deleted here: other people's work may rest on it."""
    resolved = await _resolve(gateway, request)
    model = request.path_params["model"]
    if not resolved.HasField("adapter"):
        raise FailedPrecondition(
            f"'{model}' is not a fine-tuned model; `lares rm {model}` removes it from this house"
        )
    message = pb.DeleteVersionRequest(name=resolved.adapter.name)
    await unary(gateway.upstream.registry.DeleteVersion(message, timeout=gateway.settings.request_timeout_s))
    return json_response(Deleted(id=model, object="model"))


async def _resolve(gateway: Gateway, request: Request) -> pb.ResolveModelResponse:
    served = ServedName.parse(request.path_params["model"])
    message = pb.ResolveModelRequest(reference=str(served))
    call = gateway.upstream.registry.ResolveModel(message, timeout=gateway.settings.request_timeout_s)
    return await unary(call)


ENDPOINTS = [
    Endpoint("GET", "/v1/models", list_models, "List models", response=ModelList),
    Endpoint("GET", "/v1/models/{model:path}", get_model, "Tell of a model", response=ModelObject),
    Endpoint(
        "DELETE", "/v1/models/{model:path}", delete_model, "Delete a fine-tuned model", response=Deleted
    ),
]
