"""The engine on a CUDA card, without a server: correct, fast, and how near to what the card can do. One Markdown table.

    make bench-gpu                          a Llama of SmolLM2-135M's shape and random weights
    make bench-gpu ARGS="--folder DIR"      a folder of safetensors

Exits with 2 where torch finds no card. It was written where there was none: its table has not been seen yet.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import transformers

from services.inference.adapters.messages import EngineInit
from services.inference.adapters.placement import Placement
from services.inference.adapters.runner.kv_pool import BLOCK_SIZE
from services.inference.adapters.runner.load import load_runner, read_architecture
from services.inference.core.engine import Chunk, Engine, EngineSequence
from services.inference.core.sampling import Sampling

_CARD: Final = "cuda:0"
_SIZES: Final = (1, 16, 64, 256)
_PROMPT_TOKENS: Final = 128
_ANSWER_TOKENS: Final = 128
_BLOCKS_A_SEQUENCE: Final = -(-(_PROMPT_TOKENS + _ANSWER_TOKENS) // BLOCK_SIZE)
_COPIED_BYTES: Final = 2**30

_TINY: Final = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.25,
}
_SMOLLM2: Final = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "initializer_range": 0.04,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}


@dataclass(frozen=True, slots=True)
class Measured:
    """One row of the table. bandwidth_share: of what a copy reaches, by weights, keys and values alone."""

    num_sequences: int
    way: str
    tokens_per_s: float
    bandwidth_share: float | None
    of_transformers: float | None


def main() -> int:
    """Returns the exit status: 1 if the card's tokens are wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, help="safetensors, config.json (default: random weights)")
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        print("torch finds no CUDA card here; nothing was measured", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        tiny = saved_llama(Path(scratch) / "tiny", _TINY)
        is_right = same_tokens(tiny, _CARD)
        print(f"Tiny model in float32, card and CPU: {'same tokens' if is_right else 'OTHER TOKENS'}\n")
        folder = asked.folder or saved_llama(Path(scratch) / "smollm2", _SMOLLM2)
        print(f"{torch.cuda.get_device_name(0)}, torch {torch.__version__}, {folder.name}, bfloat16\n")
        print(agreement(folder, _CARD))
        print(table(list(measure(folder, _CARD, _SIZES, copy_bandwidth(_CARD)))))
    return 0 if is_right else 1


def saved_llama(folder: Path, values: dict[str, Any]) -> Path:
    """A Llama of random weights, the same each time, in a new folder."""
    torch.manual_seed(7)
    config = transformers.LlamaConfig(**values)
    model = transformers.LlamaForCausalLM(config).to(getattr(torch, values.get("dtype", "float32")))
    model.save_pretrained(folder)
    return folder


def engine(folder: Path, device: str, dtype: torch.dtype, *, cuda_graphs: bool, num_sequences: int) -> Engine:
    """The runner, with blocks for so many sequences. Raises ValueError for a family that it does not know."""
    init = EngineInit(
        str(folder),
        device,
        max_sequences=num_sequences,
        kv_bytes=num_sequences * _BLOCKS_A_SEQUENCE * _block_bytes(folder, dtype),
        cuda_graphs=cuda_graphs,
    )
    found = load_runner(init, folder, Placement(device, dtype), frozenset())
    if found is None:
        raise ValueError(f"{folder} is of a family that the runner does not know")
    return found


def generate(
    runner: Engine, prompts: Sequence[Sequence[int]], num_tokens: int
) -> tuple[list[list[int]], float]:
    """Greedy answers, and the median seconds of a step that gives every sequence one token.

    Prompts and num_tokens as long as there are blocks for.
    """
    sequences = [EngineSequence(index, prompt, Sampling(0, 0.0)) for index, prompt in enumerate(prompts)]
    for index, each in enumerate(sequences):
        first = index * _BLOCKS_A_SEQUENCE
        each.blocks = list(range(first, first + _BLOCKS_A_SEQUENCE))
    steps: list[float] = []
    for _ in range(num_tokens):
        began = time.perf_counter()
        chunks = [Chunk(each, each.num_tokens - each.num_computed) for each in sequences]
        for chunk, result in zip(chunks, runner.step(chunks), strict=True):
            assert result.picked is not None  # Each chunk goes up to the last token.
            chunk.sequence.num_computed += chunk.num_tokens
            chunk.sequence.output.append(result.picked.token_id)
        steps.append(time.perf_counter() - began)
    # The first is the prompt's; the next ones record.
    return [each.output for each in sequences], statistics.median(steps[num_tokens // 2 :])


def same_tokens(folder: Path, device: str) -> bool:
    """Whether a device, with and without recorded steps, picks what the CPU picks in float32."""
    prompts = prompts_for(5, vocab_size=512)
    on_cpu = engine(folder, "cpu", torch.float32, cuda_graphs=False, num_sequences=5)
    wanted, _ = generate(on_cpu, prompts, 64)
    return all(
        generate(
            engine(folder, device, torch.float32, cuda_graphs=cuda_graphs, num_sequences=5), prompts, 64
        )[0]
        == wanted
        for cuda_graphs in (False, True)
    )


def agreement(folder: Path, device: str) -> str:
    """How far greedy answers agree with transformers in bfloat16, where equal logits are common."""
    runner = engine(folder, device, torch.bfloat16, cuda_graphs=True, num_sequences=8)
    prompts = prompts_for(8, runner.facts.vocab_size)
    ours, _ = generate(runner, prompts, 64)
    peer = Peer(folder, device)
    theirs = [peer.answers([prompt], 64)[0] for prompt in prompts]
    num_same = sum(
        mine == other
        for ours_of, theirs_of in zip(ours, theirs, strict=True)
        for mine, other in zip(ours_of, theirs_of, strict=True)
    )
    return f"Greedy in bfloat16 beside transformers: {num_same} of {8 * 64} tokens the same\n"


def measure(folder: Path, device: str, sizes: Sequence[int], copied_per_s: float) -> Iterator[Measured]:
    """Each number of sequences, recorded steps on and off, beside transformers' generate.

    copied_per_s: as `copy_bandwidth` tells.
    """
    peer = Peer(folder, device)
    for num_sequences in sizes:
        prompts: list[list[int]] = []
        theirs = 0.0
        for cuda_graphs in (True, False):
            torch.cuda.empty_cache()
            runner = engine(
                folder, device, torch.bfloat16, cuda_graphs=cuda_graphs, num_sequences=num_sequences
            )
            if not prompts:
                prompts = prompts_for(num_sequences, runner.facts.vocab_size)
                theirs = num_sequences / peer.step_s(prompts, _ANSWER_TOKENS)
            _, step_s = generate(runner, prompts, _ANSWER_TOKENS)
            ours = num_sequences / step_s
            # The median step of the second half: three quarters of the answers are there.
            context = _PROMPT_TOKENS + _ANSWER_TOKENS * 3 // 4
            kv_bytes = (
                num_sequences * context * _block_bytes(folder, torch.bfloat16) // runner.facts.block_size
            )
            share = (runner.facts.weights_bytes + kv_bytes) / step_s / copied_per_s
            yield Measured(
                num_sequences, f"graphs {'on' if cuda_graphs else 'off'}", ours, share, ours / theirs
            )
        yield Measured(num_sequences, "transformers", theirs, None, None)


def copy_bandwidth(device: str) -> float:
    """Bytes a second, read and written, of a copy within the card."""
    source = torch.empty(_COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times: list[float] = []
    for _ in range(10):
        torch.cuda.synchronize()
        began = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return 2 * _COPIED_BYTES / min(times)


def table(rows: Sequence[Measured]) -> str:
    """Markdown."""
    lines = [
        "| sequences | way | tok/s | of the bandwidth | x transformers |",
        "|---:|---|---:|---:|---:|",
    ]
    for row in rows:
        share = "" if row.bandwidth_share is None else f"{row.bandwidth_share:.0%}"
        ratio = "" if row.of_transformers is None else f"{row.of_transformers:.1f}"
        lines.append(f"| {row.num_sequences} | {row.way} | {row.tokens_per_s:,.0f} | {share} | {ratio} |")
    return "\n".join(lines)


def prompts_for(num_sequences: int, vocab_size: int) -> list[list[int]]:
    """Random tokens, the same each time."""
    rng = random.Random(num_sequences)
    return [[rng.randrange(3, vocab_size) for _ in range(_PROMPT_TOKENS)] for _ in range(num_sequences)]


class Peer:
    """transformers' own module and `generate`, on the same card."""

    def __init__(self, folder: Path, device: str) -> None:
        # What it is typed as has no `generate`.
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        # transformers wraps `to` in a decorator that hides its signature from mypy.
        self._model.to(device).train(False)  # type: ignore[arg-type]

    def answers(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[list[int]]:
        """Greedy, of equally long prompts."""
        tokens = torch.tensor(prompts, device=self._model.device)  # (sequences, tokens)
        found = self._model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            min_new_tokens=num_tokens,
            max_new_tokens=num_tokens,
            pad_token_id=0,
        )
        answers: list[list[int]] = found[:, tokens.shape[1] :].tolist()
        return answers

    def step_s(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> float:
        """Seconds of a step that gives every prompt one token, the first left out."""
        self.answers(prompts, 2)
        took: list[float] = []
        for count in (1, num_tokens):
            began = time.perf_counter()
            self.answers(prompts, count)
            took.append(time.perf_counter() - began)
        return (took[1] - took[0]) / (num_tokens - 1)


def _block_bytes(folder: Path, dtype: torch.dtype) -> int:
    architecture = read_architecture(folder)
    return 0 if architecture is None else architecture.kv_bytes_per_token * dtype.itemsize * BLOCK_SIZE


if __name__ == "__main__":
    sys.exit(main())
