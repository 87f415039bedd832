"""Tokens to text, a token at a time, without ever showing a part of a character."""

from collections.abc import Sequence
from typing import Final, Protocol

REPLACEMENT: Final = "\ufffd"

# Enough context for a tokenizer that writes a first token differently (sentencepiece drops its leading
# space).
_NUM_CONTEXT_TOKENS: Final = 6

# No character has more bytes than 4: tokens beyond this many without one are bytes that never become a
# character.
_MAX_PENDING_TOKENS: Final = 8


class Vocabulary(Protocol):
    """The tokens of a model, as text and as bytes."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens in a row, without special tokens; U+FFFD stands for bytes that are no character."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token; a special token's are its name."""
        ...


class IncrementalDetokenizer:
    """Turns one sequence's tokens into pieces of text whose sum is the text of all.

    A token's text depends on its neighbours: a character may need several tokens, and the first token of a
    text may lose its space. So the text of a short window is decoded with and without the new tokens, and the
    difference is shown, unless it ends in a character that is not whole yet.
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
