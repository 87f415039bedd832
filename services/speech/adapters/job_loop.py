"""The inside of a recogniser's worker: many requests, taken in turn, one slice of work each, on a few threads.

A live stream is ready when it has audio; a file always is. Who has done a slice goes to the back of the queue, so that
no request holds up another for longer than one slice, and a stream that stalls holds up nobody.
"""

import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from services.kit.errors import InternalError, LaresError
from services.kit.worker_port import Incoming, WorkerPort
from services.speech.core.messages import Audio, FileRequest, LiveRequest, WorkerEvent, WorkerRequest

# Files that are decoded in memory at once; others wait for their turn.
_MAX_OPEN_FILES: Final = 4

SLICE_S: Final = 0.2
"""Live audio that is heard at once. Less is heard sooner, more costs less."""

Port = WorkerPort[WorkerRequest, WorkerEvent]


class Slice(NamedTuple):
    """What a live stream has to hear next; nothing for a file."""

    samples: bytes
    is_last: bool


class Step(NamedTuple):
    """What a slice of work gave."""

    events: list[WorkerEvent]
    is_done: bool


class Job(Protocol):
    """A request at work. Only one thread at a time is in it."""

    def step(self, heard: Slice) -> Step:
        """Do one slice of work. Raises LaresError to fail the request."""


class FileJob:
    """A job that a generator does; it yields what it found, and None where it found nothing yet."""

    def __init__(self, work: Generator[WorkerEvent | None, None, None]) -> None:
        self._work = work

    def step(self, heard: Slice) -> Step:
        """Run to the next yield."""
        try:
            event = next(self._work)
        except StopIteration:
            return Step([], is_done=True)
        return Step([] if event is None else [event], is_done=False)


@dataclass(slots=True, eq=False)
class _Entry:
    call_id: int
    job: Job
    # Bytes of a live stream that are heard at once; None for a file, which needs none.
    slice_bytes: int | None
    audio: bytearray = field(default_factory=bytearray)
    is_ended: bool = False
    is_cancelled: bool = False
    # In the queue or at work: it is not to be queued a second time.
    is_scheduled: bool = False

    @property
    def is_ready(self) -> bool:
        return self.slice_bytes is None or len(self.audio) >= self.slice_bytes or self.is_ended


class JobLoop:
    """make_job: gives the job of a request, quickly; a LaresError refuses it."""

    def __init__(
        self,
        port: Port,
        make_job: Callable[[LiveRequest | FileRequest], Job],
        *,
        num_threads: int,
    ) -> None:
        self._port = port
        self._make_job = make_job
        self._num_threads = num_threads
        self._entries: dict[int, _Entry] = {}
        self._queue: deque[_Entry] = deque()
        self._waiting_files: deque[_Entry] = deque()
        self._num_open_files = 0
        self._changed = threading.Condition()

    def run(self) -> None:
        """Serve until the parent asks for the end."""
        for number in range(self._num_threads):
            threading.Thread(target=self._work, name=f"recogniser-{number}", daemon=True).start()
        while not self._port.closed:
            for incoming in self._port.receive():
                with self._changed:
                    self._take(incoming)

    def _take(self, incoming: Incoming[WorkerRequest]) -> None:
        match incoming.kind, incoming.message:
            case "open", LiveRequest() | FileRequest() as request:
                self._open(incoming.call_id, request)
            case "message", Audio(samples):
                if (entry := self._entries.get(incoming.call_id)) is not None:
                    entry.audio += samples
                    self._schedule_if_ready(entry)
            case "close", _:
                if (entry := self._entries.get(incoming.call_id)) is not None:
                    entry.is_ended = True
                    if entry.slice_bytes is not None:
                        self._schedule_if_ready(entry)
            case "cancel", _:
                if (entry := self._entries.get(incoming.call_id)) is not None:
                    entry.is_cancelled = True
                    if not entry.is_scheduled:
                        self._end(entry)
            case _:
                self._port.fail(
                    incoming.call_id, InternalError("a recogniser was sent what it does not know")
                )

    def _open(self, call_id: int, request: LiveRequest | FileRequest) -> None:
        slice_bytes = None
        if isinstance(request, LiveRequest):
            slice_bytes = 2 * int(request.sample_rate_hz * SLICE_S)
        try:
            job = self._make_job(request)
        except LaresError as error:
            self._port.fail(call_id, error)
            return
        entry = self._entries[call_id] = _Entry(call_id, job, slice_bytes)
        if slice_bytes is None and self._num_open_files >= _MAX_OPEN_FILES:
            self._waiting_files.append(entry)
            return
        self._num_open_files += slice_bytes is None
        # A live stream's first step has no audio: what is wrong with its request is told at once.
        self._schedule(entry)

    def _schedule_if_ready(self, entry: _Entry) -> None:
        if entry.is_ready:
            self._schedule(entry)

    def _schedule(self, entry: _Entry) -> None:
        if not entry.is_scheduled:
            entry.is_scheduled = True
            self._queue.append(entry)
            self._changed.notify()

    def _work(self) -> None:
        while True:
            self._take_turn()

    def _take_turn(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._queue)
            entry = self._queue.popleft()
            if entry.is_cancelled:
                self._end(entry)
                return
            heard = _next_slice(entry)
        is_over = self._step(entry, heard)
        with self._changed:
            entry.is_scheduled = False
            if is_over or entry.is_cancelled:
                self._end(entry)
            else:
                self._schedule_if_ready(entry)

    def _step(self, entry: _Entry, heard: Slice) -> bool:
        try:
            step = entry.job.step(heard)
        except LaresError as error:
            self._port.fail(entry.call_id, error)
            return True
        except Exception:  # A bug, or a library's: this request ends, the others go on.
            traceback.print_exc()
            self._port.fail(
                entry.call_id, InternalError("the recogniser failed at this request; its log says why")
            )
            return True
        if step.events or step.is_done:
            self._port.post(
                events=[(entry.call_id, event) for event in step.events],
                finished=[entry.call_id] if step.is_done else [],
            )
        return step.is_done

    def _end(self, entry: _Entry) -> None:
        if self._entries.pop(entry.call_id, None) is None or entry.slice_bytes is not None:
            return
        if entry in self._waiting_files:
            self._waiting_files.remove(entry)
            return
        self._num_open_files -= 1
        if self._waiting_files:
            self._num_open_files += 1
            self._schedule(self._waiting_files.popleft())


def _next_slice(entry: _Entry) -> Slice:
    if entry.slice_bytes is None or not entry.is_ready:
        return Slice(b"", is_last=False)
    # Whole slices only, however the audio came: what is heard must not hang on the network's timing.
    samples = bytes(entry.audio[: entry.slice_bytes])
    del entry.audio[: entry.slice_bytes]
    return Slice(samples, is_last=entry.is_ended and not entry.audio)
