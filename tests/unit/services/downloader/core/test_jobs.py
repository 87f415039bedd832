"""The queue: one transfer for many callers, pauses, restarts, and watchers who see all of it."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.downloader.core.admission import Admission, Policy
from services.downloader.core.blobs import Blobs
from services.downloader.core.catalog import Catalog
from services.downloader.core.download import Download, DownloadPhase, DownloadState
from services.downloader.core.jobs import DownloadJobs
from services.downloader.core.pull import Puller
from services.kit.errors import (
    DiskFull,
    DownloadNotFound,
    JobFinished,
    SourceNotFound,
    SourceUnavailable,
    Unsupported,
)
from tests.contract.memory_blob_store import MemoryBlobStore
from tests.contract.memory_download_store import MemoryDownloadStore
from tests.unit.services.downloader.fakes import MemoryRegistry, SlowSource, TrustingInspector


@dataclass
class House:
    store: MemoryBlobStore
    records: MemoryDownloadStore
    registry: MemoryRegistry
    source: SlowSource
    jobs: DownloadJobs

    async def ended(self, download: Download) -> Download:
        async with asyncio.timeout(10):
            async for _, seen in self.jobs.watch(download.id):
                last = seen
        return last


def jobs_of(
    store: MemoryBlobStore, records: MemoryDownloadStore, registry: MemoryRegistry, source: SlowSource
) -> DownloadJobs:
    async def at_once(seconds: float) -> None:
        await asyncio.sleep(0)

    puller = Puller(
        {"pypi": source, "hf": source},
        Blobs(store, records),
        Admission(TrustingInspector(), Policy()),
        registry,
        sleep=at_once,
    )
    return DownloadJobs(puller, Catalog([]), records, max_concurrent=2)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    store, records, registry = MemoryBlobStore(tmp_path), MemoryDownloadStore(), MemoryRegistry()
    source = SlowSource(go=False)
    house = House(store, records, registry, source, jobs_of(store, records, registry, source))
    yield house
    await house.jobs.stop()


async def test_a_download_ends_recorded_stored_and_with_nothing_left_over(house: House) -> None:
    house.source.go.set()
    done = await house.ended(await house.jobs.create("pypi:tiny"))
    assert (done.state, done.version) == (DownloadState.SUCCEEDED, "models/tiny/versions/1")
    assert (done.resolved_source, done.completed_bytes) == ("pypi:tiny==1", 7)
    (file,) = house.registry.versions[done.version].files
    assert (file.path, house.store.bytes_of[file.digest]) == ("m.gguf", b"weights")
    assert await house.store.ingests() == []
    assert await house.records.download(done.id) == done


async def test_fifty_callers_share_one_transfer(house: House) -> None:
    downloads = await asyncio.gather(*(house.jobs.create("pypi:tiny") for _ in range(50)))
    watching = [asyncio.create_task(house.ended(download)) for download in downloads]
    await house.source.fetching.wait()
    house.source.go.set()
    ended = await asyncio.gather(*watching)
    assert {download.id for download in ended} == {downloads[0].id}
    assert all(download.state is DownloadState.SUCCEEDED for download in ended)
    assert house.source.num_fetched == 1


async def test_a_model_that_is_here_succeeds_at_once_and_fetches_nothing(house: House) -> None:
    house.source.go.set()
    first = await house.ended(await house.jobs.create("pypi:tiny"))
    again = await house.ended(await house.jobs.create("pypi:tiny==1"))
    assert (again.version, again.state) == (first.version, DownloadState.SUCCEEDED)
    assert again.id != first.id
    assert house.source.num_fetched == 1


async def test_a_file_that_is_stored_already_is_not_fetched_for_another_model(house: House) -> None:
    house.source.go.set()
    house.source.sha256 = hashlib.sha256(house.source.content).hexdigest()
    first = await house.ended(await house.jobs.create("pypi:a"))
    second = await house.ended(await house.jobs.create("pypi:b"))
    assert house.registry.versions[first.version].files == house.registry.versions[second.version].files
    assert (second.completed_bytes, house.source.num_fetched) == (7, 1)
    assert house.store.bytes_of == {f"sha256:{house.source.sha256}": b"weights"}
    house.store.damaged.update(house.store.bytes_of)
    await house.ended(await house.jobs.create("pypi:c"))
    assert house.source.num_fetched == 2


async def test_pulling_a_model_again_repairs_a_damaged_blob(house: House) -> None:
    house.source.go.set()
    await house.ended(await house.jobs.create("pypi:tiny"))
    (digest,) = house.store.bytes_of
    house.store.damaged.add(digest)
    await house.ended(await house.jobs.create("pypi:tiny"))
    assert house.source.num_fetched == 2
    assert not house.store.damaged


async def test_the_same_request_returns_the_first_ones_download(house: House) -> None:
    house.source.go.set()
    first = await house.ended(await house.jobs.create("pypi:tiny", request_id="r"))
    assert (await house.jobs.create("pypi:tiny", request_id="r")).id == first.id


async def test_a_pause_keeps_what_arrived_and_a_resume_goes_on(house: House) -> None:
    download = await house.jobs.create("pypi:tiny")
    await house.source.fetching.wait()
    paused = await house.jobs.pause(download.id)
    assert (paused.state, paused.phase) == (DownloadState.PAUSED, DownloadPhase.UNSPECIFIED)
    assert await house.store.ingests() == [download.id]
    watching = asyncio.create_task(house.ended(download))
    house.source.go.set()
    await house.jobs.resume(download.id)
    assert (await watching).state is DownloadState.SUCCEEDED


async def test_a_cancel_ends_it_and_drops_what_arrived(house: House) -> None:
    download = await house.jobs.create("pypi:tiny")
    watching = asyncio.create_task(house.ended(download))
    await house.source.fetching.wait()
    await house.jobs.cancel(download.id)
    assert (await watching).state is DownloadState.CANCELLED
    assert await house.store.ingests() == []
    with pytest.raises(JobFinished):
        await house.jobs.cancel(download.id)
    house.source.go.set()
    await house.jobs.resume(download.id)
    assert (await house.ended(download)).state is DownloadState.SUCCEEDED


async def test_a_queued_download_can_be_cancelled_before_its_turn(house: House) -> None:
    for name in ("a", "b"):
        await house.jobs.create(f"pypi:{name}")
    waiting = await house.jobs.create("pypi:c")
    assert (await house.jobs.get(waiting.id)).state is DownloadState.QUEUED
    assert (await house.jobs.cancel(waiting.id)).state is DownloadState.CANCELLED


async def test_no_more_than_allowed_run_at_once(house: House) -> None:
    downloads = [await house.jobs.create(f"pypi:m{number}") for number in range(5)]
    await house.source.two_fetching.wait()
    states = [(await house.jobs.get(download.id)).state for download in downloads]
    assert states.count(DownloadState.RUNNING) == 2
    house.source.go.set()
    ended = [await house.ended(download) for download in downloads]
    assert {download.state for download in ended} == {DownloadState.SUCCEEDED}


async def test_a_failure_says_why_and_can_be_resumed(house: House) -> None:
    house.source.go.set()
    house.source.failure = SourceUnavailable("the index is down")
    failed = await house.ended(await house.jobs.create("pypi:tiny"))
    assert failed.state is DownloadState.FAILED
    assert failed.failure is not None
    assert (failed.failure.reason, failed.failure.message) == ("SOURCE_UNAVAILABLE", "the index is down")
    assert house.registry.models == {}
    assert await house.store.ingests() == [failed.id]
    house.source.failure = None
    await house.jobs.resume(failed.id)
    assert (await house.ended(failed)).state is DownloadState.SUCCEEDED


async def test_a_new_pull_after_a_failure_goes_on_from_what_that_left(house: House) -> None:
    house.source.go.set()
    house.source.failure = SourceUnavailable("the index is down")
    failed = await house.ended(await house.jobs.create("pypi:tiny"))
    again = await house.ended(await house.jobs.create("pypi:tiny"))
    assert again.id != failed.id
    assert await house.store.ingests() == [again.id]


async def test_a_database_that_cannot_be_written_leaves_no_watcher_waiting(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    download = await house.jobs.create("pypi:tiny")
    watching = asyncio.create_task(house.ended(download))
    await house.source.fetching.wait()

    async def refuse(download: Download) -> None:
        raise DiskFull("no room left")

    monkeypatch.setattr(house.records, "save_download", refuse)
    house.source.go.set()
    assert (await watching).state is DownloadState.SUCCEEDED


async def test_a_failure_that_cannot_be_written_down_can_be_resumed_all_the_same(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    download = await house.jobs.create("pypi:tiny")
    watching = asyncio.create_task(house.ended(download))
    await house.source.fetching.wait()

    async def refuse(download: Download) -> None:
        raise DiskFull("no room left")

    house.source.failure = DiskFull("no room left")
    with monkeypatch.context() as full:
        full.setattr(house.records, "save_download", refuse)
        house.source.go.set()
        assert (await watching).state is DownloadState.FAILED
        with pytest.raises(DiskFull):
            await house.jobs.resume(download.id)
    assert (await house.jobs.get(download.id)).state is DownloadState.FAILED
    house.source.failure = None
    await house.jobs.resume(download.id)
    assert (await house.ended(download)).state is DownloadState.SUCCEEDED


async def test_a_bug_ends_one_download_and_tells_nothing_of_our_insides(house: House) -> None:
    house.source.go.set()
    house.source.failure = ZeroDivisionError("secret")
    failed = await house.ended(await house.jobs.create("pypi:tiny"))
    assert failed.failure is not None
    assert failed.failure.reason == "INTERNAL_ERROR"
    assert "secret" not in failed.failure.message


async def test_a_restart_goes_on_with_what_was_under_way(house: House) -> None:
    running = await house.jobs.create("pypi:tiny")
    await house.source.fetching.wait()
    await house.jobs.stop()
    house.source.go.set()
    after = jobs_of(house.store, house.records, house.registry, house.source)
    await after.start()
    async for _, download in after.watch(running.id):
        last = download
    assert last.state is DownloadState.SUCCEEDED
    assert last.create_time == running.create_time


async def test_a_registry_that_comes_late_is_waited_for(house: House) -> None:
    house.source.go.set()
    house.registry.num_failures = 5
    done = await house.ended(await house.jobs.create("pypi:tiny"))
    assert done.state is DownloadState.SUCCEEDED


async def test_a_name_that_is_taken_by_another_model_is_refused_before_anything_is_fetched(
    house: House,
) -> None:
    house.source.go.set()
    await house.ended(await house.jobs.create("pypi:tiny", model_id="mine"))
    other = await house.ended(await house.jobs.create("pypi:other", model_id="mine"))
    assert other.failure is not None
    assert other.failure.reason == "MODEL_EXISTS"
    assert house.source.num_fetched == 1


async def test_watchers_see_growing_numbers_and_always_the_end(house: House) -> None:
    download = await house.jobs.create("pypi:tiny")

    async def watch() -> list[tuple[int, DownloadState]]:
        return [(number, seen.state) async for number, seen in house.jobs.watch(download.id)]

    watching = [asyncio.create_task(watch()) for _ in range(200)]
    await house.source.fetching.wait()
    house.source.go.set()
    for seen in await asyncio.gather(*watching):
        numbers = [number for number, _ in seen]
        assert numbers == sorted(set(numbers))
        assert seen[-1][1] is DownloadState.SUCCEEDED
    late = [state async for _, state in _states(house, download)]
    assert late == [DownloadState.SUCCEEDED]


async def _states(house: House, download: Download) -> AsyncIterator[tuple[int, DownloadState]]:
    async for number, seen in house.jobs.watch(download.id):
        yield number, seen.state


async def test_downloads_are_listed_newest_first_with_their_live_state(house: House) -> None:
    first = await house.jobs.create("pypi:a")
    await house.source.fetching.wait()
    listed = await house.jobs.page([DownloadState.RUNNING], before_id=None, limit=10)
    assert [download.id for download in listed] == [first.id]
    assert listed[0].phase is DownloadPhase.FETCHING


async def test_what_is_not_there_or_not_known_is_refused(house: House) -> None:
    with pytest.raises(DownloadNotFound):
        await house.jobs.get("nothing")
    with pytest.raises(DownloadNotFound):
        await house.jobs.pause("nothing")
    with pytest.raises(SourceNotFound):
        await house.jobs.create("no-such-name")
    unsupported = await house.ended(await house.jobs.create("ollama:gemma2:9b"))
    assert unsupported.failure is not None
    assert unsupported.failure.reason == Unsupported.reason


async def test_the_same_again_goes_on_with_a_paused_one(house: House) -> None:
    download = await house.jobs.create("pypi:tiny")
    await house.source.fetching.wait()
    await house.jobs.pause(download.id)
    again = await house.jobs.create("pypi:tiny")
    assert (again.id, again.state) == (download.id, DownloadState.QUEUED)
    house.source.go.set()
    assert (await house.ended(again)).state is DownloadState.SUCCEEDED
