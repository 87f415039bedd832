"""RELIABILITY.md, D10: many who want one blob cause one transfer, and who is left takes over."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from lares.downloader.v1 import downloader_pb2 as pb
from tests.contract.source_rigs import HfRig, HttpsRig, LaresRig
from tests.torture.downloader_process import House, house
from tests.torture.houses import Place, Registry, assert_one_whole_version, place, registry
from tests.unit.services.downloader.wheels import gguf_bytes

pytestmark = [pytest.mark.torture, pytest.mark.timeout(120)]

WEIGHTS = gguf_bytes() + os.urandom(20_000_000)
NUM_CALLERS = 50
# A server goes on for a moment where somebody else fetches from there on.
ONE_TRANSFER_BYTES = len(WEIGHTS) + 4 * 1024**2


@pytest.fixture
async def told(tmp_path: Path) -> AsyncIterator[Registry]:
    async with registry(tmp_path / "registry") as running:
        yield running


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[Place]:
    async with place(HfRig, tmp_path, WEIGHTS) as there:
        yield there


async def fetching(running: House, source: str, model_id: str) -> str:
    """The name of a download that has come so far."""
    name = await running.begin(source, model_id)
    async for message in running.downloader.WatchDownload(pb.WatchDownloadRequest(name=name)):
        if message.download.phase == pb.DOWNLOAD_PHASE_FETCHING:
            break
    return name


async def test_fifty_callers_share_one_transfer(told: Registry, there: Place, tmp_path: Path) -> None:
    there.line.pause_after(len(WEIGHTS) // 2)
    async with house(there.setup(tmp_path / "home", told)) as running:
        async with AsyncExitStack() as calling:
            callers = [await calling.enter_async_context(running.caller()) for _ in range(NUM_CALLERS)]
            pulls = [asyncio.create_task(caller.pull(there.rig.ref, "m")) for caller in callers]
            await there.line.paused.wait()
            there.line.pause_after(None)
            done = await asyncio.gather(*pulls)
        assert {download.state for download in done} == {pb.DOWNLOAD_STATE_SUCCEEDED}
        assert len({download.name for download in done}) == 1
        await assert_one_whole_version(running, told, tmp_path / "home", "m", there.rig.model)
    assert there.line.num_bytes < ONE_TRANSFER_BYTES


async def test_two_models_of_two_sources_share_the_transfer_of_one_digest(
    told: Registry, there: Place, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    async with place(HttpsRig, tmp_path, WEIGHTS) as other, house(there.setup(home, told)) as running:
        there.line.pause_after(len(WEIGHTS) // 2)
        other.line.pause_after(None)
        first = await fetching(running, there.rig.ref, "first")
        await there.line.paused.wait()
        second = await fetching(running, other.rig.ref, "second")
        there.line.pause_after(None)
        done = [await running.ended(name) for name in (first, second)]
        assert [download.state for download in done] == [pb.DOWNLOAD_STATE_SUCCEEDED] * 2
        assert await told.files("first")
        assert list((await told.files("first")).values()) == list((await told.files("second")).values())
        assert there.line.num_bytes < ONE_TRANSFER_BYTES
        assert other.line.num_bytes == 0


async def test_who_waits_takes_over_when_the_other_is_cancelled(
    told: Registry, there: Place, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    async with place(LaresRig, tmp_path, WEIGHTS) as other, house(there.setup(home, told)) as running:
        there.line.pause_after(len(WEIGHTS) // 2)
        other.line.pause_after(None)
        first = await fetching(running, there.rig.ref, "first")
        await there.line.paused.wait()
        second = await fetching(running, other.rig.ref, "second")
        await running.downloader.CancelDownload(pb.CancelDownloadRequest(name=first))
        assert (await running.ended(first)).state == pb.DOWNLOAD_STATE_CANCELLED
        assert (await running.ended(second)).state == pb.DOWNLOAD_STATE_SUCCEEDED
        assert not await told.files("first")
        assert len(WEIGHTS) <= other.line.num_bytes < ONE_TRANSFER_BYTES


async def test_when_its_holder_is_killed_the_next_process_takes_the_store_and_goes_on(
    told: Registry, there: Place, tmp_path: Path
) -> None:
    """It waits ten seconds for the store, then gives up: that it serves at all is the proof."""
    home = tmp_path / "home"
    there.line.pause_after(len(WEIGHTS) // 2)
    async with house(there.setup(home, told)) as holder:
        await fetching(holder, there.rig.ref, "m")
        await there.line.paused.wait()
        async with asyncio.TaskGroup() as together:
            together.create_task(take_over(there, told, home))
            await holder.kill()
    assert there.line.num_bytes < ONE_TRANSFER_BYTES + 8 * 1024**2


async def take_over(there: Place, told: Registry, home: Path) -> None:
    async with house(there.setup(home, told)) as running:
        there.line.pause_after(None)
        done = await running.pull(there.rig.ref, "m")
        assert done.state == pb.DOWNLOAD_STATE_SUCCEEDED, done.failure
        await assert_one_whole_version(running, told, home, "m", there.rig.model)
