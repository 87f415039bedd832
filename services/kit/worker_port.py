"""The child's side of a worker: what a target function is given to talk to its parent with."""

import os
import queue
import threading
import time
import traceback
from collections.abc import Iterable
from typing import IO, Any, Generic, Literal, TypeVar

import msgspec

from services.kit import worker_frames as frames
from services.kit.errors import LaresError

Req = TypeVar("Req")
Ev = TypeVar("Ev")

_PARENT_GONE = 0
_OUT_OF_STEP = 4


class Incoming(msgspec.Struct, Generic[Req], frozen=True):
    """One thing that the parent said. message is None for "close" and "cancel".

    "open" begins a call, "message" adds to it, "close" says that no more will be added, "cancel" that nobody
    listens.
    """

    call_id: int
    kind: Literal["open", "message", "close", "cancel"]
    message: Req | None = None


class WorkerPort(Generic[Req, Ev]):
    """Everything that a target may say and hear. Any thread may send; one thread receives.

    The parent's messages are decoded as `Req`, which the harness reads from the target's annotation:
    `def main(init: Init, port: WorkerPort[Open | More, Token | Done]) -> None`.
    """

    def __init__(self, inbox: IO[bytes], outbox: int, requests: Any, max_work_s: float = 0.0) -> None:
        """inbox: pipe from the parent, past its Start frame. outbox: descriptor of the pipe to the parent. max_work_s:
        after so long without a `receive` the parent's pings go unanswered, and it takes this worker for hung.
        """
        self._inbox = inbox
        self._outbox = outbox
        self._requests = msgspec.msgpack.Decoder(requests)
        self._down = msgspec.msgpack.Decoder(frames.Down)
        self._queue: queue.SimpleQueue[Incoming[Req] | None] = queue.SimpleQueue()
        self._write_lock = threading.Lock()
        self._closed = threading.Event()
        self._max_work_s = max_work_s
        self._works_since_s: float | None = None
        threading.Thread(target=self._read, name="worker-inbox", daemon=True).start()

    @property
    def closed(self) -> bool:
        """Whether the parent asked this worker to end: finish what is quick, then return."""
        return self._closed.is_set()

    def progress(self, value: msgspec.Struct) -> None:
        """Tell how far the start has come."""
        self._write(frames.Progress(frames.raw(value)))

    def ready(self, info: msgspec.Struct | None = None) -> None:
        """Open for calls; `Worker.start` returns, and its `ready_info` is info."""
        self._works_since_s = time.monotonic()
        self._write(frames.Ready(frames.raw(info)))

    def receive(self, timeout_s: float | None = None) -> list[Incoming[Req]]:
        """All that has come in, in order. Waits for the first: for ever (None), not at all (0), or so long.

        Empty when the time is over, and at once when `closed`.
        """
        self._works_since_s = None
        try:
            return self._receive(timeout_s)
        finally:
            self._works_since_s = time.monotonic()

    def _receive(self, timeout_s: float | None) -> list[Incoming[Req]]:
        incoming: list[Incoming[Req]] = []
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            wait_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                at_once = incoming or self.closed
                item = self._queue.get_nowait() if at_once else self._queue.get(timeout=wait_s)
            except queue.Empty:
                return incoming
            if item is not None:  # None only wakes us: the parent asked us to stop.
                incoming.append(item)

    def send(self, events: Iterable[tuple[int, Ev]]) -> None:
        """Events, each for a call. One write, however many."""
        self.post(events=events)

    def finish(self, call_id: int) -> None:
        """The call is done: its reader comes to the end."""
        self.post(finished=[call_id])

    def fail(self, call_id: int, error: LaresError) -> None:
        """The call failed: its reader gets this error. Other calls go on."""
        self.post(failed=[(call_id, error)])

    def post(
        self,
        events: Iterable[tuple[int, Ev]] = (),
        finished: Iterable[int] = (),
        failed: Iterable[tuple[int, LaresError]] = (),
    ) -> None:
        """All that one step has to say, in one write. Within it, events go before the ends."""
        self._write(
            frames.Post(
                [(call_id, frames.raw(event)) for call_id, event in events],
                list(finished),
                [(call_id, frames.error_to_wire(error)) for call_id, error in failed],
            )
        )

    def refuse(self, error: LaresError) -> None:
        """The start failed; `Worker.start` raises this error. The harness calls it when a target raises."""
        self._write(frames.Refused(frames.error_to_wire(error)))

    def _write(self, message: frames.Up) -> None:
        rest = memoryview(frames.frame(message))
        with self._write_lock:
            try:
                while rest:
                    rest = rest[os.write(self._outbox, rest) :]
            except OSError:
                os._exit(_PARENT_GONE)

    def _read(self) -> None:
        # Whatever the engine is busy with, the end of this pipe ends the process at once: a worker has
        # nothing to save, and a parent that is gone must not leave gigabytes behind.
        try:
            while len(header := self._inbox.read(frames.LENGTH.size)) == frames.LENGTH.size:
                num_bytes = frames.frame_length(header)
                body = self._inbox.read(num_bytes)
                if len(body) < num_bytes:
                    break
                self._take(self._down.decode(body))
        except OSError:
            pass
        except BaseException:  # A frame that is not understood: the two sides are not of one release.
            traceback.print_exc()
            os._exit(_OUT_OF_STEP)
        os._exit(_PARENT_GONE)

    def _take(self, message: frames.Down) -> None:
        match message:
            case frames.Open():
                self._put(message.call_id, "open", message.message)
            case frames.Message():
                self._put(message.call_id, "message", message.message)
            case frames.Close():
                self._queue.put(Incoming(message.call_id, "close"))
            case frames.Cancel():
                self._queue.put(Incoming(message.call_id, "cancel"))
            case frames.Ping():
                if not self._is_stuck():
                    self._write(frames.Pong())
            case frames.Stop():
                self._closed.set()
                self._queue.put(None)
            case frames.Start():
                raise RuntimeError("a second Start frame")

    def _is_stuck(self) -> bool:
        since_s = self._works_since_s
        return (
            bool(self._max_work_s) and since_s is not None and time.monotonic() - since_s > self._max_work_s
        )

    def _put(self, call_id: int, kind: Literal["open", "message"], raw: msgspec.Raw) -> None:
        self._queue.put(Incoming(call_id, kind, self._requests.decode(raw)))
