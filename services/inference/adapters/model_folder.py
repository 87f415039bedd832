"""What a model folder says about itself, read without any heavy library."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from services.inference.core.sampling import SamplingDefaults
from services.kit.errors import UnsupportedFormat

_PICKLES: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def check_folder(folder: Path) -> None:
    """Raises UnsupportedFormat unless the folder holds safetensors and a config."""
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        found = f"only {', '.join(pickles)}, pickles that can run code" if pickles else "no weights"
        raise UnsupportedFormat(f"the model has {found}; Lares loads safetensors and GGUF")
    if not (folder / "config.json").is_file():
        raise UnsupportedFormat("the model has no config.json, so its architecture is not known")


def end_token_ids(folder: Path) -> frozenset[int]:
    """The tokens that end a text, as config.json (its text part, too) and generation_config.json name them."""
    config = read_json(folder / "config.json")
    text_config = config.get("text_config")
    ends: set[int] = set()
    for source in (
        read_json(folder / "generation_config.json"),
        config,
        text_config if isinstance(text_config, dict) else {},
    ):
        named = source.get("eos_token_id")
        ends.update(each for each in (named if isinstance(named, list) else [named]) if isinstance(each, int))
    return frozenset(ends)


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
    found = _json(path)
    return found if isinstance(found, dict) else {}


def read_json_list(path: Path) -> Sequence[Any]:
    """A JSON list in a file; empty if there is no such file, or no list in it."""
    found = _json(path)
    return found if isinstance(found, list) else []


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def _number(found: Mapping[str, Any], key: str) -> float | None:
    value = found.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
