import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from services.kit.errors import ModelInUse, NotFound, QueueFull, UnsupportedFormat, WorkerLost
from services.speech.core.domain import Engine, SpeechModel
from services.speech.core.messages import WorkerRequest
from services.speech.core.pool import PoolLimits, RecognizerPool
from services.speech.core.ports import WorkerCall
from tests.unit.services.speech.house import FolderModels, speech_model


class FakeWorker:
    device = "cpu"

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.dead = asyncio.Event()

    def memory_bytes(self) -> int:
        return 1000

    @asynccontextmanager
    async def call(self, request: WorkerRequest) -> AsyncIterator[WorkerCall]:
        raise WorkerLost("a fake answers nothing")
        yield

    async def wait_dead(self) -> None:
        await self.dead.wait()

    async def stop(self) -> None:
        self.dead.set()


class FakeLauncher:
    """Loads when `may_load` is set; counts."""

    def __init__(self) -> None:
        self.may_load = asyncio.Event()
        self.may_load.set()
        self.workers: list[FakeWorker] = []
        self.error: Exception | None = None

    async def start(self, model_id: str, engine: Engine, folder: Path) -> FakeWorker:
        await self.may_load.wait()
        if self.error is not None:
            raise self.error
        self.workers.append(FakeWorker(len(self.workers) + 1))
        return self.workers[-1]


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


MODELS = {name: speech_model(name) for name in "abcd"}


@pytest.fixture
def models(tmp_path: Path) -> FolderModels:
    models = FolderModels()
    for model in (*MODELS.values(), newer("a")):
        models.add(model, tmp_path)
    return models


@pytest.fixture
async def launcher() -> FakeLauncher:
    return FakeLauncher()


def pool_of(
    models: FolderModels,
    launcher: FakeLauncher,
    *,
    max_loaded: int = 2,
    keep_alive_s: float = 60,
    max_requests: int = 8,
) -> RecognizerPool:
    limits = PoolLimits(max_loaded=max_loaded, max_requests=max_requests, keep_alive_s=keep_alive_s)
    return RecognizerPool(leases=models, launcher=launcher, limits=limits, now=Clock())


def newer(name: str) -> SpeechModel:
    return replace(MODELS[name], version=f"models/{name}/versions/2")


def loaded(pool: RecognizerPool) -> list[str]:
    return [info.model_id for info in pool.list()]


async def use(pool: RecognizerPool, name: str) -> int:
    async with pool.use(MODELS[name]) as worker:
        return worker.pid


async def test_many_who_ask_at_once_load_a_model_once(models: FolderModels, launcher: FakeLauncher) -> None:
    pool = pool_of(models, launcher)
    launcher.may_load.clear()
    asking = [asyncio.create_task(use(pool, "a")) for _ in range(5)]
    await asyncio.sleep(0)
    assert loaded(pool) == []
    launcher.may_load.set()
    assert await asyncio.gather(*asking) == [1] * 5
    assert len(launcher.workers) == 1


async def test_caller_who_hangs_up_does_not_end_the_load_for_others(
    models: FolderModels, launcher: FakeLauncher
) -> None:
    pool = pool_of(models, launcher)
    launcher.may_load.clear()
    first, second = asyncio.create_task(use(pool, "a")), asyncio.create_task(use(pool, "a"))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    launcher.may_load.set()
    assert await second == 1


async def test_load_that_fails_is_told_to_all_and_tried_again_by_the_next(
    models: FolderModels, launcher: FakeLauncher
) -> None:
    pool = pool_of(models, launcher)
    launcher.error = UnsupportedFormat("no")
    results = await asyncio.gather(use(pool, "a"), use(pool, "a"), return_exceptions=True)
    assert [type(result) for result in results] == [UnsupportedFormat, UnsupportedFormat]
    assert models.held == []
    launcher.error = None
    assert await use(pool, "a") == 1


async def test_idle_recogniser_used_longest_ago_makes_room(
    models: FolderModels, launcher: FakeLauncher
) -> None:
    pool = pool_of(models, launcher)
    for name in ("a", "b", "a", "c"):
        await use(pool, name)
    assert loaded(pool) == ["a", "c"]
    assert sorted(models.held) == ["models/a/versions/1", "models/c/versions/1"]


async def test_busy_recognisers_are_not_evicted(models: FolderModels, launcher: FakeLauncher) -> None:
    pool = pool_of(models, launcher)
    async with pool.use(MODELS["a"]), pool.use(MODELS["b"]):
        with pytest.raises(QueueFull, match="LARES_SPEECH_MAX_LOADED"):
            await use(pool, "c")
    assert await use(pool, "c") == 3


async def test_recogniser_takes_no_more_requests_than_its_limit(
    models: FolderModels, launcher: FakeLauncher
) -> None:
    pool = pool_of(models, launcher, max_requests=1)
    async with pool.use(MODELS["a"]):
        with pytest.raises(QueueFull):
            await use(pool, "a")
    assert await use(pool, "a") == 1


async def test_idle_recogniser_is_unloaded_after_its_keep_alive(
    models: FolderModels, launcher: FakeLauncher
) -> None:
    pool = pool_of(models, launcher, keep_alive_s=0)
    await use(pool, "a")
    await asyncio.wait_for(launcher.workers[0].dead.wait(), 5)
    assert loaded(pool) == []


async def test_dead_worker_makes_place_for_a_new_one(models: FolderModels, launcher: FakeLauncher) -> None:
    pool = pool_of(models, launcher)
    await use(pool, "a")
    launcher.workers[0].dead.set()
    await asyncio.wait_for(models.released.wait(), 5)
    assert loaded(pool) == []
    assert await use(pool, "a") == 2


async def test_new_version_replaces_the_old_which_ends_with_its_last_request(
    models: FolderModels, launcher: FakeLauncher
) -> None:
    pool = pool_of(models, launcher, max_loaded=3)
    async with pool.use(MODELS["a"]) as old:
        async with pool.use(newer("a")) as new:
            assert (old.pid, new.pid) == (1, 2)
        assert not launcher.workers[0].dead.is_set()
    await asyncio.wait_for(launcher.workers[0].dead.wait(), 5)
    assert [info.version for info in pool.list()] == ["models/a/versions/2"]


async def test_unload_refuses_what_is_busy_and_what_is_not_there(
    models: FolderModels, launcher: FakeLauncher
) -> None:
    pool = pool_of(models, launcher)
    with pytest.raises(NotFound):
        await pool.unload("a")
    async with pool.use(MODELS["a"]):
        with pytest.raises(ModelInUse):
            await pool.unload("a")
    await pool.unload("a")
    assert launcher.workers[0].dead.is_set()
    assert (loaded(pool), models.held) == ([], [])


async def test_close_ends_what_is_loaded_and_what_is_loading(
    models: FolderModels, launcher: FakeLauncher
) -> None:
    pool = pool_of(models, launcher)
    await use(pool, "a")
    launcher.may_load.clear()
    asking = asyncio.create_task(use(pool, "b"))
    await asyncio.sleep(0)
    await pool.close()
    await asyncio.wait([asking])
    assert launcher.workers[0].dead.is_set()
    assert (loaded(pool), models.held) == ([], [])
