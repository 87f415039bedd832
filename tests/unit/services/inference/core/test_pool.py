import asyncio
from collections.abc import Callable

import pytest

from services.inference.core.models import (
    Format,
    LoadState,
    ModelKind,
    ModelVersion,
    PoolLimits,
    ResolvedModel,
    WorkerFacts,
)
from services.inference.core.pool import ModelPool
from services.kit.errors import InsufficientMemory, ModelNotFound, QueueFull, UnsupportedFormat


class FakeWorker:
    """Lives until it is told not to."""

    facts = WorkerFacts("cpu", "none", 64)
    pid = 1

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.adapters: list[str] = []
        self.dead = asyncio.Event()

    def memory_bytes(self) -> int:
        return self.size_bytes

    async def load_adapter(self, adapter: ModelVersion) -> None:
        self.adapters.append(adapter.key)

    async def drop_adapter(self, key: str) -> None:
        self.adapters.remove(key)

    async def wait_dead(self) -> str:
        await self.dead.wait()
        return "died"

    async def stop(self) -> None:
        self.dead.set()


class FakeFactory:
    """Loads when `may_load` is set; a model named `bad` never loads."""

    def __init__(self) -> None:
        self.may_load = asyncio.Event()
        self.may_load.set()
        self.workers: list[FakeWorker] = []

    def estimate_bytes(self, model: ResolvedModel) -> int:
        return model.version.size_bytes

    async def start(self, model: ResolvedModel, on_progress: Callable[[float], None]) -> FakeWorker:
        on_progress(0.5)
        await self.may_load.wait()
        if model.name == "bad":
            raise UnsupportedFormat("it is bad")
        self.workers.append(FakeWorker(model.version.size_bytes))
        return self.workers[-1]


def model(name: str, size_bytes: int = 10, adapter: str = "") -> ResolvedModel:
    version = ModelVersion(f"models/{name}/versions/v1", Format.SAFETENSORS, size_bytes, "f")
    applied = ModelVersion(f"models/{name}/versions/{adapter}", Format.PEFT, 1, "f") if adapter else None
    return ResolvedModel(name, ModelKind.TEXT_GENERATION, version, applied)


@pytest.fixture
def factory() -> FakeFactory:
    return FakeFactory()


def make_pool(factory: FakeFactory, **limits: float) -> ModelPool:
    return ModelPool(factory, PoolLimits(**{"keep_alive_s": 60.0, **limits}))  # type: ignore[arg-type]


def names(pool: ModelPool) -> list[str]:
    return [loaded.name for loaded in pool.loaded_models()]


async def touch(pool: ModelPool, *models: ResolvedModel) -> None:
    for each in models:
        async with pool.use(each):
            pass


async def gone(pool: ModelPool, name: str) -> None:
    async with asyncio.timeout(5):
        async for _, loaded in pool.watch():
            if loaded.name == name and loaded.state is LoadState.UNLOADED:
                return


async def test_many_who_ask_at_once_share_one_load(factory: FakeFactory):
    pool = make_pool(factory)
    factory.may_load.clear()
    waiting = [asyncio.create_task(touch(pool, model("a"))) for _ in range(5)]
    await asyncio.sleep(0)
    assert pool.loaded_models()[0].state is LoadState.LOADING
    waiting[0].cancel()
    factory.may_load.set()
    await asyncio.gather(*waiting[1:])
    assert len(factory.workers) == 1


async def test_a_load_that_fails_is_told_to_all_who_wait_and_leaves_nothing(factory: FakeFactory):
    pool = make_pool(factory)
    told = await asyncio.gather(*(touch(pool, model("bad")) for _ in range(3)), return_exceptions=True)
    assert [type(error) for error in told] == [UnsupportedFormat] * 3
    assert len({id(error) for error in told}) == 3
    assert names(pool) == []


async def test_keep_alive_zero_unloads_when_the_last_request_ends(factory: FakeFactory):
    pool = make_pool(factory)
    async with pool.use(model("a"), 0.0), pool.use(model("a"), 0.0):
        assert names(pool) == ["a"]
    await factory.workers[0].dead.wait()


async def test_an_unused_model_goes_after_its_keep_alive_and_stays_with_a_negative_one(factory: FakeFactory):
    pool = make_pool(factory, keep_alive_s=0.01)
    async with pool.use(model("stays"), -1.0):
        pass
    watching = asyncio.create_task(gone(pool, "goes"))
    await touch(pool, model("goes"))
    await watching
    assert names(pool) == ["stays"]
    assert pool.loaded_models()[0].expire_time is None


async def test_the_least_recently_used_idle_model_makes_room_never_a_busy_one(factory: FakeFactory):
    pool = make_pool(factory, max_models=2)
    async with pool.use(model("busy")):
        await touch(pool, model("idle"), model("new"))
        assert names(pool) == ["busy", "new"]
        async with pool.use(model("new")):
            with pytest.raises(QueueFull, match="busy"):
                await touch(pool, model("more"))
    assert names(pool) == ["busy", "new"]


async def test_what_does_not_fit_is_refused_with_numbers_and_nothing_is_evicted_for_it(factory: FakeFactory):
    pool = make_pool(factory, memory_bytes=100)
    await touch(pool, model("a", 40))
    async with pool.use(model("b", 40)):
        with pytest.raises(InsufficientMemory) as caught:
            await touch(pool, model("big", 80))
    assert caught.value.metadata == {"needs_bytes": "80", "has_bytes": "20", "would_free_bytes": "40"}
    assert names(pool) == ["a", "b"]
    await touch(pool, model("big", 80))
    assert names(pool) == ["big"]


async def test_a_dead_worker_is_told_as_failed_and_the_next_request_loads_anew(factory: FakeFactory):
    pool = make_pool(factory)
    await touch(pool, model("a"))
    states: list[LoadState] = []

    async def watch() -> None:
        async for _, loaded in pool.watch():
            states.append(loaded.state)
            if loaded.state is LoadState.FAILED:
                return

    watching = asyncio.create_task(watch())
    await asyncio.sleep(0)
    factory.workers[0].dead.set()
    await watching
    await touch(pool, model("a"))
    assert len(factory.workers) == 2


async def test_unloading_waits_for_requests_unless_it_is_forced(factory: FakeFactory):
    pool = make_pool(factory)
    version = model("a").version.name
    async with pool.use(model("a")):
        patient = asyncio.create_task(pool.unload(version, force=False))
        await asyncio.sleep(0)
        assert not patient.done()
        await pool.unload(version, force=True)
        assert factory.workers[0].dead.is_set()
    await patient
    with pytest.raises(ModelNotFound):
        await pool.unload(version, force=True)


async def test_a_forced_unload_stops_a_load(factory: FakeFactory):
    pool = make_pool(factory)
    factory.may_load.clear()
    loaded = await pool.load(model("a"))
    assert loaded.state is LoadState.LOADING
    await pool.unload(loaded.version, force=True)
    assert names(pool) == []


async def test_more_than_may_wait_are_turned_away(factory: FakeFactory):
    pool = make_pool(factory, max_waiting=2)
    factory.may_load.clear()
    waiting = [asyncio.create_task(touch(pool, model("a"))) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(QueueFull) as caught:
        await touch(pool, model("a"))
    assert caught.value.retry_after_s is not None
    factory.may_load.set()
    await asyncio.gather(*waiting)


async def test_adapters_beyond_the_bound_replace_the_least_recently_used_that_nobody_uses(
    factory: FakeFactory,
):
    pool = make_pool(factory, max_adapters=2)
    await touch(pool, model("a", adapter="one"), model("a", adapter="two"), model("a", adapter="one"))
    await touch(pool, model("a", adapter="three"))
    assert [key.split("/")[-1] for key in factory.workers[0].adapters] == ["one@f", "three@f"]
    async with pool.use(model("a", adapter="one")), pool.use(model("a", adapter="three")):
        with pytest.raises(QueueFull):
            await touch(pool, model("a", adapter="four"))


async def test_closing_ends_every_worker(factory: FakeFactory):
    pool = make_pool(factory)
    await touch(pool, model("a"), model("b"))
    await pool.close()
    assert all(worker.dead.is_set() for worker in factory.workers)
    assert names(pool) == []
