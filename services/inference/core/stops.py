"""Stop strings in a text that arrives in pieces."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scanned:
    """What may be shown now, and the stop that was met, if one was: the text then ends here."""

    text: str
    stop: str | None = None


class StopMatcher:
    """Lets text through up to the first stop, and holds back an end that may become one.

    Of several stops the one that begins first counts; of those that begin together, the longest.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = sorted(stops, key=len, reverse=True)
        self._held = ""

    def push(self, text: str) -> Scanned:
        """The next piece of text. Not to be called after a stop was met."""
        text = self._held + text
        self._held = ""
        found = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            at, stop = min(found, key=lambda item: item[0])
            return Scanned(text[:at], stop)
        num_held = self._possible_stop_chars(text)
        self._held = text[len(text) - num_held :]
        return Scanned(text[: len(text) - num_held])

    def flush(self) -> str:
        """What is held back, once no more text will come."""
        held, self._held = self._held, ""
        return held

    def _possible_stop_chars(self, text: str) -> int:
        """Length of the longest end of text that is the beginning of a stop."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:length]):
                    longest = length
                    break
        return longest
