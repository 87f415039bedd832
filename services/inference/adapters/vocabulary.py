"""A tokenizer's tokens, as text and as bytes."""

from collections.abc import Sequence

from services.inference.adapters.spelling import SentencepieceSpelling, spelling_of
from services.inference.adapters.tokenizer import Tokenizer


class TokenizerVocabulary:
    """Implements the core's Vocabulary over a tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        spelling = spelling_of(tokenizer.decoder)
        self._adds_up = spelling is not None
        self._spelling = spelling or SentencepieceSpelling()
        self._text_bytes = dict.fromkeys(tokenizer.special_ids, b"")

    @property
    def adds_up(self) -> bool:
        """Whether the bytes of a text are those of its tokens in a row."""
        return self._adds_up

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens in a row, without special tokens."""
        return self._tokenizer.decode(token_ids)

    def text_bytes(self, token_id: int, *, begins_text: bool = False) -> bytes:
        """What a token adds to a text: a special one adds nothing, the first may lose a space."""
        if begins_text:
            return b"" if token_id in self._tokenizer.special_ids else self._read(token_id, begins_text=True)
        found = self._text_bytes.get(token_id)
        if found is None:
            found = self._text_bytes[token_id] = self._read(token_id)
        return found

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token; a special token's are its name, and those of a row that no token has are none."""
        if token_id not in self._tokenizer.special_ids:
            return self.text_bytes(token_id)
        return (self._tokenizer.convert_ids_to_tokens(token_id) or "").encode()

    def _read(self, token_id: int, *, begins_text: bool = False) -> bytes:
        piece = self._tokenizer.convert_ids_to_tokens(token_id)
        return b"" if piece is None else self._spelling.read(piece, begins_text=begins_text)
