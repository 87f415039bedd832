"""A worker that answers without a model, so that a test may start and kill many. Imports nothing heavy."""

from services.inference.adapters.messages import (
    EngineEvent,
    EngineInit,
    EngineRequest,
    Generate,
    Loaded,
    LoadProgress,
    Step,
    WatchStats,
)
from services.inference.adapters.stats_reporter import StatsReporter
from services.inference.core.events import Delta, LoopStats, Update
from services.kit.worker_port import WorkerPort


def main(init: EngineInit, port: WorkerPort[EngineRequest, EngineEvent]) -> None:
    """Says one word on each call and goes on for ever."""
    port.progress(LoadProgress(0.5))
    port.ready(Loaded("cpu", "paper", 64))
    reporter = StatsReporter(port)
    live: set[int] = set()
    while not port.closed:
        for incoming in port.receive(timeout_s=reporter.due_in_s):
            if isinstance(incoming.message, Generate):
                live.add(incoming.call_id)
                port.send([(incoming.call_id, Step(Update(deltas=(Delta(0, "word"),))))])
            elif isinstance(incoming.message, WatchStats):
                reporter.watch(incoming.call_id)
            elif incoming.kind == "cancel":
                live.discard(incoming.call_id)
        reporter.tell(lambda: LoopStats(len(live), 0, 8, len(live), 0, 0, 0, 0, 0, 0, 0, 0))
