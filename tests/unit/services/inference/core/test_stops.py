from hypothesis import given
from hypothesis import strategies as st

from services.inference.core.stops import StopMatcher


def play(stops: list[str], pieces: list[str]) -> tuple[str, str | None]:
    matcher, shown = StopMatcher(stops), ""
    for piece in pieces:
        scanned = matcher.push(piece)
        shown += scanned.text
        if scanned.stop is not None:
            return shown, scanned.stop
    return shown + matcher.flush(), None


def test_what_may_become_a_stop_is_held_back_until_it_is_none():
    matcher = StopMatcher(["STOP"])
    assert matcher.push("aST").text == "a"
    assert matcher.push("O").text == ""
    assert matcher.push("x").text == "STOx"


def test_the_stop_that_begins_first_counts_and_the_longest_of_those():
    assert play(["b", "ab", "abc"], ["xabcd"]) == ("x", "abc")


@given(
    st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=3),
    st.lists(st.text("abc", max_size=3)),
)
def test_pieces_do_not_change_what_is_shown(stops: list[str], pieces: list[str]):
    text = "".join(pieces)
    begins = [text.find(stop) for stop in stops if stop in text]
    shown, stop = play(stops, pieces)
    assert (stop is not None) == bool(begins)
    if stop is None:
        assert shown == text
    else:
        # A stop that is complete counts at once, so a longer one may still be under way.
        assert stop not in shown
        assert text.startswith(shown + stop)
