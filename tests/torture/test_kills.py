"""RELIABILITY.md, D1: the downloader is killed at random bytes, whatever it pulls from, and goes on."""

import os
import random
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from lares.downloader.v1 import downloader_pb2 as pb
from tests.contract.source_rigs import REMOTE, OllamaRig, ShelfRig
from tests.torture.downloader_process import Death, Setup, house
from tests.torture.houses import Place, Registry, arrived_bytes, assert_one_whole_version, place, registry
from tests.torture.numbers import num
from tests.unit.services.downloader.wheels import gguf_bytes

pytestmark = [pytest.mark.torture, pytest.mark.timeout(num(120, 1800))]

SIZE_BYTES = 64 * 1024**2
TWICE_AT_MOST_BYTES = 8 * 1024**2
# Of each source, so that they are 30 and 300 in all of those that fetch.
NUM_KILLS = num(5, 50)
KILLS_OF_ONE_FILE = 5
COPY_BYTES = 4 * 1024**2
SOURCES: dict[str, type[ShelfRig | OllamaRig]] = {"ollama": OllamaRig, **REMOTE}


@pytest.fixture(scope="module")
def weights() -> bytes:
    header = gguf_bytes()
    return header + os.urandom(SIZE_BYTES - len(header))


@pytest.fixture
async def told(tmp_path: Path) -> AsyncIterator[Registry]:
    async with registry(tmp_path / "registry") as running:
        yield running


@pytest.mark.parametrize("source", SOURCES)
async def test_a_download_goes_on_after_kills_at_random_bytes(
    source: str, told: Registry, weights: bytes, tmp_path: Path
) -> None:
    (tmp_path / "place").mkdir()
    most_connections = 0
    async with place(SOURCES[source], tmp_path / "place", weights) as there:
        for number in range(NUM_KILLS // KILLS_OF_ONE_FILE):
            choose = random.Random(f"{source} {number}")
            points = sorted(choose.randrange(1_000_000, SIZE_BYTES) for _ in range(KILLS_OF_ONE_FILE))
            await survive(there, told, tmp_path / "home", f"m{number}", points)
            most_connections = max(most_connections, there.line.connected)
            shutil.rmtree(tmp_path / "home")
    assert most_connections > 1, "several connections were on"


async def survive(there: Place, told: Registry, home: Path, model_id: str, points: list[int]) -> None:
    """Kill a download when so much of it is here, then let it end."""
    kept = lost = 0
    began = there.line.num_bytes
    for point in points:
        before = there.line.num_bytes
        there.line.pause_after(max(1, point - kept))
        async with house(there.setup(home, told)) as running:
            await running.begin(there.rig.ref, model_id)
            await there.line.paused.wait()
            await running.kill()
        arrived = arrived_bytes(home)
        lost = there.line.num_bytes - before - (arrived - kept)
        assert lost <= TWICE_AT_MOST_BYTES
        kept = arrived
    there.line.pause_after(None)
    async with house(there.setup(home, told)) as running:
        done = await running.pull(there.rig.ref, model_id)
        assert done.state == pb.DOWNLOAD_STATE_SUCCEEDED, done.failure
        await assert_one_whole_version(running, told, home, model_id, there.rig.model)
    assert there.line.num_bytes - began <= SIZE_BYTES + len(points) * TWICE_AT_MOST_BYTES


async def test_a_copy_of_a_file_begins_anew_after_kills_and_ends_right(
    told: Registry, weights: bytes, tmp_path: Path
) -> None:
    """There is nothing to fetch, and its owner may have changed the file meanwhile."""
    source, home = f"file:{tmp_path / 'm.gguf'}", tmp_path / "home"
    (tmp_path / "m.gguf").write_bytes(weights)
    choose = random.Random(1)
    for _ in range(NUM_KILLS):
        death = Death("copy", choose.randrange(1, SIZE_BYTES // COPY_BYTES + 1), choose.random() < 0.5)
        async with house(Setup(home, told.address, death=death)) as running:
            with pytest.raises(grpc.aio.AioRpcError):
                await running.pull(source, "m")
    async with house(Setup(home, told.address)) as running:
        done = await running.pull(source, "m")
        assert done.state == pb.DOWNLOAD_STATE_SUCCEEDED, done.failure
        await assert_one_whole_version(running, told, home, "m", {"m.gguf": weights})
