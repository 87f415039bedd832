import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.core.detokenizer import detokenizer
from tests.contract.fake_engine import ByteVocabulary


class WindowVocabulary(ByteVocabulary):
    """One that does not say that its bytes add up."""

    adds_up = False


VOCABULARIES = [ByteVocabulary(), WindowVocabulary()]
every_vocabulary = pytest.mark.parametrize("vocabulary", VOCABULARIES, ids=["bytes", "window"])


def stream(vocabulary: ByteVocabulary, token_ids: list[int], prompt: list[int] | None = None) -> list[str]:
    one_by_one = detokenizer(vocabulary, prompt or [])
    return [*(one_by_one.push(token_id) for token_id in token_ids), one_by_one.flush()]


@every_vocabulary
@given(text=st.text())
def test_pieces_are_whole_characters_and_their_sum_is_the_text(vocabulary: ByteVocabulary, text: str):
    pieces = stream(vocabulary, list(text.encode()))
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


@every_vocabulary
def test_vietnamese_and_joined_emoji_arrive_whole(vocabulary: ByteVocabulary):
    text = "Xin chào, trời đẹp quá! 👩‍🚀🇻🇳"
    assert "".join(stream(vocabulary, list(text.encode()), list("Nói: ".encode()))) == text


@every_vocabulary
def test_bytes_that_never_become_a_character_are_shown_as_such_and_hold_up_nothing(
    vocabulary: ByteVocabulary,
):
    pieces = stream(vocabulary, [0xFF] * 20 + list(b"ok"))
    assert "".join(pieces).endswith("ok")
    assert "\ufffd" in "".join(pieces[:20])


@every_vocabulary
def test_special_tokens_have_no_text(vocabulary: ByteVocabulary):
    assert "".join(stream(vocabulary, [257] * 50 + list(b"hi"))) == "hi"


@every_vocabulary
def test_a_character_that_the_prompt_began_is_completed(vocabulary: ByteVocabulary):
    assert "".join(stream(vocabulary, [0xC3 - 0x1A], [0xC3])) == "é"


@given(st.lists(st.integers(0, 257), max_size=40), st.integers(0, 40))
def test_bytes_of_any_kind_add_up_to_the_text_of_all(token_ids: list[int], num_prompt: int):
    vocabulary = ByteVocabulary()
    assert "".join(stream(vocabulary, token_ids)) == vocabulary.decode(token_ids)
    shown = "".join(stream(vocabulary, token_ids[num_prompt:], token_ids[:num_prompt]))
    assert vocabulary.decode(token_ids).endswith(shown)
