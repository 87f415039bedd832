from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from services.inference.core.embed_batches import (
    FREE_PADDING_TOKENS,
    MAX_PADDING_SHARE,
    EmbedBatches,
    RowRef,
)

REQUESTS = st.lists(st.lists(st.integers(1, 300), min_size=1, max_size=40), min_size=1, max_size=8)
BUDGETS = st.integers(1, 4096)


def queue(requests: list[list[int]], max_tokens: int) -> EmbedBatches:
    batches = EmbedBatches(max_tokens=max_tokens)
    for request_id, lengths in enumerate(requests):
        batches.add(request_id, lengths)
    return batches


def drain(batches: EmbedBatches) -> list[list[RowRef]]:
    drained = []
    while batches.has_work:
        drained.append(batches.next_batch())
    return drained


@settings(deadline=None)
@given(REQUESTS, BUDGETS)
def test_every_row_is_computed_exactly_once(requests: list[list[int]], max_tokens: int):
    rows = Counter(row for batch in drain(queue(requests, max_tokens)) for row in batch)
    wanted = {RowRef(i, j, n) for i, lengths in enumerate(requests) for j, n in enumerate(lengths)}
    assert rows == Counter(wanted)


@settings(deadline=None)
@given(REQUESTS, BUDGETS)
def test_a_batch_keeps_to_its_budget_and_is_little_padding(requests: list[list[int]], max_tokens: int):
    for batch in drain(queue(requests, max_tokens)):
        padded = max(row.num_tokens for row in batch) * len(batch)
        padding = padded - sum(row.num_tokens for row in batch)
        assert padded <= max_tokens or len(batch) == 1
        assert padding <= max(FREE_PADDING_TOKENS, MAX_PADDING_SHARE * padded)


@settings(deadline=None)
@given(REQUESTS, BUDGETS)
def test_each_waiting_request_is_served_within_as_many_batches_as_requests_wait(
    requests: list[list[int]], max_tokens: int
):
    batches = queue(requests, max_tokens)
    unserved = dict.fromkeys(range(len(requests)), 0)
    while batches.has_work:
        served = {row.request_id for row in batches.next_batch()}
        for request_id in list(unserved):
            unserved[request_id] = 0 if request_id in served else unserved[request_id] + 1
            assert unserved[request_id] < len(requests)
            if not batches.waits(request_id):
                del unserved[request_id]


@settings(deadline=None)
@given(REQUESTS, BUDGETS, st.data())
def test_nothing_of_a_cancelled_request_is_computed(
    requests: list[list[int]], max_tokens: int, data: st.DataObject
):
    batches = queue(requests, max_tokens)
    batches.next_batch()
    gone = data.draw(st.integers(0, len(requests) - 1))
    batches.cancel(gone)
    batches.cancel(gone)
    assert not batches.waits(gone)
    assert all(row.request_id != gone for batch in drain(batches) for row in batch)


def test_one_text_does_not_wait_for_two_thousand():
    batches = EmbedBatches(max_tokens=1024)
    batches.add(1, [256] * 2048)
    batches.next_batch()
    batches.add(2, [5])
    served = [{row.request_id for row in batches.next_batch()} for _ in range(2)]
    assert 2 in served[0] | served[1]
    assert batches.waits(1)


def test_equal_rows_of_several_requests_share_a_batch():
    batches = queue([[10] * 3, [10] * 3, [11]], 1024)
    assert {row.request_id for row in batches.next_batch()} == {0, 1, 2}
    assert not batches.has_work


def test_a_row_longer_than_the_budget_is_a_batch_of_its_own():
    assert [len(batch) for batch in drain(queue([[500, 500, 3]], 100))] == [1, 1, 1]
