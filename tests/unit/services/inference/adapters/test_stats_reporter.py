from functools import partial
from typing import Any

from services.inference.adapters.messages import Stats
from services.inference.adapters.stats_reporter import StatsReporter
from services.inference.core.events import LoopStats


class FakePort:
    def __init__(self) -> None:
        self.sent: list[list[tuple[int, Stats]]] = []

    def send(self, events: Any) -> None:
        self.sent.append(list(events))


def stats(num_steps: int) -> LoopStats:
    return LoopStats(0, 0, 0, 0, 0, 0, num_steps, 0, 0, 0, 0, 0)


def test_stats_are_told_once_a_second_and_the_last_word_is_not_forgotten():
    port, now = FakePort(), [100.0]
    reporter = StatsReporter(port, clock=lambda: now[0])  # type: ignore[arg-type]  # It only sends.
    reporter.tell(lambda: stats(0))
    assert (port.sent, reporter.due_in_s) == ([], None)
    reporter.watch(7)
    for step in range(10):
        reporter.tell(partial(stats, step))
        now[0] += 0.01
    assert port.sent == [[(7, Stats(stats(0)))]]
    assert reporter.due_in_s is not None
    now[0] += reporter.due_in_s
    reporter.tell(lambda: stats(9))
    assert port.sent[1:] == [[(7, Stats(stats(9)))]]
    assert reporter.due_in_s is None


def test_nothing_is_told_that_did_not_change_or_that_nobody_watches():
    port, now = FakePort(), [100.0]
    reporter = StatsReporter(port, clock=lambda: now[0])  # type: ignore[arg-type]  # It only sends.
    reporter.watch(7)
    for _ in range(3):
        reporter.tell(lambda: stats(1))
        now[0] += 2
    assert len(port.sent) == 1
    reporter.unwatch(7)
    reporter.tell(lambda: stats(2))
    assert len(port.sent) == 1
    assert reporter.due_in_s is None
