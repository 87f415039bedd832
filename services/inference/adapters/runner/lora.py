"""LoRA adapters (arXiv 2106.09685) beside the base's weights: many in memory, several in one batch.

An adapter adds B A x to the output of a matrix. The base is never touched, so rows of different adapters and of none go
through it together, and only the small products are taken an adapter at a time.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor

from services.inference.adapters.runner.architecture import Architecture
from services.inference.adapters.runner.weights import Checkpoint
from services.kit.errors import UnsupportedFormat

Slot = Literal["qkv", "output", "gate_up", "down"]

MAX_RANK: Final = 256

_WEIGHTS: Final = "adapter_model.safetensors"
_KEY: Final = re.compile(
    r"(?P<module>base_model\.model\.model\.layers\.(?P<layer>\d+)\.(?:self_attn|mlp)\.(?P<name>\w+))\.lora_A\.weight"
)


@dataclass(frozen=True, slots=True)
class LowRank:
    """down: (rank, in). up: (out, rank), scaled."""

    down: Tensor
    up: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """x: (T, in). Returns (T, out)."""
        return (x @ self.down.T) @ self.up.T


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter in memory, by layer and matrix."""

    matrices: Mapping[tuple[int, Slot], LowRank]


@dataclass(frozen=True, slots=True)
class ActiveAdapter:
    """An adapter in a step. rows: (n,) those that use it; None for all."""

    adapter: Adapter
    rows: Tensor | None

    def add(self, layer: int, slot: Slot, x: Tensor, y: Tensor) -> None:
        """Add to y, (T, out), in place what the adapter makes of x, (T, in)."""
        low_rank = self.adapter.matrices.get((layer, slot))
        if low_rank is None:
            return
        if self.rows is None:
            y.add_(low_rank(x))
        else:
            y.index_add_(0, self.rows, low_rank(x[self.rows]))


def load_adapter(
    folder: Path, architecture: Architecture, dtype: torch.dtype, device: torch.device
) -> Adapter:
    """Read peft's files. Raises UnsupportedFormat for what does not fit the model, or is more than LoRA."""
    if not (folder / _WEIGHTS).is_file():
        raise UnsupportedFormat(f"the adapter has no {_WEIGHTS}; pickled weights are not loaded")
    config = _config(folder)
    checkpoint = Checkpoint(folder, dtype, device)
    outputs = _outputs(architecture)
    found: dict[tuple[int, Slot], dict[str, tuple[Tensor, Tensor]]] = {}
    names = sorted(checkpoint.names)
    for name in names:
        match = _KEY.fullmatch(name)
        if match is None:
            if not name.endswith(".lora_B.weight"):
                raise UnsupportedFormat(
                    f"the adapter changes {name}, which is more than LoRA of a decoder's layers"
                )
            continue
        layer, module = int(match["layer"]), match["name"]
        if module not in outputs or layer >= len(architecture.layers):
            raise UnsupportedFormat(f"the adapter changes {match['module']}, which this model does not have")
        slot, num_columns, first, last = outputs[module]
        down, up = _pair(checkpoint, match["module"], num_columns, last - first)
        scaled = up * _scale(config, match["module"], len(down))
        found.setdefault((layer, slot), {})[module] = (down, scaled)
    if not found or 2 * sum(map(len, found.values())) != len(names):
        raise UnsupportedFormat("the adapter does not hold pairs of lora_A and lora_B")
    return Adapter({key: _fused(key[1], parts, outputs) for key, parts in found.items()})


def _outputs(architecture: Architecture) -> Mapping[str, tuple[Slot, int, int, int]]:
    """Where each matrix of a checkpoint lies: its slot, its columns, its first and last row in there."""
    hidden, inner = architecture.hidden_size, architecture.intermediate_size
    queries = architecture.num_heads * architecture.head_size
    keys = queries + architecture.num_kv_heads * architecture.head_size
    return {
        "q_proj": ("qkv", hidden, 0, queries),
        "k_proj": ("qkv", hidden, queries, keys),
        "v_proj": ("qkv", hidden, keys, architecture.qkv_size),
        "qkv_proj": ("qkv", hidden, 0, architecture.qkv_size),
        "o_proj": ("output", queries, 0, hidden),
        "gate_proj": ("gate_up", hidden, 0, inner),
        "up_proj": ("gate_up", hidden, inner, 2 * inner),
        "gate_up_proj": ("gate_up", hidden, 0, 2 * inner),
        "down_proj": ("down", inner, 0, hidden),
    }


def _pair(checkpoint: Checkpoint, module: str, num_columns: int, num_rows: int) -> tuple[Tensor, Tensor]:
    """A and B: (rank, in) and (out, rank)."""
    rank = checkpoint.shape(f"{module}.lora_A.weight")[0]
    if not 1 <= rank <= MAX_RANK:
        raise UnsupportedFormat(f"{module} has rank {rank}; 1 to {MAX_RANK} are served")
    down = checkpoint.get(f"{module}.lora_A.weight", (rank, num_columns))
    return down, checkpoint.get(f"{module}.lora_B.weight", (num_rows, rank))


def _fused(
    slot: Slot, parts: Mapping[str, tuple[Tensor, Tensor]], outputs: Mapping[str, tuple[Slot, int, int, int]]
) -> LowRank:
    """Parts of one fused matrix as one pair: A's one above the other, B's along a diagonal."""
    down = torch.cat([down for down, _ in parts.values()])
    num_rows = max(last for its_slot, _, _, last in outputs.values() if its_slot == slot)
    up = down.new_zeros(num_rows, len(down))
    column = 0
    for module, (part_down, part_up) in parts.items():
        _, _, first, last = outputs[module]
        up[first:last, column : column + len(part_down)] = part_up
        column += len(part_down)
    return LowRank(down, up)


def _config(folder: Path) -> Mapping[str, Any]:
    try:
        config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UnsupportedFormat(f"adapter_config.json cannot be read: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type", "LORA") != "LORA":
        raise UnsupportedFormat("adapter_config.json is not one of a LoRA adapter")
    for unknown in (
        "use_dora",
        "modules_to_save",
        "layer_replication",
        "lora_bias",
        "trainable_token_indices",
    ):
        if config.get(unknown):
            raise UnsupportedFormat(f"the adapter uses {unknown}, which is not served")
    if config.get("bias", "none") != "none":
        raise UnsupportedFormat("the adapter changes biases, which is not served")
    return config


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """alpha / rank, or alpha / sqrt(rank) for rank-stabilized ones (arXiv 2312.03732)."""
    alpha: Any = config.get("lora_alpha", rank)
    for pattern, special in dict(config.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({re.escape(pattern)})", module):
            alpha = special
    try:
        return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
    except (TypeError, ValueError) as error:
        raise UnsupportedFormat(f"adapter_config.json: lora_alpha is {alpha!r}") from error
