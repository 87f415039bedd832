"""A tokenizer's tokens, as text and as bytes."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


class TokenizerVocabulary:
    """Implements the core's Vocabulary over a tokenizer of transformers."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._special = set(tokenizer.all_special_ids)
        self._byte_of_char = _byte_of_char()
        self._is_byte_level = _is_byte_level(tokenizer)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens in a row, without special tokens."""
        text = self._tokenizer.decode(
            list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token: byte-level BPE spells each as a character, sentencepiece spells odd ones `<0xE2>`."""
        piece = self._tokenizer.convert_ids_to_tokens(token_id)
        if not isinstance(piece, str):  # A row of the embedding that no token has.
            return b""
        if token_id in self._special:
            return piece.encode()
        if self._is_byte_level and all(char in self._byte_of_char for char in piece):
            return bytes(self._byte_of_char[char] for char in piece)
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        return piece.replace("\u2581", " ").encode()


def _is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return "ByteLevel" in str(getattr(backend, "decoder", "")) or backend is None


def _byte_of_char() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable ones stand for themselves, the others for U+0100 and on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    spelled = {chr(byte): byte for byte in printable}
    spelled.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return spelled
