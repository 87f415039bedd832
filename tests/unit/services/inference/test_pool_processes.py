"""The pool over real processes that die in every way, and that come and go."""

import asyncio
import contextlib
import gc
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

import psutil
import pytest

from services.inference.adapters.downloader_store import DownloaderStore
from services.inference.adapters.messages import EngineEvent, EngineInit, Loaded, LoadProgress
from services.inference.adapters.workers import ProcessModelWorker
from services.inference.core.memory import MemoryEstimate, MemoryPlan
from services.inference.core.models import LoadedModel, LoadState, PoolLimits, ResolvedModel
from services.inference.core.pool import ModelPool
from services.inference.core.ports import WorkerRequest
from services.inference.core.prompts import Prompt
from services.inference.core.sampling import OutputOptions, SamplingParameters, StopConditions
from services.kit import worker_pulse
from services.kit.errors import WorkerLost
from services.kit.worker import Worker, WorkerSpec
from tests.unit.services.inference import paper_worker
from tests.unit.services.inference.core.test_pool import FakeMemory, model, told

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")

_NUM_DEATHS = 10
_NUM_CYCLES = 20


class PaperFactory:
    """Implements WorkerFactory with real processes of `main`. every_s: of their pulse."""

    def __init__(self, *, every_s: float = 2.0) -> None:
        self._every_s = every_s

    async def estimate(self, model: ResolvedModel) -> Sequence[MemoryEstimate]:
        return [MemoryEstimate("cpu", model.version.size_bytes, 0, 64, 0, 16 * 1024**2)]

    async def start(
        self, model: ResolvedModel, plan: MemoryPlan, on_progress: Callable[[float], None]
    ) -> ProcessModelWorker:
        spec: WorkerSpec[Any, Any] = WorkerSpec(
            name=model.name,
            target=f"{paper_worker.__name__}:main",
            init=EngineInit("", "cpu", 1, 16),
            events=EngineEvent,
            ready=Loaded,
            progress=LoadProgress,
        )
        worker = await Worker.start(spec, on_progress=lambda progress: on_progress(progress.share))
        worker._pulse._every_s = self._every_s
        return ProcessModelWorker(worker, _NO_STORE, contextlib.AsyncExitStack())


_NO_STORE: DownloaderStore = None  # type: ignore[assignment]  # These models have no adapters.


def make_pool(*, every_s: float = 2.0) -> ModelPool:
    return ModelPool(PaperFactory(every_s=every_s), PoolLimits(), FakeMemory(cpu=2**60))


def other_than(pid: int) -> Callable[[LoadedModel], bool]:
    return lambda loaded: loaded.state is LoadState.READY and loaded.worker_pid != pid


def request() -> WorkerRequest:
    return WorkerRequest(Prompt(text="x"), SamplingParameters(), StopConditions(), OutputOptions(), seed=1)


async def talk(pool: ModelPool, heard: asyncio.Queue[str]) -> None:
    """One request, until it breaks."""
    async with pool.use(model("a")) as seat, seat.ready_worker.generate(request()) as updates:
        async for update in updates:
            heard.put_nowait(update.deltas[0].text)


@pytest.mark.parametrize("way", ["SIGKILL", "SIGSEGV", "SIGSTOP"])
async def test_each_request_in_flight_gets_one_clean_error_and_the_worker_is_replaced(way: str):
    pool = make_pool(every_s=0.02 if way == "SIGSTOP" else 2.0)
    heard: asyncio.Queue[str] = asyncio.Queue()
    async with asyncio.timeout(120):
        for _ in range(_NUM_DEATHS):
            talks = [asyncio.create_task(talk(pool, heard)) for _ in range(3)]
            for _ in talks:
                assert await heard.get() == "word"
            pid = pool.loaded_models()[0].worker_pid
            os.kill(pid, getattr(signal, way))
            ends = await asyncio.gather(*talks, return_exceptions=True)
            assert [type(end) for end in ends] == [WorkerLost] * 3
            assert ("hung" if way == "SIGSTOP" else way) in str(ends[0])
            ready = await told(pool, other_than(pid))
            assert ready.num_active_requests == ready.num_waiting_requests == 0
            # As if it had lived on: crashes in a row would make the next start wait.
            for entry in pool._entries.values():
                entry.replicas[0]._num_crashes = 0
    assert ready.num_restarts == _NUM_DEATHS
    await pool.close()
    assert not pool.loaded_models()


def test_a_hung_worker_is_noticed_within_ten_seconds():
    # Stopped right after an answer: that tick is not missed, the next three are.
    assert worker_pulse._ASK_EVERY_S * (worker_pulse._MAX_MISSES + 1) <= 8


async def test_loading_and_unloading_gives_memory_and_descriptors_back():
    pool = make_pool()
    process = psutil.Process()
    others = process.children()  # Of tests before this one, a database server for example.
    heard: asyncio.Queue[str] = asyncio.Queue()

    async def cycle() -> int:
        talking = asyncio.create_task(talk(pool, heard))
        await heard.get()
        pid = pool.loaded_models()[0].worker_pid
        talking.cancel()
        await asyncio.gather(talking, return_exceptions=True)
        await pool.unload(model("a").version.name, force=True)
        return pid

    async with asyncio.timeout(120):
        for _ in range(3):  # What is imported and allocated once.
            await cycle()
        gc.collect()
        num_fds, rss = process.num_fds(), process.memory_info().rss
        for _ in range(_NUM_CYCLES):
            assert not psutil.pid_exists(await cycle())
        gc.collect()
    # Fewer, where what tests before this one left open was closed meanwhile.
    assert process.num_fds() <= num_fds
    assert process.memory_info().rss - rss <= _NUM_CYCLES * 512 * 1024
    assert not set(process.children()) - set(others)


async def test_a_workers_stats_arrive_at_the_service():
    pool = make_pool()
    heard: asyncio.Queue[str] = asyncio.Queue()
    talks = []
    async with asyncio.timeout(60):
        for _ in range(3):  # What the worker says in answer to the last comes after its first stats.
            talks.append(asyncio.create_task(talk(pool, heard)))
            await heard.get()
    assert pool.stats()["a"][0].num_blocks == 8
    for talking in talks:
        talking.cancel()
    await asyncio.gather(*talks, return_exceptions=True)
    await pool.close()
