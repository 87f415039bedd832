import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kit.errors import InvalidArgument, InvalidPageToken
from services.kit.paging import decode_cursor, encode_cursor, page_size


def test_no_page_size_means_a_hundred() -> None:
    assert [page_size(0), page_size(1), page_size(1000)] == [100, 1, 1000]


@pytest.mark.parametrize("wrong", [-1, 1001])
def test_a_page_size_out_of_range_is_named(wrong: int) -> None:
    with pytest.raises(InvalidArgument) as caught:
        page_size(wrong)
    assert caught.value.violations[0].field == "page_size"


@given(st.text(), st.text(), st.integers())
def test_a_cursor_comes_back(scope: str, text: str, number: int) -> None:
    assert decode_cursor(encode_cursor(scope, (text, number)), scope, (str, int)) == (text, number)


def test_no_token_is_the_first_page() -> None:
    assert decode_cursor("", "scope", (str,)) is None


@given(st.one_of(st.text(min_size=1), st.binary(min_size=1).map(lambda raw: raw.hex())))
def test_what_was_not_given_out_is_refused(token: str) -> None:
    with pytest.raises(InvalidPageToken):
        decode_cursor(token, "scope", (str,))


@pytest.mark.parametrize("key", [(1,), ("a", "b"), (), (True,)])
def test_a_key_of_another_shape_is_refused(key: tuple[str | int, ...]) -> None:
    with pytest.raises(InvalidPageToken):
        decode_cursor(encode_cursor("scope", key), "scope", (str,))


def test_a_token_belongs_to_its_listing() -> None:
    with pytest.raises(InvalidPageToken):
        decode_cursor(encode_cursor("models a", ("x",)), "models b", (str,))
