"""How likely the tokens of a prompt are, out of a model's logits."""

from torch import Tensor

Top = tuple[tuple[int, float], ...]


def score_rows(logits: Tensor, token_ids: Tensor, num_tops: int) -> tuple[list[float], list[Top]]:
    """Log probabilities of the tokens that came, and of the likeliest, most likely first.

    logits: (rows, vocab), before each token; token_ids: (rows,) int64. Tops are none where num_tops is 0.
    """
    logprobs = logits.float().log_softmax(dim=-1)  # (rows, vocab)
    told: list[float] = logprobs.gather(1, token_ids[:, None])[:, 0].tolist()
    if not num_tops:
        return told, []
    top = logprobs.topk(num_tops, dim=-1)  # (rows, num_tops)
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return told, [tuple(zip(ids, values, strict=True)) for ids, values in pairs]
