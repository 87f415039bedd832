from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders

from services.inference.adapters.tokenizer import Tokenizer, load_tokenizer
from services.inference.adapters.vocabulary import TokenizerVocabulary
from services.inference.core.detokenizer import detokenizer
from tests.unit.services.inference.adapters.tokenizer_folders import (
    byte_level,
    metaspace,
    sentencepiece,
    word_piece,
)

REPLACEMENT = "\ufffd"


def sentencepiece_of_gemma() -> Backend:
    return sentencepiece(strips=False)


def tokenizer_of(backend: Backend) -> Tokenizer:
    return Tokenizer(backend, {"bos_token": "<s>", "eos_token": "</s>"}, {})


def pieces(
    vocabulary: TokenizerVocabulary, token_ids: list[int], prompt: list[int] | None = None
) -> list[str]:
    one_by_one = detokenizer(vocabulary, prompt or [])
    return [*(one_by_one.push(token_id) for token_id in token_ids), one_by_one.flush()]


ADDING_UP = [byte_level, sentencepiece, sentencepiece_of_gemma, metaspace]


@pytest.mark.parametrize("build", ADDING_UP)
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_pieces_of_random_tokens_add_up_to_the_text_of_all(build: Callable[[], Backend], data: st.DataObject):
    tokenizer = TOKENIZERS[build]
    vocabulary = TokenizerVocabulary(tokenizer)
    assert vocabulary.adds_up
    token_ids = data.draw(st.lists(st.integers(0, len(VOCABULARIES[build]) + 2), max_size=24))
    num_prompt = data.draw(st.integers(0, len(token_ids)))
    prompt, answer = token_ids[:num_prompt], token_ids[num_prompt:]
    whole, before = tokenizer.decode(token_ids), tokenizer.decode(prompt)
    shown = pieces(vocabulary, answer, prompt)
    if build is not byte_level and REPLACEMENT in whole:
        # Sentencepiece's decoder replaces each byte of a row that is broken anywhere, even whole characters:
        # a stream has shown those before it is broken.
        return
    expected = (
        whole[len(before.rstrip(REPLACEMENT)) :] if before.endswith(REPLACEMENT) else whole[len(before) :]
    )
    if REPLACEMENT in before:
        # What of the prompt's broken end is completed by the answer is the answer's.
        assert whole.endswith("".join(shown))
    else:
        assert "".join(shown) == expected


@pytest.mark.parametrize("build", ADDING_UP)
@settings(max_examples=200, deadline=None)
@given(text=st.text(), prompt=st.text())
def test_texts_come_back_whole_and_never_by_part_of_a_character(
    build: Callable[[], Backend], text: str, prompt: str
):
    tokenizer = TOKENIZERS[build]
    answer = list(tokenizer.encode(text, add_special_tokens=False))
    before = list(tokenizer.encode(prompt, add_special_tokens=False))
    shown = pieces(TokenizerVocabulary(tokenizer), answer, before)
    whole = tokenizer.decode([*before, *answer])
    assert tokenizer.decode(before) + "".join(shown) == whole
    assert REPLACEMENT in whole or not any(REPLACEMENT in piece for piece in shown)


TOKENIZERS = {build: tokenizer_of(build()) for build in ADDING_UP}
VOCABULARIES = {build: build().get_vocab() for build in ADDING_UP}


def test_the_starters_bytes_add_up_to_its_texts(starter_tokenizer: Path):
    tokenizer = load_tokenizer(starter_tokenizer)
    vocabulary = TokenizerVocabulary(tokenizer)
    assert vocabulary.adds_up
    text = "Xin chào 👩‍🚀! <|im_start|>The quick\n\n\tbrown  fox<|im_end|> 日本語 \u00a0 ﷺ"
    token_ids = list(tokenizer.encode(text))
    assert "".join(pieces(vocabulary, token_ids)) == tokenizer.decode(token_ids)
    every = [token_id for token_id in range(49152) if token_id not in tokenizer.special_ids]
    assert b"".join(map(vocabulary.text_bytes, every)).decode(errors="replace") == tokenizer.decode(every)


def test_sentencepiece_loses_its_first_space_only_where_a_text_begins():
    tokenizer = TOKENIZERS[sentencepiece]
    vocabulary = TokenizerVocabulary(tokenizer)
    the, fox, begin = (VOCABULARIES[sentencepiece][piece] for piece in ("\u2581the", "\u2581fox", "<s>"))
    assert pieces(vocabulary, [begin, the, begin, fox]) == ["", "the", "", " fox", ""]
    assert pieces(vocabulary, [the], [the, begin]) == [" the", ""]
    assert pieces(vocabulary, [the], [begin]) == ["the", ""]


def test_a_tokenizer_whose_tokens_depend_on_their_neighbours_is_decoded_by_window():
    tokenizer = tokenizer_of(word_piece())
    vocabulary = TokenizerVocabulary(tokenizer)
    assert not vocabulary.adds_up
    ids = word_piece().get_vocab()
    token_ids = [ids[piece] for piece in ("f", "##o", "##x", ",", "the", "f", "##o", "##x")]
    assert "".join(pieces(vocabulary, token_ids)) == tokenizer.decode(token_ids) == "fox, the fox"


@pytest.mark.parametrize("decoder", [decoders.CTC(), decoders.BPEDecoder(), decoders.Strip("x", 1, 0), None])
def test_a_decoder_that_does_something_else_does_not_add_up(decoder: decoders.Decoder | None):
    backend = byte_level()
    backend.decoder = decoder
    assert not TokenizerVocabulary(tokenizer_of(backend)).adds_up


def test_tokens_are_told_by_their_bytes_and_special_ones_by_their_names():
    backend = sentencepiece()
    vocabulary = TokenizerVocabulary(tokenizer_of(backend))
    told = {
        piece: vocabulary.token_bytes(backend.get_vocab()[piece])
        for piece in ("\u2581the", "<0xE2>", "<s>", "<tool>", "é")
    }
    assert told == {
        "\u2581the": b" the",
        "<0xE2>": b"\xe2",
        "<s>": b"<s>",
        "<tool>": b"<tool>",
        "é": "é".encode(),
    }
    assert vocabulary.token_bytes(100_000) == b""


def test_bytes_of_byte_level_tokens_are_those_that_their_characters_stand_for():
    backend = byte_level()
    vocabulary = TokenizerVocabulary(tokenizer_of(backend))
    for text in ("\n", " ", "é", "日", "\x00"):
        token_ids = backend.encode(text).ids
        assert b"".join(map(vocabulary.token_bytes, token_ids)) == text.encode()
