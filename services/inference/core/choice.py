"""One answer in the making: from picked tokens to text, log probabilities and an end."""

from collections.abc import Sequence

from services.inference.core.detokenizer import Vocabulary, detokenizer
from services.inference.core.engine import EngineSequence, PickedToken
from services.inference.core.events import ChoiceEnd, Delta, FinishReason, TokenChance, TokenLogprob
from services.inference.core.sampling import StopConditions
from services.inference.core.stops import StopMatcher


class Choice:
    """Takes one sequence's tokens and makes deltas of them. `end` is set once it is over."""

    def __init__(
        self,
        index: int,
        sequence: EngineSequence,
        stop: StopConditions,
        *,
        eos_token_ids: frozenset[int],
        max_tokens: int,
        vocabulary: Vocabulary,
    ) -> None:
        self.index = index
        self.sequence = sequence
        self.end: ChoiceEnd | None = None
        self._max_tokens = max_tokens
        self._min_tokens = stop.min_tokens
        ends = frozenset() if stop.ignore_eos else eos_token_ids
        self._end_token_ids = ends | frozenset(stop.stop_token_ids)
        self._vocabulary = vocabulary
        self._detokenizer = detokenizer(vocabulary, sequence.prompt)
        self._stops = StopMatcher(stop.stop)
        # Log probabilities wait with the text of their tokens: each with where its text begins.
        self._logprobs: list[tuple[int, TokenLogprob]] = []
        self._num_decoded_chars = 0
        self._num_shown_chars = 0

    def push(self, picked: PickedToken) -> Delta | None:
        """Take the next token. Returns what can be shown now, if anything."""
        output = self.sequence.output
        output.append(picked.token_id)
        may_stop = len(output) >= self._min_tokens
        if may_stop and picked.token_id in self._end_token_ids:
            return self._finish(FinishReason.STOP)
        self._keep_logprob(picked)
        text = self._detokenizer.push(picked.token_id)
        shown = self._scan(text, may_stop)
        if self.end is None and len(output) >= self._max_tokens:
            return self._finish(FinishReason.LENGTH, shown)
        return self._delta(shown)

    def _scan(self, text: str, may_stop: bool) -> str:
        """Look for stops in new text. Returns what may be shown; sets `end` when one was met."""
        self._num_decoded_chars += len(text)
        if not may_stop:
            return self._stops.flush() + text
        scanned = self._stops.push(text)
        if scanned.stop is not None:
            self.end = ChoiceEnd(FinishReason.STOP, scanned.stop)
        return scanned.text

    def _finish(self, reason: FinishReason, shown: str = "") -> Delta | None:
        """The tokens are over: show what was held back, unless a stop is in it."""
        shown += self._scan(self._detokenizer.flush(), may_stop=True)
        if self.end is None:
            self.end = ChoiceEnd(reason)
            shown += self._stops.flush()
            self._num_decoded_chars += 1  # Tokens without text at the very end are told too.
        return self._delta(shown)

    def _delta(self, text: str) -> Delta | None:
        self._num_shown_chars += len(text)
        horizon = self._num_decoded_chars if self._is_over_without_stop else self._num_shown_chars
        num_told = sum(1 for begin, _ in self._logprobs if begin < horizon)
        told = tuple(logprob for _, logprob in self._logprobs[:num_told])
        del self._logprobs[:num_told]
        return Delta(self.index, text, told) if text or told else None

    @property
    def _is_over_without_stop(self) -> bool:
        return self.end is not None and not self.end.stop

    def _keep_logprob(self, picked: PickedToken) -> None:
        if picked.logprob is None:
            return
        told = TokenLogprob(
            self._chance(picked.token_id, picked.logprob),
            tuple(self._chance(token_id, logprob) for token_id, logprob in picked.top),
        )
        self._logprobs.append((self._num_decoded_chars, told))

    def _chance(self, token_id: int, logprob: float) -> TokenChance:
        return TokenChance(token_id, self._vocabulary.token_bytes(token_id), logprob)


def prompt_echo(choice: int, prompt_text: str) -> Sequence[Delta]:
    """The prompt as the first text of a choice, for those who asked to see it."""
    return (Delta(choice, prompt_text),) if prompt_text else ()
