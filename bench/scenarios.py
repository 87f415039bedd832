"""What is measured, and the bars that Lares is held to."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Scenario:
    """One load, the same for every peer."""

    name: str
    metric: str
    """Column of the load generator's row that counts."""
    unit: str
    title: str
    concurrency: int = 1
    num_requests: int = 4
    prompt_tokens: int = 128
    max_tokens: int = 64
    shared_prefix: int = 0


SCENARIOS: Final = (
    Scenario("batch1", "decode_tok_s_p50", "tok/s", "batch 1"),
    Scenario("c4", "out_tok_s", "tok/s", "4 clients", 4, 12),
    Scenario("c16", "out_tok_s", "tok/s", "16 clients", 16, 32),
    Scenario("c32", "out_tok_s", "tok/s", "32 clients", 32, 64),
    Scenario("ttft512", "ttft_p50_ms", "ms", "first token of 512", 1, 4, 512, 4),
    Scenario("ttft1800", "ttft_p50_ms", "ms", "first token of 1,800", 1, 3, 1800, 4),
    Scenario("prefix", "out_tok_s", "tok/s", "1,000 shared, 16 clients", 16, 32, shared_prefix=1000),
)

QUICK: Final = (
    Scenario("batch1", "decode_tok_s_p50", "tok/s", "batch 1", 1, 2, max_tokens=16),
    Scenario("c4", "out_tok_s", "tok/s", "4 clients", 4, 4, max_tokens=8),
    Scenario("ttft512", "ttft_p50_ms", "ms", "first token of 512", 1, 2, 512, 4),
)
"""To see whether everything runs; its numbers say little."""

SOAK: Final = Scenario("soak", "out_tok_s", "tok/s", "soak", 8, prompt_tokens=32, max_tokens=8)
"""Its num_requests comes from the command line."""

FIRST_TOKEN_PAIRS: Final = 30
"""Requests over HTTP and over gRPC from which the gateway's and services' share of a first token is taken."""

OF_A_SERVER: Final = {
    "ready_s": ("start to ready", "s"),
    "first_answer_s": ("ready to first token ever", "s"),
    "rss_ready_mib": ("resident after it", "MiB"),
    "rss_end_mib": ("resident at the end", "MiB"),
}
"""Measured once a start, of each peer: title and unit."""

OF_LARES: Final = {
    "services_us_per_token": ("CPU of gateway and services, of a token at 16 clients", "us"),
    "services_first_token_ms": ("added by gateway and services, first token", "ms"),
    "memory_over_weights_mib": ("resident at the end beyond the weights, KV pool included", "MiB"),
    "soak_growth_mib": ("grown over the second half of the soak", "MiB"),
}
"""Measured of Lares alone."""


@dataclass(frozen=True, slots=True)
class Bar:
    """What Lares must reach: a ratio to a peer, or, without a peer, a number."""

    measure: str
    peer: str
    limit: float
    at_most: bool = False
    model: str = ""
    """Where it counts for one model only."""

    def met(self, value: float) -> bool:
        """Whether a ratio or number reaches it."""
        return value <= self.limit if self.at_most else value >= self.limit


BARS: Final = (
    Bar("batch1", "vllm", 0.95),
    Bar("c16", "vllm", 0.75),
    Bar("c32", "vllm", 0.65),
    Bar("c16", "llama-q4", 1.3),
    Bar("c32", "llama-q4", 1.3),
    Bar("ttft512", "vllm", 1.2, at_most=True),
    Bar("ttft1800", "vllm", 1.2, at_most=True),
    Bar("prefix", "vllm", 0.8),
    Bar("ready_s", "", 15, at_most=True),
    Bar("first_answer_s", "", 5, at_most=True, model="starter"),
    Bar("services_first_token_ms", "", 5, at_most=True),
    Bar("services_us_per_token", "", 100, at_most=True),
    Bar("soak_growth_mib", "", 16, at_most=True),
)
