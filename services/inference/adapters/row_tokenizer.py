"""Texts and pairs of texts to rows of tokens, as an encoder reads them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from services.inference.adapters import checkpoint


@dataclass(frozen=True, slots=True)
class Row:
    """What an encoder reads at once. type_ids: of a pair, 0 for its first text and 1 for its second."""

    token_ids: Sequence[int]
    type_ids: Sequence[int] | None = None


class RowTokenizer:
    """A model's tokenizer; it adds the model's special tokens. max_tokens: what a row is cut to, if it is cut."""

    def __init__(self, folder: Path, max_tokens: int) -> None:
        self._tokenizer = checkpoint.load_tokenizer(folder)
        self._max_tokens = max_tokens
        pad = self._tokenizer.pad_token_id
        self.pad_token_id = pad if isinstance(pad, int) else 0

    def texts(self, texts: Sequence[str], *, truncate: bool) -> list[Row]:
        """One row for each text. It is cut before the special tokens are added: the last of them is kept."""
        if not texts:
            return []
        found = self._tokenizer(
            list(texts), truncation=truncate, max_length=self._max_tokens if truncate else None, verbose=False
        )
        return [Row(token_ids) for token_ids in found["input_ids"]]

    def pairs(self, first: str, seconds: Sequence[str], *, truncate: bool) -> list[Row]:
        """One row for each second text, after the first. Of a pair that is too long, the longer is cut first."""
        found = self._tokenizer(
            [first] * len(seconds),
            list(seconds),
            truncation="longest_first" if truncate else False,
            max_length=self._max_tokens if truncate else None,
            return_token_type_ids=True,
            verbose=False,
        )
        return [
            Row(token_ids, type_ids)
            for token_ids, type_ids in zip(found["input_ids"], found["token_type_ids"], strict=True)
        ]
