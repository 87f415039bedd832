import asyncio

import pytest

from services.kit import context
from services.kit.channels import connect, translate_errors
from services.kit.errors import DeadlineExceeded, ModelNotFound, PayloadTooLarge, ServiceUnreachable
from tests.unit.services.kit.conftest import Served
from tests.unit.services.kit.echo_service import EchoClient

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_calls_carry_the_id_and_trace_of_the_request_they_are_made_for(served: Served):
    context.bind_request([("x-request-id", "outer"), ("traceparent", TRACE)])
    assert await served.client.unary(b"ids") == f"outer {TRACE}".encode()
    given = (("x-request-id", "given"),)
    assert await served.client.unary(b"ids", metadata=given) == f"given {TRACE}".encode()


async def test_a_unary_call_has_a_deadline_and_a_stream_has_none(served: Served):
    assert 50 < float(await served.client.unary(b"deadline")) < 61
    assert 4 < float(await served.client.unary(b"deadline", timeout=5)) < 6
    call = served.client.server(b"0 wait")
    assert call.time_remaining() is None
    call.cancel()


async def test_failed_calls_and_streams_become_domain_errors(served: Served):
    with pytest.raises(ModelNotFound), translate_errors():
        await served.client.unary(b"missing")
    with pytest.raises(ModelNotFound), translate_errors():
        async for _ in served.client.server(b"1 fail"):
            pass
    with pytest.raises(DeadlineExceeded), translate_errors():
        await served.client.unary(b"hang", timeout=0.05)


async def test_cancelling_a_task_cancels_its_call_and_stays_a_cancellation(served: Served):
    async def ask() -> None:
        with translate_errors():
            await served.client.unary(b"hang")

    task = asyncio.create_task(ask())
    call = served.client.server(b"1 wait")
    await call.read()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    call.cancel()


async def test_nobody_at_the_address_is_a_service_that_is_unreachable():
    async with connect("127.0.0.1:1") as channel:
        with pytest.raises(ServiceUnreachable, match="running"), translate_errors():
            await EchoClient(channel).unary(b"a")


async def test_messages_up_to_the_limit_pass_and_those_beyond_do_not(served: Served):
    big = b"x" * (10 * 1024 * 1024)
    assert await served.client.unary(big) == big
    # Not one that asks to come back later: it would be as large then.
    with pytest.raises(PayloadTooLarge, match="larger than max"), translate_errors():
        await served.client.unary(big + big)


async def test_a_proxy_of_the_environment_is_not_asked(served: Served, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    async with connect(str(served.server.address)) as channel:
        await channel.channel_ready()
        assert await EchoClient(channel).unary(b"a") == b"a"
