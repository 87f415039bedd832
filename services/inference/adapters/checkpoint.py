"""A model folder to one of transformers' models: safetensors only, no code of the model's own, no pickles."""

import os
from pathlib import Path
from typing import Any, Final

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from services.inference.adapters.model_folder import check_folder
from services.inference.adapters.placement import Placement
from services.kit.errors import UnsupportedFormat

# For architectures without positions, such as state-space models, which have no bound of their own.
_UNBOUNDED_CONTEXT_LENGTH: Final = 8192


def load_model(auto_class: Any, folder: Path, placement: Placement, **options: Any) -> PreTrainedModel:
    """A model on its device, ready to compute. auto_class: one of transformers' AutoModel classes.

    options: for its from_pretrained, beside those that keep strangers' code out. Raises UnsupportedFormat.
    """
    check_folder(folder)
    try:
        model: PreTrainedModel = auto_class.from_pretrained(
            folder,
            dtype=placement.dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            **options,
        )
    except (ValueError, OSError, KeyError) as error:
        raise UnsupportedFormat(f"the model cannot be loaded: {error}") from error
    # transformers wraps `to` in a decorator that hides its signature from mypy.
    model.to(placement.device)  # type: ignore[arg-type]
    model.train(False)
    return model


def context_length_of(config: PreTrainedConfig) -> int:
    """Tokens that the model was made for."""
    text = config.get_text_config()
    for name in ("max_position_embeddings", "seq_length", "max_sequence_length"):
        if isinstance(length := getattr(text, name, None), int):
            return length
    return _UNBOUNDED_CONTEXT_LENGTH


def quiet_libraries() -> None:
    """Progress bars and advice of transformers are for notebooks; a worker's stderr is a log."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
