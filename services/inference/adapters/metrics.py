"""Metrics of models and generations, for Prometheus, and what traces tell of a generation.

A model's name is a label: there are few of them.
"""

import time
import weakref
from collections.abc import Callable, Iterable
from typing import Final

from prometheus_client import REGISTRY, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.inference.core.events import Delta, Ended, LoopStats
from services.inference.core.inference import GenerationEnded, GenerationEvent
from services.inference.core.models import LoadedModel
from services.inference.core.pool import ModelPool
from services.kit import tracing

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKEN_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28)

_QUEUE = Histogram("lares_queue_seconds", "Wait for a place in the step.", ["model"], buckets=_SECONDS)
_TTFT = Histogram(
    "lares_time_to_first_token_seconds",
    "From the request to the first text, loading of the model included.",
    ["model"],
    buckets=_SECONDS,
)
_INTER_TOKEN = Histogram(
    "lares_inter_token_seconds", "Between two tokens, mean of a request.", ["model"], buckets=_TOKEN_SECONDS
)
_PROMPT_TOKENS = Counter("lares_prompt_tokens_total", "Tokens of prompts that were answered.", ["model"])
_CACHED_TOKENS = Counter(
    "lares_cached_prompt_tokens_total", "Of those, tokens that the prefix cache had.", ["model"]
)
_COMPLETION_TOKENS = Counter("lares_completion_tokens_total", "Tokens of whole answers.", ["model"])


class GenerationMeter:
    """Observes one generation. model: as the caller calls it."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._began_s = time.perf_counter()
        self._has_text = False

    def see(self, event: GenerationEvent) -> None:
        """Its next event."""
        match event:
            case Delta() if not self._has_text:
                self._has_text = True
                _TTFT.labels(self._model).observe(time.perf_counter() - self._began_s)
            case GenerationEnded():
                _observe_end(self._model, event.ended)
                _trace_end(self._model, event)


def _observe_end(model: str, ended: Ended) -> None:
    _QUEUE.labels(model).observe(ended.queue_ms / 1e3)
    if ended.inter_token_ms:
        _INTER_TOKEN.labels(model).observe(ended.inter_token_ms / 1e3)
    _PROMPT_TOKENS.labels(model).inc(ended.num_prompt_tokens)
    _CACHED_TOKENS.labels(model).inc(ended.num_cached_tokens)
    _COMPLETION_TOKENS.labels(model).inc(ended.num_completion_tokens)


def _trace_end(model: str, event: GenerationEnded) -> None:
    """Names of what others trace too are OpenTelemetry's, of generative models."""
    ended = event.ended
    tracing.annotate(
        {
            "gen_ai.request.model": model,
            "gen_ai.usage.input_tokens": ended.num_prompt_tokens,
            "gen_ai.usage.output_tokens": ended.num_completion_tokens,
            "lares.cached_prompt_tokens": ended.num_cached_tokens,
            "lares.preemptions": ended.num_preemptions,
            "lares.ttft_ms": ended.ttft_ms,
            "lares.inter_token_ms": ended.inter_token_ms,
            "lares.max_inter_token_ms": ended.max_inter_token_ms,
        }
    )
    load = {"load": event.load_ms} if event.load_ms else {}
    tracing.phases(load | {"queue": ended.queue_ms, "prefill": ended.prefill_ms, "decode": ended.decode_ms})


class PoolCollector(Collector):
    """What is in memory, read when it is asked for: nothing to keep up to date, nothing left of what went."""

    def __init__(self) -> None:
        self._pools: weakref.WeakSet[ModelPool] = weakref.WeakSet()

    def watch(self, pool: ModelPool) -> None:
        """Tell of this pool too, as long as it lives."""
        self._pools.add(pool)

    def collect(self) -> Iterable[Metric]:
        """All of it, from any thread."""
        pools = list(self._pools)
        models = [model for pool in pools for model in pool.loaded_models()]
        yield from _of_models(models)
        yield from _of_loops({name: stats for pool in pools for name, stats in pool.stats().items()})


def _of_models(models: list[LoadedModel]) -> Iterable[Metric]:
    states = GaugeMetricFamily("lares_models", "Models in memory, by state.", labels=["state"])
    for state in sorted({model.state for model in models}):
        states.add_metric([state], sum(model.state is state for model in models))
    yield states
    gauges: tuple[tuple[str, str, Callable[[LoadedModel], float]], ...] = (
        ("lares_model_memory_bytes", "Resident memory of a model's workers.", lambda m: m.memory_bytes),
        ("lares_model_load_seconds", "How long its last load took.", lambda m: m.load_s),
        ("lares_model_requests_active", "Requests that it is answering.", lambda m: m.num_active_requests),
        ("lares_model_requests_waiting", "Requests that wait for it.", lambda m: m.num_waiting_requests),
        ("lares_model_workers_ready", "Its workers that answer.", lambda m: m.num_ready_workers),
    )
    for name, what, value_of in gauges:
        gauge = GaugeMetricFamily(name, what, labels=["model"])
        for model in models:
            gauge.add_metric([model.name], value_of(model))
        yield gauge
    restarts = CounterMetricFamily(
        "lares_model_worker_restarts", "Workers that died and were replaced.", labels=["model"]
    )
    for model in models:
        restarts.add_metric([model.name], model.num_restarts)
    yield restarts


_LOOP_GAUGES: Final = {
    "lares_sequences_running": ("Sequences with a place in the step.", "num_live"),
    "lares_sequences_waiting": ("Sequences that wait for a place.", "num_waiting"),
    "lares_batch_sequences": ("Sequences in the last step.", "num_batch_sequences"),
    "lares_batch_tokens": ("Tokens in the last step.", "num_batch_tokens"),
    "lares_kv_blocks": ("Blocks for keys and values.", "num_blocks"),
    "lares_kv_blocks_used": ("Of those, blocks in use.", "num_used_blocks"),
}
_LOOP_COUNTERS: Final = {
    "lares_steps": ("Steps.", "num_steps"),
    "lares_computed_tokens": ("Tokens computed.", "num_computed_tokens"),
    "lares_generated_tokens": ("Tokens picked.", "num_generated_tokens"),
    "lares_prefix_queried_tokens": (
        "Tokens of prompts looked for in the prefix cache.",
        "num_queried_tokens",
    ),
    "lares_prefix_hit_tokens": ("Of those, tokens found.", "num_hit_tokens"),
    "lares_preemptions": ("Sequences that gave way and were computed anew.", "num_preemptions"),
}


def _of_loops(stats: dict[str, list[LoopStats]]) -> Iterable[Metric]:
    for name, (what, field) in _LOOP_GAUGES.items():
        yield _summed(GaugeMetricFamily(name, what, labels=["model"]), stats, field)
    for name, (what, field) in _LOOP_COUNTERS.items():
        yield _summed(CounterMetricFamily(name, what, labels=["model"]), stats, field)


def _summed(
    family: GaugeMetricFamily | CounterMetricFamily, stats: dict[str, list[LoopStats]], field: str
) -> Metric:
    for model, loops in stats.items():
        family.add_metric([model], sum(getattr(loop, field) for loop in loops))
    return family


METRICS: Final = PoolCollector()
REGISTRY.register(METRICS)
