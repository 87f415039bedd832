import asyncio

from services.inference.adapters.preloader import Preloader
from services.kit.errors import ModelNotFound, Unavailable


async def test_each_is_loaded_in_turn_the_unknown_passed_over_and_a_late_registry_waited_for():
    asked: list[str] = []
    done = asyncio.Event()

    async def load(name: str, keep_alive_s: float | None) -> None:
        asked.append(name)
        if name == "early" and asked.count(name) < 3:
            raise Unavailable("the registry is not there yet")
        if name == "unknown":
            raise ModelNotFound(name)
        if name == "broken":
            raise RuntimeError("a bug")
        if name == "last":
            done.set()

    preloader = Preloader(load, ("early", "unknown", "broken", "last"), first_wait_s=0.001)
    preloader.start()
    async with asyncio.timeout(10):
        await done.wait()
    await preloader.stop()
    assert asked == ["early", "early", "early", "unknown", "broken", "last"]


async def test_stopping_ends_the_waiting():
    async def load(name: str, keep_alive_s: float | None) -> None:
        raise Unavailable("never there")

    preloader = Preloader(load, ("a",), first_wait_s=3600)
    preloader.start()
    await preloader.stop()
