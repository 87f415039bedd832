"""Messages <-> domain. Pure functions, in pairs where both ways are needed."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from lares.downloader.v1 import downloader_pb2 as pb
from lares.registry.v1 import registry_pb2
from services.downloader.core.blobs import WrittenBlob
from services.downloader.core.catalog import CatalogEntry
from services.downloader.core.cleanup import CleanUp
from services.downloader.core.download import Download, DownloadState, FileProgress, PullOptions
from services.downloader.core.findings import Event, Progress, Summary, ValidatedFile, ValidatedVersion
from services.downloader.core.garbage import Collected
from services.downloader.core.leases import lease_name
from services.downloader.core.ports import Lease
from services.downloader.core.usage import Share, StoreUsage
from services.kit.errors import InvalidArgument
from services.kit.names import model_name, parse_resource


def download_id_from_name(name: str) -> str:
    """`downloads/x` -> `x`. Raises InvalidReference."""
    (download_id,) = parse_resource(name, "downloads/{download}")
    return download_id


def download_to_proto(download: Download, files: Sequence[FileProgress] | None = None) -> pb.Download:
    """As it stands. files: those to tell of; all of them if None."""
    message = pb.Download(
        name=download.name,
        source=download.source,
        resolved_source=download.resolved_source,
        model=model_name(download.model_id),
        version=download.version,
        state=pb.DownloadState.ValueType(download.state),
        phase=pb.DownloadPhase.ValueType(download.phase),
        completed_bytes=download.completed_bytes,
        total_bytes=download.total_bytes,
        bytes_per_second=download.bytes_per_second,
        files=[_file_to_proto(file) for file in (download.files if files is None else files)],
        create_time=_time_to_proto(download.create_time),
        options=_options_to_proto(download.options),
    )
    if download.eta_s is not None:
        message.eta.CopyFrom(_duration_to_proto(timedelta(seconds=download.eta_s)))
    if download.failure is not None:
        message.failure.reason = download.failure.reason
        message.failure.message = download.failure.message
    if download.start_time is not None:
        message.start_time.CopyFrom(_time_to_proto(download.start_time))
    if download.end_time is not None:
        message.end_time.CopyFrom(_time_to_proto(download.end_time))
    return message


def options_from_proto(message: pb.PullOptions) -> PullOptions:
    """Raises InvalidArgument for a timeout that is none."""
    timeout_s = None
    if message.HasField("timeout"):
        try:
            timeout_s = message.timeout.ToTimedelta().total_seconds()
        except (ValueError, OverflowError):
            raise InvalidArgument.at("options.timeout", "must be 1 s to 7 days") from None
    return PullOptions(
        allow_patterns=tuple(message.allow_patterns),
        ignore_patterns=tuple(message.ignore_patterns),
        priority=message.priority,
        timeout_s=timeout_s,
        local_folder=message.local_folder,
    )


def _options_to_proto(options: PullOptions) -> pb.PullOptions:
    message = pb.PullOptions(
        allow_patterns=options.allow_patterns,
        ignore_patterns=options.ignore_patterns,
        priority=options.priority,
        local_folder=options.local_folder,
    )
    if options.timeout_s is not None:
        message.timeout.CopyFrom(_duration_to_proto(timedelta(seconds=options.timeout_s)))
    return message


def states_from_proto(states: "list[pb.DownloadState.ValueType]") -> list[DownloadState]:
    """Raises InvalidArgument for one that is not known."""
    try:
        return sorted({DownloadState(state) for state in states})
    except ValueError:
        raise InvalidArgument.at("states", "must be states that a download can have") from None


def entry_to_proto(entry: CatalogEntry) -> pb.CatalogEntry:
    """One entry of the catalogue."""
    return pb.CatalogEntry(
        model_id=entry.model_id,
        sources=[str(source) for source in entry.sources],
        kind=registry_pb2.ModelKind.ValueType(entry.kind),
        description=entry.description,
        license=entry.license,
        download_bytes=entry.download_bytes,
        languages=entry.languages,
    )


def lease_to_proto(lease: Lease, path: Path) -> pb.Lease:
    """path: the folder that it is on."""
    return pb.Lease(
        name=lease_name(lease.id),
        version=lease.version,
        artifact_id=lease.artifact_id,
        path=str(path),
        holder=lease.holder,
        expire_time=_time_to_proto(lease.expire_time),
    )


def ttl_from_proto(message: Duration, *, is_set: bool) -> timedelta | None:
    """None if it is not set. Raises InvalidArgument for a duration that is none."""
    if not is_set:
        return None
    try:
        return message.ToTimedelta()
    except (ValueError, OverflowError):
        raise InvalidArgument.at("ttl", "must be 1 s to 1 h") from None


def written_to_proto(written: WrittenBlob) -> pb.WriteBlobResponse:
    """What was stored."""
    return pb.WriteBlobResponse(
        digest=written.blob.digest,
        size_bytes=written.blob.size_bytes,
        expire_time=_time_to_proto(written.expire_time),
    )


def collected_to_proto(collected: Collected) -> pb.CollectGarbageResponse:
    """What went."""
    return pb.CollectGarbageResponse(
        num_blobs=collected.num_blobs,
        freed_bytes=collected.freed_bytes,
        num_partials=collected.num_partials,
        num_views=collected.num_views,
        num_quarantined=collected.num_quarantined,
        items=[
            pb.GarbageItem(
                name=item.name,
                reason=pb.GarbageReason.ValueType(item.reason),
                size_bytes=item.size_bytes,
                age=_duration_to_proto(item.age),
            )
            for item in collected.items
        ],
    )


def clean_up_to_proto(done: CleanUp) -> pb.CleanUpVersionsResponse:
    """Versions that went, and those that stay."""
    return pb.CleanUpVersionsResponse(
        versions=[
            pb.RemovedVersion(
                name=version.name,
                size_bytes=version.size_bytes,
                create_time=_time_to_proto(version.create_time),
            )
            for version in done.removed
        ],
        freed_bytes=done.freed_bytes,
        kept=[
            pb.KeptVersion(name=version.name, reason=pb.KeepReason.ValueType(reason))
            for version, reason in done.kept
        ],
    )


def event_to_proto(event: Event) -> pb.ValidateModelsResponse:
    """One step of a validation."""
    match event:
        case Progress():
            return pb.ValidateModelsResponse(
                progress=pb.ValidationProgress(
                    version=event.version,
                    path=event.path,
                    completed_bytes=event.completed_bytes,
                    total_bytes=event.total_bytes,
                )
            )
        case ValidatedFile():
            return pb.ValidateModelsResponse(
                file=pb.ValidatedFile(
                    version=event.version,
                    path=event.path,
                    digest=event.blob.digest,
                    size_bytes=event.blob.size_bytes,
                    verdict=pb.FileVerdict.ValueType(event.verdict),
                )
            )
        case ValidatedVersion():
            return pb.ValidateModelsResponse(
                version=pb.ValidatedVersion(
                    name=event.name,
                    verdict=pb.VersionVerdict.ValueType(event.verdict),
                    reason=event.reason,
                    download=event.download,
                )
            )
        case Summary():
            return pb.ValidateModelsResponse(summary=pb.ValidationSummary(**asdict(event)))


def usage_to_proto(usage: StoreUsage) -> pb.GetStoreUsageResponse:
    """What the store holds."""
    message = pb.GetStoreUsageResponse(
        referenced=_share_to_proto(usage.referenced),
        unreferenced=_share_to_proto(usage.unreferenced),
        partial=_share_to_proto(usage.partial),
        views=_share_to_proto(usage.views),
        quarantine=_share_to_proto(usage.quarantine),
        used_bytes=usage.used_bytes,
        free_bytes=usage.disk.free_bytes,
        disk_bytes=usage.disk.size_bytes,
        min_free_bytes=usage.reserve_bytes,
        models=[
            pb.ModelUsage(
                model=each.model,
                num_versions=each.num_versions,
                size_bytes=each.size_bytes,
                shared_bytes=each.shared_bytes,
            )
            for each in usage.models
        ],
    )
    if usage.limit_bytes:
        message.max_store_bytes = usage.limit_bytes
    return message


def _share_to_proto(share: Share) -> pb.StoreShare:
    return pb.StoreShare(count=share.count, size_bytes=share.size_bytes)


def _file_to_proto(file: FileProgress) -> pb.FileProgress:
    return pb.FileProgress(path=file.path, completed_bytes=file.completed_bytes, total_bytes=file.total_bytes)


def _time_to_proto(time: datetime) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(time)
    return message


def _duration_to_proto(duration: timedelta) -> Duration:
    message = Duration()
    message.FromTimedelta(duration)
    return message
