"""The queue: who goes first, how long it may take, and which files are meant."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from services.downloader.core.download import DownloadState, PullOptions
from services.downloader.core.jobs import DownloadJobs
from services.kit.errors import DownloadNotFound, InvalidArgument, JobFinished, SourceUnavailable
from tests.unit.services.downloader.house import House


def jobs_of(house: House, *, timeout_s: float = 0) -> DownloadJobs:
    return DownloadJobs(house.puller, house.catalog, house.records, max_concurrent=2, timeout_s=timeout_s)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    house = House(tmp_path)
    house.jobs = jobs_of(house)
    house.source.go.clear()
    yield house
    await house.jobs.stop()


async def test_those_with_more_priority_go_first_and_it_can_be_raised_while_they_wait(house: House) -> None:
    for name in ("a", "b"):
        await house.jobs.create(f"pypi:{name}")
    await house.source.two_fetching.wait()
    waiting = {
        name: await house.jobs.create(f"pypi:{name}", options=PullOptions(priority=priority))
        for name, priority in (("low", -1), ("none", 0), ("high", 50), ("raised", -100))
    }
    raised = await house.jobs.update(waiting["raised"].id, priority=100)
    assert raised.options.priority == 100
    assert await house.records.download(raised.id) == raised
    # A second one who asks, and is in a hurry.
    joined = await house.jobs.create("pypi:none", options=PullOptions(priority=60))
    assert joined.id == waiting["none"].id
    again = await house.jobs.create("pypi:none")
    assert again.options.priority == 60
    house.source.go.set()
    ended = [await house.ended(download) for download in waiting.values()]
    begun = {download.model_id: download.start_time or download.create_time for download in ended}
    assert sorted(begun, key=begun.__getitem__) == ["raised", "none", "high", "low"]


async def test_what_runs_or_has_ended_is_not_overwritten_by_a_new_priority(house: House) -> None:
    download = await house.jobs.create("pypi:tiny")
    await house.source.fetching.wait()
    changed = await house.jobs.update(download.id, priority=7)
    assert (changed.state, changed.options.priority) == (DownloadState.RUNNING, 7)
    house.source.go.set()
    done = await house.ended(download)
    assert (done.state, done.options.priority) == (DownloadState.SUCCEEDED, 7)
    assert await house.records.download(download.id) == done
    with pytest.raises(JobFinished, match="nothing of it can be changed"):
        await house.jobs.update(download.id, priority=1)
    with pytest.raises(InvalidArgument, match=r"options\.priority"):
        await house.jobs.update(download.id, priority=101)
    with pytest.raises(DownloadNotFound):
        await house.jobs.update("nothing", priority=1)


async def test_a_restart_keeps_the_order_of_those_who_wait(house: House) -> None:
    for name in ("a", "b", "c"):
        await house.jobs.create(f"pypi:{name}")
    urgent = await house.jobs.create("pypi:d", options=PullOptions(priority=1))
    await house.source.two_fetching.wait()
    await house.jobs.stop()
    house.source.two_fetching.clear()
    house.source.num_fetched = 0
    after = jobs_of(house)
    await after.start()
    await house.source.two_fetching.wait()
    assert (await after.get(urgent.id)).state is DownloadState.RUNNING
    await after.stop()


async def test_other_patterns_are_another_download_that_inherits_nothing(house: House) -> None:
    house.puller = replace(house.puller, sources={"hf": house.source})
    house.jobs = jobs_of(house)
    house.source.go.set()
    house.source.failure = SourceUnavailable("the index is down")
    failed = await house.ended(await house.jobs.create("hf:o/tiny@1"))
    some = PullOptions(allow_patterns=("*.gguf",))
    other = await house.ended(await house.jobs.create("hf:o/tiny@1", options=some))
    assert sorted(await house.store.ingests()) == sorted([failed.id, other.id])
    house.source.failure = None
    whole = await house.ended(await house.jobs.create("hf:o/tiny@1"))
    narrow = await house.ended(await house.jobs.create("hf:o/tiny@1", options=some))
    assert whole.version == "models/tiny/versions/1"
    assert narrow.version.startswith("models/tiny/versions/1-only-")
    again = await house.ended(await house.jobs.create("hf:o/tiny@1", options=some))
    assert again.version == narrow.version


@pytest.mark.parametrize(("own_s", "default_s"), [(0.05, 0), (None, 0.05), (0.05, 3600)])
async def test_what_takes_too_long_fails_and_keeps_what_arrived(
    house: House, monkeypatch: pytest.MonkeyPatch, own_s: float | None, default_s: float
) -> None:
    # Less than a caller may ask for, so that nobody has to wait.
    monkeypatch.setattr("services.downloader.core.options.MIN_TIMEOUT_S", 0)
    house.jobs = jobs_of(house, timeout_s=default_s)
    failed = await house.ended(await house.jobs.create("pypi:tiny", options=PullOptions(timeout_s=own_s)))
    assert failed.failure is not None
    assert (failed.state, failed.failure.reason) == (DownloadState.FAILED, "DOWNLOAD_TIMEOUT")
    assert "0.05 s" in failed.failure.message
    assert await house.store.ingests() == [failed.id]
    # It has all of its time again.
    house.source.go.set()
    await house.jobs.resume(failed.id)
    assert (await house.ended(failed)).state is DownloadState.SUCCEEDED


async def test_time_in_the_queue_does_not_count(house: House) -> None:
    jobs = jobs_of(house)
    for name in ("a", "b"):
        await jobs.create(f"pypi:{name}")
    await house.source.two_fetching.wait()
    waiting = await jobs.create("pypi:c", options=PullOptions(timeout_s=1))
    loop = asyncio.get_running_loop()
    # The loop's clock is past its time, and it is still waiting.
    now = loop.time
    loop.time = lambda: now() + 3600  # type: ignore[method-assign]  # For this test alone.
    await asyncio.sleep(0)
    assert (await jobs.get(waiting.id)).state is DownloadState.QUEUED
    house.source.go.set()
    async for _, seen in jobs.watch(waiting.id):
        waiting = seen
    assert waiting.state is DownloadState.SUCCEEDED


async def test_a_timeout_of_the_systems_own_is_not_taken_for_ours(house: House) -> None:
    house.source.go.set()
    house.source.failure = TimeoutError("the disk's")
    failed = await house.ended(await house.jobs.create("pypi:tiny", options=PullOptions(timeout_s=60)))
    assert failed.failure is not None
    assert failed.failure.reason == "INTERNAL_ERROR"
