"""A model folder in fewer bits: made once, read by `weights.py` as it is, on any machine.

Each matrix of a layer becomes tensors beside each other; all else is copied. Layouts, with (out, in) as in the source:

    int8    NAME (out, in) int8          NAME_scale (out,) float32
    int4    NAME (out, in / 2) uint8     NAME_scale, NAME_offset (out, in / 32) bfloat16
    nf4     NAME (out, in / 2) uint8     NAME_absmax (out, in / 64) float32

What the numbers mean is said in `quantize.py`. config.json says so under `quantization_config`, as others do.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file
from torch import Tensor

from services.inference.adapters.model_folder import read_json
from services.inference.adapters.runner.quantize import (
    Int4Matrix,
    Int8Matrix,
    Matrix,
    Nf4Matrix,
    Scheme,
    quantize,
)
from services.inference.adapters.runner.weights import Checkpoint

METHOD: Final = "lares"

_CPU: Final = torch.device("cpu")


def quantize_folder(source: Path, target: Path, scheme: Scheme, on_progress: Callable[[float], None]) -> None:
    """Write the model in `source` to `target`, an empty folder. Raises UnsupportedFormat."""
    checkpoint = Checkpoint(source, torch.bfloat16, _CPU)
    tensors: dict[str, Tensor] = {}
    names = sorted(checkpoint.names)
    for index, name in enumerate(names):
        weight = checkpoint.get(name, checkpoint.shape(name))
        tensors |= _tensors(name, quantize(weight, scheme) if is_quantized(name, weight) else weight)
        on_progress((index + 1) / len(names))
    for path in sorted(source.iterdir()):
        if path.is_file() and ".safetensors" not in path.name:
            shutil.copyfile(path, target / path.name)
    config = {
        **read_json(source / "config.json"),
        "quantization_config": {"quant_method": METHOD, "scheme": scheme},
    }
    (target / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})


def is_quantized(name: str, weight: Tensor) -> bool:
    """Whether a tensor takes part: the matrices of layers do, embedding and head do not."""
    return weight.dim() == 2 and ".layers." in name and name.endswith("_proj.weight")


def _tensors(name: str, matrix: Matrix) -> dict[str, Tensor]:
    match matrix:
        case Tensor():
            return {name: matrix.contiguous()}
        case Int8Matrix(values, scales):
            return {name: values, f"{name}_scale": scales}
        case Int4Matrix(values, scales, offsets):
            return {name: values, f"{name}_scale": scales, f"{name}_offset": offsets}
        case Nf4Matrix(values, scales):
            return {name: values, f"{name}_absmax": scales}
