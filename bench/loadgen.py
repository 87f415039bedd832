"""Closed-loop load on a server that streams as OpenAI does. One JSON row on stdout.

    python -m bench.loadgen --base-url http://127.0.0.1:7210/v1 --model M --concurrency 16 --max-tokens 64

Counted honestly: output tokens are the server's `usage.completion_tokens`. An HTTP error, an error event, a broken
stream, an answer without text, without its end or without usage makes the run fail: exit code 1, no row of numbers.

    TTFT       from sending to the first event that carries text
    ITL        between two events that carry text
    TPOT       (last such event - first) / (tokens - 1), one a request
    out_tok_s  all output tokens / time from the first request to the end of the last
"""

import argparse
import asyncio
import json
import os
import random
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2

from bench.processes import busy_and_steal_s, own_cpu_s, tree_cpu_s, tree_rss_mib

# Each about one token in the vocabularies of today.
_TEXT = (
    "time year people way day man thing woman life child world school state family student group country problem "
    "hand part place case week company system program question work government number night point home water room "
    "mother area money story fact month lot right study book eye job word business issue side kind head house "
    "service friend father power hour game line end member law car city community name president team minute idea "
    "body information back parent face others level office door health person art war history party result change "
    "morning reason research girl moment air teacher force education foot boy age policy music market sense nation "
    "plan college interest death experience effect use class control care field development role effort rate heart"
)
WORDS = _TEXT.split()


class LoadFailed(Exception):
    """The server did not answer as it should."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of the server. prompt_tokens: about; a server's chat template adds to them."""

    base_url: str
    model: str
    concurrency: int
    num_requests: int
    prompt_tokens: int
    max_tokens: int
    shared_prefix: int
    temperature: float
    extra_body: dict[str, Any]
    num_warmups: int
    seed: int
    timeout_s: float
    keep_alive: bool


@dataclass(slots=True)
class Answer:
    """One streamed answer. Times in seconds, on one clock."""

    sent_s: float
    text_at_s: list[float] = field(default_factory=list)
    ended_s: float = 0.0
    finish_reason: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        """Generated, as the server counts them."""
        return int(self.usage["completion_tokens"])

    def take(self, event: dict[str, Any], now_s: float) -> None:
        """Read one event of the stream. Raises LoadFailed if it is an error."""
        if event.get("error"):
            raise LoadFailed(f"error event: {event['error']}")
        self.usage = event.get("usage") or self.usage
        for choice in event.get("choices") or ():
            delta = choice.get("delta") or {}
            if delta.get("content") or delta.get("reasoning_content"):
                self.text_at_s.append(now_s)
            self.finish_reason = choice.get("finish_reason") or self.finish_reason

    def check(self) -> None:
        """Raises LoadFailed unless the answer is whole."""
        if not self.text_at_s:
            raise LoadFailed("no text in the stream")
        if self.finish_reason is None:
            raise LoadFailed("the stream ended without a finish_reason")
        if self.usage.get("completion_tokens") is None:
            raise LoadFailed("the server sent no usage")


def events(buffer: bytes) -> tuple[list[dict[str, Any]], bytes]:
    """The whole server-sent events at the front of what arrived, and the rest. The closing [DONE] is no event."""
    *blocks, rest = buffer.replace(b"\r\n", b"\n").split(b"\n\n")
    data = (line[5:].strip() for block in blocks for line in block.split(b"\n") if line.startswith(b"data:"))
    return [json.loads(one) for one in data if one != b"[DONE]"], rest


async def ask(client: httpx2.AsyncClient, load: Load, prefix: str, prompt: str) -> Answer:
    """Send one request and read its stream to the end. Raises LoadFailed."""
    system = [{"role": "system", "content": prefix}] if prefix else []
    body = {
        "model": load.model,
        "messages": [*system, {"role": "user", "content": prompt}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": load.max_tokens,
        "temperature": load.temperature,
        **load.extra_body,
    }
    answer = Answer(time.perf_counter())
    async with client.stream("POST", f"{load.base_url}/chat/completions", json=body) as response:
        if response.status_code != 200:
            raise LoadFailed(f"HTTP {response.status_code}: {(await response.aread())[:500]!r}")
        buffer = b""
        async for chunk in response.aiter_bytes():
            now_s = time.perf_counter()
            arrived, buffer = events(buffer + chunk)
            for event in arrived:
                answer.take(event, now_s)
    answer.ended_s = time.perf_counter()
    answer.check()
    return answer


def words(rng: random.Random, count: int) -> str:
    """A prompt of about so many tokens, that no cache has seen."""
    return " ".join(rng.choice(WORDS) for _ in range(count))


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Interpolated between neighbours. None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def summary(load: Load, answers: Sequence[Answer], wall_s: float) -> dict[str, Any]:
    """The row, of answers that are whole. Times in milliseconds where the name says so."""
    ttft = [one.text_at_s[0] - one.sent_s for one in answers]
    itl = [
        later - earlier
        for one in answers
        for earlier, later in zip(one.text_at_s, one.text_at_s[1:], strict=False)
    ]
    tpot = [
        (one.text_at_s[-1] - one.text_at_s[0]) / (one.num_tokens - 1)
        for one in answers
        if one.num_tokens > 1 and len(one.text_at_s) > 1
    ]
    num_tokens = sum(one.num_tokens for one in answers)
    num_events = sum(len(one.text_at_s) for one in answers)
    prompt = [int(one.usage.get("prompt_tokens") or 0) for one in answers]
    cached = [
        int((one.usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0) for one in answers
    ]
    tpot_s = percentile(tpot, 50)
    return {
        "conc": load.concurrency,
        "req": len(answers),
        "prompt_tok": percentile(prompt, 50),
        "cached_tok": percentile(cached, 50),
        "shared_prefix": load.shared_prefix,
        "max_tokens": load.max_tokens,
        "out_tokens": num_tokens,
        # A server that stops early does less work than the others: zero, or the row does not compare.
        "short": sum(one.num_tokens < load.max_tokens for one in answers),
        "wall_s": round(wall_s, 3),
        "out_tok_s": round(num_tokens / wall_s, 2),
        "ttft_p50_ms": _ms(percentile(ttft, 50)),
        "ttft_p95_ms": _ms(percentile(ttft, 95)),
        "itl_p50_ms": _ms(percentile(itl, 50)),
        "itl_p99_ms": _ms(percentile(itl, 99)),
        "tpot_p50_ms": _ms(tpot_s),
        "decode_tok_s_p50": round(1 / tpot_s, 2) if tpot_s else None,
        "tok_per_event": round(num_tokens / num_events, 2),
        "seed": load.seed,
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 2)


async def run(load: Load, server_pid: int | None) -> dict[str, Any]:
    """Warm up, measure, and return the row. Raises LoadFailed, or what httpx2 raises."""
    rng = random.Random(load.seed)
    prefix = words(random.Random(load.seed + 7), load.shared_prefix)
    limits = httpx2.Limits(
        max_connections=load.concurrency + 4,
        max_keepalive_connections=load.concurrency + 4 if load.keep_alive else 0,
    )
    answers: list[Answer] = []
    async with httpx2.AsyncClient(timeout=load.timeout_s, limits=limits, trust_env=False) as client:
        for _ in range(load.num_warmups):
            await ask(client, load, prefix, words(rng, load.prompt_tokens))
        prompts = iter([words(rng, load.prompt_tokens) for _ in range(load.num_requests)])
        before = _Meters.read(server_pid)
        began_s = time.perf_counter()
        async with asyncio.TaskGroup() as clients:
            for _ in range(load.concurrency):
                clients.create_task(_client(client, load, prefix, prompts, answers))
        wall_s = time.perf_counter() - began_s
        after = _Meters.read(server_pid)
    return summary(load, answers, wall_s) | after.since(before)


async def _client(
    client: httpx2.AsyncClient, load: Load, prefix: str, prompts: Iterator[str], answers: list[Answer]
) -> None:
    for prompt in prompts:
        answers.append(await ask(client, load, prefix, prompt))


@dataclass(frozen=True, slots=True)
class _Meters:
    """Readings around the measured part. Seconds of CPU, MiB."""

    loadgen_s: float
    busy_s: float
    steal_s: float
    tree_s: float | None
    root_s: float | None
    rss_mib: float | None

    @classmethod
    def read(cls, pid: int | None) -> "_Meters":
        mine = resource.getrusage(resource.RUSAGE_SELF)
        tree = (None, None, None) if pid is None else (tree_cpu_s(pid), own_cpu_s(pid), tree_rss_mib(pid))
        return cls(mine.ru_utime + mine.ru_stime, *busy_and_steal_s(), *tree)

    def since(self, before: "_Meters") -> dict[str, Any]:
        loadgen_s = self.loadgen_s - before.loadgen_s
        row: dict[str, Any] = {
            "loadgen_cpu_s": round(loadgen_s, 2),
            "steal_s": round(self.steal_s - before.steal_s, 2),
        }
        if self.tree_s is None or before.tree_s is None or self.root_s is None or before.root_s is None:
            return row
        server_s = self.tree_s - before.tree_s
        return row | {
            "server_cpu_s": round(server_s, 2),
            # Of the named process alone, without its children.
            "root_cpu_s": round(self.root_s - before.root_s, 3),
            "server_rss_mib": round(self.rss_mib or 0),
            "other_cpu_s": round(self.busy_s - before.busy_s - server_s - loadgen_s, 2),
        }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--label", default="")
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--requests", type=int, help="in all; default max(2 * concurrency, 6)")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--prompt-tokens", type=int, default=128, help="in words of about one token")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument(
        "--shared-prefix", type=int, default=0, help="words of a system message that all share"
    )
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--extra-body", type=json.loads, default={}, help='JSON: {"ignore_eos": true}')
    parser.add_argument("--server-pid", type=int, help="measure the CPU and memory of this process tree")
    parser.add_argument("--timeout", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4)))
    parser.add_argument("--no-keepalive", action="store_true", help="a new connection for each request")
    return parser


def main() -> int:
    """Run from the command line. Returns the exit code."""
    given = _parser().parse_args()
    load = Load(
        base_url=given.base_url,
        model=given.model,
        concurrency=given.concurrency,
        num_requests=given.requests or max(2 * given.concurrency, 6),
        prompt_tokens=max(1, given.prompt_tokens),
        max_tokens=given.max_tokens,
        shared_prefix=given.shared_prefix,
        temperature=given.temperature,
        extra_body=given.extra_body,
        num_warmups=given.warmup,
        seed=given.seed,
        timeout_s=given.timeout,
        keep_alive=not given.no_keepalive,
    )
    row: dict[str, Any] = {}
    try:
        row = asyncio.run(run(load, given.server_pid))
    except* (LoadFailed, httpx2.HTTPError, json.JSONDecodeError) as group:
        first = next(_leaves(group))
        row = {"FAILED": f"{type(first).__name__}: {first}"}
    print(json.dumps({"label": given.label} | row))
    return int("FAILED" in row)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


if __name__ == "__main__":
    sys.exit(main())
