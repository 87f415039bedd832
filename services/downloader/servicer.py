"""The downloader's RPCs: parse the request, ask the core, convert the answer."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from lares.downloader.v1 import downloader_pb2 as pb
from lares.downloader.v1 import downloader_pb2_grpc as rpc
from services.downloader import convert
from services.downloader.core.blobs import Blobs
from services.downloader.core.catalog import Catalog
from services.downloader.core.cleanup import VersionCleaner
from services.downloader.core.download import FileProgress, changed_files
from services.downloader.core.garbage import GarbageCollector
from services.downloader.core.jobs import DownloadJobs
from services.downloader.core.leases import Leases
from services.downloader.core.ports import ModelRegistry
from services.downloader.core.usage import store_usage
from services.downloader.core.validation import Validator
from services.kit.errors import InvalidArgument
from services.kit.host import Host
from services.kit.paging import decode_cursor, encode_cursor, page_size
from services.kit.request_stream import RequestStream

Context = grpc.aio.ServicerContext[Any, Any]

MAX_REQUEST_ID_CHARS = 128
DEFAULT_MODELS_LISTED = 10
MAX_MODELS_LISTED = 1000


class DownloaderServicer(rpc.DownloaderServiceServicer):
    """Translates, no more: rules are in the core, and errors become statuses in the kit's interceptor."""

    def __init__(
        self,
        host: Host,
        jobs: DownloadJobs,
        catalog: Catalog,
        blobs: Blobs,
        leases: Leases,
        garbage: GarbageCollector,
        cleaner: VersionCleaner,
        validator: Validator,
        registry: ModelRegistry,
    ) -> None:
        self._host = host
        self._jobs = jobs
        self._catalog = catalog
        self._blobs = blobs
        self._leases = leases
        self._garbage = garbage
        self._cleaner = cleaner
        self._validator = validator
        self._registry = registry

    async def CreateDownload(
        self, request: pb.CreateDownloadRequest, context: Context
    ) -> pb.CreateDownloadResponse:
        """Begin a download, or join one."""
        if len(request.request_id) > MAX_REQUEST_ID_CHARS:
            raise InvalidArgument.at("request_id", f"must have at most {MAX_REQUEST_ID_CHARS} characters")
        download = await self._jobs.create(
            request.source,
            model_id=request.model_id,
            request_id=request.request_id,
            options=convert.options_from_proto(request.options),
        )
        return pb.CreateDownloadResponse(download=convert.download_to_proto(download))

    async def GetDownload(self, request: pb.GetDownloadRequest, context: Context) -> pb.GetDownloadResponse:
        """Return one download."""
        download = await self._jobs.get(convert.download_id_from_name(request.name))
        return pb.GetDownloadResponse(download=convert.download_to_proto(download))

    async def ListDownloads(
        self, request: pb.ListDownloadsRequest, context: Context
    ) -> pb.ListDownloadsResponse:
        """Return a page of downloads; its token holds the last one's id."""
        states = convert.states_from_proto(list(request.states))
        scope = f"downloads {states}"
        cursor = decode_cursor(request.page_token, scope, (str,))
        limit = page_size(request.page_size)
        page = await self._jobs.page(states, before_id=str(cursor[0]) if cursor else None, limit=limit + 1)
        shown = page[:limit]
        return pb.ListDownloadsResponse(
            downloads=[convert.download_to_proto(download, files=()) for download in shown],
            next_page_token=encode_cursor(scope, (shown[-1].id,)) if len(page) > limit else "",
        )

    async def WatchDownload(
        self, request: pb.WatchDownloadRequest, context: Context
    ) -> AsyncIterator[pb.WatchDownloadResponse]:
        """Stream a download's progress."""
        watched = self._jobs.watch(convert.download_id_from_name(request.name))
        told: tuple[FileProgress, ...] = ()
        async with aclosing(self._host.until_draining(watched)) as events:
            async for sequence, download in events:
                changed = changed_files(told, download.files)
                told = download.files
                yield pb.WatchDownloadResponse(
                    sequence=sequence, download=convert.download_to_proto(download, files=changed)
                )

    async def PauseDownload(
        self, request: pb.PauseDownloadRequest, context: Context
    ) -> pb.PauseDownloadResponse:
        """Stop a download."""
        download = await self._jobs.pause(convert.download_id_from_name(request.name))
        return pb.PauseDownloadResponse(download=convert.download_to_proto(download))

    async def ResumeDownload(
        self, request: pb.ResumeDownloadRequest, context: Context
    ) -> pb.ResumeDownloadResponse:
        """Go on with a download."""
        download = await self._jobs.resume(convert.download_id_from_name(request.name))
        return pb.ResumeDownloadResponse(download=convert.download_to_proto(download))

    async def CancelDownload(
        self, request: pb.CancelDownloadRequest, context: Context
    ) -> pb.CancelDownloadResponse:
        """End a download."""
        download = await self._jobs.cancel(convert.download_id_from_name(request.name))
        return pb.CancelDownloadResponse(download=convert.download_to_proto(download))

    async def ListCatalogEntries(
        self, request: pb.ListCatalogEntriesRequest, context: Context
    ) -> pb.ListCatalogEntriesResponse:
        """Return a page of the catalogue; its token holds the last one's name."""
        (after_id,) = decode_cursor(request.page_token, "catalogue", (str,)) or ("",)
        limit = page_size(request.page_size)
        page = self._catalog.page(after_id=str(after_id), limit=limit + 1)
        shown = page[:limit]
        return pb.ListCatalogEntriesResponse(
            entries=[convert.entry_to_proto(entry) for entry in shown],
            next_page_token=encode_cursor("catalogue", (shown[-1].model_id,)) if len(page) > limit else "",
        )

    async def CreateLease(self, request: pb.CreateLeaseRequest, context: Context) -> pb.CreateLeaseResponse:
        """Give a lease."""
        lease, path = await self._leases.create(
            request.version,
            artifact_id=request.artifact_id,
            holder=request.holder,
            ttl=convert.ttl_from_proto(request.ttl, is_set=request.HasField("ttl")),
        )
        return pb.CreateLeaseResponse(lease=convert.lease_to_proto(lease, path))

    async def RenewLease(self, request: pb.RenewLeaseRequest, context: Context) -> pb.RenewLeaseResponse:
        """Make a lease last longer."""
        ttl = convert.ttl_from_proto(request.ttl, is_set=request.HasField("ttl"))
        lease, path = await self._leases.renew(request.name, ttl=ttl)
        return pb.RenewLeaseResponse(lease=convert.lease_to_proto(lease, path))

    async def DeleteLease(self, request: pb.DeleteLeaseRequest, context: Context) -> pb.DeleteLeaseResponse:
        """Take a lease back."""
        await self._leases.delete(request.name)
        return pb.DeleteLeaseResponse()

    async def WriteBlob(
        self, request_iterator: AsyncIterator[pb.WriteBlobRequest], context: Context
    ) -> pb.WriteBlobResponse:
        """Store what a caller sends."""
        async with RequestStream(request_iterator) as requests:
            first = await requests.first("header")
            if not first.HasField("header"):
                raise InvalidArgument.at("header", "must be the first message")
            written = await self._blobs.write(
                _chunks(requests), size_bytes=first.header.size_bytes, digest=first.header.digest
            )
        return convert.written_to_proto(written)

    async def ReadBlob(
        self, request: pb.ReadBlobRequest, context: Context
    ) -> AsyncIterator[pb.ReadBlobResponse]:
        """Send a blob's bytes."""
        read = self._blobs.read(request.digest, request.offset_bytes, request.max_bytes or None)
        async with aclosing(read) as chunks:
            async for chunk in chunks:
                yield pb.ReadBlobResponse(chunk=chunk)

    async def CollectGarbage(
        self, request: pb.CollectGarbageRequest, context: Context
    ) -> pb.CollectGarbageResponse:
        """Delete what nobody refers to."""
        return convert.collected_to_proto(await self._garbage.collect(dry_run=request.dry_run))

    async def CleanUpVersions(
        self, request: pb.CleanUpVersionsRequest, context: Context
    ) -> pb.CleanUpVersionsResponse:
        """Delete old versions."""
        if not request.HasField("num_keep"):
            raise InvalidArgument.at("num_keep", "must say how many versions of each model are to stay")
        done = await self._cleaner.clean_up(
            request.models, num_keep=request.num_keep, dry_run=request.dry_run
        )
        return convert.clean_up_to_proto(done)

    async def ValidateModels(
        self, request: pb.ValidateModelsRequest, context: Context
    ) -> AsyncIterator[pb.ValidateModelsResponse]:
        """Read versions again."""
        validation = self._validator.validate(
            request.names, repair=request.repair, max_bytes_per_second=request.max_bytes_per_second
        )
        async with aclosing(self._host.until_draining(validation)) as events:
            async for event in events:
                yield convert.event_to_proto(event)

    async def GetStoreUsage(
        self, request: pb.GetStoreUsageRequest, context: Context
    ) -> pb.GetStoreUsageResponse:
        """Tell what the store holds."""
        if request.num_models > MAX_MODELS_LISTED:
            raise InvalidArgument.at("num_models", f"must be at most {MAX_MODELS_LISTED}")
        usage = await store_usage(
            self._blobs, self._registry, num_models=request.num_models or DEFAULT_MODELS_LISTED
        )
        return convert.usage_to_proto(usage)


async def _chunks(requests: AsyncIterator[pb.WriteBlobRequest]) -> AsyncIterator[bytes]:
    async for request in requests:
        if not request.HasField("chunk"):
            raise InvalidArgument.at("chunk", "must follow: there is one header, and it comes first")
        yield request.chunk
