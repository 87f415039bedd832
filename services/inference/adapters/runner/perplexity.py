"""How well a model foretells a text: the number by which quantizations are judged."""

import math
from collections.abc import Sequence
from typing import Final

import torch

from services.inference.adapters.runner.batch import Batcher
from services.inference.adapters.runner.kv_pool import BLOCK_SIZE, KvPool
from services.inference.adapters.runner.model import Decoder
from services.inference.core.engine import Chunk, EngineSequence
from services.inference.core.sampling import Sampling

WINDOW: Final = 512

# Rows of logits at once.
_ROWS: Final = 64


@torch.inference_mode()
def perplexity(decoder: Decoder, token_ids: Sequence[int], dtype: torch.dtype, device: torch.device) -> float:
    """e to the mean negative log probability of each token but the first of its window, of WINDOW tokens or less.

    token_ids: at least two.
    """
    architecture = decoder.architecture
    pool = KvPool.allocate(architecture, WINDOW // BLOCK_SIZE, dtype, device)
    batcher = Batcher(architecture, pool, dtype, device)
    total, num_scored = 0.0, 0
    for begin in range(0, len(token_ids), WINDOW):
        window = list(token_ids[begin : begin + WINDOW])
        sequence = EngineSequence(0, window, Sampling(seed=0, temperature=0.0))
        sequence.blocks = list(range(WINDOW // BLOCK_SIZE))
        hidden = decoder.hidden(batcher.make([Chunk(sequence, len(window))]), pool)  # (tokens, hidden_size)
        for first in range(0, len(window) - 1, _ROWS):
            wanted = torch.tensor(window[first + 1 : first + 1 + _ROWS], device=device)  # (rows,)
            logprobs = decoder.logits(hidden[first : first + len(wanted)]).float().log_softmax(-1)
            total -= float(logprobs.gather(1, wanted[:, None]).sum())
            num_scored += len(wanted)
    return math.exp(total / num_scored)
