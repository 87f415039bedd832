"""Greedy answers are transformers' own, token for token, whatever happens around them."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from services.inference.adapters.runner.engine import RunnerEngine
from services.inference.core.loop import LoopRequest, StepLoop
from services.inference.core.sampling import OutputOptions, SamplingParameters, StopConditions
from tests.contract.fake_engine import ByteVocabulary
from tests.contract.tiny_llama import EOS, tiny_llama, tiny_runner

NUM_PROMPTS = 200
MAX_TOKENS = 40


@pytest.fixture(scope="module")
def prompts() -> list[tuple[int, ...]]:
    """Of 1 to 90 tokens; a third of them share a beginning of 40."""
    rng = random.Random(11)
    beginning = [rng.randrange(256) for _ in range(40)]
    made = []
    for index in range(NUM_PROMPTS):
        own = [rng.randrange(256) for _ in range(rng.randrange(1, 90))]
        made.append(tuple([*beginning, *own[:50]] if index % 3 == 0 else own))
    return made


class Collected:
    """What requests said: tokens, and the log probability of each."""

    def __init__(self, engine: RunnerEngine, *, max_sequences: int = 64, max_batch_tokens: int = 512) -> None:
        self.loop = StepLoop(
            engine, ByteVocabulary(), max_sequences=max_sequences, max_batch_tokens=max_batch_tokens
        )
        self.tokens: dict[int, list[int]] = {}
        self.logprobs: dict[int, list[float]] = {}

    def add(self, request_id: int, prompt: Sequence[int], sampling: SamplingParameters | None = None) -> None:
        self.tokens[request_id], self.logprobs[request_id] = [], []
        self.loop.add(
            LoopRequest(
                request_id=request_id,
                prompt=prompt,
                seed=request_id,
                sampling=sampling or SamplingParameters(temperature=0.0),
                stop=StopConditions(max_tokens=MAX_TOKENS, ignore_eos=True),
                output=OutputOptions(logprobs=True),
            )
        )

    def step(self) -> list[int]:
        """Returns who is done."""
        report = self.loop.step()
        for request_id, update in report.updates:
            for delta in update.deltas:
                self.tokens[request_id] += [each.picked.token_id for each in delta.logprobs]
                self.logprobs[request_id] += [each.picked.logprob for each in delta.logprobs]
        return report.finished

    def finish(self) -> None:
        while self.loop.has_work:
            self.step()


def check(prompt: Sequence[int], tokens: Sequence[int], logprobs: Sequence[float]) -> None:
    """One pass over prompt and answer says what generate would: each token is the likeliest after those before it.

    Two tokens less than a rounding error apart are equally likely: the order of a sum decides between them.
    """
    assert len(tokens) == MAX_TOKENS
    with torch.inference_mode():
        logits = tiny_llama()(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
    chosen = logits[range(MAX_TOKENS), list(tokens)]
    assert ((logits.amax(-1) - chosen) < 1e-5).all()
    wanted = logits.log_softmax(-1)[range(MAX_TOKENS), list(tokens)]
    torch.testing.assert_close(torch.tensor(logprobs), wanted, atol=1e-3, rtol=0)


def test_one_at_a_time(prompts: list[tuple[int, ...]]):
    collected = Collected(tiny_runner())
    for request_id, prompt in enumerate(prompts):
        collected.add(request_id, prompt)
        collected.finish()
        check(prompt, collected.tokens[request_id], collected.logprobs[request_id])


def test_among_32_with_cancellations_prefix_hits_and_preemptions(prompts: list[tuple[int, ...]]):
    collected = Collected(tiny_runner(num_blocks=24), max_sequences=32, max_batch_tokens=50)
    rng = random.Random(12)
    waiting, live, kept = list(enumerate(prompts)), set[int](), []
    while waiting or live:
        while waiting and len(live) < 32:
            request_id, prompt = waiting.pop()
            collected.add(request_id, prompt)
            live.add(request_id)
        if live and rng.random() < 0.02:
            request_id = rng.choice(sorted(live))
            collected.loop.cancel(request_id)
            live.discard(request_id)
        for request_id in collected.step():
            live.discard(request_id)
            kept.append(request_id)
    stats = collected.loop.stats()
    assert stats.num_preemptions > 20
    assert stats.num_hit_tokens > 1000
    assert stats.num_used_blocks == 0
    assert NUM_PROMPTS // 2 < len(kept) < NUM_PROMPTS
    for request_id in kept:
        check(prompts[request_id], collected.tokens[request_id], collected.logprobs[request_id])


def test_a_seed_repeats_whatever_else_is_in_the_batch(prompts: list[tuple[int, ...]]):
    hot = SamplingParameters(temperature=1.3, top_p=0.9, top_k=40, repetition_penalty=1.1)
    alone = Collected(tiny_runner())
    for request_id, prompt in enumerate(prompts[:20]):
        alone.add(request_id, prompt, hot)
        alone.finish()
    among = Collected(tiny_runner(num_blocks=16), max_batch_tokens=40)
    for request_id, prompt in enumerate(prompts[:20]):
        among.add(request_id, prompt, hot)
        among.add(100 + request_id, prompts[100 + request_id])
    among.finish()
    assert among.loop.stats().num_preemptions > 0
    for request_id in range(20):
        assert among.tokens[request_id] == alone.tokens[request_id]


def test_an_answer_that_ends_by_itself_ends_where_transformers_ends():
    model = tiny_llama()
    prompt = (7, 8, 9)
    bias = {EOS: 2.5}
    collected = Collected(tiny_runner())
    collected.loop.add(
        LoopRequest(
            request_id=1,
            prompt=prompt,
            seed=1,
            sampling=SamplingParameters(temperature=0.0, logit_bias=bias),
            stop=StopConditions(max_tokens=100),
        )
    )
    num_tokens = 0
    while collected.loop.has_work:
        for _, update in collected.loop.step().updates:
            if update.ended is not None:
                num_tokens = update.ended.num_completion_tokens
    generate: Any = getattr(model, "generate")  # noqa: B009  # Typed for a protocol that transformers' own models do not fit.
    said = generate(
        torch.tensor([prompt]),
        do_sample=False,
        max_new_tokens=100,
        sequence_bias={(EOS,): 2.5},
        pad_token_id=0,
    )
    assert num_tokens == said.shape[1] - len(prompt)
