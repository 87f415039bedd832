"""GGUF to safetensors, once. `main` runs in a child process of its own, because it parses what strangers wrote."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import gguf
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from services.inference.adapters.checkpoint import quiet_libraries
from services.inference.adapters.messages import Converted, ConvertInit, LoadProgress
from services.inference.adapters.model_folder import read_json
from services.inference.adapters.placement import use_all_cores
from services.kit.errors import UnsupportedFormat
from services.kit.worker_port import WorkerPort


def main(init: ConvertInit, port: WorkerPort[ConvertInit, Converted]) -> None:
    """Convert, then be ready with what was made: the process ends with its one job."""
    port.progress(LoadProgress(0.2))
    target = Path(init.target)
    convert_gguf(Path(init.source), target, lambda share: port.progress(LoadProgress(share)))
    paths = tuple(sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()))
    port.ready(Converted(f"gguf-to-safetensors transformers {transformers.__version__}", paths))


def convert_gguf(source: Path, target: Path, on_progress: Callable[[float], None]) -> None:
    """Write the one GGUF file in `source` as safetensors to `target`, once a process. Raises UnsupportedFormat."""
    quiet_libraries()
    use_all_cores()
    file = _only_gguf(source)
    _parse_once()
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file, local_files_only=True)
        on_progress(0.5)
        model = AutoModelForCausalLM.from_pretrained(
            source,
            gguf_file=file,
            quantization_config=GgufConfig(gguf_file=file, dequantize=True),
            dtype=torch.bfloat16,
            local_files_only=True,
            trust_remote_code=False,
        )
    # NotImplementedError is gguf's word for a quantization that it cannot undo.
    except (ValueError, KeyError, NotImplementedError, OSError, IndexError) as error:
        raise UnsupportedFormat(f"{file} cannot be converted: {error}") from error
    on_progress(0.8)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    _keep_recommendation(source, target)


def _only_gguf(folder: Path) -> str:
    files = sorted(path.name for path in folder.glob("*.gguf"))
    if len(files) != 1:
        raise UnsupportedFormat(f"a GGUF model must be one file; this one has {len(files)}")
    return files[0]


def _keep_recommendation(source: Path, target: Path) -> None:
    """What stands beside the GGUF about sampling goes along: the file itself has no place for it."""
    name = "generation_config.json"
    merged = {**read_json(target / name), **read_json(source / name)}
    (target / name).write_text(json.dumps(merged, indent=2, sort_keys=True) + "\n", "utf-8")


def _parse_once() -> None:
    """Halve the time: transformers parses the file three times, and builds a table of names for every module."""
    # To mypy a class and a cached maker of it are two things; transformers only calls it.
    gguf.GGUFReader = functools.lru_cache(gguf.GGUFReader)  # type: ignore[misc, assignment]
    gguf.get_tensor_name_map = functools.lru_cache(gguf.get_tensor_name_map)
