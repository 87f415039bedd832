import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.kit import worker_frames
from services.kit.errors import ContextLengthExceeded, PayloadTooLarge, UnsupportedFormat, WorkerLost
from services.kit.worker import Worker, WorkerSpec
from tests.unit.services.kit import worker_targets as targets
from tests.unit.services.kit.worker_targets import Heard, Info, Init, Loaded, Order, Request, Say


def spec(target: str = "echo", **changes: Any) -> WorkerSpec[Request, Heard]:
    parts: dict[str, Any] = {
        "name": target,
        "init": Init("hello"),
        "events": Heard,
        "ready": Info,
        "progress": Loaded,
    } | changes
    return WorkerSpec(target=f"{targets.__name__}:{target}", **parts)


@pytest.fixture
async def worker() -> AsyncIterator[Worker[Request, Heard]]:
    worker = await Worker.start(spec())
    yield worker
    await worker.stop()


async def ask(worker: Worker[Request, Heard], request: Request) -> list[str]:
    async with asyncio.timeout(20), worker.call(request) as call:
        return [event.text async for event in call]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


async def test_a_call_is_answered(worker: Worker[Request, Heard]):
    assert worker.alive
    assert worker.ready_info.word == "hello"
    assert await ask(worker, Say("bye")) == ["bye"]
    assert worker.num_calls == 0


async def test_many_calls_run_at_once_and_get_their_own_answers(worker: Worker[Request, Heard]):
    async def talk(number: int) -> list[str]:
        heard = []
        async with worker.call(Say(f"{number}")) as call:
            async for event in call:
                heard.append(event.text)
                if len(heard) < 5:
                    await call.send(Say(f"{number}.{len(heard)}"))
                elif len(heard) == 5:
                    await call.send(Say("bye"))
        return heard

    async with asyncio.timeout(20):
        answers = await asyncio.gather(*(talk(number) for number in range(50)))
    for number, answer in enumerate(answers):
        assert answer == [f"{number}", *(f"{number}.{n}" for n in range(1, 5)), "bye"]


async def test_the_worker_learns_that_no_more_messages_will_come(worker: Worker[Request, Heard]):
    async with asyncio.timeout(20), worker.call(Say("a")) as call:
        await call.done_sending()
        assert [event.text async for event in call] == ["a", "closed"]


async def test_leaving_a_call_early_cancels_it_in_the_worker(worker: Worker[Request, Heard]):
    async with asyncio.timeout(20), worker.call(Order("watch")) as watch:
        assert (await anext(watch)).text == "watching"
        async with worker.call(Say("a")) as call:
            assert (await anext(call)).text == "a"
        assert (await anext(watch)).text == "cancelled 2"
        assert [event async for event in call] == []


async def test_a_call_that_fails_raises_the_error_of_the_worker_and_spares_the_others(
    worker: Worker[Request, Heard],
):
    async with worker.call(Say("a")) as other:
        with pytest.raises(ContextLengthExceeded) as caught:
            await ask(worker, Order("fail"))
        assert caught.value.metadata["context_length"] == "8"
        await other.send(Say("bye"))
        assert [event.text async for event in other] == ["a", "bye"]


async def test_printing_does_not_corrupt_the_frames(worker: Worker[Request, Heard]):
    assert await ask(worker, Order("print")) == ["printed"]
    assert await ask(worker, Order("read stdin")) == [""]
    assert await ask(worker, Say("bye")) == ["bye"]


async def test_events_of_ended_and_unknown_calls_are_dropped(worker: Worker[Request, Heard]):
    assert await ask(worker, Order("late")) == []
    assert await ask(worker, Say("bye")) == ["bye"]


async def test_a_large_event_crosses_the_pipe(worker: Worker[Request, Heard]):
    assert [len(text) for text in await ask(worker, Order("big"))] == [5_000_000]


async def test_a_large_request_crosses_the_pipe(worker: Worker[Request, Heard]):
    async with asyncio.timeout(20), worker.call(Say("y" * 5_000_000)) as call:
        assert len((await anext(call)).text) == 5_000_000


async def test_a_request_past_the_frame_limit_is_refused_and_harms_nobody(
    worker: Worker[Request, Heard], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(worker_frames, "MAX_FRAME_BYTES", 1000)
    with pytest.raises(PayloadTooLarge):
        await ask(worker, Say("y" * 2000))
    assert worker.num_calls == 0
    assert await ask(worker, Say("bye")) == ["bye"]


async def test_interrupt_and_terminate_are_left_to_the_parent(worker: Worker[Request, Heard]):
    assert await ask(worker, Order("interrupt")) == ["still here"]


async def test_a_worker_killed_mid_call_is_one_clean_error_for_each_call(worker: Worker[Request, Heard]):
    async with asyncio.timeout(20), worker.call(Say("a")) as one, worker.call(Say("b")) as two:
        await anext(one)
        await anext(two)
        os.kill(worker.pid, signal.SIGKILL)
        errors = []
        for call in (one, two):
            with pytest.raises(WorkerLost, match="SIGKILL") as caught:
                await anext(call)
            errors.append(caught.value)
            assert [event async for event in call] == []
    assert errors[0] is not errors[1]
    assert not worker.alive
    assert worker.crashed
    with pytest.raises(WorkerLost, match="SIGKILL"):
        await ask(worker, Say("c"))
    assert "SIGKILL" in str(await worker.wait_dead())


@pytest.mark.parametrize(
    ("order", "told"),
    [("crash", "exit status 1.*the engine is on fire"), ("abort", "SIGABRT"), ("garbage", "not understood")],
)
async def test_however_a_worker_dies_its_error_says_how(
    worker: Worker[Request, Heard], order: str, told: str
):
    with pytest.raises(WorkerLost, match=told) as caught:
        await ask(worker, Order(order))
    assert caught.value.metadata["worker"] == "echo"
    await worker.wait_dead()
    assert not is_running(worker.pid)


async def test_stopping_ends_open_calls_and_the_process(worker: Worker[Request, Heard]):
    async with worker.call(Say("a")) as call:
        await anext(call)
        await worker.stop()
        with pytest.raises(WorkerLost, match="was stopped"):
            await anext(call)
    assert not is_running(worker.pid)
    assert not worker.crashed
    await worker.stop()


async def test_a_worker_that_does_not_stop_is_killed():
    worker = await Worker.start(spec("deaf"))
    await worker.stop(grace_s=0.1)
    assert not is_running(worker.pid)


async def test_progress_is_told_before_ready():
    told: list[Loaded] = []
    worker = await Worker.start(spec("with_progress"), told.append)
    assert [progress.percent for progress in told] == [0, 50, 100]
    assert worker.ready_info is None
    await worker.stop()


async def test_receiving_waits_for_ever_not_at_all_or_a_while():
    worker = await Worker.start(spec("polling"))
    assert await ask(worker, Say("a")) == ["1 0 0 True"]
    await worker.stop()


async def test_a_start_that_is_refused_raises_the_error_of_the_child():
    with pytest.raises(UnsupportedFormat, match="a pickle") as caught:
        await Worker.start(spec("refusing"))
    assert caught.value.metadata == {"file": "x.bin"}


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("crashing", "no such kernel"),
        ("ending", "exit status 0"),
        ("not_annotated", "annotated"),
        ("no_such", "no_such"),
    ],
)
async def test_a_child_that_dies_before_it_is_ready_is_lost(target: str, told: str):
    with pytest.raises(WorkerLost, match=told):
        await Worker.start(spec(target))


async def test_a_child_that_never_gets_ready_is_killed(capfd: pytest.CaptureFixture[str]):
    with pytest.raises(WorkerLost, match="not ready within") as caught:
        await Worker.start(spec("never_ready", ready_timeout_s=1.5))
    pid = int(caught.value.metadata["stderr"].split()[1])
    assert not is_running(pid)


async def test_a_start_that_is_not_wanted_any_more_leaves_no_child():
    before = children()
    start = asyncio.create_task(Worker.start(spec("never_ready")))
    async with asyncio.timeout(20):
        while not (born := children() - before):  # noqa: ASYNC110 - the kernel has no event for it
            await asyncio.sleep(0)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert not any(is_running(pid) for pid in born)


def children() -> set[int]:
    tasks = Path(f"/proc/{os.getpid()}/task")
    return {int(pid) for task in tasks.iterdir() for pid in (task / "children").read_text().split()}


async def test_it_works_from_any_folder_and_keeps_settings_and_network_from_the_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "msgspec.py").write_text("raise RuntimeError('imported from the working folder')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LARES_REGISTRY_DATABASE_URL", "secret")
    worker = await Worker.start(spec(env={"LARES_EXTRA": "1"}))
    assert worker.ready_info.cwd == str(tmp_path)
    environment = worker.ready_info.environment
    assert "LARES_REGISTRY_DATABASE_URL" not in environment
    assert (
        environment["HF_HUB_OFFLINE"]
        == environment["TRANSFORMERS_OFFLINE"]
        == environment["LARES_EXTRA"]
        == "1"
    )
    await worker.stop()


async def test_a_bare_worker_imports_nothing_heavy():
    worker = await Worker.start(spec("loaded_modules"))
    assert worker.ready_info.word == ""
    await worker.stop()


PARENT = """
import asyncio, sys
from services.kit.worker import Worker
from tests.unit.services.kit.test_worker import spec

async def main():
    worker = await Worker.start(spec(sys.argv[1]))
    print(worker.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="waits on a pidfd")
@pytest.mark.parametrize("target", ["echo", "deaf"])
async def test_a_worker_whose_parent_was_killed_ends_itself(target: str):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, target, stdout=asyncio.subprocess.PIPE, env=environment
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    pidfd = os.pidfd_open(pid)
    gone = asyncio.Event()
    asyncio.get_running_loop().add_reader(pidfd, gone.set)
    assert is_running(pid)
    parent.kill()
    async with asyncio.timeout(10):
        await gone.wait()
    asyncio.get_running_loop().remove_reader(pidfd)
    os.close(pidfd)
    await parent.wait()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGSTOP")
async def test_a_worker_that_is_stopped_counts_as_dead_and_its_calls_get_one_error_each():
    worker = await Worker.start(spec())
    worker._pulse._every_s = 0.05  # What takes seconds in earnest.
    async with worker.call(Say("a")) as call:
        assert (await anext(call)).text == "a"
        os.kill(worker.pid, signal.SIGSTOP)
        with pytest.raises(WorkerLost, match="it hung"):
            async with asyncio.timeout(20):
                await anext(call)
        with pytest.raises(StopAsyncIteration):
            await anext(call)
    assert worker.crashed
    assert not is_running(worker.pid)


async def test_a_worker_that_does_not_come_back_from_its_work_counts_as_hung():
    worker = await Worker.start(spec("deaf", max_work_s=0.1))
    worker._pulse._every_s = 0.05  # What takes seconds in earnest.
    async with worker.call(Say("a")) as call:
        with pytest.raises(WorkerLost, match="it hung"):
            async with asyncio.timeout(20):
                await anext(call)
    assert not is_running(worker.pid)


async def test_a_worker_that_is_busy_with_one_thing_answers_pings(monkeypatch: pytest.MonkeyPatch):
    worker = await Worker.start(spec("deaf"))
    heard = asyncio.Event()
    monkeypatch.setattr(worker._pulse, "heard", heard.set)
    worker._pulse.tick()
    async with asyncio.timeout(20):
        await heard.wait()
    await worker.kill()
