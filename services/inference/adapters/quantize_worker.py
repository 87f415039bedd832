"""A model in fewer bits, once. `main` runs in a child process of its own, whose memory is free again afterwards."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch

from services.inference.adapters.messages import LoadProgress, Quantized, QuantizeInit
from services.inference.adapters.placement import Placement, free_bytes, place, use_all_cores
from services.inference.adapters.runner.architecture import Architecture
from services.inference.adapters.runner.artifact import quantize_folder
from services.inference.adapters.runner.load import read_architecture
from services.inference.adapters.runner.model import Decoder
from services.inference.adapters.runner.ops import TorchOps
from services.inference.adapters.runner.perplexity import NUM_MEASURED_TOKENS, measured_text, perplexity
from services.inference.adapters.runner.quantize import Scheme
from services.inference.adapters.runner.weights import Checkpoint
from services.inference.adapters.tokenizer import load_tokenizer
from services.kit.errors import UnsupportedFormat
from services.kit.worker_port import WorkerPort

# The source is measured beside what was made of it only where it takes no more of what is free.
_MOST_OF_FREE: Final = 0.6

_SCHEMES: Final[dict[str, Scheme]] = {"int8": "int8", "int4": "int4", "nf4": "nf4"}


def main(init: QuantizeInit, port: WorkerPort[QuantizeInit, Quantized]) -> None:
    """Make it, measure it, be ready with it: the process ends with its one job."""
    use_all_cores()
    source, target, scheme = Path(init.source), Path(init.target), _SCHEMES[init.scheme]
    architecture = read_architecture(source)
    if architecture is None:
        raise UnsupportedFormat(
            f"{scheme} is offered for the families that Lares computes itself, and this is another:"
            " load it as bf16 or fp32"
        )
    quantize_folder(source, target, scheme, lambda share: port.progress(LoadProgress(share * 0.5)))
    text, digest = measured_text()
    token_ids = load_tokenizer(source).encode(text)[:NUM_MEASURED_TOKENS]
    placement = place(source, init.device)
    value = _measure(architecture, target, token_ids, placement)
    port.progress(LoadProgress(0.75))
    num_bytes = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    fits = num_bytes < free_bytes(placement.device) * _MOST_OF_FREE
    baseline = _measure(architecture, source, token_ids, placement) if fits else 0.0
    paths = tuple(sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()))
    port.ready(
        Quantized(
            producer=f"lares {scheme} torch {torch.__version__}",
            paths=paths,
            perplexity=value,
            baseline=baseline,
            text_digest=digest,
            num_tokens=len(token_ids),
        )
    )


def _measure(
    architecture: Architecture, folder: Path, token_ids: Sequence[int], placement: Placement
) -> float:
    device = torch.device(placement.device)
    checkpoint = Checkpoint(folder, placement.dtype, device)
    decoder = Decoder(architecture, checkpoint, TorchOps(), lambda share: None)
    return perplexity(decoder, token_ids, placement.dtype, device)
