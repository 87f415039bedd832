"""From logits to tokens, all rows of a step at once, on the device where the logits are.

The order is the contract's: masks, logit bias, penalties, temperature, top_k, top_p, min_p. One number a token is
drawn from the sequence's seed and the token's place alone, and looked up in the cumulative distribution: equal seeds
pick equal tokens whatever else is in the batch, after a preemption too, and nothing has to be remembered.
"""

import hashlib
import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from services.inference.core.engine import EngineSequence, PickedToken


def pick(logits: Tensor, sequences: Sequence[EngineSequence]) -> list[PickedToken]:
    """One token per row. logits: (batch, vocab), any float type; row i belongs to sequences[i]."""
    shaped = _shape(logits, sequences)
    token_ids: list[int] = shaped.argmax(dim=-1).tolist()
    sampled = [row for row, sequence in enumerate(sequences) if not sequence.sampling.is_greedy]
    if sampled:
        drawn = _draw(shaped[sampled].float(), [sequences[row] for row in sampled])
        for row, token_id in zip(sampled, drawn, strict=True):
            token_ids[row] = token_id
    picks = [PickedToken(token_id) for token_id in token_ids]
    told = [row for row, sequence in enumerate(sequences) if sequence.num_logprobs is not None]
    if told:
        chosen = [token_ids[row] for row in told]
        for row, picked in zip(
            told, _tell(logits[told], chosen, [sequences[row] for row in told]), strict=True
        ):
            picks[row] = picked
    return picks


def uniform(seed: int, place: int) -> float:
    """A number in [0, 1) that nothing but these two decides. seed: 64 bits; place: of the token in its output."""
    digest = hashlib.blake2b(struct.pack("<QQ", seed, place), digest_size=8).digest()
    return float(int.from_bytes(digest, "little") >> 11) * 2.0**-53


def _shape(logits: Tensor, sequences: Sequence[EngineSequence]) -> Tensor:
    """Masks, logit bias, penalties and bans. (batch, vocab) in and out.

    Returns logits itself where there is nothing to do.
    """
    rows: list[int] = []
    columns: list[int] = []
    biases: list[float] = []
    for row, sequence in enumerate(sequences):
        added = {**sequence.sampling.logit_bias, **dict.fromkeys(sequence.bans, -torch.inf)}
        rows.extend([row] * len(added))
        columns.extend(added)
        biases.extend(added.values())
    masked = [row for row, sequence in enumerate(sequences) if sequence.allowed_tokens is not None]
    penalized = [row for row, sequence in enumerate(sequences) if sequence.sampling.has_penalties]
    if not rows and not masked and not penalized:
        return logits
    shaped = logits.float() if logits.dtype != torch.float32 else logits.clone()
    if masked:
        _mask(shaped, masked, sequences)
    if rows:
        shaped[rows, columns] += torch.tensor(biases, device=logits.device)
    if penalized:
        _penalize(shaped, penalized, sequences)
    return shaped


def _mask(logits: Tensor, rows: Sequence[int], sequences: Sequence[EngineSequence]) -> None:
    """In place: only tokens whose bit is set stay. logits: (batch, vocab)."""
    vocab_size = logits.shape[-1]
    num_bytes = -(-vocab_size // 8)
    masks = b"".join(
        (sequences[row].allowed_tokens or b"").ljust(num_bytes, b"\0")[:num_bytes] for row in rows
    )
    packed = (
        torch.frombuffer(bytearray(masks), dtype=torch.uint8).to(logits.device).view(len(rows), num_bytes, 1)
    )
    bits = packed.bitwise_right_shift(torch.arange(8, dtype=torch.uint8, device=logits.device)).bitwise_and_(
        1
    )
    allowed = bits.view(len(rows), -1)[:, :vocab_size].bool()  # (rows, vocab)
    logits[rows] = logits[rows].masked_fill_(~allowed, -torch.inf)


def _penalize(logits: Tensor, rows: Sequence[int], sequences: Sequence[EngineSequence]) -> None:
    """In place.

    logits: (batch, vocab). Presence and frequency as in OpenAI's API; repetition as in CTRL (arXiv 1909.05858).
    """
    samplings = [sequence.sampling for sequence in sequences]
    repeated = [row for row in rows if samplings[row].repetition_penalty != 1.0]
    if repeated:
        texts = [[*sequences[row].prompt, *sequences[row].output] for row in repeated]
        at, token_ids, _ = _counted(repeated, texts, logits)
        penalties = torch.tensor([s.repetition_penalty for s in samplings], device=logits.device)[at]
        values = logits[at, token_ids]
        logits[at, token_ids] = torch.where(values > 0, values / penalties, values * penalties)
    said = [
        row
        for row in rows
        if sequences[row].output and (samplings[row].presence_penalty or samplings[row].frequency_penalty)
    ]
    if said:
        at, token_ids, counts = _counted(said, [sequences[row].output for row in said], logits)
        presence = torch.tensor([s.presence_penalty for s in samplings], device=logits.device)[at]
        frequency = torch.tensor([s.frequency_penalty for s in samplings], device=logits.device)[at]
        logits[at, token_ids] -= presence + frequency * counts


def _counted(
    rows: Sequence[int], texts: Sequence[Sequence[int]], logits: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The different tokens of each row's text: (n,) rows, (n,) token ids, (n,) how often each is there."""
    vocab_size = logits.shape[-1]
    keys = [row * vocab_size + token for row, text in zip(rows, texts, strict=True) for token in text]
    found, counts = torch.tensor(keys, device=logits.device).unique(return_counts=True)
    return found // vocab_size, found % vocab_size, counts


def _draw(logits: Tensor, sequences: Sequence[EngineSequence]) -> list[int]:
    """logits: (rows, vocab) with bias and penalties in. Rows that need sorting are sorted; the others are spared it."""
    if logits.device.type == "mps":
        logits = logits.cpu()  # Apple's cards have no float64, which the cumulative distribution is in.
    temperatures = _column(logits, [s.sampling.temperature for s in sequences])  # (rows, 1)
    # Below the highest first: a tiny temperature must not make infinities of logits.
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / temperatures
    points = [uniform(s.sampling.seed, len(s.output)) for s in sequences]
    needs_order = [s.sampling.top_k > 0 or s.sampling.top_p < 1.0 for s in sequences]
    token_ids = [0] * len(sequences)
    for ordered in (False, True):
        rows = [row for row, needs in enumerate(needs_order) if needs is ordered]
        if not rows:
            continue
        choose = _pick_ordered if ordered else _pick_plain
        at = _column(logits, [points[row] for row in rows], torch.float64)  # (rows, 1), in [0, 1)
        picked = choose(logits[rows], at, [sequences[row] for row in rows])
        for row, token_id in zip(rows, picked.tolist(), strict=True):
            token_ids[row] = token_id
    return token_ids


def _pick_plain(logits: Tensor, points: Tensor, sequences: Sequence[EngineSequence]) -> Tensor:
    """Without top_k and top_p. logits: (rows, vocab), points: (rows, 1). Returns (rows,) token ids."""
    probabilities = logits.softmax(dim=-1)  # (rows, vocab)
    if any(s.sampling.min_p for s in sequences):
        minimum = _column(logits, [s.sampling.min_p for s in sequences])  # (rows, 1)
        too_unlikely = probabilities < minimum * probabilities.amax(dim=-1, keepdim=True)
        probabilities = probabilities.masked_fill_(too_unlikely, 0.0)
    return _locate(probabilities, points)


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


def _tell(logits: Tensor, token_ids: Sequence[int], sequences: Sequence[EngineSequence]) -> list[PickedToken]:
    """Picks with log probabilities. logits: (rows, vocab), as the model gave them, each row with its pick."""
    logprobs = logits.float().log_softmax(dim=-1)  # (rows, vocab)
    widest = min(max(s.num_logprobs or 0 for s in sequences), logits.shape[-1])
    top = logprobs.topk(widest, dim=-1)  # (rows, widest)
    own = logprobs.gather(1, torch.tensor(token_ids, device=logits.device)[:, None])[:, 0].tolist()
    return [
        PickedToken(token_id, logprob, tuple(zip(likely[:num], values[:num], strict=True)))
        for token_id, logprob, likely, values, num in zip(
            token_ids,
            own,
            top.indices.tolist(),
            top.values.tolist(),
            (s.num_logprobs or 0 for s in sequences),
            strict=True,
        )
    ]
