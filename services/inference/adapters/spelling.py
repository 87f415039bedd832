"""How a vocabulary spells bytes: each of its tokens as the bytes that it adds to a text.

byte-level BPE    a character for each byte; `Ġ` is a space
sentencepiece     `▁` is a space; `<0xE2>` is a byte that is no character of its own
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

_SPACE: Final = "\u2581"


class Spelling(Protocol):
    """Reads the spelling of tokens."""

    def read(self, piece: str, *, begins_text: bool = False) -> bytes:
        """The bytes of one token. begins_text: no other stands before it."""
        ...


class ByteLevelSpelling:
    """GPT-2's: printable bytes stand for themselves, the others for U+0100 and on, in order."""

    def __init__(self) -> None:
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        others = [byte for byte in range(256) if byte not in printable]
        self._byte_of_char = {chr(byte): byte for byte in printable}
        self._byte_of_char.update({chr(0x100 + index): byte for index, byte in enumerate(others)})

    def read(self, piece: str, *, begins_text: bool = False) -> bytes:
        """A token with any other character is one that was added: it stands for itself."""
        try:
            return bytes([self._byte_of_char[char] for char in piece])
        except KeyError:
            return piece.encode()


@dataclass(frozen=True, slots=True)
class SentencepieceSpelling:
    """Sentencepiece's, with what a decoder makes of it.

    has_spaces: whether `▁` is a space; has_bytes: whether `<0xE2>` is a byte. num_stripped: how many spaces a
    text loses at its beginning. drops_first_spaces: whether the first token loses every `▁`.
    """

    has_spaces: bool = True
    has_bytes: bool = True
    num_stripped: int = 0
    drops_first_spaces: bool = False

    def read(self, piece: str, *, begins_text: bool = False) -> bytes:
        """The bytes of one token."""
        if self.has_bytes and (byte := _named_byte(piece)) is not None:
            found = byte
        elif self.has_spaces:
            dropped = begins_text and self.drops_first_spaces
            found = piece.replace(_SPACE, "" if dropped else " ").encode()
        else:
            found = piece.encode()
        if begins_text and self.num_stripped:
            num_spaces = len(found) - len(found.lstrip(b" "))
            return found[min(num_spaces, self.num_stripped) :]
        return found


def spelling_of(decoder: Mapping[str, Any]) -> Spelling | None:
    """How tokens spell bytes, after the `decoder` of tokenizer.json.

    None where the text of tokens in a row is more than their bytes in a row, as with WordPiece.
    """
    steps = decoder.get("decoders", []) if decoder.get("type") == "Sequence" else [decoder]
    match [step.get("type") for step in steps]:
        case ["ByteLevel"]:
            return ByteLevelSpelling()
        case ["Metaspace"] if steps[0].get("replacement") == _SPACE:
            drops = steps[0].get("prepend_scheme") != "never"
            return SentencepieceSpelling(has_bytes=False, drops_first_spaces=drops)
        case ["Replace", "ByteFallback", "Fuse"] if _replaces_space(steps[0]):
            return SentencepieceSpelling()
        case ["Replace", "ByteFallback", "Fuse", "Strip"] if _replaces_space(steps[0]) and _strips(steps[3]):
            return SentencepieceSpelling(num_stripped=int(steps[3]["start"]))
        case ["ByteFallback", "Fuse"]:
            return SentencepieceSpelling(has_spaces=False)
        case _:
            return None


def _replaces_space(step: Mapping[str, Any]) -> bool:
    return step.get("pattern") == {"String": _SPACE} and step.get("content") == " "


def _strips(step: Mapping[str, Any]) -> bool:
    return step.get("content") == " " and step.get("stop") == 0


def _named_byte(piece: str) -> bytes | None:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        try:
            return bytes.fromhex(piece[3:5])
        except ValueError:
            return None
    return None
