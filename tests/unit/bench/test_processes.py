import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.processes import Server, lives, own_cpu_s, tree, tree_cpu_s, tree_rss_mib

FAMILY = """
import signal, subprocess, sys
{deaf}
child = subprocess.Popen([sys.executable, "-c", "{deaf}; import signal; signal.pause()"])
print("started", flush=True)
child.wait()
"""
DEAF = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"


def wait_until(true: Callable[[], bool]) -> None:
    for _ in range(3000):
        if true():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it did not come true")


@pytest.mark.parametrize("deaf", ["pass", DEAF], ids=["obedient", "deaf"])
def test_a_stopped_server_leaves_no_process(deaf: str, tmp_path: Path) -> None:
    server = Server([sys.executable, "-c", FAMILY.format(deaf=deaf)], {}, tmp_path / "logs" / "server.log")
    wait_until(lambda: "started" in server.tail())
    family = tree(server.pid)
    assert len(family) == 2
    assert tree_rss_mib(server.pid) > 1
    assert tree_cpu_s(server.pid) >= own_cpu_s(server.pid) > 0
    server.stop(timeout_s=0.5)
    assert server.ended
    assert not any(lives(process) for process in family)


def test_a_server_that_ended_by_itself_can_be_stopped(tmp_path: Path) -> None:
    server = Server(
        [sys.executable, "-c", "print('no such model'); raise SystemExit(3)"], {}, tmp_path / "log"
    )
    wait_until(lambda: server.ended)
    assert server.tail() == "no such model"
    server.stop()


def test_a_process_that_is_gone_uses_nothing(tmp_path: Path) -> None:
    server = Server([sys.executable, "-c", ""], {}, tmp_path / "log")
    server.stop()
    assert tree_rss_mib(server.pid) == 0
