"""The life of a process: start its parts, wait for a signal, stop them in good order."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Protocol

from services.kit.host import Host


class Part(Protocol):
    """What a process is made of: a GrpcServer, a MetricsPort, the gateway."""

    async def start(self) -> None:
        """Return when it serves; raise if it cannot."""

    async def stop(self) -> None:
        """Return when it is gone. Also called after a `start` that was cut short."""


async def run_until_signalled(host: Host, *parts: Part, on_ready: Callable[[], None] | None = None) -> None:
    """Start the parts in turn, serve until SIGINT or SIGTERM, stop in reverse. A second signal ends at once.

    A part that does not start brings the others down, and its error is raised. on_ready: called when all
    serve. Setting `host.draining` from within stops the process too.
    """
    running: list[Part] = []
    with stop_signals(host.draining):
        try:
            for part in parts:
                running.append(part)
                if not await _start(part, host.draining):
                    return
            if on_ready is not None:
                on_ready()
            await host.draining.wait()
        finally:
            host.draining.set()
            await _stop(running)


async def _start(part: Part, stop: asyncio.Event) -> bool:
    """Start one part, unless a signal comes first. Returns whether it started."""
    starting = asyncio.ensure_future(part.start())
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            return True
        return False
    finally:
        stopping.cancel()
        if not starting.done():
            starting.cancel()
            await asyncio.wait({starting})


async def _stop(parts: list[Part]) -> None:
    errors: list[Exception] = []
    for part in reversed(parts):
        try:
            await part.stop()
        except Exception as error:  # Noted, not raised yet: the parts below must be stopped too.
            errors.append(error)
    if errors:
        raise errors[0]


@contextlib.contextmanager
def stop_signals(stop: asyncio.Event) -> Iterator[None]:
    """Within the block, SIGINT, SIGTERM (and Windows' Ctrl-Break) set the event; a second exits at once.

    signal.signal and not loop.add_signal_handler, which Windows does not have. Must run in the main thread.
    """
    loop = asyncio.get_running_loop()
    num_signals = 0

    def handle(signum: int, frame: FrameType | None) -> None:
        nonlocal num_signals
        num_signals += 1
        if num_signals > 1:
            os._exit(128 + signum)
        loop.call_soon_threadsafe(stop.set)

    names = ("SIGINT", "SIGTERM", "SIGBREAK")
    caught = [signal.Signals[name] for name in names if name in signal.Signals.__members__]
    before = {signum: signal.signal(signum, handle) for signum in caught}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
