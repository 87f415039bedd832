"""RELIABILITY.md, D10: many who want one blob cause one transfer, and who is left takes over."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lares.downloader.v1 import downloader_pb2 as pb
from lares.downloader.v1 import downloader_pb2_grpc as rpc
from services.kit.channels import connect
from tests.contract.source_rigs import HfRig, HttpsRig, LaresRig
from tests.torture.downloader_process import House, house, pull
from tests.torture.houses import Place, Registry, assert_one_whole_version, place, registry
from tests.unit.services.downloader.wheels import gguf_bytes

pytestmark = [pytest.mark.torture, pytest.mark.timeout(120)]

WEIGHTS = gguf_bytes() + os.urandom(20_000_000)
NUM_CALLERS = 50


@pytest.fixture
async def told(tmp_path: Path) -> AsyncIterator[Registry]:
    async with registry(tmp_path / "registry") as running:
        yield running


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[Place]:
    async with place(HfRig, tmp_path, WEIGHTS) as there:
        yield there


async def begun(running: House, source: str, model_id: str) -> tuple[str, "asyncio.Task[pb.Download]"]:
    """A download that fetches, and what it ends in."""
    request = pb.CreateDownloadRequest(source=source, model_id=model_id)
    name = (await running.downloader.CreateDownload(request)).download.name
    async for message in running.downloader.WatchDownload(pb.WatchDownloadRequest(name=name)):
        if message.download.phase == pb.DOWNLOAD_PHASE_FETCHING:
            break
    return name, asyncio.create_task(running.pull(source, model_id))


async def test_fifty_callers_share_one_transfer(told: Registry, there: Place, tmp_path: Path) -> None:
    there.line.pause_after(len(WEIGHTS) // 2)
    async with house(there.setup(tmp_path / "home", told)) as running:

        async def call() -> pb.Download:
            channel = connect(str(running.address))
            try:
                return await pull(rpc.DownloaderServiceStub(channel), there.rig.ref, "m")
            finally:
                await channel.close()

        callers = [asyncio.create_task(call()) for _ in range(NUM_CALLERS)]
        await there.line.paused.wait()
        there.line.pause_after(None)
        done = await asyncio.gather(*callers)
        assert {download.state for download in done} == {pb.DOWNLOAD_STATE_SUCCEEDED}
        assert len({download.name for download in done}) == 1
        await assert_one_whole_version(running, told, tmp_path / "home", "m", there.rig.model)
    assert there.line.num_bytes < 1.05 * len(WEIGHTS)


async def test_two_models_of_two_sources_share_the_transfer_of_one_digest(
    told: Registry, there: Place, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    async with place(HttpsRig, tmp_path, WEIGHTS) as other, house(there.setup(home, told)) as running:
        there.line.pause_after(len(WEIGHTS) // 2)
        other.line.pause_after(None)
        _, first = await begun(running, there.rig.ref, "first")
        await there.line.paused.wait()
        _, second = await begun(running, other.rig.ref, "second")
        there.line.pause_after(None)
        done = await asyncio.gather(first, second)
        assert [download.state for download in done] == [pb.DOWNLOAD_STATE_SUCCEEDED] * 2
        assert await told.files("first")
        assert list((await told.files("first")).values()) == list((await told.files("second")).values())
        assert there.line.num_bytes < 1.05 * len(WEIGHTS)
        assert other.line.num_bytes == 0


async def test_who_waits_takes_over_when_the_other_is_cancelled(
    told: Registry, there: Place, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    async with place(LaresRig, tmp_path, WEIGHTS) as other, house(there.setup(home, told)) as running:
        there.line.pause_after(len(WEIGHTS) // 2)
        other.line.pause_after(None)
        name, first = await begun(running, there.rig.ref, "first")
        await there.line.paused.wait()
        _, second = await begun(running, other.rig.ref, "second")
        await running.downloader.CancelDownload(pb.CancelDownloadRequest(name=name))
        assert (await first).state == pb.DOWNLOAD_STATE_CANCELLED
        assert (await second).state == pb.DOWNLOAD_STATE_SUCCEEDED
        assert not await told.files("first")
        assert len(WEIGHTS) <= other.line.num_bytes < 1.05 * len(WEIGHTS)


async def test_when_its_holder_is_killed_the_next_process_takes_the_store_and_goes_on(
    told: Registry, there: Place, tmp_path: Path
) -> None:
    """It waits ten seconds for the store, then gives up: that it serves at all is the proof."""
    home = tmp_path / "home"
    there.line.pause_after(len(WEIGHTS) // 2)
    async with house(there.setup(home, told)) as holder:
        await begun(holder, there.rig.ref, "m")
        await there.line.paused.wait()
        async with asyncio.TaskGroup() as together:
            together.create_task(take_over(there, told, home))
            await holder.kill()
    assert there.line.num_bytes < len(WEIGHTS) + 8 * 1024**2


async def take_over(there: Place, told: Registry, home: Path) -> None:
    async with house(there.setup(home, told)) as running:
        there.line.pause_after(None)
        done = await running.pull(there.rig.ref, "m")
        assert done.state == pb.DOWNLOAD_STATE_SUCCEEDED, done.failure
        await assert_one_whole_version(running, told, home, "m", there.rig.model)
