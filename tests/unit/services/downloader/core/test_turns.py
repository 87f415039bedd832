import asyncio

import pytest

from services.downloader.core.turns import Turns


class Queue:
    """Those who took a turn, in their order. Each holds it until it is told to go."""

    def __init__(self, num_turns: int) -> None:
        self.turns = Turns(num_turns)
        self.ranks: dict[str, int] = {}
        self.working: list[str] = []
        self.go: dict[str, asyncio.Event] = {}

    async def work(self, name: str) -> None:
        async with self.turns.turn(lambda: self.ranks[name]):
            self.working.append(name)
            await self.go[name].wait()

    async def join(self, name: str, rank: int) -> asyncio.Task[None]:
        self.ranks[name] = rank
        self.go[name] = asyncio.Event()
        task = asyncio.create_task(self.work(name))
        await asyncio.sleep(0)
        return task


async def test_who_waits_goes_by_rank_and_a_rank_may_change_meanwhile() -> None:
    queue = Queue(1)
    tasks = [await queue.join(name, rank) for name, rank in (("a", 9), ("b", 5), ("c", 3), ("d", 4))]
    queue.ranks["b"] = 1
    for event in queue.go.values():
        event.set()
    await asyncio.gather(*tasks)
    assert queue.working == ["a", "b", "c", "d"]


async def test_no_more_than_so_many_work_at_once() -> None:
    queue = Queue(2)
    tasks = [await queue.join(name, 0) for name in "abc"]
    assert queue.working == ["a", "b"]
    queue.go["b"].set()
    await tasks[1]
    await asyncio.sleep(0)
    assert queue.working == ["a", "b", "c"]
    for event in queue.go.values():
        event.set()
    await asyncio.gather(*tasks)
    await queue.join("d", 0)
    await queue.join("e", 0)
    assert queue.working[-2:] == ["d", "e"]


async def test_who_leaves_takes_no_turn_along() -> None:
    queue = Queue(1)
    async with queue.turns.turn(lambda: 0):
        leaving, waiting, early = [
            await queue.join(name, rank) for name, rank in (("a", 1), ("b", 2), ("c", 0))
        ]
        early.cancel()
        with pytest.raises(asyncio.CancelledError):
            await early
    # It has been given the turn, and has not heard of it yet.
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    await asyncio.sleep(0)
    assert queue.working == ["b"]
    queue.go["b"].set()
    await waiting
    await queue.join("d", 0)
    assert queue.working == ["b", "d"]
