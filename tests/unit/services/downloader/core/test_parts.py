"""Which bytes are here: whatever connections do in whatever order, every byte is fetched, and none by two at once."""

from hypothesis import given
from hypothesis import strategies as st

from services.downloader.core.parts import SEGMENT_BYTES, Parts, Range

SIZES = st.integers(0, 40 * SEGMENT_BYTES) | st.sampled_from([0, 1, SEGMENT_BYTES, SEGMENT_BYTES + 1])


def missing(parts: Parts) -> set[int]:
    """Segments of which something is missing."""
    assert parts.size_bytes is not None
    found = set()
    for index in range(-(-parts.size_bytes // SEGMENT_BYTES)):
        whole = min(SEGMENT_BYTES, parts.size_bytes - index * SEGMENT_BYTES)
        count = parts.counts[index] if index < len(parts.counts) else 0
        assert 0 <= count <= whole
        if count < whole:
            found.add(index)
    return found


@given(SIZES, st.data())
def test_any_number_of_connections_fill_a_file_without_overlap(size_bytes: int, data: st.DataObject) -> None:
    parts = Parts(size_bytes)
    written: list[tuple[int, int]] = []
    busy: list[Range] = []
    while not parts.is_whole:
        action = data.draw(st.sampled_from(["take", "split", "write", "finish", "restart"]))
        if action == "restart" and data.draw(st.booleans()):
            parts, busy = Parts(size_bytes, parts.counts), []
        elif action in ("take", "split") or not busy:
            taken = parts.take() if action != "split" or not busy else parts.split()
            if taken is not None:
                assert all(
                    taken.end is not None
                    and other.end is not None
                    and (taken.end <= other.next or other.end <= taken.next)
                    for other in busy
                )
                busy.append(taken)
            elif not busy:
                assert parts.is_whole, "what is missing and nobody's is taken"
        else:
            taken = data.draw(st.sampled_from(busy))
            assert taken.end is not None
            left = taken.end - taken.next
            num_bytes = left if action == "finish" else data.draw(st.integers(0, left))
            written.append((taken.next, num_bytes))
            parts.wrote(taken, num_bytes)
            if taken.is_done or data.draw(st.booleans()):
                parts.give_back(taken)
                busy.remove(taken)
    assert not missing(parts)
    assert parts.frontier == parts.num_bytes == size_bytes == sum(num for _, num in written)
    end = 0
    for start, num_bytes in sorted(written):
        assert start == end or not num_bytes, "no byte twice, none left out"
        end += num_bytes


@given(SIZES)
def test_what_lies_there_without_gaps_is_not_missing(num_bytes: int) -> None:
    parts = Parts.contiguous(num_bytes + 5, num_bytes)
    assert parts.frontier == parts.num_bytes == num_bytes
    taken = parts.take()
    assert taken is not None
    assert (taken.next, taken.end) == (num_bytes, num_bytes + 5)


def test_of_a_file_without_a_length_there_is_one_range_until_it_is_told() -> None:
    parts = Parts(None)
    taken = parts.take()
    assert taken is not None
    assert taken.end is None
    assert parts.take() is None
    assert parts.split() is None
    parts.learn_size(100 * SEGMENT_BYTES)
    assert taken.end == 100 * SEGMENT_BYTES
    half = parts.split()
    assert half is not None
    assert taken.end == half.next == 50 * SEGMENT_BYTES


def test_little_is_not_split() -> None:
    parts = Parts(3 * SEGMENT_BYTES)
    parts.take()
    assert parts.split() is None


def test_counts_say_where_the_gaps_are() -> None:
    parts = Parts(10 * SEGMENT_BYTES)
    first = parts.take()
    assert first is not None
    second = parts.split()
    assert second is not None
    assert list(parts.wrote(second, SEGMENT_BYTES + 3)) == [5, 6]
    assert list(parts.wrote(first, 7)) == [0]
    assert (parts.frontier, parts.num_bytes, parts.is_contiguous) == (7, SEGMENT_BYTES + 10, False)
    again = Parts(10 * SEGMENT_BYTES, parts.counts)
    gaps = [again.take(), again.take(), again.take()]
    assert [(gap.next, gap.end) for gap in gaps if gap] == [
        (7, 5 * SEGMENT_BYTES),
        (6 * SEGMENT_BYTES + 3, 10 * SEGMENT_BYTES),
    ]
