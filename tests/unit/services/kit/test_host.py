import asyncio
from collections.abc import AsyncGenerator

import pytest
from pydantic import Field

from services.kit.errors import ModelNotFound, ServiceDraining
from services.kit.host import Host
from services.kit.settings import ServiceSettings, Settings


class SpeechSettings(ServiceSettings):
    section = "speech"

    voices: int = Field(default=1, description="How many.")


class News:
    """A stream of news that tells whether it was closed."""

    def __init__(self, *, then_wait: bool = False, error: Exception | None = None) -> None:
        self.closed = False
        self.then_wait, self.error = then_wait, error

    async def stream(self) -> AsyncGenerator[int, None]:
        try:
            yield 1
            yield 2
            if self.error is not None:
                raise self.error
            if self.then_wait:
                await asyncio.Event().wait()
        finally:
            self.closed = True


async def test_news_pass_until_their_own_end(host: Host):
    news = News()
    assert [number async for number in host.until_draining(news.stream())] == [1, 2]
    assert news.closed


async def test_an_error_among_the_news_passes(host: Host):
    news = News(error=ModelNotFound.named("x"))
    with pytest.raises(ModelNotFound):
        async for _ in host.until_draining(news.stream()):
            pass
    assert news.closed


async def test_waiting_for_news_ends_when_the_process_drains(host: Host):
    news = News(then_wait=True)
    heard = []

    async def watch() -> None:
        async for number in host.until_draining(news.stream()):
            heard.append(number)
            if number == 2:
                asyncio.get_running_loop().call_soon(host.draining.set)

    with pytest.raises(ServiceDraining):
        await watch()
    assert heard == [1, 2]
    assert news.closed


async def test_a_watcher_that_is_cancelled_closes_the_news(host: Host):
    news = News(then_wait=True)
    heard_two = asyncio.Event()

    async def watch() -> None:
        async for number in host.until_draining(news.stream()):
            if number == 2:
                heard_two.set()

    task = asyncio.create_task(watch())
    await heard_two.wait()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert news.closed


async def test_a_watcher_that_leaves_closes_the_news(host: Host):
    news = News(then_wait=True)
    watching = host.until_draining(news.stream())
    assert await anext(watching) == 1
    await watching.aclose()
    assert news.closed


def test_a_service_loads_its_settings_with_the_overrides_of_the_process(tmp_path):
    (tmp_path / "settings.toml").write_text("[speech]\nvoices = 2\n")
    settings = Settings(home=tmp_path)
    assert Host(settings).load(SpeechSettings).voices == 2
    assert Host(settings, {"speech.voices": 3, "http": "127.0.0.1:1"}).load(SpeechSettings).voices == 3
