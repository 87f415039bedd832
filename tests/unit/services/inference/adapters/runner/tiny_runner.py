"""The runner over a tiny model's folder."""

from pathlib import Path

import torch

from services.inference.adapters.runner.engine import RunnerEngine
from services.inference.adapters.runner.load import load_runner


def runner_engine(folder: Path, *, num_blocks: int = 64, dtype: torch.dtype = torch.float32) -> RunnerEngine:
    """float32 on the CPU."""
    engine = load_runner(
        folder,
        device=torch.device("cpu"),
        dtype=dtype,
        num_blocks=num_blocks,
        eos_token_ids=frozenset({2}),
        on_progress=lambda share: None,
    )
    assert engine is not None
    return engine
