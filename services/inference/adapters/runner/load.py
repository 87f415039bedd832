"""A folder of safetensors to a running engine."""

import json
from pathlib import Path
from typing import Any

import torch

from services.inference.adapters.messages import EngineInit
from services.inference.adapters.placement import Placement, num_kv_blocks
from services.inference.adapters.runner.architecture import Architecture
from services.inference.adapters.runner.batch import Batcher
from services.inference.adapters.runner.engine import RunnerEngine
from services.inference.adapters.runner.graphs import DecodeSteps
from services.inference.adapters.runner.kv_pool import BLOCK_SIZE, KvPool
from services.inference.adapters.runner.model import Decoder, OnProgress
from services.inference.adapters.runner.ops import Ops, TorchOps
from services.inference.adapters.runner.quantize import Scheme
from services.inference.adapters.runner.static_batch import StaticBatcher
from services.inference.adapters.runner.weights import Checkpoint
from services.inference.core.engine import EngineFacts
from services.kit.errors import UnsupportedFormat


def read_architecture(folder: Path) -> Architecture | None:
    """What config.json says; None if the runner does not know the family. Raises UnsupportedFormat."""
    try:
        config: Any = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UnsupportedFormat(f"config.json cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise UnsupportedFormat("config.json is not an object")
    return Architecture.parse(config)


def quantization_scheme(weight_type: str, device: torch.device) -> Scheme | None:
    """How matrices are quantized on a device; None for floats."""
    match weight_type:
        case "int8":
            return "int8"
        case "int4":
            return "nf4" if device.type == "cuda" else "int4"
    return None


def load_runner(
    init: EngineInit,
    folder: Path,
    placement: Placement,
    end_token_ids: frozenset[int],
    on_progress: OnProgress = lambda share: None,
) -> RunnerEngine | None:
    """The engine with its weights in memory; None for a family that the runner does not know.

    end_token_ids: those that end a text. on_progress is told the share of layers read. Raises UnsupportedFormat.
    """
    architecture = read_architecture(folder)
    if architecture is None:
        return None
    dtype, device = placement.dtype, torch.device(placement.device)
    is_cuda = device.type == "cuda"
    ops: Ops = TorchOps()
    if is_cuda:
        # Its causal bias draws in torch's compiler: a second of imports and 50 MiB, for cards alone.
        from services.inference.adapters.runner.cuda_ops import CudaOps

        ops = CudaOps()
        # cuDNN, which torch asks first on some cards, plans anew for each shape, and no two chunks are of one.
        torch.backends.cuda.enable_cudnn_sdp(False)
    scheme = quantization_scheme(init.weight_type, device)
    decoder = Decoder(architecture, Checkpoint(folder, dtype, device, scheme), ops, on_progress)
    num_blocks = num_kv_blocks(
        init,
        placement,
        block_bytes=architecture.kv_bytes_per_token * dtype.itemsize * BLOCK_SIZE,
        context_blocks=-(-architecture.context_length // BLOCK_SIZE),
    )
    pool = KvPool.allocate(architecture, num_blocks, dtype, device)
    facts = EngineFacts(
        context_length=architecture.context_length,
        vocab_size=architecture.vocab_size,
        eos_token_ids=end_token_ids,
        device=placement.device,
        dtype=scheme or str(dtype).removeprefix("torch."),
        block_size=BLOCK_SIZE,
        num_blocks=num_blocks,
        shares_blocks=True,
        weights_bytes=decoder.num_bytes,
        kv_bytes=pool.num_bytes,
        note="; ".join(filter(None, (placement.note, architecture.note))),
    )
    steps = None
    if is_cuda and init.cuda_graphs:
        steps = DecodeSteps.graphed(decoder, pool, StaticBatcher(architecture, pool, dtype, device), device)
    return RunnerEngine(decoder, pool, Batcher(architecture, pool, dtype, device), facts, steps)
