"""Texts and pairs of texts to rows of tokens, as an encoder reads them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from services.inference.adapters.tokenizer import load_tokenizer


@dataclass(frozen=True, slots=True)
class Row:
    """What an encoder reads at once. type_ids: of a pair, 0 for its first text and 1 for its second."""

    token_ids: Sequence[int]
    type_ids: Sequence[int] | None = None


class RowTokenizer:
    """A model's tokenizer; it adds the model's special tokens. max_tokens: what a row is cut to, if it is cut."""

    def __init__(self, folder: Path, max_tokens: int) -> None:
        self._tokenizer = load_tokenizer(folder)
        self._max_tokens = max_tokens
        self.pad_token_id = self._tokenizer.pad_token_id or 0

    def texts(self, texts: Sequence[str], *, truncate: bool) -> list[Row]:
        """One row for each text. It is cut before the special tokens are added: the last of them is kept."""
        most = self._max_tokens if truncate else None
        return [Row(self._tokenizer.encode(text, max_tokens=most)) for text in texts]

    def pairs(self, first: str, seconds: Sequence[str], *, truncate: bool) -> list[Row]:
        """One row for each second text, after the first. Of a pair that is too long, the longer is cut first."""
        most = self._max_tokens if truncate else None
        return [Row(*self._tokenizer.encode_pair(first, second, max_tokens=most)) for second in seconds]
