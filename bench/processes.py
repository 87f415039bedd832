"""Trees of processes: what they use, and how they end."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

MIB = 2**20


def tree(pid: int) -> list[psutil.Process]:
    """A process and all below it; those that have gone meanwhile are left out."""
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    return []


def tree_cpu_s(pid: int) -> float:
    """Seconds of CPU of a process and of all below it that live."""
    return _sum(tree(pid), _cpu_s)


def own_cpu_s(pid: int) -> float:
    """Seconds of CPU of one process, without its children."""
    return _cpu_s(psutil.Process(pid))


def tree_rss_mib(pid: int) -> float:
    """Resident memory of a process and of all below it; what they share is counted for each."""
    return _sum(tree(pid), lambda process: process.memory_info().rss / MIB)


def lives(process: psutil.Process) -> bool:
    """Whether it still runs or holds anything."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _sum(processes: Sequence[psutil.Process], reading: Callable[[psutil.Process], float]) -> float:
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += reading(process)
    return total


def busy_and_steal_s() -> tuple[float, float]:
    """Seconds of CPU that this machine worked, and that its host took away, since it started."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system, getattr(times, "steal", 0.0)


class Server:
    """A child in a session of its own: a Ctrl-C reaches us alone, and we end it with all below it."""

    def __init__(self, command: Sequence[str], env: dict[str, str], log: Path) -> None:
        """Start it; what it says goes to the log, which is begun anew."""
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=os.environ | env,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Of the process that was started."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether it is gone."""
        return self._process.poll() is not None

    def tail(self, num_lines: int = 12) -> str:
        """The end of what it said."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-num_lines:])

    def stop(self, timeout_s: float = 20.0) -> None:
        """End it as Ctrl-C does, then by force whatever of it is left."""
        family = tree(self.pid)
        if not self.ended:
            self._process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        # psutil's handles know a process by its start too: an id that was given again is not hit.
        for process in {*family, *tree(self.pid)}:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        # The next server needs their memory. One that only waits for its parent to take note has given it back.
        deadline_s = time.monotonic() + timeout_s
        while any(lives(process) for process in family) and time.monotonic() < deadline_s:
            time.sleep(0.01)
