import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from services.kit.errors import InternalError, LaresError, ModelNotFound
from services.kit.status import from_rpc_error
from tests.unit.services.kit.conftest import Served
from tests.unit.services.kit.echo_service import NAME

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def stream(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def failure(call) -> LaresError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call if hasattr(call, "__await__") else [message async for message in call]
    return from_rpc_error(caught.value)


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, {"service": NAME, **labels}) or 0.0


async def ended(method: str, code: str, before: float) -> None:
    """Wait until one more RPC was counted: the server counts just after the client got its answer."""
    async with asyncio.timeout(10):
        while sample("lares_rpc_total", method=method, code=code) <= before:  # noqa: ASYNC110 - counters have no event
            await asyncio.sleep(0)


async def test_all_four_kinds_of_method_answer(served: Served):
    client = served.client
    assert await client.unary(b"a") == b"a"
    assert [message async for message in client.server(b"3")] == [b"0", b"1", b"2"]
    assert await client.client(stream(b"a", b"b")) == b"ab"
    assert [message async for message in client.both(stream(b"a", b"b"))] == [b"a", b"b"]
    assert [message async for message in client.writer(b"")] == [b"one", b"two"]


async def test_a_domain_error_arrives_as_itself_from_all_four_kinds(served: Served):
    client = served.client
    for call in (
        client.unary(b"missing"),
        client.server(b"2 fail"),
        client.client(stream(b"missing")),
        client.both(stream(b"a", b"missing")),
    ):
        error = await failure(call)
        assert type(error) is ModelNotFound
        assert error.metadata == {"model": "x"}


async def test_messages_before_an_error_arrive(served: Served):
    call = served.client.server(b"2 fail")
    assert [await call.read(), await call.read()] == [b"0", b"1"]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_bug_tells_the_caller_an_id_and_the_log_the_rest(served: Served):
    with capture_logs() as logs:
        error = await failure(served.client.unary(b"bug", metadata=(("x-request-id", "my-id"),)))
    assert type(error) is InternalError
    assert "my-id" in error.message
    assert "hunter2" not in error.message
    assert any(log["event"] == "rpc failed" and isinstance(log["exc_info"], ValueError) for log in logs)


async def test_a_status_set_by_hand_stays(served: Served):
    with pytest.raises(grpc.aio.AioRpcError, match="by hand") as caught:
        await served.client.unary(b"abort")
    assert caught.value.code() is grpc.StatusCode.OUT_OF_RANGE


async def test_a_method_nobody_registered_is_unimplemented(served: Served):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.client.unknown(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert sample("lares_rpc_total", method="Unknown", code="UNIMPLEMENTED") == 0


async def test_a_method_that_is_not_async_is_a_mistake_of_ours(served: Served):
    with pytest.raises(grpc.aio.AioRpcError):
        await served.client.sync(b"")


async def test_id_and_trace_of_the_caller_are_bound_and_the_id_is_returned(served: Served):
    call = served.client.unary(b"ids", metadata=(("x-request-id", "abc-1"), ("traceparent", TRACE)))
    assert await call == f"abc-1 {TRACE}".encode()
    assert dict(await call.initial_metadata())["x-request-id"] == "abc-1"


@pytest.mark.parametrize("bad", ["", "a b", "x" * 65, "a;rm"])
async def test_a_missing_or_unusable_id_is_replaced(served: Served, bad: str):
    metadata = (("x-request-id", bad), ("traceparent", "nonsense")) if bad else ()
    request_id, trace = (await served.client.unary(b"ids", metadata=metadata)).decode().split(" ")
    assert len(request_id) == 32
    assert trace == ""


@pytest.mark.parametrize("then", ["wait", "flood"])
async def test_a_client_that_leaves_a_stream_has_the_servicers_generator_closed(served: Served, then: str):
    before = sample("lares_rpc_total", method="Server", code="CANCELLED")
    with capture_logs() as logs:
        call = served.client.server(f"1 {then}".encode())
        assert await call.read() == b"0"
        call.cancel()
        async with asyncio.timeout(10):
            await served.echo.cleaned_up.wait()
        await ended("Server", "CANCELLED", before)
    access = [log for log in logs if log["event"] == "rpc"]
    assert [(log["code"], log["log_level"]) for log in access] == [("CANCELLED", "debug")]
    assert sample("lares_rpc_in_flight", method="Server") == 0


async def test_a_deadline_ends_a_call_on_the_server_too(served: Served):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.client.unary(b"hang", timeout=0.05)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    async with asyncio.timeout(10):
        await served.echo.cleaned_up.wait()


async def test_a_stream_is_logged_and_counted_once(served: Served):
    before = sample("lares_rpc_total", method="Server", code="OK")
    seconds_before = sample("lares_rpc_seconds_count", method="Server")
    with capture_logs() as logs:
        assert len([message async for message in served.client.server(b"100")]) == 100
        await ended("Server", "OK", before)
    (access,) = [log for log in logs if log["event"] == "rpc"]
    assert (access["service"], access["method"], access["code"]) == (NAME, "Server", "OK")
    assert access["ms"] >= 0
    assert access["peer"] == "local" or access["peer"].startswith("ipv4:127.0.0.1")
    assert sample("lares_rpc_total", method="Server", code="OK") == before + 1
    assert sample("lares_rpc_seconds_count", method="Server") == seconds_before + 1
