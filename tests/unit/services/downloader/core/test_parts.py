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


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["take", "split", "write", "write", "give back", "restart"]),
        st.integers(0, 7),
        st.integers(0, 3 * SEGMENT_BYTES),
    ),
    max_size=40,
)


class Connections:
    """What several of them do with a file, and what they have written."""

    def __init__(self, size_bytes: int) -> None:
        self.parts = Parts(size_bytes)
        self.busy: list[Range] = []
        self.written: list[tuple[int, int]] = []

    def begin(self, taken: Range | None) -> bool:
        """Work on a range, which nobody else does."""
        if taken is None:
            return False
        for other in self.busy:
            assert taken.end is not None
            assert other.end is not None
            assert taken.end <= other.next or other.end <= taken.next
        self.busy.append(taken)
        return True

    def write(self, taken: Range, num_bytes: int) -> None:
        """Some more of a range."""
        num_bytes = taken.room(num_bytes)
        self.written.append((taken.next, num_bytes))
        self.parts.wrote(taken, num_bytes)

    def end(self, taken: Range) -> None:
        """It has failed, or is done."""
        self.parts.give_back(taken)
        self.busy.remove(taken)

    def restart(self) -> None:
        """Only what was counted survives."""
        assert self.parts.size_bytes is not None
        self.parts, self.busy = Parts(self.parts.size_bytes, self.parts.counts), []


@given(SIZES, ACTIONS)
def test_any_number_of_connections_fill_a_file_without_overlap(
    size_bytes: int, actions: list[tuple[str, int, int]]
) -> None:
    file = Connections(size_bytes)
    for action, which, num_bytes in actions:
        taken = file.busy[which % len(file.busy)] if file.busy else None
        match action:
            case "take":
                file.begin(file.parts.take())
            case "split":
                file.begin(file.parts.split())
            case "restart":
                file.restart()
            case "write" if taken is not None:
                file.write(taken, num_bytes)
            case "give back" if taken is not None:
                file.end(taken)
    while file.busy or file.begin(file.parts.take()):
        taken = file.busy[0]
        file.write(taken, size_bytes)
        file.end(taken)
    parts = file.parts
    assert not missing(parts)
    assert parts.is_whole
    assert parts.frontier == parts.num_bytes == size_bytes
    end = 0
    for start, num_bytes in sorted(each for each in file.written if each[1]):
        assert start == end, "no byte twice, none left out"
        end += num_bytes
    assert end == size_bytes


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
    assert parts.extent == 6 * SEGMENT_BYTES + 3
    assert (parts.frontier, parts.num_bytes) == (7, SEGMENT_BYTES + 10)
    again = Parts(10 * SEGMENT_BYTES, parts.counts)
    gaps = [again.take(), again.take(), again.take()]
    assert [(gap.next, gap.end) for gap in gaps if gap] == [
        (7, 5 * SEGMENT_BYTES),
        (6 * SEGMENT_BYTES + 3, 10 * SEGMENT_BYTES),
    ]
