from collections.abc import AsyncGenerator
from datetime import UTC, datetime

from prometheus_client import REGISTRY

from services.inference.adapters.metrics import METRICS, GenerationMeter
from services.inference.core.events import Delta, Ended, LoopStats
from services.inference.core.inference import GenerationEnded, GenerationEvent, GenerationStarted
from tests.unit.services.inference.core.test_pool import FakeFactory, make_pool, model


def value(name: str, model: str) -> float | None:
    return REGISTRY.get_sample_value(name, {"model": model})


async def test_a_generation_counts_its_tokens_and_times_under_its_model():
    async def events() -> AsyncGenerator[GenerationEvent, None]:
        yield GenerationStarted("gen-1", "v", "", 5, datetime.now(UTC), 1)
        yield Delta(0, "a")
        yield Delta(0, "b")
        yield GenerationEnded(
            Ended((), 5, 2, 10.0, 1.0, 1.0, ttft_ms=2, inter_token_ms=20.0, num_cached_tokens=4), 0.0
        )

    meter = GenerationMeter("measured-model")
    async for event in events():
        meter.see(event)
    assert value("lares_prompt_tokens_total", "measured-model") == 5
    assert value("lares_cached_prompt_tokens_total", "measured-model") == 4
    assert value("lares_completion_tokens_total", "measured-model") == 2
    assert value("lares_time_to_first_token_seconds_count", "measured-model") == 1
    assert value("lares_queue_seconds_sum", "measured-model") == 0.01
    assert value("lares_inter_token_seconds_sum", "measured-model") == 0.02


async def test_what_is_in_memory_is_told_and_what_left_is_not():
    factory = FakeFactory()
    pool = make_pool(factory)
    METRICS.watch(pool)
    async with pool.use(model("in-memory", 4096)):
        factory.workers[0].stats = LoopStats(1, 2, 8, 3, 1, 1, 10, 0, 20, 30, 15, 4)
        assert value("lares_model_memory_bytes", "in-memory") == 4096
        assert value("lares_model_requests_active", "in-memory") == 1
        assert value("lares_model_worker_restarts_total", "in-memory") == 0
        assert value("lares_kv_blocks_used", "in-memory") == 3
        assert value("lares_prefix_hit_tokens_total", "in-memory") == 15
        assert value("lares_preemptions_total", "in-memory") == 4
    await pool.close()
    assert value("lares_model_memory_bytes", "in-memory") is None
