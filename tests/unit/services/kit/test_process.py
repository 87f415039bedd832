import asyncio
import os
import signal
import sys

import pytest

from services.kit.errors import FailedPrecondition
from services.kit.host import Host
from services.kit.process import run_until_signalled
from services.kit.settings import Settings


class Part:
    def __init__(
        self, name: str, told: list[str], error: Exception | None = None, hangs: bool = False
    ) -> None:
        self.name, self.told, self.error, self.hangs = name, told, error, hangs

    async def start(self) -> None:
        self.told.append(f"start {self.name}")
        if self.hangs:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error

    async def stop(self) -> None:
        self.told.append(f"stop {self.name}")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_stops_the_parts_in_reverse(signum: signal.Signals):
    told: list[str] = []
    host = Host(Settings())
    before = signal.getsignal(signum)
    await run_until_signalled(
        host, Part("a", told), Part("b", told), on_ready=lambda: os.kill(os.getpid(), signum)
    )
    assert told == ["start a", "start b", "stop b", "stop a"]
    assert host.draining.is_set()
    assert signal.getsignal(signum) is before


async def test_a_part_that_does_not_start_brings_the_others_down():
    told: list[str] = []
    with pytest.raises(FailedPrecondition, match="no disk"):
        await run_until_signalled(
            Host(Settings()), Part("a", told), Part("b", told, FailedPrecondition("no disk")), Part("c", told)
        )
    assert told == ["start a", "start b", "stop b", "stop a"]


async def test_a_signal_during_a_start_ends_it():
    told: list[str] = []
    async with asyncio.timeout(10):
        await run_until_signalled(
            Host(Settings()), Part("a", told), Part("b", told, hangs=True), Part("c", told)
        )
    assert told == ["start a", "start b", "stop b", "stop a"]


STUBBORN = """
import asyncio
from services.kit.host import Host
from services.kit.process import run_until_signalled
from services.kit.settings import Settings

class Stubborn:
    async def start(self): pass
    async def stop(self):
        print("stopping", flush=True)
        await asyncio.Event().wait()

async def main():
    await run_until_signalled(Host(Settings()), Stubborn(), on_ready=lambda: print("ready", flush=True))

asyncio.run(main())
"""


async def test_a_second_signal_ends_at_once():
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        STUBBORN,
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    async with asyncio.timeout(20):
        assert await process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert await process.stdout.readline() == b"stopping\n"
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 128 + signal.SIGINT
