import asyncio
from collections.abc import Callable, Sequence

import pytest

from services.inference.core.events import LoopStats
from services.inference.core.memory import MemoryEstimate, MemoryPlan
from services.inference.core.models import (
    Format,
    LoadedModel,
    LoadState,
    ModelKind,
    ModelVersion,
    PoolLimits,
    ResolvedModel,
    WorkerFacts,
)
from services.inference.core.pool import ModelPool
from services.kit.errors import InsufficientMemory, ModelNotFound, QueueFull, UnsupportedFormat, WorkerLost


class FakeWorker:
    """Lives until it is told not to."""

    pid = 1
    stats: LoopStats | None = None

    def __init__(self, device: str, size_bytes: int) -> None:
        self.facts = WorkerFacts(device, "none", 64)
        self.size_bytes = size_bytes
        self.card_bytes = 0 if device == "cpu" else size_bytes
        self.adapters: list[str] = []
        self.dead = asyncio.Event()

    def memory_bytes(self) -> int:
        return 0 if self.card_bytes else self.size_bytes

    async def load_adapter(self, adapter: ModelVersion) -> None:
        self.adapters.append(adapter.key)

    async def drop_adapter(self, key: str) -> None:
        self.adapters.remove(key)

    async def wait_dead(self) -> str:
        await self.dead.wait()
        return "died"

    async def stop(self) -> None:
        self.dead.set()


class FakeMemory:
    """So many bytes of each device, of which others may have taken some."""

    def __init__(self, **sizes: int) -> None:
        self.sizes = {name.replace("_", ":"): size for name, size in sizes.items()}
        self.available = dict(self.sizes)

    @property
    def devices(self) -> Sequence[str]:
        return list(self.sizes)

    def budget_bytes(self, device: str) -> int:
        return self.sizes[device]

    def available_bytes(self, device: str) -> int:
        return self.available[device]


class FakeFactory:
    """Loads when `may_load` is set; a model named `bad` never loads, and `crashes` says how many starts die."""

    def __init__(self, memory: FakeMemory | None = None) -> None:
        self.memory = memory or FakeMemory(cpu=2**60)
        self.may_load = asyncio.Event()
        self.may_load.set()
        self.workers: list[FakeWorker] = []
        self.num_starts = 0
        self.num_crashes = 0
        self.grows_by = 0

    async def estimate(self, model: ResolvedModel) -> Sequence[MemoryEstimate]:
        return [
            MemoryEstimate(device, model.version.size_bytes, 0, 64, 0, 0) for device in self.memory.devices
        ]

    async def start(
        self, model: ResolvedModel, plan: MemoryPlan, on_progress: Callable[[float], None]
    ) -> FakeWorker:
        self.num_starts += 1
        on_progress(0.5)
        await self.may_load.wait()
        if model.name == "bad":
            raise UnsupportedFormat("it is bad")
        if self.num_crashes:
            self.num_crashes -= 1
            raise WorkerLost("it died of its start")
        self.workers.append(FakeWorker(plan.device, model.version.size_bytes + self.grows_by))
        return self.workers[-1]


def model(name: str, size_bytes: int = 10, adapter: str = "") -> ResolvedModel:
    version = ModelVersion(f"models/{name}/versions/v1", Format.SAFETENSORS, size_bytes, "f")
    applied = ModelVersion(f"models/{name}/versions/{adapter}", Format.PEFT, 1, "f") if adapter else None
    return ResolvedModel(name, ModelKind.TEXT_GENERATION, version, applied)


@pytest.fixture
def factory() -> FakeFactory:
    return FakeFactory()


def make_pool(factory: FakeFactory, **limits: object) -> ModelPool:
    return ModelPool(factory, PoolLimits(**{"keep_alive_s": 60.0, **limits}), factory.memory)  # type: ignore[arg-type]


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


async def test_what_does_not_fit_is_refused_with_numbers_and_nothing_is_evicted_for_it():
    factory = FakeFactory(FakeMemory(cpu=100))
    pool = make_pool(factory)
    await touch(pool, model("a", 40))
    async with pool.use(model("b", 40)):
        with pytest.raises(InsufficientMemory) as caught:
            await touch(pool, model("big", 80))
    assert caught.value.metadata == {
        "device": "cpu",
        "needs_bytes": "80",
        "has_bytes": "20",
        "would_free_bytes": "40",
    }
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


async def told(pool: ModelPool, is_it: Callable[[LoadedModel], object]) -> LoadedModel:
    """The first state of a model in a watch that is meant."""
    async with asyncio.timeout(5):
        async for _, loaded in pool.watch():
            if is_it(loaded):
                return loaded
    raise AssertionError("the watch ended")


def has_ready(num_workers: int) -> Callable[[LoadedModel], bool]:
    return lambda loaded: loaded.num_ready_workers == num_workers


def is_restarted(loaded: LoadedModel) -> bool:
    return loaded.num_restarts == 1 and loaded.state is LoadState.READY and not loaded.failure_message


def is_loading(loaded: LoadedModel) -> bool:
    return loaded.state is LoadState.LOADING


async def test_only_those_go_whose_memory_helps():
    factory = FakeFactory(FakeMemory(cpu=100))
    pool = make_pool(factory)
    await touch(pool, model("small", 10), model("large", 80))
    await touch(pool, model("new", 95))
    assert names(pool) == ["new"]
    await pool.close()
    pool = make_pool(factory)
    await touch(pool, model("small", 10), model("large", 80), model("new", 85))
    assert names(pool) == ["new", "small"]


async def test_what_the_machine_lacks_counts_though_the_budget_has_it():
    factory = FakeFactory(FakeMemory(cpu=100))
    factory.memory.available["cpu"] = 30
    with pytest.raises(InsufficientMemory) as caught:
        await touch(make_pool(factory), model("a", 40))
    assert caught.value.metadata["has_bytes"] == "30"


async def test_what_is_promised_to_a_model_that_loads_is_not_given_twice():
    factory = FakeFactory(FakeMemory(cpu=100))
    pool = make_pool(factory)
    factory.may_load.clear()
    loading = asyncio.create_task(touch(pool, model("a", 60)))
    await asyncio.sleep(0)
    with pytest.raises(InsufficientMemory):
        await touch(pool, model("b", 60))
    factory.may_load.set()
    await loading


async def test_a_model_that_took_more_than_estimated_counts_with_what_it_took():
    factory = FakeFactory(FakeMemory(cpu=100))
    pool = make_pool(factory)
    factory.grows_by = 30
    async with pool.use(model("a", 40)):
        with pytest.raises(InsufficientMemory) as caught:
            await touch(pool, model("b", 50))
    assert caught.value.metadata["has_bytes"] == "30"


async def test_a_pinned_model_neither_expires_nor_makes_room_but_can_be_unloaded():
    factory = FakeFactory(FakeMemory(cpu=100))
    pool = make_pool(factory, pinned=frozenset({"a"}), keep_alive_s=0.0)
    async with pool.use(model("a", 60), 0.0):
        pass
    with pytest.raises(InsufficientMemory) as caught:
        await touch(pool, model("b", 60))
    assert caught.value.metadata["would_free_bytes"] == "0"
    assert pool.loaded_models()[0].expire_time is None
    await pool.unload(model("a").version.name, force=False)
    assert names(pool) == []


async def test_a_model_goes_to_the_card_if_it_fits_there_and_else_to_the_cpu_which_is_told():
    factory = FakeFactory(FakeMemory(cuda_0=50, cpu=100))
    pool = make_pool(factory)
    async with pool.use(model("fits", 40)) as seat:
        assert seat.ready_worker.facts.device == "cuda:0"
        async with pool.use(model("other", 30)) as other:
            assert other.ready_worker.facts.device == "cpu"
    notes = {loaded.name: loaded.note for loaded in pool.loaded_models()}
    assert notes["fits"] == ""
    assert "on cpu" in notes["other"]
    assert "cuda:0" in notes["other"]
    await touch(pool, model("third", 45))
    assert {loaded.name: loaded.facts and loaded.facts.device for loaded in pool.loaded_models()} == {
        "other": "cpu",
        "third": "cuda:0",
    }


async def test_requests_go_to_the_least_loaded_of_a_models_workers(factory: FakeFactory):
    pool = make_pool(factory, workers_per_model=2)
    await touch(pool, model("a"))
    await told(pool, has_ready(2))
    async with pool.use(model("a")) as one, pool.use(model("a")) as two, pool.use(model("a")) as three:
        assert one.ready_worker is not two.ready_worker
        assert three.ready_worker in (one.ready_worker, two.ready_worker)
    assert pool.loaded_models()[0].num_ready_workers == 2


async def test_nobody_is_evicted_for_a_second_worker_of_the_same_model():
    factory = FakeFactory(FakeMemory(cpu=100))
    pool = make_pool(factory, workers_per_model=3)
    await touch(pool, model("idle", 40))
    assert pool.loaded_models()[0].num_workers == 2
    await touch(pool, model("a", 20))
    assert {loaded.name: loaded.num_workers for loaded in pool.loaded_models()} == {"idle": 2, "a": 1}


async def test_a_worker_that_dies_in_use_is_replaced_and_others_wait_for_the_new_one(factory: FakeFactory):
    pool = make_pool(factory)
    async with pool.use(model("a")):
        factory.may_load.clear()
        factory.workers[0].dead.set()
        lost = await told(pool, is_loading)
        assert lost.failure_message == "died"
    waiting = asyncio.create_task(touch(pool, model("a")))
    await asyncio.sleep(0)
    factory.may_load.set()
    await waiting
    loaded = pool.loaded_models()[0]
    assert (loaded.num_restarts, loaded.failure_message, len(factory.workers)) == (1, "", 2)


async def test_a_request_that_was_lost_before_the_death_was_seen_counts_as_use(factory: FakeFactory):
    pool = make_pool(factory)
    with pytest.raises(WorkerLost):
        async with pool.use(model("a")):
            raise WorkerLost("the call broke first")
    factory.workers[0].dead.set()
    await told(pool, is_restarted)


async def test_the_other_workers_serve_while_one_is_replaced(factory: FakeFactory):
    pool = make_pool(factory, workers_per_model=2)
    await touch(pool, model("a"))
    await told(pool, has_ready(2))
    factory.may_load.clear()
    factory.workers[0].dead.set()
    await told(pool, has_ready(1))
    async with pool.use(model("a")) as seat:
        assert id(seat.ready_worker) == id(factory.workers[1])
        assert pool.loaded_models()[0].state is LoadState.READY
    factory.may_load.set()
    await told(pool, has_ready(2))


async def test_a_kept_models_worker_is_replaced_though_nobody_uses_it(factory: FakeFactory):
    pool = make_pool(factory, kept=frozenset({"a"}))
    await touch(pool, model("a"))
    factory.workers[0].dead.set()
    await told(pool, is_restarted)


async def test_starts_that_die_again_and_again_wait_and_who_asks_meanwhile_is_told_when(factory: FakeFactory):
    pool = make_pool(factory, kept=frozenset({"a"}))
    await touch(pool, model("a"))
    factory.num_crashes = 1
    factory.workers[0].dead.set()
    await told(pool, lambda loaded: "its start" in loaded.failure_message)
    with pytest.raises(WorkerLost, match="next start") as caught:
        await touch(pool, model("a"))
    assert caught.value.retry_after_s is not None
    assert 0 < caught.value.retry_after_s <= 1
    await pool.close()
    assert names(pool) == []


async def test_a_replacement_that_does_not_come_up_is_told_to_those_who_wait(factory: FakeFactory):
    pool = make_pool(factory)
    async with pool.use(model("a")):
        factory.may_load.clear()
        factory.workers[0].dead.set()
        await told(pool, is_loading)
    waiting = asyncio.create_task(touch(pool, model("a")))
    await asyncio.sleep(0)
    factory.num_crashes = 1
    factory.may_load.set()
    with pytest.raises(WorkerLost, match="of its start"):
        await waiting
    assert names(pool) == []


async def test_a_watcher_who_reads_nothing_holds_one_state_a_model(factory: FakeFactory):
    pool = make_pool(factory)
    watched = pool.watch()
    await touch(pool, model("a"))
    number, first = await anext(watched)
    assert first.state is LoadState.READY
    for _ in range(50):
        await pool.unload(first.version, force=True)
        await touch(pool, model("a"))
    (watcher,) = pool._watchers._all
    assert len(watcher._unread) == 1
    later, last = await anext(watched)
    assert later > number + 50
    assert last.state is LoadState.READY
    await watched.aclose()
    assert not pool._watchers._all
