"""What fewer bits cost and bring: perplexity on a text, memory, and the time of a step, for each form of a model.

    python -m bench.quantization FOLDER TEXT [--tokens 8192]

FOLDER holds safetensors, config and tokenizer. Forms take turns, so that a busy machine slows all alike; times are the
best of several.
"""

import argparse
import time
from pathlib import Path
from typing import Final

import torch

from services.inference.adapters.placement import place, use_all_cores
from services.inference.adapters.runner.batch import Batcher
from services.inference.adapters.runner.kv_pool import BLOCK_SIZE, KvPool
from services.inference.adapters.runner.load import quantization_scheme, read_architecture
from services.inference.adapters.runner.model import Decoder
from services.inference.adapters.runner.ops import TorchOps
from services.inference.adapters.runner.perplexity import perplexity
from services.inference.adapters.runner.weights import Checkpoint
from services.inference.adapters.tokenizer import load_tokenizer
from services.inference.core.engine import Chunk, EngineSequence
from services.inference.core.sampling import Sampling

# (sequences, tokens of each): decoding, and a prompt.
SHAPES: Final = ((1, 1), (4, 1), (16, 1), (32, 1), (1, 512))
REPEATS: Final = 8


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--tokens", type=int, default=8192)
    arguments = parser.parse_args()
    use_all_cores()
    architecture = read_architecture(arguments.folder)
    if architecture is None:
        parser.error("the model is of a family that is not quantized")
    placement = place(arguments.folder, "cpu")
    device, dtype = torch.device(placement.device), placement.dtype
    token_ids = load_tokenizer(arguments.folder).encode(arguments.text.read_text("utf-8"))[: arguments.tokens]
    decoders = {}
    for form in ("floats", "int8", "int4"):
        checkpoint = Checkpoint(arguments.folder, dtype, device, quantization_scheme(form, device))
        decoders[form] = Decoder(architecture, checkpoint, TorchOps(), lambda share: None)
    num_blocks = max(num_sequences * (-(-num_tokens // BLOCK_SIZE)) for num_sequences, num_tokens in SHAPES)
    pool = KvPool.allocate(architecture, num_blocks, dtype, device)
    batcher = Batcher(architecture, pool, dtype, device)
    best = {(form, shape): float("inf") for form in decoders for shape in SHAPES}
    for shape in SHAPES:
        chunks = _chunks(*shape)
        for _ in range(REPEATS):
            for form, decoder in decoders.items():
                best[form, shape] = min(best[form, shape], _step_s(decoder, batcher, pool, chunks))
    measured = {form: perplexity(decoder, token_ids, dtype, device) for form, decoder in decoders.items()}
    print("| form | perplexity | MB | " + " | ".join(f"{n} x {t} ms" for n, t in SHAPES) + " |")
    print("|---" * (3 + len(SHAPES)) + "|")
    for form, decoder in decoders.items():
        name = str(dtype).removeprefix("torch.") if form == "floats" else form
        rise = measured[form] / measured["floats"] - 1
        times = " | ".join(f"{best[form, shape] * 1e3:.1f}" for shape in SHAPES)
        print(f"| {name} | {measured[form]:.3f} ({rise:+.2%}) | {decoder.num_bytes / 1e6:.0f} | {times} |")


def _chunks(num_sequences: int, num_tokens: int) -> list[Chunk]:
    num_blocks = -(-num_tokens // BLOCK_SIZE)
    chunks = []
    for index in range(num_sequences):
        sequence = EngineSequence(index, [7] * num_tokens, Sampling(seed=0, temperature=0.0))
        sequence.blocks = list(range(index * num_blocks, (index + 1) * num_blocks))
        chunks.append(Chunk(sequence, num_tokens))
    return chunks


@torch.inference_mode()
def _step_s(decoder: Decoder, batcher: Batcher, pool: KvPool, chunks: list[Chunk]) -> float:
    """Seconds of a step, up to the logits of a row of each sequence."""
    began_s = time.perf_counter()
    hidden = decoder.hidden(batcher.make(chunks), pool)
    decoder.logits(hidden[: len(chunks)])
    return time.perf_counter() - began_s


if __name__ == "__main__":
    main()
