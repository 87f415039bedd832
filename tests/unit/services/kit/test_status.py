import base64

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc.aio import AioRpcError, Metadata

from services.kit import errors, status
from services.kit.errors import FieldViolation, LaresError
from tests.unit.services.kit.test_errors import all_errors


def rpc_error(
    code: grpc.StatusCode, details: str, trailing: dict[str, str | bytes] | None = None
) -> AioRpcError:
    return AioRpcError(code, Metadata(), Metadata(*(trailing or {}).items()), details)


def test_every_domain_error_is_in_the_table():
    assert [cls.__name__ for cls in all_errors() if cls not in status.TABLE] == []


@pytest.mark.parametrize("cls", all_errors())
def test_an_error_survives_the_wire(cls: type[LaresError]):
    error = cls(
        "không có mô hình này",
        violations=[FieldViolation("model", "is not here"), FieldViolation("n", "must be 1")],
        metadata={"model": "x"},
        retry_after_s=2.5,
    )
    wire = status.to_rpc_status(error)
    assert wire.code == status.TABLE[cls].code.value[0]

    trailing = {status.DETAILS_KEY: wire.SerializeToString()}
    back = status.from_rpc_error(rpc_error(status.TABLE[cls].code, wire.message, trailing))

    assert (type(back) is cls) or cls is LaresError
    assert (back.message, back.violations, back.metadata) == (error.message, error.violations, error.metadata)
    assert back.retry_after_s == 2.5


def test_details_are_those_that_clients_of_google_apis_know():
    wire = status.to_rpc_status(errors.QueueFull("busy", violations=[FieldViolation("queue", "32 wait")]))
    kinds = [detail.TypeName() for detail in wire.details]
    assert kinds == ["google.rpc.ErrorInfo", "google.rpc.RetryInfo", "google.rpc.QuotaFailure"]
    info = error_details_pb2.ErrorInfo()
    wire.details[0].Unpack(info)
    assert (info.reason, info.domain) == ("QUEUE_FULL", "lares")


def test_a_huge_error_is_cut_until_it_fits_the_trailers_of_a_call():
    error = errors.InvalidDataset(
        "ở " * 5000,
        violations=[FieldViolation(f"lines[{n}]", "ở" * 300) for n in range(1000)],
        metadata={f"k{n}": "v" * 400 for n in range(100)},
    )
    wire = status.to_rpc_status(error)
    assert len(base64.b64encode(wire.SerializeToString())) < 4500
    back = status.from_rpc_status(wire)
    assert isinstance(back, errors.InvalidDataset)
    assert back.message.endswith("…")


def test_an_unknown_reason_of_ours_falls_back_to_its_code():
    wire = status.to_rpc_status(errors.ModelNotFound("gone"))
    info = error_details_pb2.ErrorInfo(reason="FROM_THE_FUTURE", domain="lares")
    wire.details[0].Pack(info)
    assert type(status.from_rpc_status(wire)) is errors.NotFound


def test_a_foreign_status_is_judged_by_its_code():
    assert status.from_rpc_status(status_pb2.Status(code=5)) is None
    error = status.from_rpc_error(rpc_error(grpc.StatusCode.NOT_FOUND, "no such thing"))
    assert type(error) is errors.NotFound
    assert error.message == "no such thing"
    assert type(status.from_rpc_error(rpc_error(grpc.StatusCode.UNKNOWN, ""))) is errors.InternalError


def test_damaged_details_fall_back_to_the_code():
    error = status.from_rpc_error(
        rpc_error(grpc.StatusCode.NOT_FOUND, "x", {status.DETAILS_KEY: b"\xff\xff"})
    )
    assert type(error) is errors.NotFound


def test_a_service_that_does_not_answer_is_unreachable():
    error = status.from_rpc_error(rpc_error(grpc.StatusCode.UNAVAILABLE, "connection refused"))
    assert type(error) is errors.ServiceUnreachable
    assert "running" in error.message


def test_openai_clients_get_the_body_that_they_know():
    http, body, headers = status.to_openai(errors.ModelNotFound.named("gpt-5"))
    assert http == 404
    assert body["error"]["type"] == "not_found_error"
    assert body["error"]["code"] == "model_not_found"
    assert body["error"]["param"] == "model"
    assert "gpt-5" in body["error"]["message"]
    assert headers == {}


def test_retry_after_is_whole_seconds_and_never_zero():
    assert status.to_openai(errors.QueueFull("busy", retry_after_s=0.1))[2] == {"retry-after": "1"}
    assert status.to_openai(errors.QueueFull("busy", retry_after_s=2.1))[2] == {"retry-after": "3"}


def test_a_class_outside_the_table_takes_the_row_of_its_parent():
    class Odd(errors.ModelInUse):
        pass

    assert status.row_of(Odd) == status.TABLE[errors.ModelInUse]
