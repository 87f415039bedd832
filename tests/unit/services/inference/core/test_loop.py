from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.core.engine import Chunk, ChunkResult
from services.inference.core.events import FinishReason, Update
from services.inference.core.loop import LoopRequest, StepLoop
from services.inference.core.sampling import OutputOptions, SamplingParameters, StopConditions
from services.kit.errors import ContextLengthExceeded, InvalidArgument
from tests.contract.fake_engine import ByteVocabulary, FakeEngine

GREEDY = SamplingParameters(temperature=0.0)


def make_loop(engine: FakeEngine, max_sequences: int = 4, max_batch_tokens: int = 512) -> StepLoop:
    return StepLoop(engine, ByteVocabulary(), max_sequences=max_sequences, max_batch_tokens=max_batch_tokens)


def request(
    request_id: int, max_tokens: int | None = 8, stop: StopConditions | None = None, **fields: Any
) -> LoopRequest:
    stop = stop or StopConditions(max_tokens=max_tokens)
    return LoopRequest(request_id, (1, 2, 3 + request_id % 100), seed=5, sampling=GREEDY, stop=stop, **fields)


def drain(loop: StepLoop) -> dict[int, list[Update]]:
    updates: dict[int, list[Update]] = {}
    while loop.has_work:
        for request_id, update in loop.step().updates:
            updates.setdefault(request_id, []).append(update)
    return updates


def said(updates: list[Update], choice: int = 0) -> str:
    return "".join(delta.text for update in updates for delta in update.deltas if delta.choice == choice)


def test_a_request_is_told_its_start_its_text_and_its_end_in_order():
    engine = FakeEngine(script=list(b"hello"))
    loop = make_loop(engine)
    loop.add(request(1, max_tokens=20))
    updates = drain(loop)[1]
    assert updates[0].started is not None
    assert said(updates) == "hello"
    ended = updates[-1].ended
    assert ended is not None
    assert ended.choices[0].reason is FinishReason.STOP
    assert (ended.num_prompt_tokens, ended.num_completion_tokens) == (3, 6)
    assert all(update.ended is None for update in updates[:-1])
    assert engine.num_sequences == 0


def test_who_waits_is_let_in_as_soon_as_a_slot_is_free():
    engine = FakeEngine(script=list(b"abcdefgh"))
    loop = make_loop(engine, max_sequences=2)
    for request_id in range(5):
        loop.add(request(request_id, max_tokens=2 + request_id))
    while loop.has_work:
        loop.step()
        assert loop.num_live_sequences <= 2
    assert [num_tokens for _, num_tokens in engine.batches[0]] == [3, 3]
    assert max(len(batch) for batch in engine.batches) == 2


def test_priority_goes_first_among_those_that_wait():
    loop = make_loop(FakeEngine(script=list(b"ab")), max_sequences=1)
    for request_id, priority in ((1, 0), (2, 0), (3, 9)):
        loop.add(request(request_id, max_tokens=2, priority=priority))
    assert list(drain(loop)) == [3, 1, 2]


def test_a_cancelled_request_frees_its_slots_at_once_whether_it_runs_or_waits():
    engine = FakeEngine(script=list(b"a" * 50))
    loop = make_loop(engine, max_sequences=1)
    for request_id in (1, 2, 3):
        loop.add(request(request_id, max_tokens=50))
    loop.step()
    loop.cancel(1)
    loop.cancel(2)
    assert (engine.num_sequences, loop.num_live_sequences) == (0, 0)
    assert [request_id for request_id, _ in loop.step().updates] == [3]
    loop.cancel(3)
    loop.cancel(3)
    assert not loop.has_work


def test_more_choices_than_slots_take_turns():
    engine = FakeEngine(script=list(b"abc"))
    loop = make_loop(engine, max_sequences=2)
    loop.add(request(1, output=OutputOptions(num_choices=5)))
    updates = drain(loop)[1]
    assert [said(updates, choice) for choice in range(5)] == ["abc"] * 5
    assert sum(update.started is not None for update in updates) == 1
    assert updates[-1].ended is not None
    assert len(updates[-1].ended.choices) == 5


def test_a_stop_text_ends_the_answer_before_it_with_the_log_probabilities_of_what_was_shown():
    loop = make_loop(FakeEngine(script=list(b"one STOP two")))
    stop = StopConditions(stop=("STOP",))
    loop.add(request(1, stop=stop, output=OutputOptions(logprobs=True, top_logprobs=2)))
    updates = drain(loop)[1]
    assert said(updates) == "one "
    told = [logprob.picked.token_id for update in updates for d in update.deltas for logprob in d.logprobs]
    assert bytes(told) == b"one "
    assert updates[-1].ended is not None
    assert updates[-1].ended.choices[0].stop == "STOP"


def test_every_token_is_told_when_the_length_ends_the_answer_within_a_character():
    loop = make_loop(FakeEngine(script=list("aé".encode())))
    loop.add(request(1, max_tokens=2, output=OutputOptions(logprobs=True)))
    updates = drain(loop)[1]
    assert said(updates) == "a\ufffd"
    assert sum(len(delta.logprobs) for update in updates for delta in update.deltas) == 2


def test_no_stop_counts_before_min_tokens():
    loop = make_loop(FakeEngine(script=list(b"xxxxxxxxxx")))
    loop.add(request(1, stop=StopConditions(stop=("x",), stop_token_ids=(3,), min_tokens=4)))
    ended = drain(loop)[1][-1].ended
    assert ended is not None
    assert ended.num_completion_tokens == 4


def test_ignoring_the_end_of_text_goes_on_to_the_length():
    loop = make_loop(FakeEngine(script=[257, 257, 257]))
    loop.add(request(1, stop=StopConditions(max_tokens=6, ignore_eos=True)))
    ended = drain(loop)[1][-1].ended
    assert ended is not None
    assert (ended.choices[0].reason, ended.num_completion_tokens) == (FinishReason.LENGTH, 6)


def test_the_context_bounds_an_answer_without_max_tokens():
    loop = make_loop(FakeEngine(context_length=10, script=list(b"a" * 50)))
    loop.add(request(1, max_tokens=None))
    ended = drain(loop)[1][-1].ended
    assert ended is not None
    assert ended.num_completion_tokens == 7


def test_a_prompt_beyond_the_context_or_the_vocabulary_is_refused():
    loop = make_loop(FakeEngine(context_length=4))
    with pytest.raises(ContextLengthExceeded) as caught:
        loop.add(LoopRequest(1, (1, 2, 3, 4), seed=1))
    assert caught.value.metadata["num_prompt_tokens"] == "4"
    with pytest.raises(InvalidArgument, match="vocabulary"):
        loop.add(LoopRequest(1, (999,), seed=1))
    assert not loop.has_work


def test_the_memory_for_keys_and_values_bounds_an_answer_and_refuses_a_prompt_beyond_it():
    loop = make_loop(FakeEngine(block_size=4, num_blocks=3, script=list(b"a" * 50)))
    with pytest.raises(ContextLengthExceeded) as caught:
        loop.add(LoopRequest(1, tuple(range(13)), seed=1))
    assert caught.value.metadata["num_prompt_tokens"] == "13"
    assert caught.value.metadata["context_length"] == "12"
    loop.add(LoopRequest(1, tuple(range(12)), seed=1))
    loop.add(LoopRequest(2, tuple(range(8)), seed=1, stop=StopConditions(max_tokens=40)))
    updates = drain(loop)
    # The last token of an answer is picked and never computed.
    assert [len(said(updates[request_id])) for request_id in (1, 2)] == [1, 5]


def test_a_prompt_is_scored_without_an_answer():
    engine = FakeEngine(context_length=20)
    loop = make_loop(engine, max_batch_tokens=8)
    scoring = LoopRequest(1, tuple(range(20)), seed=1, stop=StopConditions(max_tokens=0), scores_prompt=True)
    loop.add(scoring)
    updates = drain(loop)[1]
    assert [len(update.prompt) for update in updates] == [0, 20]
    assert updates[0].started is not None
    ended = updates[-1].ended
    assert ended is not None
    assert (ended.num_completion_tokens, said(updates)) == (0, "")
    assert ended.choices[0].reason is FinishReason.LENGTH
    assert engine.num_sequences == 0
    with pytest.raises(ContextLengthExceeded):
        loop.add(LoopRequest(1, tuple(range(21)), seed=1, stop=StopConditions(max_tokens=0)))


def test_a_prompt_is_scored_once_before_the_answers_of_all_choices():
    loop = make_loop(FakeEngine(script=list(b"abc")))
    loop.add(request(1, scores_prompt=True, output=OutputOptions(num_choices=3)))
    updates = drain(loop)[1]
    assert [len(update.prompt) for update in updates if update.prompt] == [3]
    assert [said(updates, choice) for choice in range(3)] == ["abc"] * 3


def test_the_end_tells_where_the_time_went():
    now = 0.0
    engine = FakeEngine(script=list(b"abcd"))
    loop = StepLoop(
        engine, ByteVocabulary(), max_sequences=1, max_batch_tokens=4, clock=lambda: now
    )  # A clock that only the test moves.
    loop.add(LoopRequest(1, tuple(range(6)), seed=1, stop=StopConditions(max_tokens=4)))
    ended, waits_s = None, iter((0.0, 1.0, 2.0, 8.0, 4.0))
    now = 10.0
    while ended is None:
        for _, update in loop.step().updates:
            ended = update.ended
        now += next(waits_s)
    # Admitted at 10, first token in the second step, at 10; the others at 11, 13 and 21.
    assert (ended.queue_ms, ended.prefill_ms, ended.decode_ms) == (10_000, 0, 11_000)
    assert ended.ttft_ms == 10_000
    assert ended.max_inter_token_ms == 8_000
    assert ended.inter_token_ms == pytest.approx(11_000 / 3)


def test_the_end_tells_what_came_from_the_cache_and_who_gave_way():
    loop = make_loop(FakeEngine(num_blocks=6, script=list(b"a" * 50)), max_batch_tokens=64)
    stop = StopConditions(max_tokens=14)
    for request_id, prompt in ((1, range(8)), (2, range(100, 108))):
        loop.add(LoopRequest(request_id, tuple(prompt), seed=1, stop=stop))
    updates = drain(loop)
    loop.add(LoopRequest(3, tuple(range(100, 109)), seed=1, stop=stop))
    updates |= drain(loop)
    ends = [updates[request_id][-1].ended for request_id in (1, 2, 3)]
    told = [(end.num_completion_tokens, end.num_cached_tokens, end.num_preemptions) for end in ends if end]
    assert told == [(14, 0, 0), (14, 0, 1), (14, 8, 0)]


def test_stats_say_how_the_loop_stands():
    loop = make_loop(FakeEngine(script=list(b"ab"), num_blocks=16), max_sequences=2)
    for request_id in range(3):
        loop.add(request(request_id, max_tokens=2))
    loop.step()
    stats = loop.stats()
    assert (stats.num_live, stats.num_waiting) == (2, 1)
    assert (stats.num_blocks, stats.num_used_blocks) == (16, 2)
    assert (stats.num_batch_sequences, stats.num_batch_tokens) == (2, 6)
    assert (stats.num_steps, stats.num_computed_tokens, stats.num_generated_tokens) == (1, 6, 2)
    drain(loop)
    assert loop.stats().num_used_blocks == 0


class BrokenEngine(FakeEngine):
    def step(self, chunks: Sequence[Chunk]) -> list[ChunkResult]:
        raise RuntimeError("the card fell off")


def test_an_engine_that_raises_ends_the_step_with_its_error():
    loop = make_loop(BrokenEngine())
    loop.add(request(1))
    with pytest.raises(RuntimeError, match="fell off"):
        loop.step()


@given(
    asked=st.lists(
        st.tuples(st.integers(1, 12), st.integers(1, 3), st.integers(0, 20)), min_size=1, max_size=12
    ),
    num_blocks=st.integers(4, 12),
    max_batch_tokens=st.integers(1, 20),
    shares_blocks=st.booleans(),
)
def test_what_a_request_is_told_depends_neither_on_the_others_nor_on_memory_nor_on_the_budget(
    asked: list[tuple[int, int, int]], num_blocks: int, max_batch_tokens: int, shares_blocks: bool
):
    """asked: (max_tokens, num_choices, step at which it comes)."""
    alone = {}
    for request_id, (max_tokens, num_choices, _) in enumerate(asked):
        loop = make_loop(FakeEngine())
        loop.add(request(request_id, max_tokens, output=OutputOptions(num_choices=num_choices)))
        alone[request_id] = [
            said(drain_one, choice) for drain_one in drain(loop).values() for choice in range(3)
        ]
    engine = FakeEngine(num_blocks=num_blocks, shares_blocks=shares_blocks)
    told: dict[int, list[Update]] = {}
    loop, step = make_loop(engine, max_sequences=3, max_batch_tokens=max_batch_tokens), 0
    while loop.has_work or step <= 20:
        for request_id, (max_tokens, num_choices, at) in enumerate(asked):
            if at == step:
                loop.add(request(request_id, max_tokens, output=OutputOptions(num_choices=num_choices)))
        for request_id, update in loop.step().updates:
            told.setdefault(request_id, []).append(update)
        step += 1
    assert {key: [said(value, choice) for choice in range(3)] for key, value in told.items()} == alone
    assert engine.num_sequences == 0
    assert loop.stats().num_used_blocks == 0


@pytest.mark.parametrize("max_tokens", [0, 2])
@pytest.mark.parametrize("max_batch_tokens", [4, 512])
def test_a_scored_prompt_is_told_once_with_all_its_tokens(max_tokens: int, max_batch_tokens: int):
    loop = StepLoop(
        FakeEngine(script=list(b"xy")), ByteVocabulary(), max_sequences=4, max_batch_tokens=max_batch_tokens
    )
    prompt = tuple(b"many tokens")
    loop.add(
        LoopRequest(
            1,
            prompt,
            seed=5,
            stop=StopConditions(max_tokens=max_tokens),
            output=OutputOptions(logprobs=True, top_logprobs=2, num_choices=1 + max_tokens),
            scores_prompt=True,
        )
    )
    updates = drain(loop)[1]
    (tokens,) = (update.prompt for update in updates if update.prompt)
    assert b"".join(token.raw for token in tokens) == b"many tokens"
    assert tuple(token.token_id for token in tokens) == prompt
    assert [token.logprob is None for token in tokens] == [True] + [False] * 10
    assert [len(token.top) for token in tokens] == [0] + [2] * 10
    ended = updates[-1].ended
    assert ended is not None
    assert ended.num_completion_tokens == max_tokens * (1 + max_tokens)


def test_a_prompt_of_one_token_is_scored_without_a_number():
    loop = make_loop(FakeEngine())
    loop.add(LoopRequest(1, (65,), seed=5, stop=StopConditions(max_tokens=0), scores_prompt=True))
    (token,) = drain(loop)[1][0].prompt
    assert (token.raw, token.logprob, token.top) == (b"A", None, ())
