"""What the worker tests run in their child processes."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import msgspec

from services.kit.errors import ContextLengthExceeded, UnsupportedFormat
from services.kit.worker_port import WorkerPort


class Init(msgspec.Struct):
    word: str = ""


class Info(msgspec.Struct):
    word: str
    cwd: str
    environment: dict[str, str]


class Loaded(msgspec.Struct):
    percent: int


class Say(msgspec.Struct, tag=True):
    text: str


class Order(msgspec.Struct, tag=True):
    what: str


class Heard(msgspec.Struct, tag=True):
    text: str


Request = Say | Order


def echo(init: Init, port: WorkerPort[Say | Order, Heard]) -> None:
    """Say is echoed until the call is closed or says "bye"; Orders make trouble."""
    port.ready(Info(init.word, str(Path.cwd()), dict(os.environ)))
    watched: list[int] = []
    while not port.closed:
        for incoming in port.receive():
            call_id, message = incoming.call_id, incoming.message
            if incoming.kind == "cancel":
                port.send([(watcher, Heard(f"cancelled {call_id}")) for watcher in watched])
            elif incoming.kind == "close":
                port.post(events=[(call_id, Heard("closed"))], finished=[call_id])
            elif isinstance(message, Say):
                done = message.text == "bye"
                port.post(events=[(call_id, Heard(message.text))], finished=[call_id] if done else [])
            elif isinstance(message, Order):
                obey(message.what, call_id, port, watched)


def obey(what: str, call_id: int, port: WorkerPort[Say | Order, Heard], watched: list[int]) -> None:
    match what:
        case "watch":
            watched.append(call_id)
            port.send([(call_id, Heard("watching"))])
        case "fail":
            port.fail(call_id, ContextLengthExceeded.of(num_prompt_tokens=9, max_tokens=1, context_length=8))
        case "crash":
            raise RuntimeError("the engine is on fire")
        case "print":
            print("a line in the middle of everything")
            os.write(1, b"native noise\n")
            sys.stdout.flush()
            port.post(events=[(call_id, Heard("printed"))], finished=[call_id])
        case "read stdin":
            port.post(events=[(call_id, Heard(sys.stdin.read()))], finished=[call_id])
        case "late":
            port.finish(call_id)
            port.send([(call_id, Heard("too late")), (999, Heard("never was"))])
            port.finish(call_id)
        case "big":
            port.post(events=[(call_id, Heard("x" * 5_000_000))], finished=[call_id])
        case "abort":
            os.kill(os.getpid(), signal.SIGABRT)
        case "garbage":
            os.write(port._outbox, b"\xff" * 64)
        case "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            port.post(events=[(call_id, Heard("still here"))], finished=[call_id])


def with_progress(init: Init, port: WorkerPort[Say, Heard]) -> None:
    for percent in (0, 50, 100):
        port.progress(Loaded(percent))
    port.ready()
    while not port.closed:
        port.receive()


def refusing(init: Init, port: WorkerPort[Say, Heard]) -> None:
    raise UnsupportedFormat("a pickle", metadata={"file": "x.bin"})


def crashing(init: Init, port: WorkerPort[Say, Heard]) -> None:
    raise RuntimeError("no such kernel")


def ending(init: Init, port: WorkerPort[Say, Heard]) -> None:
    return


def never_ready(init: Init, port: WorkerPort[Say, Heard]) -> None:
    sys.stderr.write(f"pid {os.getpid()}\n")
    while True:
        port.receive(timeout_s=3600)
        if port.closed:
            threading.Event().wait()


def deaf(init: Init, port: WorkerPort[Say, Heard]) -> None:
    """Ready, but never comes back to look whether it should stop."""
    port.ready()
    threading.Event().wait()


def polling(init: Init, port: WorkerPort[Say, Heard]) -> None:
    """Answers a call with how many messages each way of receiving returned."""
    port.ready()
    first = port.receive()
    started = time.monotonic()
    nothing = port.receive(timeout_s=0)
    later = port.receive(timeout_s=0.05)
    waited = time.monotonic() - started
    text = f"{len(first)} {len(nothing)} {len(later)} {waited >= 0.05}"
    port.post(events=[(first[0].call_id, Heard(text))], finished=[first[0].call_id])
    port.receive()


def not_annotated(init, port):
    port.ready()


def loaded_modules(init: Init, port: WorkerPort[Say, Heard]) -> None:
    """Which of the heavy modules a bare worker has paid for."""
    heavy = [name for name in ("grpc", "pydantic", "asyncio", "structlog") if name in sys.modules]
    port.ready(Info(" ".join(heavy), "", {}))
    port.receive()
