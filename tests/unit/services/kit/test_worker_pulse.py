import asyncio
from collections.abc import AsyncIterator

import pytest

from services.kit.worker_pulse import Pulse


class Child:
    """Counts what it is asked, and computes when it is told to."""

    def __init__(self) -> None:
        self.num_asked = 0
        self.cpu_s = 0.0
        self.has_work = True
        self.silences: list[float] = []
        self.pulse = Pulse(
            ask=self._ask,
            is_busy=lambda: self.has_work,
            cpu_s=lambda: self.cpu_s,
            on_hung=self.silences.append,
            every_s=2.0,
        )

    def _ask(self) -> None:
        self.num_asked += 1


@pytest.fixture
async def child() -> AsyncIterator[Child]:
    child = Child()
    yield child
    child.pulse.stop()


async def test_one_that_answers_is_asked_again_and_again_and_left_alone(child: Child):
    for _ in range(50):
        child.pulse.tick()
        child.pulse.heard()
    assert child.num_asked == 50
    assert child.silences == []


async def test_one_that_neither_speaks_nor_computes_is_hung_after_three_silences(child: Child):
    child.pulse.tick()
    child.pulse.tick()
    child.pulse.tick()
    assert child.silences == []
    child.pulse.tick()
    assert child.silences == [6.0]


async def test_any_word_begins_the_count_anew(child: Child):
    for _ in range(20):
        child.pulse.tick()
        child.pulse.tick()
        child.pulse.tick()
        child.pulse.heard()
    assert child.silences == []


async def test_one_that_computes_without_a_word_gets_a_minute(child: Child):
    child.pulse.tick()
    for _ in range(29):
        child.cpu_s += 2.0
        child.pulse.tick()
    assert child.silences == []
    child.cpu_s += 2.0
    child.pulse.tick()
    assert child.silences == [60.0]


async def test_without_work_it_is_asked_rarely_until_work_comes(child: Child):
    loop = asyncio.get_running_loop()
    child.has_work = False
    child.pulse.start()
    assert child.pulse._timer is not None
    assert child.pulse._timer.when() - loop.time() > 20
    child.has_work = True
    child.pulse.hasten()
    assert child.pulse._timer.when() - loop.time() <= 2
