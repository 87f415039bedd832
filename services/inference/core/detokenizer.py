"""Tokens to text, a token at a time, without ever showing a part of a character."""

import codecs
from collections.abc import Sequence
from typing import Final, Protocol

REPLACEMENT: Final = "\ufffd"

# Enough context for a tokenizer that writes a first token differently.
_NUM_CONTEXT_TOKENS: Final = 6

# No character has more bytes than 4: tokens beyond this many without one are bytes that never become a
# character.
_MAX_PENDING_TOKENS: Final = 8

_Utf8: Final = codecs.getincrementaldecoder("utf-8")


class Vocabulary(Protocol):
    """The tokens of a model, as text and as bytes."""

    @property
    def adds_up(self) -> bool:
        """Whether the bytes of a text are those of its tokens in a row, as with all but odd tokenizers."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens in a row, without special tokens; U+FFFD stands for bytes that are no character."""
        ...

    def text_bytes(self, token_id: int, *, begins_text: bool = False) -> bytes:
        """What a token adds to a text, if that adds up; nothing for a special one.

        begins_text: no text stands before it, which may cost it a space.
        """
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token; a special token's are its name."""
        ...


class Detokenizer(Protocol):
    """Turns one sequence's tokens into pieces of text whose sum is the text of all."""

    def push(self, token_id: int) -> str:
        """The next token. Returns the text that became certain with it, often empty."""
        ...

    def flush(self) -> str:
        """What is left at the end: bytes that never became a character are shown as U+FFFD."""
        ...


def detokenizer(vocabulary: Vocabulary, prompt: Sequence[int] = ()) -> Detokenizer:
    """The one that fits the vocabulary. prompt: what the text goes on from; it is not shown."""
    if vocabulary.adds_up:
        return ByteDetokenizer(vocabulary, prompt)
    return WindowDetokenizer(vocabulary, prompt)


class ByteDetokenizer:
    """Adds up the bytes of tokens, for vocabularies where these are the text."""

    def __init__(self, vocabulary: Vocabulary, prompt: Sequence[int] = ()) -> None:
        self._vocabulary = vocabulary
        self._decoder = _Utf8("replace")
        # A prompt may end within a character: what completes it belongs to the answer.
        before = self._end_of(prompt)
        self._decoder.decode(before)
        self._begins_text = not before

    def push(self, token_id: int) -> str:
        """The next token. Returns the text that became certain with it, often empty."""
        if not self._begins_text:
            return self._decoder.decode(self._vocabulary.text_bytes(token_id))
        # A special token leaves the beginning where it is; any other is text, be it no more than a lost space.
        self._begins_text = not self._vocabulary.text_bytes(token_id)
        return self._decoder.decode(self._vocabulary.text_bytes(token_id, begins_text=True))

    def flush(self) -> str:
        """What is left at the end: bytes that never became a character are shown as U+FFFD."""
        return self._decoder.decode(b"", final=True)

    def _end_of(self, prompt: Sequence[int]) -> bytes:
        """The last bytes of a prompt: as many as a character may have, or all."""
        found = b""
        for token_id in reversed(prompt):
            found = self._vocabulary.text_bytes(token_id) + found
            if len(found) >= 4:
                break
        return found


class WindowDetokenizer:
    """Decodes a short window of tokens, for vocabularies where a token's text depends on its neighbours.

    The window is decoded with and without the new tokens, and the difference is shown, unless it ends in a
    character that is not whole yet.
    """

    def __init__(self, vocabulary: Vocabulary, prompt: Sequence[int] = ()) -> None:
        self._vocabulary = vocabulary
        self._window = list(prompt[-_NUM_CONTEXT_TOKENS:])
        self._num_shown = len(self._window)
        # A prompt may end within a character: what completes it belongs to the answer.
        self._shown = vocabulary.decode(self._window).rstrip(REPLACEMENT) if self._window else ""

    def push(self, token_id: int) -> str:
        """The next token. Returns the text that became certain with it, often empty."""
        self._window.append(token_id)
        text = self._vocabulary.decode(self._window)
        num_pending = len(self._window) - self._num_shown
        is_whole = len(text) > len(self._shown) and not text.endswith(REPLACEMENT)
        if not is_whole and num_pending < _MAX_PENDING_TOKENS:
            return ""
        new = text[len(self._shown) :]
        # Keep only the tokens of this piece as context for the next.
        self._window = self._window[self._num_shown :]
        self._num_shown = len(self._window)
        self._shown = self._vocabulary.decode(self._window)
        return new

    def flush(self) -> str:
        """What is left at the end: bytes that never became a character are shown as U+FFFD."""
        return self._vocabulary.decode(self._window)[len(self._shown) :]
