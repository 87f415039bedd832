"""A base model with a fresh LoRA adapter on it. Runs in the worker."""

import inspect
from pathlib import Path
from typing import Any, Final

import psutil
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from services.kit.errors import InsufficientMemory, InvalidArgument, UnsupportedFormat
from services.trainer.adapters.lora_data import IGNORED, MicroBatch
from services.trainer.core.model import JobSpec

# Weights, and about half as much again for activations and logits of a micro-batch.
_OVERHEAD: Final = 1.5
_BYTES: Final = {"float32": 4, "bfloat16": 2}


def choose_dtype(folder: Path) -> str:
    """float32, which trains steadily on a CPU, unless only bfloat16 fits. Raises InsufficientMemory if
    neither does.
    """
    num_parameters = _count_parameters(folder)
    available = psutil.virtual_memory().available
    for dtype, size in _BYTES.items():
        if num_parameters * size * _OVERHEAD <= available:
            return dtype
    needs = int(num_parameters * _BYTES["bfloat16"] * _OVERHEAD)
    raise InsufficientMemory(
        f"training needs about {needs // 2**20} MiB, {available // 2**20} MiB are free; unload "
        f"models, then try again"
    )


def _count_parameters(folder: Path) -> int:
    total = 0
    files = list(folder.glob("*.safetensors"))
    if not files:
        raise UnsupportedFormat("the base model has no safetensors weights to train on")
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no mapping, it only has keys()
                size = 1
                for length in tensors.get_slice(name).get_shape():
                    size *= length
                total += size
    return total


class LoraModel:
    """The model as the training loop sees it: a loss to go back from, and parameters to step."""

    def __init__(self, folder: Path, spec: JobSpec, dtype: str) -> None:
        """Load the base weights and lay a new adapter on them, drawn from the seed. Raises
        InvalidArgument, UnsupportedFormat.
        """
        torch.manual_seed(spec.hyperparameters.seed)
        try:
            base = AutoModelForCausalLM.from_pretrained(
                folder, dtype=getattr(torch, dtype), local_files_only=True, use_safetensors=True
            )
        except (ValueError, KeyError) as error:
            raise UnsupportedFormat(f"the base model cannot be loaded for training: {error}") from error
        base.config.use_cache = False
        self._keeps_some_logits = "logits_to_keep" in inspect.signature(base.forward).parameters
        try:
            self.peft = get_peft_model(base, _lora_config(spec))
        except ValueError as error:
            raise InvalidArgument.at("job.lora.target_modules", str(error).splitlines()[0]) from error
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def loss_sum(self, batch: MicroBatch) -> torch.Tensor:
        """Sum over the learned tokens of their negative log likelihood in nats. Returns a scalar float32."""
        labels = batch.labels[:, 1:]
        # Logits of a large vocabulary fill memory: take them only where some example has a token to learn.
        positions = (labels != IGNORED).any(dim=0).nonzero().flatten()
        inputs: dict[str, Any] = {"input_ids": batch.token_ids, "attention_mask": batch.attention_mask}
        if self._keeps_some_logits:
            logits = self.peft(**inputs, logits_to_keep=positions).logits
        else:
            logits = self.peft(**inputs).logits[:, positions]
        return torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1),
            labels[:, positions].flatten(),
            ignore_index=IGNORED,
            reduction="sum",
        )


def _lora_config(spec: JobSpec) -> LoraConfig:
    lora = spec.lora
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # Said to be int; any number scales.
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules) or "all-linear",
        task_type="CAUSAL_LM",
    )
