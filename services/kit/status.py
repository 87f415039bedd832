"""Domain error <-> gRPC status <-> HTTP status and OpenAI error body: one table, both ways."""

import binascii
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import grpc
from google.protobuf import any_pb2, duration_pb2, message
from google.rpc import error_details_pb2, status_pb2

from services.kit import errors
from services.kit.errors import FieldViolation, LaresError

DOMAIN = "lares"
"""`ErrorInfo.domain` of every error that is ours."""

DETAILS_KEY = "grpc-status-details-bin"
"""Trailing metadata key under which gRPC carries a `google.rpc.Status`."""

# An HTTP/2 peer may refuse trailers past 8 KiB (Java and C core do), and both the message (percent-encoded:
# up to three bytes for one) and the status (base64: four for three) travel in them.
_MAX_MESSAGE_BYTES = 1000
_MAX_STATUS_BYTES = 3000

_C = grpc.StatusCode


class Row(NamedTuple):
    """What one domain error is to everybody else."""

    code: grpc.StatusCode
    http: int
    openai_type: str
    openai_code: str


TABLE: dict[type[LaresError], Row] = {
    errors.LaresError: Row(_C.INTERNAL, 500, "server_error", "internal_error"),
    errors.InvalidArgument: Row(_C.INVALID_ARGUMENT, 400, "invalid_request_error", "invalid_argument"),
    errors.InvalidReference: Row(_C.INVALID_ARGUMENT, 400, "invalid_request_error", "invalid_reference"),
    errors.InvalidDigest: Row(_C.INVALID_ARGUMENT, 400, "invalid_request_error", "invalid_digest"),
    errors.UnsupportedParameter: Row(
        _C.INVALID_ARGUMENT, 400, "invalid_request_error", "unsupported_parameter"
    ),
    errors.ContextLengthExceeded: Row(
        _C.INVALID_ARGUMENT, 400, "invalid_request_error", "context_length_exceeded"
    ),
    errors.InvalidDataset: Row(_C.INVALID_ARGUMENT, 400, "invalid_request_error", "invalid_dataset"),
    errors.InvalidAudio: Row(_C.INVALID_ARGUMENT, 400, "invalid_request_error", "invalid_audio"),
    errors.InvalidPageToken: Row(_C.INVALID_ARGUMENT, 400, "invalid_request_error", "invalid_page_token"),
    errors.OffsetPastEnd: Row(_C.OUT_OF_RANGE, 416, "invalid_request_error", "offset_past_end"),
    errors.InvalidTemplate: Row(_C.INVALID_ARGUMENT, 400, "invalid_request_error", "invalid_template"),
    errors.Unauthenticated: Row(_C.UNAUTHENTICATED, 401, "authentication_error", "invalid_api_key"),
    errors.PermissionDenied: Row(_C.PERMISSION_DENIED, 403, "permission_error", "permission_denied"),
    errors.NotFound: Row(_C.NOT_FOUND, 404, "not_found_error", "not_found"),
    errors.ModelNotFound: Row(_C.NOT_FOUND, 404, "not_found_error", "model_not_found"),
    errors.VersionNotFound: Row(_C.NOT_FOUND, 404, "not_found_error", "model_not_found"),
    errors.EntryNotFound: Row(_C.NOT_FOUND, 404, "not_found_error", "entry_not_found"),
    errors.DownloadNotFound: Row(_C.NOT_FOUND, 404, "not_found_error", "download_not_found"),
    errors.BlobNotFound: Row(_C.NOT_FOUND, 404, "not_found_error", "blob_not_found"),
    errors.LeaseNotFound: Row(_C.NOT_FOUND, 404, "not_found_error", "lease_not_found"),
    errors.DatasetNotFound: Row(_C.NOT_FOUND, 404, "not_found_error", "dataset_not_found"),
    errors.JobNotFound: Row(_C.NOT_FOUND, 404, "not_found_error", "job_not_found"),
    errors.SourceNotFound: Row(_C.NOT_FOUND, 404, "not_found_error", "source_not_found"),
    errors.AlreadyExists: Row(_C.ALREADY_EXISTS, 409, "conflict_error", "already_exists"),
    errors.ModelExists: Row(_C.ALREADY_EXISTS, 409, "conflict_error", "model_exists"),
    errors.VersionExists: Row(_C.ALREADY_EXISTS, 409, "conflict_error", "version_exists"),
    errors.FailedPrecondition: Row(_C.FAILED_PRECONDITION, 409, "conflict_error", "failed_precondition"),
    errors.WrongModelKind: Row(_C.FAILED_PRECONDITION, 400, "invalid_request_error", "wrong_model_kind"),
    errors.ModelNotAvailable: Row(_C.FAILED_PRECONDITION, 409, "conflict_error", "model_not_available"),
    errors.ModelInUse: Row(_C.FAILED_PRECONDITION, 409, "conflict_error", "model_in_use"),
    errors.JobFinished: Row(_C.FAILED_PRECONDITION, 409, "conflict_error", "job_finished"),
    errors.Unpinned: Row(_C.FAILED_PRECONDITION, 400, "invalid_request_error", "unpinned"),
    errors.UnsupportedFormat: Row(_C.FAILED_PRECONDITION, 400, "invalid_request_error", "unsupported_format"),
    errors.EtagMismatch: Row(_C.ABORTED, 412, "conflict_error", "etag_mismatch"),
    errors.SequenceExpired: Row(_C.OUT_OF_RANGE, 400, "invalid_request_error", "sequence_expired"),
    errors.ResourceExhausted: Row(_C.RESOURCE_EXHAUSTED, 429, "rate_limit_error", "rate_limit_exceeded"),
    errors.PayloadTooLarge: Row(_C.RESOURCE_EXHAUSTED, 413, "invalid_request_error", "payload_too_large"),
    errors.QueueFull: Row(_C.RESOURCE_EXHAUSTED, 429, "rate_limit_error", "queue_full"),
    errors.InsufficientMemory: Row(_C.RESOURCE_EXHAUSTED, 507, "server_error", "insufficient_memory"),
    errors.DiskFull: Row(_C.RESOURCE_EXHAUSTED, 507, "server_error", "disk_full"),
    errors.StoreFull: Row(_C.RESOURCE_EXHAUSTED, 507, "server_error", "store_full"),
    errors.Unavailable: Row(_C.UNAVAILABLE, 503, "server_error", "unavailable"),
    errors.WorkerLost: Row(_C.UNAVAILABLE, 503, "server_error", "worker_lost"),
    errors.ServiceStarting: Row(_C.UNAVAILABLE, 503, "server_error", "service_starting"),
    errors.ServiceDraining: Row(_C.UNAVAILABLE, 503, "server_error", "service_draining"),
    errors.ServiceUnreachable: Row(_C.UNAVAILABLE, 503, "server_error", "service_unreachable"),
    errors.SourceUnavailable: Row(_C.UNAVAILABLE, 502, "server_error", "source_unavailable"),
    errors.DataLoss: Row(_C.DATA_LOSS, 500, "server_error", "data_loss"),
    errors.DigestMismatch: Row(_C.DATA_LOSS, 502, "server_error", "digest_mismatch"),
    errors.CorruptBlob: Row(_C.DATA_LOSS, 500, "server_error", "corrupt_blob"),
    errors.DeadlineExceeded: Row(_C.DEADLINE_EXCEEDED, 504, "server_error", "deadline_exceeded"),
    errors.DownloadTimeout: Row(_C.DEADLINE_EXCEEDED, 504, "server_error", "download_timeout"),
    errors.Cancelled: Row(_C.CANCELLED, 499, "server_error", "cancelled"),
    errors.Unsupported: Row(_C.UNIMPLEMENTED, 501, "server_error", "unsupported"),
    errors.InternalError: Row(_C.INTERNAL, 500, "server_error", "internal_error"),
}

# The other way, for a status that names no reason of ours: a proxy's, the transport's, a foreign service's.
_BY_CODE: dict[grpc.StatusCode, type[LaresError]] = {
    _C.INVALID_ARGUMENT: errors.InvalidArgument,
    _C.OUT_OF_RANGE: errors.InvalidArgument,
    _C.UNAUTHENTICATED: errors.Unauthenticated,
    _C.PERMISSION_DENIED: errors.PermissionDenied,
    _C.NOT_FOUND: errors.NotFound,
    _C.ALREADY_EXISTS: errors.AlreadyExists,
    _C.FAILED_PRECONDITION: errors.FailedPrecondition,
    _C.ABORTED: errors.FailedPrecondition,
    # What gRPC itself refuses so is a message beyond its limit, which is no smaller when it is sent again later.
    _C.RESOURCE_EXHAUSTED: errors.PayloadTooLarge,
    _C.UNAVAILABLE: errors.ServiceUnreachable,
    _C.DATA_LOSS: errors.DataLoss,
    _C.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    _C.CANCELLED: errors.Cancelled,
    _C.UNIMPLEMENTED: errors.Unsupported,
}

_DETAILS: dict[str, type[message.Message]] = {
    kind.DESCRIPTOR.full_name: kind
    for kind in (
        error_details_pb2.ErrorInfo,
        error_details_pb2.BadRequest,
        error_details_pb2.QuotaFailure,
        error_details_pb2.RetryInfo,
    )
}

# Ends a text that was cut, so that a reader does not take it for complete.
_CLIPPED = "…"


def row_of(error: type[LaresError] | LaresError) -> Row:
    """The table's row for an error or its class; a class that is not in it takes its parent's."""
    cls = error if isinstance(error, type) else type(error)
    return next(TABLE[base] for base in cls.__mro__ if base in TABLE)


def reason_of(error: type[LaresError] | LaresError) -> str:
    """The stable name on the wire, such as MODEL_NOT_FOUND."""
    return error.reason


def to_rpc_status(error: LaresError) -> status_pb2.Status:
    """The error as `google.rpc.Status`: ErrorInfo, and BadRequest, QuotaFailure, RetryInfo as apply.

    It always fits the trailers of a call: what is too long is cut, the details before the message.
    """
    status = status_pb2.Status(
        code=row_of(error).code.value[0], message=_clip(error.message, _MAX_MESSAGE_BYTES)
    )
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    _pack(status, info)
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        _pack(status, error_details_pb2.RetryInfo(retry_delay=delay))
    for key, value in error.metadata.items():
        info.metadata[key] = _clip(value, 500)
        if not _replace(status, 0, info):
            del info.metadata[key]
    _pack_violations(status, error)
    return status


def _pack_violations(status: status_pb2.Status, error: LaresError) -> None:
    if not error.violations:
        return
    detail: error_details_pb2.QuotaFailure | error_details_pb2.BadRequest
    quota = isinstance(error, errors.ResourceExhausted)
    detail = error_details_pb2.QuotaFailure() if quota else error_details_pb2.BadRequest()
    index = len(status.details)
    _pack(status, detail)
    for violation in error.violations:
        description = _clip(violation.description, 500)
        if isinstance(detail, error_details_pb2.QuotaFailure):
            detail.violations.add(subject=violation.field, description=description)
        else:
            detail.field_violations.add(field=violation.field, description=description)
        if not _replace(status, index, detail):
            return


def _pack(status: status_pb2.Status, detail: message.Message) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)
    status.details.append(packed)


def _replace(status: status_pb2.Status, index: int, detail: message.Message) -> bool:
    """Put a grown detail in its place if the status still fits the trailers; tell whether it does."""
    before = any_pb2.Any()
    before.CopyFrom(status.details[index])
    status.details[index].Pack(detail)
    if status.ByteSize() <= _MAX_STATUS_BYTES:
        return True
    status.details[index].CopyFrom(before)
    return False


def _clip(text: str, max_bytes: int) -> str:
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= max_bytes:
        return encoded.decode()
    return encoded[: max_bytes - len(_CLIPPED.encode())].decode("utf-8", "ignore") + _CLIPPED


def from_rpc_status(status: status_pb2.Status) -> LaresError | None:
    """The domain error in a `google.rpc.Status`, or None if the status is not one of ours."""
    cls: type[LaresError] | None = None
    metadata: dict[str, str] = {}
    violations: list[FieldViolation] = []
    retry_after_s: float | None = None
    for packed in status.details:
        for found in _unpack(packed):
            match found:
                case error_details_pb2.ErrorInfo() if found.domain == DOMAIN:
                    cls = errors.error_class(found.reason) or _class_of_code(status.code)
                    metadata = dict(found.metadata)
                case error_details_pb2.BadRequest():
                    violations += [FieldViolation(v.field, v.description) for v in found.field_violations]
                case error_details_pb2.QuotaFailure():
                    violations += [FieldViolation(v.subject, v.description) for v in found.violations]
                case error_details_pb2.RetryInfo():
                    retry_after_s = found.retry_delay.ToNanoseconds() / 1e9
    if cls is None:
        return None
    return cls(status.message, violations=violations, metadata=metadata, retry_after_s=retry_after_s)


def _unpack(packed: any_pb2.Any) -> Iterable[message.Message]:
    kind = _DETAILS.get(packed.TypeName())
    if kind is not None:
        found = kind()
        packed.Unpack(found)
        yield found


def _class_of_code(value: int) -> type[LaresError]:
    code = next((code for code in grpc.StatusCode if code.value[0] == value), grpc.StatusCode.UNKNOWN)
    return _BY_CODE.get(code, errors.InternalError)


def from_rpc_error(error: grpc.RpcError) -> LaresError:
    """What a failed call means to us: by its reason if it names one of ours, else by its code."""
    if not isinstance(error, grpc.aio.AioRpcError | grpc.Call):
        return errors.InternalError(f"a call failed without a status: {type(error).__name__}")
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY:
            found = _parse_details(value)
            if found is not None:
                return found
    code, details = error.code(), error.details() or ""
    cls = _BY_CODE.get(code, errors.InternalError)
    if cls is errors.ServiceUnreachable:
        return cls(f"a service of Lares does not answer; is it running? ({details})")
    return cls(details or f"the call ended with {code.name}")


def _parse_details(value: str | bytes) -> LaresError | None:
    try:
        raw = binascii.a2b_base64(value) if isinstance(value, str) else value
        return from_rpc_status(status_pb2.Status.FromString(raw))
    except (message.DecodeError, binascii.Error):
        return None  # Damaged by a proxy: the code still tells the most important thing.


def to_openai(error: LaresError) -> tuple[int, dict[str, dict[str, Any]], dict[str, str]]:
    """(HTTP status, body as OpenAI's API shapes it, headers). Retry-After: whole seconds, at least one."""
    row = row_of(error)
    body = {
        "message": error.message,
        "type": row.openai_type,
        "param": error.violations[0].field if error.violations else None,
        "code": row.openai_code,
    }
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    return row.http, {"error": body}, headers
