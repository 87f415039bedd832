"""The runner over a tiny model's folder."""

from pathlib import Path

import torch

from services.inference.adapters.messages import EngineInit
from services.inference.adapters.placement import Placement
from services.inference.adapters.runner.engine import RunnerEngine
from services.inference.adapters.runner.load import load_runner


def runner_engine(folder: Path, *, dtype: torch.dtype = torch.float32) -> RunnerEngine:
    """On the CPU, with room for 64 blocks."""
    init = EngineInit(str(folder), "cpu", max_sequences=8, kv_bytes=64 * 4 * 2 * 2 * 16 * dtype.itemsize * 16)
    engine = load_runner(init, folder, Placement("cpu", dtype), frozenset({2}))
    assert engine is not None
    return engine
