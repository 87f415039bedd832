"""What models will take of each device, read off their files once."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from services.inference.adapters.converter import Converter
from services.inference.adapters.estimate import Checkpoint, WeightType, read_checkpoint
from services.inference.adapters.hardware import cpu_features
from services.inference.adapters.model_folder import read_json
from services.inference.adapters.runner.architecture import Architecture
from services.inference.core.memory import CPU, MemoryEstimate
from services.inference.core.models import ModelKind, Quantization, ResolvedModel

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

    def __init__(
        self,
        converter: Converter,
        *,
        devices: Sequence[str],
        max_batch_tokens: int,
        quantization: Quantization = Quantization.AUTO,
    ) -> None:
        """devices: on which a model may compute, the better first. quantization: of models that are not asked for
        in another.
        """
        self._converter = converter
        self._devices = tuple(devices)
        self._max_batch_tokens = max_batch_tokens
        self._quantization = quantization
        self._checkpoints: dict[str, tuple[Checkpoint, bool]] = {}
        # Many who ask at once share one lease.
        self._lock = asyncio.Lock()

    async def of(self, model: ResolvedModel) -> Sequence[MemoryEstimate]:
        """For each device and each form that the model may have there, the better first. Raises UnsupportedFormat."""
        wanted = model.quantization or self._quantization
        if self._converter.needs_conversion(model.version):
            return [
                _by_record(model, device, weight_type)
                for device in self._devices
                for weight_type in weight_types(model.kind, device, wanted, can_quantize=True)
            ]
        checkpoint, can_quantize = await self._checkpoint(model)
        return [
            self._by_files(model.kind, checkpoint, device, weight_type)
            for device in self._devices
            for weight_type in weight_types(model.kind, device, wanted, can_quantize=can_quantize)
        ]

    async def _checkpoint(self, model: ResolvedModel) -> tuple[Checkpoint, bool]:
        """With whether the model can be quantized."""
        key = model.version.key
        async with self._lock:
            if key not in self._checkpoints:
                async with self._converter.folder(model.version, lambda _: None) as folder:
                    known = await asyncio.to_thread(_read, folder)
                if len(self._checkpoints) >= _NUM_REMEMBERED:
                    self._checkpoints.pop(next(iter(self._checkpoints)))
                self._checkpoints[key] = known
            return self._checkpoints[key]

    def _by_files(
        self, kind: ModelKind, checkpoint: Checkpoint, device: str, weight_type: WeightType
    ) -> MemoryEstimate:
        generates = kind is ModelKind.TEXT_GENERATION
        compute_type = _compute_type(kind, device, weight_type)
        return MemoryEstimate(
            device=device,
            weights_bytes=checkpoint.weights_bytes(weight_type),
            kv_bytes_per_token=checkpoint.kv_bytes_per_token(compute_type) if generates else 0,
            context_length=checkpoint.shape.context_length,
            workspace_bytes=checkpoint.workspace_bytes(compute_type, self._max_batch_tokens),
            process_bytes=_PROCESS_BYTES if device == CPU else _CARD_PROCESS_BYTES,
            host_bytes=0 if device == CPU else _CARD_HOST_BYTES,
            weight_type=weight_type if generates else "",
        )


def weight_types(
    kind: ModelKind, device: str, wanted: Quantization, *, can_quantize: bool
) -> Sequence[WeightType]:
    """The forms that a model may have on a device, the better first."""
    own = _own_type(kind, device)
    if kind is not ModelKind.TEXT_GENERATION:
        return (own,)
    match wanted:
        case Quantization.AUTO:
            return (own, "int8", "int4") if can_quantize else (own,)
        case Quantization.BF16:
            return ("bf16",)
        case Quantization.FP16:
            return ("fp16",)
        case Quantization.FP32:
            return ("fp32",)
        case Quantization.INT8:
            return ("int8",)
        case Quantization.INT4:
            return ("int4",)


def _read(folder: Path) -> tuple[Checkpoint, bool]:
    return read_checkpoint(folder), Architecture.parse(read_json(folder / "config.json")) is not None


def _by_record(model: ResolvedModel, device: str, weight_type: WeightType) -> MemoryEstimate:
    """Of GGUF that was not converted yet: what the registry knows."""
    num_bytes = {"fp32": 4.0, "int8": 1.0, "int4": 0.6}.get(weight_type, 2.0)
    weights_bytes = int(
        model.num_parameters * num_bytes or model.version.size_bytes * _GGUF_GROWTH * num_bytes / 2
    )
    return MemoryEstimate(
        device=device,
        weights_bytes=weights_bytes,
        kv_bytes_per_token=max(
            1, (model.num_parameters or model.version.size_bytes * 2) // _PARAMETERS_PER_KV_BYTE
        ),
        context_length=_USUAL_CONTEXT,
        workspace_bytes=256 * _MIB,
        process_bytes=_PROCESS_BYTES if device == CPU else _CARD_PROCESS_BYTES,
        host_bytes=0 if device == CPU else _CARD_HOST_BYTES,
        weight_type=weight_type if model.kind is ModelKind.TEXT_GENERATION else "",
    )


def _compute_type(kind: ModelKind, device: str, weight_type: WeightType) -> WeightType:
    """The floats that activations, keys and values are in."""
    return _own_type(kind, device) if weight_type in ("int8", "int4") else weight_type


def _own_type(kind: ModelKind, device: str) -> WeightType:
    """In which numbers a model computes there: as `checkpoint.place` decides, and embeddings in float32."""
    if kind is ModelKind.EMBEDDING:
        return "fp32"
    if device != CPU or {"avx512_bf16", "amx_bf16"} & set(cpu_features()):
        return "bf16"
    return "fp32"
