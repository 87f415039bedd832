"""How well a model foretells a text: the number by which quantizations are judged.

The text beside this file is the first two chapters of Lewis Carroll's "Alice's Adventures in Wonderland" (1865, in the
public domain), its lines joined. Nearly every model has read it, so the number says something beside that of the same
model in other numbers, and little beside that of another model.
"""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch

from services.inference.adapters.runner.batch import Batcher
from services.inference.adapters.runner.kv_pool import BLOCK_SIZE, KvPool
from services.inference.adapters.runner.model import Decoder
from services.inference.core.engine import Chunk, EngineSequence
from services.inference.core.sampling import Sampling

WINDOW: Final = 512

# Some seconds of a small model, and enough to tell tenths of a percent apart: both forms read the same tokens.
NUM_MEASURED_TOKENS: Final = 2048

_TEXT: Final = Path(__file__).with_name("perplexity.txt")

# Rows of logits at once.
_ROWS: Final = 64


def measured_text() -> tuple[str, str]:
    """The text that artifacts are measured on, and its digest, `sha256:<hex>`."""
    body = _TEXT.read_bytes()
    return body.decode("utf-8"), f"sha256:{hashlib.sha256(body).hexdigest()}"


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
