"""The child's entry point: `python -m services.kit.worker_main`, started by `worker.py` and by nobody else.

It takes over the pipes, reads what to run, runs it, and ends.
"""

import ctypes
import importlib
import os
import signal
import sys
import traceback
import typing
from typing import IO, Any

import msgspec

from services.kit import worker_frames as frames
from services.kit.errors import LaresError
from services.kit.worker_port import WorkerPort

_REFUSED = 3
_CRASHED = 1


def main() -> int:
    """Run one target. Returns the exit status."""
    inbox, outbox = _take_pipes()
    _die_with_parent()
    _ignore_signals()
    start = _read_start(inbox)
    module, _, function = start.target.partition(":")
    port: WorkerPort[Any, Any] | None = None
    try:
        target = getattr(importlib.import_module(module), function)
        init_type, requests = _types_of(target)
        init = msgspec.msgpack.decode(start.init, type=init_type)
        port = WorkerPort(inbox, outbox, requests, start.max_work_s)
        target(init, port)
    except LaresError as error:
        traceback.print_exc()
        (port or WorkerPort(inbox, outbox, Any)).refuse(error)
        return _REFUSED
    except BaseException:  # The parent learns of it from the exit status and the last lines of stderr.
        traceback.print_exc()
        return _CRASHED
    return 0


def _take_pipes() -> tuple[IO[bytes], int]:
    """Move the pipes to descriptors that nobody else knows, and give away the standard ones.

    A print, in Python or in native code, then lands on stderr instead of in the middle of a frame; and
    whoever reads stdin finds it empty instead of eating frames.
    """
    inbox, outbox = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    if sys.platform == "win32":
        import msvcrt

        for descriptor in (inbox, outbox):
            msvcrt.setmode(descriptor, os.O_BINARY)
    return os.fdopen(inbox, "rb"), outbox


def _die_with_parent() -> None:
    """On Linux, ask the kernel too: native code that holds the GIL would not see the pipe's end."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1  # prctl(2)
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _ignore_signals() -> None:
    """A terminal's Ctrl-C, or a supervisor's SIGTERM to the whole group, is the parent's to act on.

    It drains, and work in a worker that had ended by itself would be lost to that drain.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _read_start(inbox: IO[bytes]) -> frames.Start:
    header = inbox.read(frames.LENGTH.size)
    if len(header) < frames.LENGTH.size:
        os._exit(0)  # The parent changed its mind, or died.
    return msgspec.msgpack.decode(inbox.read(frames.frame_length(header)), type=frames.Start)


def _types_of(target: Any) -> tuple[Any, Any]:
    """(type of init, type of requests), as `def target(init: Init, port: WorkerPort[Req, Ev])` says."""
    hints = [hint for name, hint in typing.get_type_hints(target).items() if name != "return"]
    if len(hints) != 2 or typing.get_origin(hints[1]) is not WorkerPort:
        name = f"{target.__module__}.{target.__qualname__}"
        raise TypeError(f"{name} must be annotated as (init: Init, port: WorkerPort[Request, Event])")
    return hints[0], typing.get_args(hints[1])[0]


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads that native libraries leave behind must not keep a worker alive that has nothing left to do.
    os._exit(status)
