"""What models will take of each device, read off their files once."""

import asyncio
from collections.abc import Sequence
from typing import Final

from services.inference.adapters.converter import Converter
from services.inference.adapters.estimate import Checkpoint, WeightType, read_checkpoint
from services.inference.adapters.hardware import cpu_features
from services.inference.core.memory import CPU, MemoryEstimate
from services.inference.core.models import ModelKind, ResolvedModel

_MIB: Final = 1024**2

# A worker with a model of nearly nothing: the interpreter, torch, our runner. Measured: 254e6 bytes.
_PROCESS_BYTES: Final = 288 * _MIB
# The same beside a card, with CUDA's libraries; and CUDA's context on the card.
_CARD_HOST_BYTES: Final = 2048 * _MIB
_CARD_PROCESS_BYTES: Final = 600 * _MIB

# Of GGUF weights in four bits, when the record does not say how many parameters there are.
_GGUF_GROWTH: Final = 4

# Where only the record is known: one byte of keys and values a token for so many parameters, and a context as
# most have. It is exact once the model was converted.
_PARAMETERS_PER_KV_BYTE: Final = 32_768
_USUAL_CONTEXT: Final = 8192

_NUM_REMEMBERED: Final = 256


class Estimates:
    """By version, remembered: its files never change."""

    def __init__(self, converter: Converter, *, devices: Sequence[str], max_batch_tokens: int) -> None:
        """devices: on which a model may compute, the better first."""
        self._converter = converter
        self._devices = tuple(devices)
        self._max_batch_tokens = max_batch_tokens
        self._checkpoints: dict[str, Checkpoint] = {}
        # Many who ask at once share one lease.
        self._lock = asyncio.Lock()

    async def of(self, model: ResolvedModel) -> Sequence[MemoryEstimate]:
        """For each device. Raises UnsupportedFormat."""
        if self._converter.needs_conversion(model.version):
            return [_by_record(model, device) for device in self._devices]
        checkpoint = await self._checkpoint(model)
        return [self._by_files(model.kind, checkpoint, device) for device in self._devices]

    async def _checkpoint(self, model: ResolvedModel) -> Checkpoint:
        key = model.version.key
        async with self._lock:
            if key not in self._checkpoints:
                async with self._converter.folder(model.version, lambda _: None) as folder:
                    checkpoint = await asyncio.to_thread(read_checkpoint, folder)
                if len(self._checkpoints) >= _NUM_REMEMBERED:
                    self._checkpoints.pop(next(iter(self._checkpoints)))
                self._checkpoints[key] = checkpoint
            return self._checkpoints[key]

    def _by_files(self, kind: ModelKind, checkpoint: Checkpoint, device: str) -> MemoryEstimate:
        weight_type = _weight_type(kind, device)
        generates = kind is ModelKind.TEXT_GENERATION
        return MemoryEstimate(
            device=device,
            weights_bytes=checkpoint.weights_bytes(weight_type),
            kv_bytes_per_token=checkpoint.kv_bytes_per_token(weight_type) if generates else 0,
            context_length=checkpoint.shape.context_length,
            workspace_bytes=checkpoint.workspace_bytes(weight_type, self._max_batch_tokens),
            process_bytes=_PROCESS_BYTES if device == CPU else _CARD_PROCESS_BYTES,
            host_bytes=0 if device == CPU else _CARD_HOST_BYTES,
        )


def _by_record(model: ResolvedModel, device: str) -> MemoryEstimate:
    """Of GGUF that was not converted yet: what the registry knows."""
    num_bytes = 4 if _weight_type(model.kind, device) == "fp32" else 2
    weights_bytes = model.num_parameters * num_bytes or model.version.size_bytes * _GGUF_GROWTH
    return MemoryEstimate(
        device=device,
        weights_bytes=weights_bytes,
        kv_bytes_per_token=max(1, weights_bytes // 2 // _PARAMETERS_PER_KV_BYTE),
        context_length=_USUAL_CONTEXT,
        workspace_bytes=256 * _MIB,
        process_bytes=_PROCESS_BYTES if device == CPU else _CARD_PROCESS_BYTES,
        host_bytes=0 if device == CPU else _CARD_HOST_BYTES,
    )


def _weight_type(kind: ModelKind, device: str) -> WeightType:
    """In which numbers a model computes there: as `checkpoint.place` decides, and embeddings in float32."""
    if kind is ModelKind.EMBEDDING:
        return "fp32"
    if device != CPU or {"avx512_bf16", "amx_bf16"} & set(cpu_features()):
        return "bf16"
    return "fp32"
