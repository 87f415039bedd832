import functools
from collections import Counter
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from services.inference.core.engine import EngineSequence
from services.inference.core.sampling import Sampling
from services.inference.core.scheduler import Scheduler
from tests.contract.engine_driver import Driver, run, sequence
from tests.contract.fake_engine import FakeEngine

GREEDY = Sampling(seed=1, temperature=0.0)


def make_driver(
    *, num_blocks: int = 64, max_sequences: int = 8, max_batch_tokens: int = 16, **fields: Any
) -> Driver:
    engine = FakeEngine(num_blocks=num_blocks, **fields)
    driver = Driver(engine)
    driver.scheduler = Scheduler(engine.facts, max_sequences=max_sequences, max_batch_tokens=max_batch_tokens)
    return driver


def ids(driver: Driver) -> list[tuple[int, int]]:
    """One step; the sequences and numbers of tokens in it."""
    return [(chunk.sequence.sequence_id, chunk.num_tokens) for chunk, _ in driver.step()]


def test_decodes_come_first_then_prefills_in_progress_then_who_waits_within_the_budget():
    driver = make_driver(max_batch_tokens=10)
    driver.add(sequence(1, range(3)))
    assert ids(driver) == [(1, 3)]
    driver.add(sequence(2, range(100, 115)), sequence(3, range(50, 54)))
    assert ids(driver) == [(1, 1), (2, 9)]
    assert ids(driver) == [(1, 1), (2, 6), (3, 3)]
    assert ids(driver) == [(1, 1), (2, 1), (3, 1)]
    assert ids(driver) == [(1, 1), (2, 1), (3, 1)]


def test_no_more_run_than_a_step_can_give_one_token_each():
    driver = make_driver(max_sequences=8, max_batch_tokens=3)
    driver.add(*(sequence(i, (i,)) for i in range(5)))
    for _ in range(3):
        assert [num_tokens for _, num_tokens in ids(driver)] == [1, 1, 1]


def test_the_more_urgent_are_let_in_first_and_equals_in_their_order():
    driver = make_driver(max_sequences=1)
    sequences = {i: sequence(i, (i,)) for i in range(4)}
    for i, priority in ((0, 0), (1, -1), (2, 5), (3, 0)):
        driver.scheduler.add(sequences[i], priority)
    order = []
    for _ in range(4):
        ((sequence_id, _),) = ids(driver)
        order.append(sequence_id)
        driver.end(sequences[sequence_id])
    assert order == [2, 0, 3, 1]


def test_a_beginning_that_was_computed_is_not_computed_again_but_for_the_last_token():
    driver = make_driver()
    first = sequence(1, range(12))
    driver.run([first], 2)
    assert driver.engine.facts.block_size == 4
    again, longer = sequence(2, range(12)), sequence(3, [*range(12), 99])
    driver.add(again, longer)
    assert ids(driver) == [(2, 4), (3, 1)]
    assert driver.scheduler.num_cached_tokens(again) == 8
    assert driver.scheduler.num_cached_tokens(longer) == 12
    assert driver.scheduler.counts.num_hit_tokens == 20
    assert driver.scheduler.counts.num_queried_tokens == 12 + 12 + 13


def test_an_answer_is_found_by_the_prompt_that_goes_on_from_it():
    driver = make_driver()
    first = sequence(1, range(6))
    driver.run([first], 7)
    follow_up = sequence(2, [*first.prompt, *first.output, 70, 71])
    driver.add(follow_up)
    assert ids(driver) == [(2, 3)]


def test_a_herd_of_equal_beginnings_computes_them_once():
    driver = make_driver(max_batch_tokens=8)
    herd = [sequence(i, range(21)) for i in range(6)]
    other = sequence(99, (9, 9))
    driver.add(*herd, other)
    # The herd stands aside, and nobody behind it waits for that.
    assert ids(driver) == [(0, 8)]
    assert ids(driver) == [(0, 8)]
    assert ids(driver) == [(0, 5), (99, 2)]
    assert ids(driver) == [(0, 1), (99, 1), *((i, 1) for i in range(1, 6))]


def test_who_stands_aside_lets_others_pass():
    driver = make_driver(max_batch_tokens=8)
    driver.add(sequence(1, range(9)), sequence(2, range(9)), sequence(3, (50,)))
    assert ids(driver) == [(1, 8)]
    assert ids(driver) == [(1, 1), (2, 1), (3, 1)]


def test_when_who_computed_the_beginning_is_gone_another_computes_it():
    driver = make_driver(max_batch_tokens=4)
    first, second, third = (sequence(i, range(12)) for i in range(3))
    driver.add(first, second, third)
    driver.step()
    assert driver.scheduler.num_waiting == 2
    driver.end(first)
    driver.end(second)
    assert ids(driver) == [(2, 4)]
    assert driver.scheduler.num_cached_tokens(third) == 4


@pytest.mark.parametrize("field", ["cache_salt", "adapter"])
def test_another_salt_or_adapter_shares_nothing(field: str):
    driver = make_driver()
    driver.engine.load_adapter("a", None)  # type: ignore[arg-type]  # The fake's adapters are in no folder.
    driver.run([sequence(1, range(12))], 2)
    other = sequence(2, range(12))
    setattr(other, field, "a")
    driver.add(other)
    assert ids(driver) == [(2, 12)]
    assert driver.scheduler.num_cached_tokens(other) == 0


def test_nothing_is_shared_where_the_engine_cannot():
    driver = make_driver(shares_blocks=False)
    driver.run([sequence(1, range(12))], 2)
    driver.add(sequence(2, range(12)))
    assert ids(driver) == [(2, 12)]


def test_a_prompt_to_be_scored_is_computed_in_full_and_may_be_read_by_others():
    driver = make_driver(max_batch_tokens=8)
    driver.run([sequence(1, range(12))], 2)
    scored = sequence(2, range(12))
    scored.wants_prompt_logprobs = True
    driver.add(scored)
    assert [*ids(driver), *ids(driver)] == [(2, 8), (2, 4)]


def test_the_least_urgent_gives_way_when_blocks_run_out_and_comes_back():
    driver = make_driver(num_blocks=6, max_batch_tokens=32)
    old, young = sequence(1, range(8)), sequence(2, range(100, 108))
    driver.add(old, young)
    seen = []
    while len(old.output) < 13:
        seen.append([sequence_id for sequence_id, _ in ids(driver)])
    assert driver.scheduler.num_preemptions(young) == 1
    assert driver.scheduler.num_preemptions(old) == 0
    assert seen[0] == [1, 2]
    assert seen[-1] == [1]
    assert young.blocks == []
    driver.end(old)
    while len(young.output) < 13:
        driver.step()
    assert [old.output, young.output] == run(
        FakeEngine(), [sequence(1, range(8)), sequence(2, range(100, 108))], 13
    )


def test_priority_decides_who_gives_way():
    driver = make_driver(num_blocks=6, max_batch_tokens=32)
    old, young = sequence(1, range(8)), sequence(2, range(100, 108))
    driver.scheduler.add(old, priority=0)
    driver.scheduler.add(young, priority=1)
    while len(young.output) < 13:
        driver.step()
    assert driver.scheduler.num_preemptions(old) == 1
    assert driver.scheduler.num_preemptions(young) == 0


def test_nobody_overtakes_a_long_prompt_that_waits_for_blocks():
    driver = make_driver(num_blocks=8, max_batch_tokens=64, context_length=256)
    running, long, short = sequence(1, range(12)), sequence(2, range(100, 125)), sequence(3, (1,))
    driver.add(running)
    driver.step()
    driver.add(long, short)
    assert ids(driver) == [(1, 1)]
    driver.end(running)
    assert ids(driver)[0] == (2, 25)


# Few tokens, so that beginnings meet; one block is four of them.
PROMPTS = st.lists(st.integers(0, 1), min_size=1, max_size=14)
SALTS = st.sampled_from(["", "x"])
ADAPTERS = st.sampled_from([None, "a"])


@functools.cache
def alone(prompt: tuple[int, ...], adapter: str | None, temperature: float) -> tuple[list[int], list[float]]:
    """What a sequence says with the engine for itself, and its prompt's scores."""
    engine = FakeEngine()
    engine.load_adapter("a", None)  # type: ignore[arg-type]  # The fake's adapters are in no folder.
    driver = Driver(engine)
    each = EngineSequence(1, prompt, Sampling(seed=3, temperature=temperature), adapter=adapter)
    each.wants_prompt_logprobs = True
    return driver.run([each], 12)[0], driver.prompt_logprobs[1]


class SchedulerMachine(RuleBasedStateMachine):
    """Sequences come, run, give way, are cancelled and end, in a pool too small for them."""

    @initialize(
        num_blocks=st.integers(7, 12),
        max_sequences=st.integers(1, 5),
        max_batch_tokens=st.integers(1, 24),
        shares_blocks=st.booleans(),
    )
    def begin(self, num_blocks: int, max_sequences: int, max_batch_tokens: int, shares_blocks: bool) -> None:
        self.driver = make_driver(
            num_blocks=num_blocks,
            max_sequences=max_sequences,
            max_batch_tokens=max_batch_tokens,
            shares_blocks=shares_blocks,
        )
        self.driver.engine.load_adapter("a", None)  # type: ignore[arg-type]  # The fake's are in no folder.
        self.limits = max_sequences, max_batch_tokens
        self.goals: dict[int, int] = {}
        self.sequences: dict[int, EngineSequence] = {}
        self.num_added = 0

    @rule(
        prompt=PROMPTS,
        num_tokens=st.integers(1, 12),
        salt=SALTS,
        adapter=ADAPTERS,
        temperature=st.sampled_from([0.0, 1.0]),
        is_scored=st.booleans(),
        priority=st.integers(0, 2),
    )
    def add(
        self,
        prompt: list[int],
        num_tokens: int,
        salt: str,
        adapter: str | None,
        temperature: float,
        is_scored: bool,
        priority: int,
    ) -> None:
        self.num_added += 1
        each = EngineSequence(
            self.num_added,
            tuple(prompt),
            Sampling(seed=3, temperature=temperature),
            adapter=adapter,
            wants_prompt_logprobs=is_scored,
            cache_salt=salt,
        )
        self.sequences[each.sequence_id] = each
        self.goals[each.sequence_id] = num_tokens
        self.driver.scheduler.add(each, priority)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        sequence_id = data.draw(st.sampled_from(sorted(self.sequences)))
        self.driver.end(self.sequences.pop(sequence_id))

    @rule(num_steps=st.integers(1, 4))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self._step()

    def _step(self) -> None:
        max_sequences, max_batch_tokens = self.limits
        ran = [chunk for chunk, _ in self.driver.step()]
        assert bool(ran) is bool(self.sequences)
        assert sum(chunk.num_tokens for chunk in ran) <= max_batch_tokens
        assert self.driver.scheduler.num_running <= max_sequences
        self._check_blocks()
        for each in [chunk.sequence for chunk in ran]:
            if len(each.output) == self.goals[each.sequence_id]:
                self._check_end(each)

    def _check_end(self, each: EngineSequence) -> None:
        output, prompt_logprobs = alone(tuple(each.prompt), each.adapter, each.sampling.temperature)
        assert each.output == output[: len(each.output)]
        told = self.driver.prompt_logprobs[each.sequence_id]
        assert told == (prompt_logprobs if each.wants_prompt_logprobs else [])
        self.driver.end(self.sequences.pop(each.sequence_id))

    @invariant()
    def _check_blocks(self) -> None:
        if not hasattr(self, "driver"):
            return
        pool = self.driver.scheduler.pool
        held = Counter(block for each in self.sequences.values() for block in each.blocks)
        assert [pool.num_holders(block) for block in range(pool.num_blocks)] == [
            held[block] for block in range(pool.num_blocks)
        ]
        assert pool.num_used == len(held)
        assert pool.num_used + pool.num_free == pool.num_blocks
        owners: dict[int, tuple[str, str | None]] = {}
        for each in self.sequences.values():
            assert each.blocks or each.num_computed == 0
            for block in each.blocks:
                assert owners.setdefault(block, (each.cache_salt, each.adapter)) == (
                    each.cache_salt,
                    each.adapter,
                )
        assert sum(bool(each.blocks) for each in self.sequences.values()) == (
            self.driver.scheduler.num_running
        )
        assert self.driver.scheduler.num_waiting == (len(self.sequences) - self.driver.scheduler.num_running)

    def teardown(self) -> None:
        """Everybody ends, within the steps that computing all of them again and again could take."""
        if not hasattr(self, "driver"):
            return
        for _ in range(100 * (len(self.sequences) + 1)):
            if self.sequences:
                self._step()
        assert not self.sequences
        assert self.driver.scheduler.pool.num_used == 0
        engine = self.driver.engine
        assert isinstance(engine, FakeEngine)
        assert engine.num_sequences == 0
        assert self.driver.step() == []


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
