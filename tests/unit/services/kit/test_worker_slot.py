import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest

from services.kit.errors import UnsupportedFormat, WorkerLost
from services.kit.worker_slot import WorkerSlot
from tests.unit.services.kit.test_worker import is_running, spec
from tests.unit.services.kit.worker_targets import Heard, Request


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Rig:
    """A slot whose target and clock the test sets."""

    def __init__(self) -> None:
        self.target = "echo"
        self.num_starts = 0
        self.clock = Clock()
        self.slot: WorkerSlot[Request, Heard] = WorkerSlot(self._spec, clock=self.clock)

    def _spec(self):
        self.num_starts += 1
        return spec(self.target)

    async def crash(self) -> None:
        worker = await self.slot.get()
        os.kill(worker.pid, signal.SIGKILL)
        await worker.wait_dead()


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    yield rig
    await rig.slot.close()


async def test_all_who_ask_get_the_worker_of_one_start(rig: Rig):
    assert rig.slot.worker is None
    workers = await asyncio.gather(*(rig.slot.get() for _ in range(5)))
    assert len({worker.pid for worker in workers}) == 1
    assert await rig.slot.get() is workers[0]
    assert rig.num_starts == 1


async def test_a_worker_that_died_is_started_again(rig: Rig):
    first = await rig.slot.get()
    await rig.crash()
    second = await rig.slot.get()
    assert second.alive
    assert second.pid != first.pid


async def test_a_worker_that_keeps_dying_is_given_a_rest(rig: Rig):
    await rig.crash()
    await rig.crash()
    with pytest.raises(WorkerLost) as caught:
        await rig.slot.get()
    assert caught.value.retry_after_s == 1.0
    rig.clock.now += 1.0
    await rig.crash()
    with pytest.raises(WorkerLost) as caught:
        await rig.slot.get()
    assert caught.value.retry_after_s == 2.0


async def test_a_worker_that_lived_long_is_started_again_at_once(rig: Rig):
    for _ in range(4):
        await rig.slot.get()
        rig.clock.now += 100.0
        await rig.crash()
    assert (await rig.slot.get()).alive


async def test_a_start_that_crashes_counts_and_one_that_is_refused_does_not(rig: Rig):
    rig.target = "refusing"
    for _ in range(3):
        with pytest.raises(UnsupportedFormat):
            await rig.slot.get()
    rig.target = "crashing"
    for _ in range(2):
        with pytest.raises(WorkerLost, match="no such kernel"):
            await rig.slot.get()
    with pytest.raises(WorkerLost, match="2 times"):
        await rig.slot.get()


async def test_a_worker_that_was_stopped_on_purpose_did_not_crash(rig: Rig):
    for _ in range(3):
        await (await rig.slot.get()).stop()
    assert (await rig.slot.get()).alive


async def test_who_gives_up_does_not_stop_the_start_for_the_others(rig: Rig):
    impatient = asyncio.create_task(rig.slot.get())
    patient = asyncio.create_task(rig.slot.get())
    await asyncio.sleep(0)
    impatient.cancel()
    assert (await patient).alive
    assert rig.num_starts == 1


async def test_closing_ends_the_worker_for_good(rig: Rig):
    worker = await rig.slot.get()
    await rig.slot.close()
    assert not is_running(worker.pid)
    with pytest.raises(WorkerLost):
        await rig.slot.get()


async def test_closing_ends_a_start(rig: Rig):
    rig.target = "never_ready"
    getting = asyncio.create_task(rig.slot.get())
    await asyncio.sleep(0)
    await rig.slot.close()
    with pytest.raises((asyncio.CancelledError, WorkerLost)):
        await getting
