from hypothesis import given
from hypothesis import strategies as st

from services.inference.core.detokenizer import IncrementalDetokenizer
from tests.contract.fake_engine import ByteVocabulary


def stream(token_ids: list[int], prompt: list[int] | None = None) -> list[str]:
    detokenizer = IncrementalDetokenizer(ByteVocabulary(), prompt or [])
    return [*(detokenizer.push(token_id) for token_id in token_ids), detokenizer.flush()]


@given(st.text())
def test_pieces_are_whole_characters_and_their_sum_is_the_text(text: str):
    pieces = stream(list(text.encode()))
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


def test_vietnamese_and_joined_emoji_arrive_whole():
    text = "Xin chào, trời đẹp quá! 👩‍🚀🇻🇳"
    assert "".join(stream(list(text.encode()), list("Nói: ".encode()))) == text


def test_bytes_that_never_become_a_character_are_shown_as_such_and_hold_up_nothing():
    pieces = stream([0xFF] * 20 + list(b"ok"))
    assert "".join(pieces).endswith("ok")
    assert "\ufffd" in "".join(pieces[:20])


def test_special_tokens_have_no_text():
    assert "".join(stream([257] * 50 + list(b"hi"))) == "hi"


def test_a_character_that_the_prompt_began_is_completed():
    assert "".join(stream([0xC3 - 0x1A], [0xC3])) == "é"
