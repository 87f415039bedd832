"""Recognisers as child processes, by the kit's harness. What is heavy is imported there, never here."""

import asyncio
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import psutil

from services.kit.worker import Worker, WorkerSpec
from services.speech.adapters.worker_init import VoskInit, WhisperInit
from services.speech.core.domain import Engine
from services.speech.core.messages import Loaded, WorkerEvent, WorkerRequest
from services.speech.core.ports import WorkerCall

_VOSK: Final = "services.speech.adapters.vosk_worker:main"
_WHISPER: Final = "services.speech.adapters.whisper_worker:main"


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How engines run; the fields are those of the settings."""

    num_threads: int
    device: str
    compute_type: str
    skip_silence: bool
    load_timeout_s: float


class ProcessLauncher:
    """Starts one child process a model."""

    def __init__(self, options: EngineOptions) -> None:
        self._options = options

    async def start(self, model_id: str, engine: Engine, folder: Path) -> "ProcessRecognizer":
        """Return once the model is in memory. Raises what the worker raised, or WorkerLost."""
        return ProcessRecognizer(await Worker.start(self._spec(model_id, engine, folder)))

    def _spec(self, model_id: str, engine: Engine, folder: Path) -> WorkerSpec[Any, Any]:
        options = self._options
        init: msgspec.Struct
        match engine:
            case Engine.VOSK:
                target = _VOSK
                init = VoskInit(model_id, str(folder), options.num_threads)
                library_threads = 1  # Its matrices are small: streams are what there is many of.
            case Engine.WHISPER:
                target = _WHISPER
                init = WhisperInit(
                    model_id,
                    str(folder),
                    options.device,
                    options.compute_type,
                    options.num_threads,
                    options.skip_silence,
                )
                library_threads = options.num_threads
        return WorkerSpec(
            name=model_id,
            target=target,
            init=init,
            events=WorkerEvent,
            ready=Loaded,
            env={"OMP_NUM_THREADS": str(library_threads), "OPENBLAS_NUM_THREADS": str(library_threads)},
            ready_timeout_s=options.load_timeout_s,
        )


class ProcessRecognizer:
    """A worker with a model in its memory."""

    def __init__(self, worker: Worker[Any, Any]) -> None:
        self._worker = worker
        self.device: str = worker.ready_info.device

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._worker.pid

    def memory_bytes(self) -> int:
        """Its resident set; 0 once it is dead."""
        try:
            return int(psutil.Process(self.pid).memory_info().rss)
        except psutil.Error:
            return 0

    def call(self, request: WorkerRequest) -> AbstractAsyncContextManager[WorkerCall]:
        """Ask it."""
        return self._worker.call(request)

    async def wait_dead(self) -> None:
        """Return once it has ended."""
        await self._worker.wait_dead()

    async def stop(self) -> None:
        """End it, whoever stops waiting for that."""
        await asyncio.shield(self._worker.stop())
