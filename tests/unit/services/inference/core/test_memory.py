from services.inference.core.memory import MemoryEstimate, plan_memory

MIB = 1024**2


def estimate(*, context_length: int = 1024, weights_bytes: int = 0) -> MemoryEstimate:
    return MemoryEstimate("cpu", weights_bytes, 1024, context_length, 0, 0)


def kv_bytes(estimate: MemoryEstimate, budget_bytes: int, *, max_sequences: int = 1, told: int = 0) -> int:
    return plan_memory(
        estimate, budget_bytes=budget_bytes, max_sequences=max_sequences, kv_cache_bytes=told
    ).kv_bytes


def test_there_is_room_for_a_full_context_or_for_1024_tokens_a_sequence():
    assert kv_bytes(estimate(context_length=4096), 1024 * MIB) == 4 * MIB
    assert kv_bytes(estimate(context_length=4096), 1024 * MIB, max_sequences=64) == 64 * MIB


def test_it_is_a_quarter_of_the_budget_at_most_unless_one_context_needs_more():
    assert kv_bytes(estimate(), 100 * MIB, max_sequences=64) == 25 * MIB
    assert kv_bytes(estimate(context_length=50 * 1024), 100 * MIB) == 50 * MIB
    # A context that does not fit beside the weights is no reason to take more.
    long = estimate(context_length=50 * 1024, weights_bytes=60 * MIB)
    assert kv_bytes(long, 100 * MIB) == 25 * MIB


def test_what_the_operator_says_holds():
    assert kv_bytes(estimate(), 100 * MIB, max_sequences=64, told=7 * MIB) == 7 * MIB


def test_the_sum_tells_its_parts():
    plan = plan_memory(
        MemoryEstimate("cuda:0", 1024 * MIB, 1024, 1024, 512 * MIB, 256 * MIB, 2048 * MIB),
        budget_bytes=2**40,
        max_sequences=1,
        kv_cache_bytes=0,
    )
    assert plan.total_bytes == (1024 + 1 + 512 + 256) * MIB
    assert (plan.bytes_on("cuda:0"), plan.bytes_on("cpu")) == (plan.total_bytes, 2048 * MIB)
    assert plan.bytes_on("cuda:1") == 0
    assert plan.arithmetic().startswith("1.00 GiB weights + ")
