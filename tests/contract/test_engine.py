"""One suite for every Engine: the fake that the loop's tests use obeys what the real one obeys."""

import random
from collections.abc import Callable, Sequence

import pytest

from services.inference.core.engine import Engine, EngineSequence
from services.inference.core.sampling import Sampling
from tests.contract.fake_engine import FakeEngine
from tests.contract.tiny_llama import tiny_engine

GREEDY = Sampling(seed=1, temperature=0.0)

MakeEngine = Callable[[], Engine]


@pytest.fixture(params=["fake", "torch"], scope="module")
def make_engine(request: pytest.FixtureRequest) -> MakeEngine:
    return FakeEngine if request.param == "fake" else tiny_engine


@pytest.fixture
def engine(make_engine: MakeEngine) -> Engine:
    return make_engine()


def sequence(
    sequence_id: int, prompt: Sequence[int] = (5, 6, 7), sampling: Sampling = GREEDY
) -> EngineSequence:
    return EngineSequence(sequence_id, tuple(prompt), sampling)


def run(engine: Engine, sequences: list[EngineSequence], num_tokens: int) -> list[list[int]]:
    for each, picked in zip(sequences, engine.prefill(sequences), strict=True):
        each.output.append(picked.token_id)
    for _ in range(num_tokens - 1):
        for each, picked in zip(sequences, engine.decode(sequences), strict=True):
            each.output.append(picked.token_id)
    return [each.output for each in sequences]


def test_tokens_are_in_the_vocabulary_and_repeat(engine: Engine):
    first, second = run(engine, [sequence(1), sequence(2)], 8)
    assert first == second
    assert all(0 <= token < engine.facts.vocab_size for token in first)


def test_a_sequence_says_the_same_alone_and_among_others(make_engine: MakeEngine):
    prompts = [(1, 2, 3), (9,), tuple(range(20, 60)), (4, 4, 4, 4)]
    together = run(make_engine(), [sequence(i, prompt) for i, prompt in enumerate(prompts)], 10)
    alone = [run(make_engine(), [sequence(i, prompt)], 10)[0] for i, prompt in enumerate(prompts)]
    assert together == alone


def test_sequences_come_and_go_between_steps(make_engine: MakeEngine):
    engine, rng = make_engine(), random.Random(3)
    live: list[EngineSequence] = []
    done: list[EngineSequence] = []
    for step in range(60):
        rng.shuffle(live)  # An engine is told the sequences of a step in any order.
        some = live if step % 5 else live[: len(live) // 2]  # and need not be told all of them.
        for each, picked in zip(some, engine.decode(some) if some else [], strict=True):
            each.output.append(picked.token_id)
        if step < 40 and len(live) < 5:
            new = [sequence(100 + step, [rng.randrange(200) for _ in range(rng.randrange(1, 30))])]
            new[0].output.append(engine.prefill(new)[0].token_id)
            live += new
        for each in [each for each in live if len(each.output) >= 9]:
            live.remove(each)
            done.append(each)
            engine.release(each)
    assert len(done) >= 15
    for each in done:
        assert run(make_engine(), [sequence(1, each.prompt)], len(each.output)) == [each.output]


def test_equal_seeds_say_the_same_whatever_else_is_in_the_batch(make_engine: MakeEngine):
    hot = Sampling(seed=42, temperature=1.5)
    alone = run(make_engine(), [sequence(1, (1, 2), hot)], 12)[0]
    among = [sequence(1), sequence(2, (1, 2), hot), sequence(3, (8,), Sampling(seed=7, top_k=5))]
    assert run(make_engine(), among, 12)[1] == alone
    other = run(make_engine(), [sequence(1, (1, 2), Sampling(seed=43, temperature=1.5))], 12)[0]
    assert other != alone


def test_choices_that_share_a_prompt_go_their_own_ways(engine: Engine):
    prompt = (3, 1, 4)
    choices = [EngineSequence(i, prompt, Sampling(seed=i, temperature=2.0)) for i in range(4)]
    assert len({tuple(output) for output in run(engine, choices, 12)}) == 4


def test_banned_tokens_are_not_picked_while_they_are_banned(make_engine: MakeEngine):
    favourite = run(make_engine(), [sequence(1)], 1)[0][0]
    engine = make_engine()
    banned = sequence(1)
    banned.banned_token_ids, banned.num_banned_steps = frozenset({favourite}), 1
    assert engine.prefill([banned])[0].token_id != favourite


def test_a_strong_bias_decides(engine: Engine):
    biased = sequence(1, sampling=Sampling(seed=1, temperature=0.0, logit_bias={65: 100.0}))
    assert run(engine, [biased], 3) == [[65, 65, 65]]


def test_log_probabilities_come_with_those_who_asked(engine: Engine):
    asking, silent = sequence(1), sequence(2)
    asking.num_logprobs = 3
    told, untold = engine.prefill([asking, silent])
    assert told.logprob is not None
    assert told.logprob <= 0
    assert len(told.top) == 3
    assert [logprob for _, logprob in told.top] == sorted((logprob for _, logprob in told.top), reverse=True)
    assert told.top[0] == (told.token_id, told.logprob)
    assert (untold.logprob, untold.top) == (None, ())


def test_releasing_twice_is_no_error(engine: Engine):
    each = sequence(1)
    engine.prefill([each])
    engine.release(each)
    engine.release(each)
    engine.release(sequence(99))
