"""I1 to I3 where slots and blocks are: whoever leaves, whenever it leaves, nothing of it stays."""

import random
from collections.abc import Callable

import pytest

from services.inference.adapters.runner.engine import RunnerEngine
from services.inference.core.loop import LoopRequest, StepLoop
from services.inference.core.sampling import OutputOptions, SamplingParameters, StopConditions
from tests.contract.fake_engine import ByteVocabulary
from tests.contract.tiny_llama import tiny_runner

NUM_TIMES = 50
MAX_BATCH_TOKENS = 16
PROMPT = tuple(range(40))  # Three steps of prefill.
MAX_TOKENS = 6

# Steps after which a request leaves. It is let in with the first, and says its first token with the third.
MOMENTS = {"queued": 0, "in prefill": 1, "at its first token": 3, "in decode": 5, "before its last token": 7}


@pytest.fixture(scope="module")
def engine() -> RunnerEngine:
    return tiny_runner(num_blocks=16)


def make_loop(engine: RunnerEngine) -> StepLoop:
    return StepLoop(engine, ByteVocabulary(), max_sequences=4, max_batch_tokens=MAX_BATCH_TOKENS)


def request(
    request_id: int, *, num_choices: int = 1, salt: str = "", seed: int = 1, max_tokens: int = MAX_TOKENS
) -> LoopRequest:
    return LoopRequest(
        request_id,
        PROMPT,
        seed=seed,
        sampling=SamplingParameters(temperature=1.0),
        stop=StopConditions(max_tokens=max_tokens, ignore_eos=True),
        output=OutputOptions(num_choices=num_choices),
        cache_salt=salt,
    )


def check_empty(loop: StepLoop) -> None:
    stats = loop.stats()
    assert (stats.num_live, stats.num_waiting, stats.num_used_blocks) == (0, 0, 0)
    assert not loop.has_work
    assert not loop.step().updates


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("num_choices", [1, 6])  # Of six choices, two wait for a slot.
def test_a_request_that_leaves_frees_its_slots_and_blocks_before_the_next_step(
    engine: RunnerEngine, moment: str, num_choices: int
):
    loop = make_loop(engine)
    for number in range(NUM_TIMES):
        # A salt of its own: every prompt is computed, not found.
        loop.add(request(number, num_choices=num_choices, salt=f"{moment} {number}"))
        for _ in range(MOMENTS[moment]):
            loop.step()
        assert loop.has_work
        loop.cancel(number)
        check_empty(loop)


def test_leaving_at_the_end_or_after_it_is_no_error(engine: RunnerEngine):
    loop = make_loop(engine)
    for number in range(NUM_TIMES):
        loop.add(request(number))
        while number not in loop.step().finished:
            pass
        loop.cancel(number)
        loop.cancel(number)
        check_empty(loop)


def test_the_slot_of_one_that_leaves_is_taken_in_the_next_step(engine: RunnerEngine):
    loop = make_loop(engine)
    for number in range(4 + NUM_TIMES):
        loop.add(request(number, salt=str(number), max_tokens=20))
    for number in range(NUM_TIMES):
        loop.step()
        while loop.stats().num_batch_tokens > 4:  # Until the newest is in decode, too.
            loop.step()
        assert loop.stats().num_live == 4
        num_waiting = loop.stats().num_waiting
        loop.cancel(number)
        loop.step()
        assert (loop.stats().num_live, loop.stats().num_waiting) == (4, num_waiting - 1)
    for number in range(NUM_TIMES, 4 + NUM_TIMES):
        loop.cancel(number)
    check_empty(loop)


def test_those_who_stay_say_the_same_whoever_leaves(engine: RunnerEngine):
    def answer(disturb: Callable[[StepLoop, int], None]) -> str:
        loop, said, step = make_loop(engine), "", 0
        loop.add(request(0, seed=7))
        while loop.has_work:
            disturb(loop, step)
            step += 1
            for request_id, update in loop.step().updates:
                if request_id == 0:
                    said += "".join(delta.text for delta in update.deltas)
        check_empty(loop)
        return said

    alone = answer(lambda loop, step: None)
    chance = random.Random(3)
    for _ in range(NUM_TIMES):
        live: list[int] = []

        def come_and_go(loop: StepLoop, step: int, live: list[int] = live) -> None:
            if step > 40:  # Long enough: now the one who stays is let through.
                for request_id in live:
                    loop.cancel(request_id)
                return
            live.append(len(live) + 1)
            # Some share the whole prompt with the one that stays, and with each other.
            loop.add(request(live[-1], num_choices=chance.randint(1, 3), salt=chance.choice(["", "other"])))
            if chance.random() < 0.7:
                loop.cancel(chance.choice(live))

        assert answer(come_and_go) == alone
