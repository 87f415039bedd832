"""All that a training run is at a step, to disk and back without pickle. Runs in the worker.

What the optimizer and the random generator hold is tensors; the rest is a few numbers. The position in the
data is the step.
"""

from pathlib import Path
from typing import Any, Final

import msgspec
import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save

_ADAPTER: Final = "adapter_model.safetensors"
_OPTIMIZER: Final = "optimizer.safetensors"
_STATE: Final = "state.json"
_RNG: Final = "rng"


class RunState(msgspec.Struct, frozen=True):
    """The numbers of a run after `step` steps. dtype: of the base weights, which a resumed run keeps."""

    step: int
    num_tokens: int
    dtype: str
    validation_loss: float | None


def write_state(
    folder: Path, model: Any, optimizer: torch.optim.Optimizer, state: RunState, base_version: str
) -> None:
    """Write a checkpoint's files. The adapter is as peft and Inference read it."""
    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    # To bytes first: our own write raises OSError on a full disk, the library's an error of its own.
    adapter = save({name: weight.contiguous() for name, weight in weights.items()}, {"format": "pt"})
    (folder / _ADAPTER).write_bytes(adapter)
    config = model.peft_config["default"]
    config.base_model_name_or_path = base_version
    config.inference_mode = True
    config.save_pretrained(folder)
    config.inference_mode = False
    tensors = {_RNG: torch.get_rng_state()}
    for name, parameter in trainable(model):
        tensors |= {f"{key}/{name}": value for key, value in optimizer.state[parameter].items()}
    (folder / _OPTIMIZER).write_bytes(save(tensors))
    (folder / _STATE).write_bytes(msgspec.json.encode(state))


def read_numbers(folder: Path) -> RunState:
    """The numbers of a checkpoint."""
    return msgspec.json.decode((folder / _STATE).read_bytes(), type=RunState)


def restore_state(folder: Path, model: Any, optimizer: torch.optim.Optimizer) -> None:
    """Bring adapter, optimizer and random generator back to where `write_state` saw them."""
    set_peft_model_state_dict(model, load_file(folder / _ADAPTER))
    tensors = load_file(folder / _OPTIMIZER)
    torch.set_rng_state(tensors.pop(_RNG))
    parameters = dict(trainable(model))
    for path, value in tensors.items():
        key, _, name = path.partition("/")
        optimizer.state[parameters[name]][key] = value


def trainable(model: Any) -> list[tuple[str, torch.nn.Parameter]]:
    """The adapter's parameters by name."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]
