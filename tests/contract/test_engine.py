"""One suite for every Engine: the fake that the loop's tests use obeys what the real ones obey."""

import random
from collections.abc import Callable

import pytest

from services.inference.core.engine import Chunk, Engine, EngineSequence
from services.inference.core.sampling import Sampling
from tests.contract.engine_driver import Driver, run, sequence
from tests.contract.fake_engine import FakeEngine
from tests.contract.tiny_llama import tiny_engine, tiny_runner

MakeEngine = Callable[[], Engine]

# What every engine must do. One that shares blocks is asked for that too.
ENGINES: dict[str, MakeEngine] = {
    "fake": FakeEngine,
    "fake-that-shares-nothing": lambda: FakeEngine(shares_blocks=False),
    "transformers": tiny_engine,
    "runner": tiny_runner,
}


@pytest.fixture(params=ENGINES, scope="module")
def make_engine(request: pytest.FixtureRequest) -> MakeEngine:
    return ENGINES[request.param]


@pytest.fixture
def engine(make_engine: MakeEngine) -> Engine:
    return make_engine()


def test_tokens_are_in_the_vocabulary_and_repeat(engine: Engine):
    first, second = run(engine, [sequence(1), sequence(2)], 8)
    assert first == second
    assert all(0 <= token < engine.facts.vocab_size for token in first)


def test_a_sequence_says_the_same_alone_and_among_others(make_engine: MakeEngine):
    prompts = [(1, 2, 3), (9,), tuple(range(20, 60)), (4, 4, 4, 4)]
    together = run(make_engine(), [sequence(i, prompt) for i, prompt in enumerate(prompts)], 10)
    alone = [run(make_engine(), [sequence(i, prompt)], 10)[0] for i, prompt in enumerate(prompts)]
    assert together == alone


@pytest.mark.parametrize("max_batch_tokens", [1, 3, 7, 16])
def test_a_prompt_in_chunks_gives_what_the_whole_gives(make_engine: MakeEngine, max_batch_tokens: int):
    prompts = [tuple(range(20, 53)), (9, 8), tuple(range(100, 117))]
    whole = run(make_engine(), [sequence(i, prompt) for i, prompt in enumerate(prompts)], 6)
    driver = Driver(make_engine(), max_batch_tokens=max_batch_tokens)
    assert driver.run([sequence(i, prompt) for i, prompt in enumerate(prompts)], 6) == whole


def test_sequences_come_and_go_between_steps(make_engine: MakeEngine):
    driver, rng = Driver(make_engine(), max_batch_tokens=24), random.Random(3)
    live: list[EngineSequence] = []
    done: list[EngineSequence] = []
    for step in range(60):
        driver.step()
        if step < 40 and len(live) < 5:
            live.append(sequence(100 + step, [rng.randrange(200) for _ in range(rng.randrange(1, 30))]))
            driver.add(live[-1])
        for each in [each for each in live if len(each.output) >= 9]:
            live.remove(each)
            done.append(each)
            driver.end(each)
    assert len(done) >= 15
    for each in done:
        assert run(make_engine(), [sequence(1, each.prompt)], len(each.output)) == [each.output]


def test_chunks_may_come_in_any_order_and_not_all_sequences_must_be_in_a_step(make_engine: MakeEngine):
    expected = run(make_engine(), [sequence(i, (i, 2, 3)) for i in range(5)], 8)
    engine, rng = make_engine(), random.Random(5)
    sequences = [sequence(i, (i, 2, 3)) for i in range(5)]
    for index, each in enumerate(sequences):
        each.blocks = [4 * index, 4 * index + 1, 4 * index + 2]
    while live := [each for each in sequences if len(each.output) < 8]:
        some = rng.sample(live, rng.randint(1, len(live)))
        chunks = [Chunk(each, each.num_tokens - each.num_computed) for each in some]
        for each, result in zip(some, engine.step(chunks), strict=True):
            each.num_computed = each.num_tokens
            assert result.picked is not None
            each.output.append(result.picked.token_id)
    assert [each.output for each in sequences] == expected


@pytest.mark.parametrize("sampling", [Sampling(seed=1, temperature=0.0), Sampling(seed=8, temperature=1.2)])
def test_a_sequence_that_lost_its_blocks_goes_on_as_if_nothing_had_been(
    make_engine: MakeEngine, sampling: Sampling
):
    (expected,) = run(make_engine(), [sequence(1, tuple(range(30, 41)), sampling)], 12)
    driver = Driver(make_engine())
    each = sequence(1, tuple(range(30, 41)), sampling)
    driver.add(each)
    for _ in range(5):
        driver.step()
    driver.scheduler.remove(each)  # It gives way: nobody tells the engine.
    other = sequence(2, tuple(range(100, 150)))
    driver.add(other)
    driver.step()
    driver.add(each)
    while len(each.output) < 12:
        driver.step()
    assert each.output == expected


def test_equal_seeds_say_the_same_whatever_else_is_in_the_batch(make_engine: MakeEngine):
    hot = Sampling(seed=42, temperature=1.5)
    alone = run(make_engine(), [sequence(1, (1, 2), hot)], 12)[0]
    among = [sequence(1), sequence(2, (1, 2), hot), sequence(3, (8,), Sampling(seed=7, top_k=5))]
    assert run(make_engine(), among, 12)[1] == alone
    other = run(make_engine(), [sequence(1, (1, 2), Sampling(seed=43, temperature=1.5))], 12)[0]
    assert other != alone


def test_choices_that_share_a_prompt_go_their_own_ways(engine: Engine):
    prompt = tuple(range(40))
    choices = [EngineSequence(i, prompt, Sampling(seed=i, temperature=2.0)) for i in range(4)]
    assert len({tuple(output) for output in run(engine, choices, 12)}) == 4


def test_who_shares_a_beginning_says_what_it_says_alone(make_engine: MakeEngine):
    beginning = tuple(range(1, 30))
    prompts = [beginning, (*beginning, 7), (*beginning, 8, 9, 10, 11, 12), beginning[:17], (2, *beginning)]
    alone = [run(make_engine(), [sequence(i, prompt)], 6)[0] for i, prompt in enumerate(prompts)]
    driver = Driver(make_engine(), max_batch_tokens=8)
    assert driver.run([sequence(i, prompt) for i, prompt in enumerate(prompts)], 6) == alone
    again = [sequence(10 + i, prompt) for i, prompt in enumerate(prompts)]
    assert driver.run(again, 6) == alone
    assert bool(driver.scheduler.counts.num_hit_tokens) is driver.engine.facts.shares_blocks


def test_banned_tokens_are_not_picked_while_they_are_banned(make_engine: MakeEngine):
    favourite = run(make_engine(), [sequence(1)], 1)[0][0]
    banned = sequence(1)
    banned.banned_token_ids, banned.num_banned_steps = frozenset({favourite}), 1
    assert run(make_engine(), [banned], 1) != [[favourite]]


def test_a_strong_bias_decides(engine: Engine):
    biased = sequence(1, sampling=Sampling(seed=1, temperature=0.0, logit_bias={65: 100.0}))
    assert run(engine, [biased], 3) == [[65, 65, 65]]


def test_log_probabilities_come_with_those_who_asked(engine: Engine):
    asking, silent = sequence(1), sequence(2, (1, 2, 3))
    asking.num_logprobs = 3
    driver = Driver(engine)
    driver.add(asking, silent)
    told, untold = (result.picked for _, result in driver.step())
    assert told is not None
    assert untold is not None
    assert told.logprob is not None
    assert told.logprob <= 0
    assert len(told.top) == 3
    assert [logprob for _, logprob in told.top] == sorted((logprob for _, logprob in told.top), reverse=True)
    assert told.top[0] == (told.token_id, told.logprob)
    assert (untold.logprob, untold.top) == (None, ())


@pytest.mark.parametrize("max_batch_tokens", [4, 5, 4096])
def test_a_prompt_is_scored_token_by_token_however_it_is_cut(make_engine: MakeEngine, max_batch_tokens: int):
    def scored(prompt: tuple[int, ...]) -> EngineSequence:
        each = sequence(len(prompt), prompt)
        each.wants_prompt_logprobs = True
        return each

    prompt = tuple(range(60, 79))
    driver = Driver(make_engine(), max_batch_tokens=max_batch_tokens)
    driver.run([scored(prompt), sequence(999, (1, 2, 3, 4, 5))], 3)
    told = driver.prompt_logprobs[len(prompt)]
    assert len(told) == len(prompt) - 1
    assert all(logprob <= 0 for logprob in told)
    assert driver.prompt_logprobs[999] == []
    # A longer prompt does not change what came before, nor do blocks that are there already.
    driver.run([scored((*prompt, 3))], 1)
    assert driver.prompt_logprobs[len(prompt) + 1][:-1] == pytest.approx(told, abs=1e-4)


@pytest.mark.parametrize("max_batch_tokens", [4, 4096])
def test_likely_tokens_are_told_at_each_place_of_a_scored_prompt(
    make_engine: MakeEngine, max_batch_tokens: int
):
    each = sequence(1, tuple(range(60, 70)))
    each.wants_prompt_logprobs, each.num_logprobs = True, 3
    driver = Driver(make_engine(), max_batch_tokens=max_batch_tokens)
    driver.add(each)
    told: list[float] = []
    tops: list[tuple[tuple[int, float], ...]] = []
    while not each.output:
        for _, result in driver.step():
            told.extend(result.prompt_logprobs)
            tops.extend(result.prompt_tops)
    assert [len(top) for top in tops] == [3] * 9
    for logprob, top in zip(told, tops, strict=True):
        likely = [chance for _, chance in top]
        assert likely == sorted(likely, reverse=True)
        assert logprob <= likely[0]


def test_releasing_twice_is_no_error(engine: Engine):
    driver, each = Driver(engine), sequence(1)
    driver.add(each)
    driver.step()
    engine.release(each)
    engine.release(each)
    engine.release(sequence(99))
