"""A registry and a downloader in a process that may be killed: `python -m ... HOME [DIE_AT]`.

DIE_AT: the process kills itself at that one of the steps that bring a blob onto the disk.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from services.downloader.adapters.registry_client import RegistryClient
from services.downloader.service import build as build_downloader
from services.kit.address import Address
from services.kit.host import Host
from services.kit.process import run_until_signalled
from services.kit.server import GrpcServer
from services.kit.settings import Settings
from services.registry.service import build as build_registry


def die_at(number: int) -> None:
    """Count the calls that matter, and do not survive that one."""
    left = number

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    os.fsync = counted(os.fsync)
    os.utime = counted(os.utime)
    Path.replace = counted(Path.replace)  # type: ignore[method-assign]
    RegistryClient.record = counted(RegistryClient.record)  # type: ignore[method-assign]


async def main(home: Path) -> None:
    host = Host(Settings(home=home, grpc=Address("127.0.0.1", 0)))
    server = GrpcServer(host, [build_registry, build_downloader])
    await run_until_signalled(host, server, on_ready=lambda: print(host.bound, flush=True))


if __name__ == "__main__":
    if len(sys.argv) > 2:
        die_at(int(sys.argv[2]))
    asyncio.run(main(Path(sys.argv[1])))
