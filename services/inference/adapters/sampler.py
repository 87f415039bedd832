"""From logits to tokens, all rows of a step at once.

The order is the contract's: logit bias, penalties, temperature, top_k, top_p, min_p. One number a token is
drawn from the sequence's own generator and looked up in the cumulative distribution, so that equal seeds pick
equal tokens whatever else is in the batch, on every device.
"""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from services.inference.core.engine import EngineSequence, PickedToken


class Sampler:
    """Picks tokens and remembers each sequence's random generator."""

    def __init__(self) -> None:
        self._generators: dict[int, random.Random] = {}

    def release(self, sequence_id: int) -> None:
        """Forget a sequence."""
        self._generators.pop(sequence_id, None)

    def pick(self, logits: Tensor, sequences: Sequence[EngineSequence]) -> list[PickedToken]:
        """One token per row. logits: (batch, vocab), any float type; row i belongs to sequences[i]."""
        logits = logits.float()  # (batch, vocab)
        shaped = _shape(logits, sequences)
        token_ids = shaped.argmax(dim=-1).tolist()
        sampled = [row for row, sequence in enumerate(sequences) if not sequence.sampling.is_greedy]
        if sampled:
            drawn = self._draw(shaped[sampled], [sequences[row] for row in sampled])
            for row, token_id in zip(sampled, drawn, strict=True):
                token_ids[row] = token_id
        return _tell(logits, sequences, token_ids)

    def _draw(self, logits: Tensor, sequences: Sequence[EngineSequence]) -> list[int]:
        """logits:

        (rows, vocab) with bias and penalties in. Rows that need sorting are sorted; the others are spared it.
        """
        temperatures = _column(logits, [s.sampling.temperature for s in sequences])  # (rows, 1)
        logits = logits / temperatures
        points = _column(logits, [self._uniform(s) for s in sequences], torch.float64)  # (rows, 1), in [0, 1)
        needs_order = [s.sampling.top_k > 0 or s.sampling.top_p < 1.0 for s in sequences]
        token_ids = [0] * len(sequences)
        for ordered in (False, True):
            rows = [row for row, needs in enumerate(needs_order) if needs is ordered]
            if not rows:
                continue
            pick = _pick_ordered if ordered else _pick_plain
            picked = pick(logits[rows], points[rows], [sequences[row] for row in rows])
            for row, token_id in zip(rows, picked.tolist(), strict=True):
                token_ids[row] = token_id
        return token_ids

    def _uniform(self, sequence: EngineSequence) -> float:
        generator = self._generators.get(sequence.sequence_id)
        if generator is None:
            generator = self._generators[sequence.sequence_id] = random.Random(sequence.sampling.seed)
        return generator.random()


def _shape(logits: Tensor, sequences: Sequence[EngineSequence]) -> Tensor:
    """Logit bias, penalties and bans.

    Returns logits itself where there is nothing to do. (batch, vocab) in and out.
    """
    rows: list[int] = []
    columns: list[int] = []
    biases: list[float] = []
    for row, sequence in enumerate(sequences):
        added = {**sequence.sampling.logit_bias, **dict.fromkeys(sequence.bans, -torch.inf)}
        rows.extend([row] * len(added))
        columns.extend(added)
        biases.extend(added.values())
    penalized = [row for row, sequence in enumerate(sequences) if sequence.sampling.has_penalties]
    if not rows and not penalized:
        return logits
    logits = logits.clone()
    if rows:
        logits[rows, columns] += torch.tensor(biases, device=logits.device)
    for row in penalized:
        _penalize(logits[row], sequences[row])
    return logits


def _penalize(logits: Tensor, sequence: EngineSequence) -> None:
    """In place.

    logits: (vocab,). Presence and frequency as in OpenAI's API; repetition as in CTRL (arXiv 1909.05858).
    """
    sampling = sequence.sampling
    if sampling.repetition_penalty != 1.0:
        seen = torch.tensor([*sequence.prompt, *sequence.output], device=logits.device)
        seen = seen.unique()  # (seen,)
        values = logits[seen]
        penalty = sampling.repetition_penalty
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if sequence.output and (sampling.presence_penalty or sampling.frequency_penalty):
        said = torch.tensor(sequence.output, device=logits.device)
        token_ids, counts = said.unique(return_counts=True)  # (said,) each
        logits[token_ids] -= sampling.presence_penalty + sampling.frequency_penalty * counts


def _pick_plain(logits: Tensor, points: Tensor, sequences: Sequence[EngineSequence]) -> Tensor:
    """Without top_k and top_p. logits: (rows, vocab), points: (rows, 1). Returns (rows,) token ids."""
    probabilities = logits.softmax(dim=-1)  # (rows, vocab)
    minimum = _column(logits, [s.sampling.min_p for s in sequences])  # (rows, 1)
    too_unlikely = probabilities < minimum * probabilities.amax(dim=-1, keepdim=True)
    return _locate(probabilities.masked_fill(too_unlikely, 0.0), points)


def _pick_ordered(logits: Tensor, points: Tensor, sequences: Sequence[EngineSequence]) -> Tensor:
    """With top_k or top_p. logits: (rows, vocab), points: (rows, 1). Returns (rows,) token ids."""
    vocab_size = logits.shape[-1]
    # Only the top_k highest need an order when every row has one.
    widest = max(s.sampling.top_k or vocab_size for s in sequences)
    logits, token_ids = logits.topk(min(widest, vocab_size), dim=-1)  # (rows, width), most likely first
    rank = torch.arange(logits.shape[-1], device=logits.device)  # (width,)
    num_kept = _column(logits, [float(s.sampling.top_k or vocab_size) for s in sequences])  # (rows, 1)
    probabilities = logits.masked_fill(rank >= num_kept, -torch.inf).softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities  # (rows, width): what more likely tokens add up to
    top_p = _column(logits, [s.sampling.top_p for s in sequences])
    minimum = _column(logits, [s.sampling.min_p for s in sequences]) * probabilities[:, :1]
    # The most likely token always stays, however small top_p is.
    dropped = ((before >= top_p) & (rank > 0)) | (probabilities < minimum)
    places = _locate(probabilities.masked_fill(dropped, 0.0), points)  # (rows,)
    return token_ids.gather(1, places[:, None])[:, 0]


def _locate(weights: Tensor, points: Tensor) -> Tensor:
    """Where each point falls in the cumulative weights.

    weights: (rows, n) not negative; points: (rows, 1) in [0, 1).
    """
    cumulative = weights.cumsum(dim=-1, dtype=torch.float64)  # (rows, n)
    places = torch.searchsorted(cumulative, points * cumulative[:, -1:], right=True)[:, 0]
    return places.clamp(max=weights.shape[-1] - 1)


def _column(like: Tensor, values: Sequence[float], dtype: torch.dtype = torch.float32) -> Tensor:
    """(rows, 1) on the device of `like`."""
    return torch.tensor(values, dtype=dtype, device=like.device)[:, None]


def _tell(logits: Tensor, sequences: Sequence[EngineSequence], token_ids: Sequence[int]) -> list[PickedToken]:
    """Log probabilities for the rows that want them. logits: (batch, vocab), as the model gave them."""
    picks = [PickedToken(token_id) for token_id in token_ids]
    for row, sequence in enumerate(sequences):
        if sequence.num_logprobs is None:
            continue
        logprobs = logits[row].log_softmax(dim=-1)  # (vocab,)
        top = logprobs.topk(min(sequence.num_logprobs, logprobs.shape[0]))
        likely = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
        picks[row] = PickedToken(token_ids[row], float(logprobs[token_ids[row]]), likely)
    return picks
