"""Models that are loaded when the service starts."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import structlog

from services.kit.errors import LaresError, Unavailable

_log = structlog.get_logger(__name__)

_MAX_WAIT_S: Final = 30.0


class Preloader:
    """Asks for each model in turn. While the registry does not answer yet, it asks again."""

    def __init__(
        self,
        load: Callable[[str, float | None], Awaitable[Any]],
        names: Sequence[str],
        *,
        first_wait_s: float = 0.5,
    ) -> None:
        """load: begins to load a model of a name, with a keep-alive or None for the usual one."""
        self._load = load
        self._names = names
        self._first_wait_s = first_wait_s
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; nobody waits for the end."""
        if self._names:
            self._task = asyncio.create_task(self._run(), name="preload")

    async def stop(self) -> None:
        """Ask no more."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        for name in self._names:
            try:
                await self._load_when_possible(name)
            except LaresError as error:
                _log.error("model cannot be preloaded", model=name, why=error.message)
            except Exception:  # One that breaks must not keep the next from loading.
                _log.exception("model cannot be preloaded", model=name)

    async def _load_when_possible(self, name: str) -> None:
        wait_s = self._first_wait_s
        while True:
            try:
                await self._load(name, None)
                return
            except Unavailable:
                await asyncio.sleep(wait_s)
                wait_s = min(_MAX_WAIT_S, wait_s * 2)
