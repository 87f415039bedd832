"""The client's side: channels to services, and their failures as domain errors.

gRPC's own client interceptors put a layer around every message of a stream. What has to happen here happens
once a call, when it starts: so a channel is wrapped where it makes its calls, and the calls themselves are
gRPC's own.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

import grpc

from services.kit import context, status

if TYPE_CHECKING:  # A command that only calls has none, and starts without what serving needs.
    from services.kit.local_calls import LocalCalls

DEFAULT_TIMEOUT_S = 60.0
"""Deadline of a unary call that was given none. Streams have none: they last as long as their work."""


def connect(
    endpoint: str,
    *,
    max_message_bytes: int = 16 * 1024 * 1024,
    unary_timeout_s: float = DEFAULT_TIMEOUT_S,
    local: "LocalCalls | None" = None,
) -> grpc.aio.Channel:
    """A channel to `HOST:PORT`, connected when first used. Close it with `await channel.close()`.

    Its calls carry the request id and trace of the request that is being served. local: what answers there, if that
    is this very process.
    """
    options = [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        # A service that restarts is back within seconds; the default waits up to two minutes to look again.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 3_000),
        # `http_proxy` is for the web, not for the services of one house.
        ("grpc.enable_http_proxy", 0),
        # One channel's backoff must not hold up another to the same address.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    return _Channel(grpc.aio.insecure_channel(endpoint, options=options), unary_timeout_s, local)


@contextmanager
def translate_errors() -> Iterator[None]:
    """Around calls and streams: a failed call becomes the domain error that it carries.

    Cancellation of this task stays asyncio.CancelledError.
    """
    try:
        yield
    except grpc.RpcError as error:
        raise status.from_rpc_error(error) from error


class _Channel(grpc.aio.Channel):
    """A channel whose calls are given their metadata and deadline as they start."""

    def __init__(self, channel: grpc.aio.Channel, unary_timeout_s: float, local: "LocalCalls | None") -> None:
        self._channel = channel
        self._unary_timeout_s = unary_timeout_s
        self._local = local

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        calls: Any = self._channel.unary_unary(*args, **kwargs)
        if self._local is not None:
            calls = self._local.unary_unary(calls, *args, **kwargs)
        return _with_context(calls, self._unary_timeout_s)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        calls: Any = self._channel.unary_stream(*args, **kwargs)
        if self._local is not None:
            calls = self._local.unary_stream(calls, *args, **kwargs)
        return _with_context(calls)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return _with_context(self._channel.stream_unary(*args, **kwargs))

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return _with_context(self._channel.stream_stream(*args, **kwargs))

    async def close(self, grace: float | None = None) -> None:
        await self._channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._channel.channel_ready()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        await self.close()


def _with_context(multicallable: Any, default_timeout_s: float | None = None) -> Callable[..., Any]:
    def call(
        *args: Any,
        timeout: float | None = None,
        metadata: Sequence[tuple[str, str | bytes]] | grpc.aio.Metadata | None = None,
        **kwargs: Any,
    ) -> Any:
        given = list(cast(Any, metadata) or ())
        named = {key for key, _ in given}
        forwarded = [pair for pair in context.outgoing() if pair[0] not in named]
        return multicallable(
            *args,
            timeout=default_timeout_s if timeout is None else timeout,
            metadata=(*given, *forwarded),
            **kwargs,
        )

    return call
