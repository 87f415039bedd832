"""A model folder to a model in memory: safetensors only, no code of the model's own, no pickles."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from services.inference.adapters.hardware import cpu_features, num_usable_cpus, probe_memory
from services.inference.adapters.model_folder import check_folder, end_token_ids
from services.inference.adapters.tokenizer import Tokenizer
from services.inference.core.engine import EngineFacts
from services.kit.errors import UnsupportedFormat

# Beyond the weights, a card needs room for the KV cache and activations.
_CUDA_HEADROOM: Final = 1.3


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model computes and in which numbers."""

    device: str
    dtype: torch.dtype


def place(folder: Path, device: str) -> Placement:
    """Choose device and dtype. device: `auto`, `cpu`, `cuda`. A card that is too small is passed over."""
    num_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if device != "cpu" and torch.cuda.is_available():
        fits = num_bytes * _CUDA_HEADROOM < free_bytes("cuda:0")
        if device == "cuda" or fits:
            return Placement("cuda:0", torch.bfloat16)
    # Without these instructions bfloat16 is emulated, and slower than float32.
    has_bf16 = {"avx512_bf16", "amx_bf16"} & set(cpu_features())
    return Placement("cpu", torch.bfloat16 if has_bf16 else torch.float32)


def free_bytes(device: str) -> int:
    """Memory of a device, `cpu` or `cuda:0`, that nobody has taken."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    return probe_memory().available_bytes


def use_all_cores() -> None:
    """One thread a core that this process may use."""
    torch.set_num_threads(num_usable_cpus())


def load_causal_model(folder: Path, placement: Placement) -> PreTrainedModel:
    """The model, ready to generate. Raises UnsupportedFormat for what is no causal language model."""
    from transformers import AutoModelForCausalLM

    check_folder(folder)
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=placement.dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    except (ValueError, OSError, KeyError) as error:
        raise UnsupportedFormat(f"the model cannot be loaded: {error}") from error
    # transformers wraps `to` in a decorator that hides its signature from mypy.
    model.to(placement.device)  # type: ignore[arg-type]
    model.train(False)
    return model


def facts_of(
    config: PreTrainedConfig,
    tokenizer: Tokenizer,
    folder: Path,
    placement: Placement,
    *,
    block_size: int,
    num_blocks: int,
    shares_blocks: bool,
    weights_bytes: int = 0,
    kv_bytes: int = 0,
    note: str = "",
) -> EngineFacts:
    """What the step loop needs to know. The ends of text are all those that any of the model's files name."""
    text = config.get_text_config()
    ends = set(end_token_ids(folder))
    if tokenizer.eos_token_id is not None:
        ends.add(tokenizer.eos_token_id)
    return EngineFacts(
        context_length=int(text.max_position_embeddings),
        vocab_size=int(text.vocab_size),
        eos_token_ids=frozenset(ends),
        device=placement.device,
        dtype=str(placement.dtype).removeprefix("torch."),
        block_size=block_size,
        num_blocks=num_blocks,
        shares_blocks=shares_blocks,
        weights_bytes=weights_bytes,
        kv_bytes=kv_bytes,
        note=note,
    )


def quiet_libraries() -> None:
    """Progress bars and advice of transformers are for notebooks; a worker's stderr is a log."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
