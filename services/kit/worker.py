"""Native code in a child process: start it, call it, lose it without losing more than its calls.

    spec = WorkerSpec(name="chat", target="services.inference.adapters.engine_worker:main", init=..., events=...)
    worker = await Worker.start(spec)
    async with worker.call(request) as call:
        async for event in call:
            ...

The child runs `worker_main.py`; what crosses is described in `worker_frames.py`. All of the parent's side
belongs to one event loop. Events that are not read yet wait in memory, so that one slow reader holds up
nobody else: a worker must bound what it sends on a call, as a generation does by its number of tokens.

A ready child that neither speaks nor computes for some seconds is hung: it is killed, and its calls get WorkerLost.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import msgspec
import psutil
import structlog

from services.kit import worker_frames as frames
from services.kit.errors import LaresError, WorkerLost
from services.kit.worker_log import LastLines
from services.kit.worker_pulse import Pulse

Req = TypeVar("Req", bound=msgspec.Struct)
Ev = TypeVar("Ev", bound=msgspec.Struct)

OnProgress = Callable[[Any], None]

_log = structlog.get_logger(__name__)

# How long a dead child's stderr may stay open: a grandchild can hold it for ever.
_STDERR_GRACE_S = 1.0


@dataclass(frozen=True, kw_only=True)
class WorkerSpec(Generic[Req, Ev]):
    """What to run in the child and how to read it.

    target: `package.module:function`; the function's annotations say what init and the requests are decoded
    as. events, ready, progress: type (or union of tagged Structs) of what the child sends on calls, with
    `port.ready` and with `port.progress`; Any gives plain dicts and lists. max_work_s: once it is ready, a child that
    does not come back to `port.receive` for so long counts as hung; 0 for one that may work as long as it likes.
    """

    name: str
    target: str
    init: msgspec.Struct
    events: Any = Any
    ready: Any = Any
    progress: Any = Any
    env: Mapping[str, str] = field(default_factory=dict)
    ready_timeout_s: float = 300.0
    max_work_s: float = 0.0


class Worker(Generic[Req, Ev]):
    """One live child process. Make it with `start`."""

    def __init__(
        self, spec: WorkerSpec[Req, Ev], process: asyncio.subprocess.Process, on_progress: OnProgress | None
    ) -> None:
        """Use `start`."""
        self.spec = spec
        self.ready_info: Any = None
        self._process = process
        self._on_progress = on_progress
        self._calls: dict[int, WorkerCall[Req, Ev]] = {}
        self._last_call_id = 0
        self._lost: WorkerLost | None = None
        self._stop_reason = ""
        self._fault = ""
        self._pulse = Pulse(
            ask=lambda: self._write(frames.Ping()),
            is_busy=lambda: bool(self._calls),
            cpu_s=self._cpu_s,
            on_hung=self._on_hung,
        )
        self._last_lines = LastLines(_log.bind(worker=spec.name, pid=process.pid))
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._decode_event = msgspec.msgpack.Decoder(spec.events).decode
        self._supervisor = asyncio.create_task(self._supervise(), name=f"worker-{spec.name}")

    @classmethod
    async def start(cls, spec: WorkerSpec[Req, Ev], on_progress: OnProgress | None = None) -> Self:
        """Spawn the child and wait until it is ready.

        Raises the LaresError that the target raised, or WorkerLost when the child died or took too long.
        Whoever cancels this leaves no child behind.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # The parent's working folder is nobody's place to import from.
            "-m",
            "services.kit.worker_main",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=_environment(spec.env),
        )
        worker = cls(spec, process, on_progress)
        try:
            async with asyncio.timeout(spec.ready_timeout_s):
                await worker._send(frames.Start(spec.target, frames.raw(spec.init), spec.max_work_s))
                await worker._ready
        except TimeoutError:
            await worker.kill(f"was not ready within {spec.ready_timeout_s:g} s")
            raise worker._lost_error() from None
        except BaseException:
            await worker.kill("was not wanted any more")
            raise
        return worker

    @property
    def pid(self) -> int:
        """The child's process id, also after its end."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether calls can still be made."""
        return self._lost is None and not self._stop_reason

    @property
    def crashed(self) -> bool:
        """Whether the child ended without having been asked to."""
        return self._lost is not None and not self._stop_reason

    @property
    def num_calls(self) -> int:
        """How many calls are open."""
        return len(self._calls)

    def call(self, request: Req) -> "WorkerCall[Req, Ev]":
        """A call, to be used as `async with worker.call(request) as call`. Many may run at once."""
        return WorkerCall(self, request)

    async def wait_dead(self) -> WorkerLost:
        """Wait for the child's end, whatever its cause, and tell it."""
        await asyncio.shield(self._supervisor)
        return self._lost_error()

    async def stop(self, grace_s: float = 5.0) -> None:
        """End the child: ask, wait, kill. Open calls get WorkerLost. Returns when it is gone."""
        if self._lost is None:
            self._stop_reason = self._stop_reason or "was stopped"
        self._write(frames.Stop())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self.wait_dead()
                return
        await self.kill(f"was stopped, and killed after {grace_s:g} s")

    async def kill(self, reason: str = "was killed") -> None:
        """End the child at once and wait until it is gone; reason goes into its WorkerLost."""
        if self._lost is None:
            self._stop_reason = reason
        self._kill()
        await self.wait_dead()

    # What follows is the harness's own, and WorkerCall's.

    def _open(self, call: "WorkerCall[Req, Ev]", request: Req) -> int:
        if not self.alive:
            raise self._lost_error()
        self._last_call_id += 1
        self._write(frames.Open(self._last_call_id, frames.raw(request)))
        self._calls[self._last_call_id] = call
        self._pulse.hasten()
        return self._last_call_id

    def _forget(self, call_id: int) -> None:
        if self._calls.pop(call_id, None) is not None:
            self._write(frames.Cancel(call_id))

    def _write(self, message: frames.Down) -> None:
        stdin = self._process.stdin
        if stdin is not None and self._lost is None and not stdin.is_closing():
            stdin.write(frames.frame(message))

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def _send(self, message: frames.Down) -> None:
        self._write(message)
        await self._drain()

    async def _drain(self) -> None:
        # A pipe that breaks here is a child that died: the supervisor tells, with its cause.
        if self._process.stdin is not None:
            with contextlib.suppress(ConnectionError):
                await self._process.stdin.drain()

    async def _supervise(self) -> None:
        stdout, stderr = self._process.stdout, self._process.stderr
        assert stdout is not None
        assert stderr is not None
        listener = asyncio.create_task(self._last_lines.follow(stderr))
        try:
            await self._read_frames(stdout)
        except asyncio.CancelledError:  # The loop ends, and with it all that could still talk to the child.
            self._pulse.stop()
            self._kill()
            raise
        except Exception:  # The stream is out of step, which nothing after it can mend.
            _log.exception("worker sent what is not understood", worker=self.spec.name, pid=self.pid)
            self._fault = "it sent what is not understood"
            self._kill()
        self._pulse.stop()
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()
        await asyncio.wait([listener], timeout=_STDERR_GRACE_S)
        listener.cancel()
        self._end()

    async def _read_frames(self, stdout: asyncio.StreamReader) -> None:
        decode = msgspec.msgpack.Decoder(frames.Up).decode
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                header = await stdout.readexactly(frames.LENGTH.size)
                self._take(decode(await stdout.readexactly(frames.frame_length(header))))

    def _take(self, message: frames.Up) -> None:
        self._pulse.heard()
        match message:
            case frames.Post():
                self._take_post(message)
            case frames.Progress():
                if self._on_progress is not None:
                    self._on_progress(msgspec.msgpack.decode(message.value, type=self.spec.progress))
            case frames.Ready():
                self._pulse.start()  # Not before: what loads may hold the interpreter's lock for long.
                self.ready_info = msgspec.msgpack.decode(message.info, type=self.spec.ready | None)
                if not self._ready.done():
                    self._ready.set_result(None)
            case frames.Refused():
                if not self._ready.done():
                    self._ready.set_exception(frames.error_from_wire(message.error))
            case frames.Pong():
                pass  # That it came is all.

    def _take_post(self, post: frames.Post) -> None:
        # A call that is not here was cancelled while this was on its way.
        for call_id, event in post.events:
            if (call := self._calls.get(call_id)) is not None:
                call._put(self._decode_event(event))
        for call_id in post.finished:
            if (call := self._calls.pop(call_id, None)) is not None:
                call._put(None)
        for call_id, error in post.failed:
            if (call := self._calls.pop(call_id, None)) is not None:
                call._put(frames.error_from_wire(error))

    def _on_hung(self, silent_s: float) -> None:
        self._fault = f"it hung: it said nothing for {silent_s:g} s"
        self._kill()

    def _cpu_s(self) -> float:
        try:
            times = psutil.Process(self.pid).cpu_times()
        except psutil.Error:
            return 0.0
        return float(times.user + times.system)

    def _end(self) -> None:
        self._lost = self._lost_error()
        if self._stop_reason:
            _log.info("worker ended", worker=self.spec.name, pid=self.pid, why=self._lost.message)
        else:
            _log.error("worker lost", worker=self.spec.name, pid=self.pid, why=self._lost.message)
        if not self._ready.done():
            self._ready.set_exception(self._lost_error())
            self._ready.exception()  # It may be that nobody waits any more; that is no news for the log.
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call._put(self._lost_error())

    def _lost_error(self) -> WorkerLost:
        """A fresh one for each: an exception collects the traceback of everyone that raises it."""
        status = self._fault or _exit_text(self._process.returncode)
        message = f"worker '{self.spec.name}' {self._stop_reason or f'died ({status})'}"
        last = self._last_lines.lines[-1:] if not self._stop_reason else []
        return WorkerLost(
            f"{message}: {last[0]}" if last else message,
            metadata={
                "worker": self.spec.name,
                "exit": status,
                "stderr": "\n".join(self._last_lines.lines[-5:]),
            },
        )


class WorkerCall(Generic[Req, Ev]):
    """One call: an async context manager, then an async iterator of events up to the call's end.

    Iterating raises the LaresError that the worker failed it with, or WorkerLost, once. Leaving the block
    before the end cancels the call in the worker.
    """

    def __init__(self, worker: Worker[Req, Ev], request: Req) -> None:
        """Use `Worker.call`."""
        self._worker = worker
        self._request = request
        self._call_id = 0
        self._ended = False
        self._events: deque[Ev | LaresError | None] = deque()
        self._news: asyncio.Future[None] | None = None  # What the one reader waits for.

    async def __aenter__(self) -> Self:
        self._call_id = self._worker._open(self, self._request)
        try:
            await self._worker._drain()
        except BaseException:
            self._worker._forget(self._call_id)
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended = True
        self._worker._forget(self._call_id)

    async def send(self, message: Req) -> None:
        """A further message on this call. Dropped after its end: the iteration tells what happened."""
        if self._call_id in self._worker._calls:
            await self._worker._send(frames.Message(self._call_id, frames.raw(message)))

    async def done_sending(self) -> None:
        """No more messages will follow; events still do. The worker receives a "close"."""
        if self._call_id in self._worker._calls:
            await self._worker._send(frames.Close(self._call_id))

    def __aiter__(self) -> AsyncIterator[Ev]:
        return self

    async def __anext__(self) -> Ev:
        if self._ended:
            raise StopAsyncIteration
        while not self._events:
            self._news = asyncio.get_running_loop().create_future()
            await self._news
        event = self._events.popleft()
        if event is None:
            self._ended = True
            raise StopAsyncIteration
        if isinstance(event, LaresError):
            self._ended = True
            raise event
        return event

    def _put(self, event: Ev | LaresError | None) -> None:
        self._events.append(event)
        if self._news is not None and not self._news.done():
            self._news.set_result(None)


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The child's environment: our import path, no network for model libraries, none of our settings."""
    # LARES_*: a worker gets what it needs in its init, and a database's password is nothing that it needs.
    inherited = {key: value for key, value in os.environ.items() if not key.upper().startswith("LARES_")}
    return {
        **inherited,
        "PYTHONPATH": os.pathsep.join(str(Path(path).absolute()) for path in sys.path),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        **extra,
    }


def _exit_text(returncode: int | None) -> str:
    match returncode:
        case None:
            return "still running"
        case -9:
            return "killed by SIGKILL, perhaps because memory ran out"
        case int() if returncode < 0:
            with contextlib.suppress(ValueError):
                return f"killed by {signal.Signals(-returncode).name}"
            return f"killed by signal {-returncode}"
        case _:
            return f"exit status {returncode}"
