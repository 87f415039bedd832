"""The registry's RPCs: parse the request, ask the core, convert the answer."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Final

import grpc

from lares.registry.v1 import registry_pb2 as pb
from lares.registry.v1 import registry_pb2_grpc as rpc
from services.kit.host import Host
from services.kit.names import parse_model_name, parse_version_name
from services.kit.paging import decode_cursor, encode_cursor, page_size
from services.registry import convert
from services.registry.core.catalog import Catalog
from services.registry.core.models import Resolution
from services.registry.core.watch import Watcher

Context = grpc.aio.ServicerContext[Any, Any]

_MOST_TOLD: Final = 1024


class RegistryServicer(rpc.RegistryServiceServicer):
    """Translates, no more: rules are in the core, and errors become statuses in the kit's interceptor."""

    def __init__(self, host: Host, catalog: Catalog, watcher: Watcher) -> None:
        self._host = host
        self._catalog = catalog
        self._watcher = watcher
        # What was told of each name last: the catalogue gives the same object as long as nothing has changed.
        self._told: dict[str, tuple[Resolution, pb.ResolveModelResponse]] = {}

    async def CreateModel(self, request: pb.CreateModelRequest, context: Context) -> pb.CreateModelResponse:
        """Record a model."""
        draft = convert.model_from_proto(request.model, request.model_id)
        model = await self._catalog.create_model(draft, request_id=request.request_id)
        return pb.CreateModelResponse(model=convert.model_to_proto(model))

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        """Return one model."""
        model = await self._catalog.get_model(parse_model_name(request.name))
        return pb.GetModelResponse(model=convert.model_to_proto(model))

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        """Return a page of models; its token holds the last one's id."""
        models = convert.filter_from_proto(request.filter)
        scope = f"models {models}"
        (after_id,) = decode_cursor(request.page_token, scope, (str,)) or ("",)
        page = await self._catalog.list_models(
            models, after_id=str(after_id), limit=page_size(request.page_size)
        )
        return pb.ListModelsResponse(
            models=[convert.model_to_proto(model) for model in page.items],
            next_page_token=encode_cursor(scope, (page.items[-1].id,)) if page.more else "",
        )

    async def UpdateModel(self, request: pb.UpdateModelRequest, context: Context) -> pb.UpdateModelResponse:
        """Change a model."""
        model_id = parse_model_name(request.model.name, field="model.name")
        draft = convert.model_from_proto(request.model, model_id)
        fields = convert.model_fields(request.model, request.update_mask)
        model = await self._catalog.update_model(draft, fields)
        return pb.UpdateModelResponse(model=convert.model_to_proto(model))

    async def DeleteModel(self, request: pb.DeleteModelRequest, context: Context) -> pb.DeleteModelResponse:
        """Delete a model with its versions."""
        await self._catalog.delete_model(parse_model_name(request.name), etag=request.etag)
        return pb.DeleteModelResponse()

    async def ResolveModel(
        self, request: pb.ResolveModelRequest, context: Context
    ) -> pb.ResolveModelResponse:
        """Find what a name means."""
        resolution = await self._catalog.resolve(request.reference)
        told = self._told.get(request.reference)
        if told is None or told[0] is not resolution:
            if len(self._told) >= _MOST_TOLD:
                self._told.clear()
            told = self._told[request.reference] = resolution, convert.resolution_to_proto(resolution)
        return told[1]

    async def WatchModels(
        self, request: pb.WatchModelsRequest, context: Context
    ) -> AsyncIterator[pb.WatchModelsResponse]:
        """Stream changes."""
        models = convert.filter_from_proto(request.filter)
        asked = request.after_sequence if request.HasField("after_sequence") else None
        events = self._host.until_draining(self._watcher.watch(models, after_sequence=asked))
        async with aclosing(events):
            async for event in events:
                yield convert.event_to_proto(event)

    async def CreateVersion(
        self, request: pb.CreateVersionRequest, context: Context
    ) -> pb.CreateVersionResponse:
        """Record a version."""
        model_id = parse_model_name(request.parent, field="parent")
        draft = convert.version_from_proto(request.version, model_id, request.version_id)
        version = await self._catalog.create_version(draft, request_id=request.request_id)
        return pb.CreateVersionResponse(version=convert.version_to_proto(version))

    async def GetVersion(self, request: pb.GetVersionRequest, context: Context) -> pb.GetVersionResponse:
        """Return one version."""
        version = await self._catalog.get_version(*parse_version_name(request.name))
        return pb.GetVersionResponse(version=convert.version_to_proto(version))

    async def ListVersions(
        self, request: pb.ListVersionsRequest, context: Context
    ) -> pb.ListVersionsResponse:
        """Return a page of versions; its token holds the last one's serial."""
        model_id = convert.parent_from_proto(request.parent)
        scope = f"versions {request.parent}"
        (after_serial,) = decode_cursor(request.page_token, scope, (int,)) or (0,)
        page = await self._catalog.list_versions(
            model_id, after_serial=int(after_serial), limit=page_size(request.page_size)
        )
        return pb.ListVersionsResponse(
            versions=[convert.version_to_proto(version) for version in page.items],
            next_page_token=encode_cursor(scope, (page.items[-1].serial,)) if page.more else "",
        )

    async def UpdateVersion(
        self, request: pb.UpdateVersionRequest, context: Context
    ) -> pb.UpdateVersionResponse:
        """Change a version."""
        key = parse_version_name(request.version.name, field="version.name")
        draft = convert.version_from_proto(request.version, *key)
        fields = convert.version_fields(request.version, request.update_mask)
        version = await self._catalog.update_version(draft, fields)
        return pb.UpdateVersionResponse(version=convert.version_to_proto(version))

    async def DeleteVersion(
        self, request: pb.DeleteVersionRequest, context: Context
    ) -> pb.DeleteVersionResponse:
        """Delete a version."""
        key = parse_version_name(request.name)
        await self._catalog.delete_version(*key, etag=request.etag, force=request.force)
        return pb.DeleteVersionResponse()

    async def CreateArtifact(
        self, request: pb.CreateArtifactRequest, context: Context
    ) -> pb.CreateArtifactResponse:
        """Record a derived form of a version."""
        key = parse_version_name(request.parent, field="parent")
        version = await self._catalog.create_artifact(*key, convert.artifact_from_proto(request.artifact))
        return pb.CreateArtifactResponse(version=convert.version_to_proto(version))
