"""A model folder to a model in memory: safetensors only, no code of the model's own, no pickles."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from services.inference.adapters.estimate import check_folder as check_folder  # Workers ask it here.
from services.inference.adapters.hardware import cpu_features, num_usable_cpus, probe_memory
from services.inference.core.engine import EngineFacts
from services.inference.core.sampling import SamplingDefaults
from services.kit.errors import UnsupportedFormat

# Beyond the weights, a card needs room for the KV cache and activations.
_CUDA_HEADROOM: Final = 1.3


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model computes and in which numbers."""

    device: str
    dtype: torch.dtype


def place(folder: Path, device: str) -> Placement:
    """Choose device and dtype. device: `auto`, `cpu`, `cuda`, `cuda:1`. Auto passes over a card that is too small."""
    num_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if device != "cpu" and torch.cuda.is_available():
        fits = num_bytes * _CUDA_HEADROOM < free_bytes("cuda:0")
        if device != "auto" or fits:
            return Placement(device if ":" in device else "cuda:0", torch.bfloat16)
    # Without these instructions bfloat16 is emulated, and slower than float32.
    has_bf16 = {"avx512_bf16", "amx_bf16"} & set(cpu_features())
    return Placement("cpu", torch.bfloat16 if has_bf16 else torch.float32)


def free_bytes(device: str) -> int:
    """Memory of a device, `cpu` or `cuda:0`, that nobody has taken."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    return probe_memory().available_bytes


def card_bytes(device: str) -> int:
    """What torch has taken of a graphics card in this process; 0 on the CPU."""
    return int(torch.cuda.memory_reserved(device)) if device.startswith("cuda") else 0


def use_all_cores() -> None:
    """One thread a core that this process may use."""
    torch.set_num_threads(num_usable_cpus())


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer with its chat template."""
    # A folder with tokenizer.json needs none of the per-model classes: they would only rebuild the same
    # object, slower.
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if (folder / "tokenizer.json").is_file() and not _special_class(folder):
        tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(
            folder, local_files_only=True
        )
        return tokenizer
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, OSError, ImportError) as error:
        raise UnsupportedFormat(f"the model's tokenizer cannot be read: {error}") from error
    return tokenizer


def _special_class(folder: Path) -> bool:
    """Whether the tokenizer asks for a class that does more than tokenizer.json says."""
    name = str(read_json(folder / "tokenizer_config.json").get("tokenizer_class", ""))
    return name not in {
        "",
        "TokenizersBackend",
        "PreTrainedTokenizerFast",
        "GPT2TokenizerFast",
        "GPT2Tokenizer",
    }


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
    tokenizer: PreTrainedTokenizerBase,
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
    ends: set[int] = set()
    for source in (read_json(folder / "generation_config.json").get("eos_token_id"), text.eos_token_id):
        ends.update(source if isinstance(source, list) else [source] if isinstance(source, int) else [])
    if isinstance(tokenizer.eos_token_id, int):
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


def sampling_defaults(folder: Path) -> SamplingDefaults:
    """What generation_config.json says about sampling. A value that is no number counts as not there."""
    found = read_json(folder / "generation_config.json")
    return SamplingDefaults(
        temperature=_number(found, "temperature"),
        top_p=_number(found, "top_p"),
        top_k=int(top_k) if (top_k := _number(found, "top_k")) is not None else None,
        repetition_penalty=_number(found, "repetition_penalty"),
    )


def read_json(path: Path) -> Mapping[str, Any]:
    """A JSON object in a file; empty if there is no such file, or no object in it."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def quiet_libraries() -> None:
    """Progress bars and advice of transformers are for notebooks; a worker's stderr is a log."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _number(found: Mapping[str, Any], key: str) -> float | None:
    value = found.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
