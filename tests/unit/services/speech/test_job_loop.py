import queue
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager

import pytest

from services.kit.errors import InvalidAudio, LaresError
from services.kit.worker_port import Incoming
from services.speech.adapters.job_loop import FileJob, Job, JobLoop, Slice, Step
from services.speech.core.messages import (
    Audio,
    Consumed,
    FileRequest,
    Finished,
    LiveRequest,
    Partial,
    WorkerEvent,
    WorkerRequest,
)

LIVE = LiveRequest(sample_rate_hz=50, partial_results=True, words=True, phrases=[])  # 20 bytes a slice
FILE = FileRequest("f", "", False, "", 0.0, False, 10.0)

Said = tuple[int, WorkerEvent | LaresError | None]


class FakePort:
    """The parent, played by the test: it puts what it says and takes what it hears; None is the end of a call."""

    def __init__(self) -> None:
        self.closed = False
        self.incoming: queue.Queue[Incoming[WorkerRequest] | None] = queue.Queue()
        self.said: queue.Queue[Said] = queue.Queue()

    def receive(self, timeout_s: float | None = None) -> list[Incoming[WorkerRequest]]:
        item = self.incoming.get()
        if item is None:
            self.closed = True
            return []
        return [item]

    def post(
        self,
        events: list[tuple[int, WorkerEvent]] = [],  # noqa: B006
        finished: list[int] = [],  # noqa: B006
    ) -> None:
        for call_id, event in events:
            self.said.put((call_id, event))
        for call_id in finished:
            self.said.put((call_id, None))

    def fail(self, call_id: int, error: LaresError) -> None:
        self.said.put((call_id, error))

    def tell(self, call_id: int, kind: str, message: WorkerRequest | None = None) -> None:
        self.incoming.put(Incoming(call_id, kind, message))  # type: ignore[arg-type]

    def heard(self) -> Said:
        return self.said.get(timeout=5)


class Echo:
    """Says how much it was given."""

    def step(self, heard: Slice) -> Step:
        events: list[WorkerEvent] = [Consumed(len(heard.samples))] if heard.samples else []
        return Step(events, is_done=heard.is_last)


@contextmanager
def running(make_job: Callable[[LiveRequest | FileRequest], Job], num_threads: int = 1) -> Iterator[FakePort]:
    port = FakePort()
    loop = JobLoop(port, make_job, num_threads=num_threads)  # type: ignore[arg-type]
    thread = threading.Thread(target=loop.run, daemon=True)
    thread.start()
    yield port
    port.incoming.put(None)
    thread.join(timeout=5)


def test_live_audio_is_heard_in_slices_and_ends_with_the_stream() -> None:
    with running(lambda request: Echo()) as port:
        port.tell(1, "open", LIVE)
        port.tell(1, "message", Audio(bytes(50)))
        assert [port.heard() for _ in range(2)] == [(1, Consumed(20)), (1, Consumed(20))]
        port.tell(1, "close")
        assert [port.heard() for _ in range(2)] == [(1, Consumed(10)), (1, None)]


def test_many_streams_take_turns_and_a_stalled_one_holds_up_nobody() -> None:
    may_go = threading.Event()

    class Waiting(Echo):
        def step(self, heard: Slice) -> Step:
            may_go.wait(5)
            return super().step(heard)

    with running(lambda request: Waiting()) as port:
        for call_id in (1, 2, 3):
            port.tell(call_id, "open", LIVE)
        for call_id in (1, 2):  # 3 stalls.
            port.tell(call_id, "message", Audio(bytes(60)))
        while not port.incoming.empty():
            pass
        may_go.set()
        assert [port.heard()[0] for _ in range(6)] in ([1, 2, 1, 2, 1, 2], [2, 1, 2, 1, 2, 1])


def test_error_ends_its_own_request_only() -> None:
    def broken() -> Generator[WorkerEvent | None, None, None]:
        yield None
        raise InvalidAudio("no")

    with running(lambda request: FileJob(broken()) if isinstance(request, FileRequest) else Echo()) as port:
        port.tell(1, "open", LIVE)
        port.tell(2, "open", FILE)
        call_id, error = port.heard()
        assert (call_id, type(error)) == (2, InvalidAudio)
        port.tell(1, "message", Audio(bytes(20)))
        assert port.heard() == (1, Consumed(20))


@pytest.mark.filterwarnings("ignore")
def test_bug_in_one_request_is_a_clean_error_of_that_request() -> None:
    def broken() -> Generator[WorkerEvent | None, None, None]:
        yield Partial("a")
        raise ZeroDivisionError

    with running(lambda request: FileJob(broken())) as port:
        port.tell(1, "open", FILE)
        assert port.heard() == (1, Partial("a"))
        _, error = port.heard()
        assert isinstance(error, LaresError)
        assert error.reason == "INTERNAL_ERROR"


def test_request_that_is_refused_at_once_leaves_the_loop_running() -> None:
    def make_job(request: LiveRequest | FileRequest) -> Job:
        if isinstance(request, FileRequest):
            raise InvalidAudio("no")
        return Echo()

    with running(make_job) as port:
        port.tell(1, "open", FILE)
        assert isinstance(port.heard()[1], InvalidAudio)
        port.tell(2, "open", LIVE)
        port.tell(2, "close")
        assert port.heard() == (2, None)


def test_cancelled_file_stops_between_its_steps_and_closes_what_it_holds() -> None:
    closed = threading.Event()
    stepped = threading.Semaphore(0)
    may_go = threading.Semaphore(0)

    def work() -> Generator[WorkerEvent | None, None, None]:
        try:
            while True:
                stepped.release()
                may_go.acquire(timeout=5)
                yield None
        finally:
            closed.set()

    with running(lambda request: FileJob(work())) as port:
        port.tell(1, "open", FILE)
        assert stepped.acquire(timeout=5)
        port.tell(1, "cancel")
        while not port.incoming.empty():
            pass
        may_go.release(2)
        assert closed.wait(5)


def test_files_beyond_a_few_wait_and_get_their_turn() -> None:
    num_open = 0
    most = 0

    def work() -> Generator[WorkerEvent | None, None, None]:
        nonlocal num_open, most
        num_open += 1
        most = max(most, num_open)
        for _ in range(5):
            yield None
        num_open -= 1
        yield Finished(1.0)

    with running(lambda request: FileJob(work())) as port:
        for call_id in range(12):
            port.tell(call_id, "open", FILE)
        said = [port.heard() for _ in range(24)]
    assert sorted(call_id for call_id, event in said if event is None) == list(range(12))
    assert most <= 4
