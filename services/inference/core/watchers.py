"""Who watches the models in memory. Whoever reads slowly skips what is out of date; nothing piles up."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable, Sequence

from services.inference.core.models import LoadedModel


class Watchers:
    """Passes changes on to any number of readers."""

    def __init__(self) -> None:
        self._sequence = itertools.count(1)
        self._all: set[_Watcher] = set()

    def tell(self, model: LoadedModel) -> None:
        """A model stands otherwise now."""
        number = next(self._sequence)
        for watcher in self._all:
            watcher.put(number, model)

    async def watch(
        self, loaded_models: Callable[[], Sequence[LoadedModel]]
    ) -> AsyncGenerator[tuple[int, LoadedModel], None]:
        """How each stands, then each change, numbered."""
        watcher = _Watcher()
        self._all.add(watcher)
        try:
            for model in loaded_models():
                watcher.put(next(self._sequence), model)
            while True:
                yield await watcher.get()
        finally:
            self._all.discard(watcher)


class _Watcher:
    """What one reader has not read yet: at most one state a model, in the order of the last change."""

    def __init__(self) -> None:
        self._unread: dict[str, tuple[int, LoadedModel]] = {}  # By version.
        self._has_news = asyncio.Event()

    def put(self, number: int, model: LoadedModel) -> None:
        self._unread.pop(model.version, None)
        self._unread[model.version] = (number, model)
        self._has_news.set()

    async def get(self) -> tuple[int, LoadedModel]:
        await self._has_news.wait()
        version = next(iter(self._unread))
        found = self._unread.pop(version)
        if not self._unread:
            self._has_news.clear()
        return found
