"""What a folder of files is: told by names, then by headers. It runs in a worker, for nothing in it is trusted."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from services.downloader.core.gguf_header import GgufHeader, read_gguf_header
from services.downloader.core.models import Capability, Facts, Format, ModelKind
from services.downloader.core.safetensors_header import read_safetensors_header
from services.downloader.core.selection import quantization_of
from services.kit.errors import UnsupportedFormat

# Parsed, it takes forty times as much memory at worst.
_MAX_JSON_BYTES: Final = 8 * 1024 * 1024
_MAX_NAME_CHARS: Final = 128
_MAX_CONTEXT: Final = 2**31

# GGUF names an architecture by a short word; transformers by a class.
_GGUF_CLASSES: Final = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "bert": "BertModel",
    "nomic-bert": "NomicBertModel",
}
# Of what `general.file_type` says, by llama.cpp's numbers (include/llama.h, enum llama_ftype).
_GGUF_FILE_TYPES: Final = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 32: "BF16",
}  # fmt: skip
# Families on whose linear layers peft knows where to put LoRA.
_ADAPTABLE: Final = ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Phi3")
_GENERATORS: Final = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
_RERANKERS: Final = "ForSequenceClassification"
_ENCODERS: Final = ("BertModel", "XLMRobertaModel", "RobertaModel", "MPNetModel", "DistilBertModel")
# Whisper's end of text in its multilingual vocabulary; the English one has 50256.
_MULTILINGUAL_END: Final = 50257


def inspect(files: Mapping[str, Path]) -> Facts:
    """What the files are. files: path in the model -> where it lies. Raises UnsupportedFormat."""
    ggufs = sorted(path for path in files if path.lower().endswith(".gguf"))
    tensors = sorted(path for path in files if path.endswith(".safetensors"))
    if ggufs:
        return _gguf(files, ggufs)
    if "am/final.mdl" in files and any(path.startswith("graph/") for path in files):
        return _vosk()
    if "model.bin" in files and any(path.startswith("vocabulary.") for path in files):
        return _whisper(files)
    if "adapter_config.json" in files:
        raise UnsupportedFormat("this is a LoRA adapter, which needs its base model; pull the model itself")
    if tensors and "config.json" in files:
        return _safetensors(files, tensors)
    raise UnsupportedFormat(
        "these files are no model that Lares loads: a GGUF file, safetensors with config.json, a Whisper model of"
        " CTranslate2 (model.bin, config.json, vocabulary, tokenizer.json) or a Vosk folder (am, conf, graph)"
    )


def _gguf(files: Mapping[str, Path], ggufs: list[str]) -> Facts:
    headers = [read_gguf_header(files[path]) for path in ggufs]
    first = headers[0]
    short = _shown(first.text("general.architecture"))
    if not short:
        raise UnsupportedFormat(f"{ggufs[0]} does not say its architecture, so it is no model")
    architecture = _GGUF_CLASSES.get(short, short)
    facts = Facts(
        kind=ModelKind.TEXT_GENERATION,
        format=Format.GGUF,
        architecture=architecture,
        num_parameters=sum(header.num_parameters for header in headers),
        context_length=_context(first.number(f"{short}.context_length")),
        quantization=_gguf_quantization(first, ggufs[0]),
    )
    if f"{short}.pooling_type" in first.values or "Bert" in architecture:
        return replace(facts, kind=ModelKind.EMBEDDING, capabilities=(Capability.EMBEDDING,))
    has_template = bool(first.text("tokenizer.chat_template"))
    return replace(facts, capabilities=_of_generator(architecture, has_template=has_template))


def _gguf_quantization(header: GgufHeader, name: str) -> str:
    number = header.number("general.file_type")
    return _GGUF_FILE_TYPES.get(-1 if number is None else number) or quantization_of(name)


def _safetensors(files: Mapping[str, Path], tensors: list[str]) -> Facts:
    config = _json(files, "config.json")
    headers = [read_safetensors_header(files[path]) for path in tensors]
    names = config.get("architectures")
    architecture = _shown(str(names[0])) if isinstance(names, list) and names else ""
    facts = Facts(
        kind=ModelKind.UNSPECIFIED,
        format=Format.SAFETENSORS,
        architecture=architecture,
        num_parameters=sum(header.num_parameters for header in headers),
        context_length=_context(config.get("max_position_embeddings")),
        quantization=headers[0].dtype.lower(),
    )
    if architecture.endswith(_RERANKERS):
        if (num_labels := _num_labels(config)) != 1:
            raise UnsupportedFormat(f"the model tells {num_labels} labels apart; a reranker has one")
        return replace(facts, kind=ModelKind.RERANKING, capabilities=(Capability.RERANKING,))
    if "modules.json" in files or architecture.endswith(_ENCODERS):
        own_length = _context(_json(files, "sentence_bert_config.json").get("max_seq_length"))
        return replace(
            facts,
            kind=ModelKind.EMBEDDING,
            capabilities=(Capability.EMBEDDING,),
            context_length=own_length or facts.context_length,
        )
    if architecture.endswith(_GENERATORS):
        has_template = "chat_template.jinja" in files or bool(
            _json(files, "tokenizer_config.json").get("chat_template")
        )
        capabilities = _of_generator(architecture, has_template=has_template)
        return replace(facts, kind=ModelKind.TEXT_GENERATION, capabilities=capabilities)
    raise UnsupportedFormat(
        f"config.json names the architecture {architecture!a}; Lares runs text generators, sentence embedders and"
        " rerankers"
    )


def _num_labels(config: Mapping[str, Any]) -> int:
    """Of a classifier, as transformers counts them; two where its config does not say."""
    labels, number = config.get("id2label"), config.get("num_labels")
    return len(labels) if isinstance(labels, dict) else number if type(number) is int else 2


def _of_generator(architecture: str, *, has_template: bool) -> tuple[Capability, ...]:
    capabilities = [Capability.CHAT] if has_template else []
    capabilities.append(Capability.COMPLETION)
    if architecture.startswith(_ADAPTABLE):
        capabilities.append(Capability.ADAPTERS)
    return tuple(capabilities)


def _vosk() -> Facts:
    return Facts(
        kind=ModelKind.SPEECH_TO_TEXT,
        format=Format.VOSK,
        capabilities=(Capability.TRANSCRIPTION, Capability.STREAMING_RECOGNITION),
        architecture="Kaldi",
    )


def _whisper(files: Mapping[str, Path]) -> Facts:
    with files["model.bin"].open("rb") as file:
        begin = file.read(64)
    # CTranslate2's own header: a version, then the length and the name of the model's specification.
    if b"WhisperSpec" not in begin:
        raise UnsupportedFormat(
            "model.bin is not a Whisper model of CTranslate2; nothing else of that name is loaded"
        )
    if "tokenizer.json" not in files:
        raise UnsupportedFormat("the Whisper model has no tokenizer.json beside it")
    ends = _json(files, "config.json").get("suppress_ids_begin")
    is_multilingual = isinstance(ends, list) and _MULTILINGUAL_END in ends
    capabilities = [Capability.TRANSCRIPTION]
    if is_multilingual:
        capabilities.append(Capability.SPEECH_TRANSLATION)
    return Facts(
        kind=ModelKind.SPEECH_TO_TEXT,
        format=Format.CTRANSLATE2,
        capabilities=tuple(capabilities),
        architecture="WhisperForConditionalGeneration",
    )


def _json(files: Mapping[str, Path], name: str) -> dict[str, Any]:
    """A table in a JSON file; empty if there is no such file."""
    path = files.get(name)
    if path is None:
        return {}
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise UnsupportedFormat(f"{name} is too long to be configuration")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UnsupportedFormat(f"{name} is no JSON that can be read") from error
    if not isinstance(value, dict):
        raise UnsupportedFormat(f"{name} is no table of settings")
    return value


def _shown(name: str) -> str:
    """A name that can be recorded and logged, whatever the file has there."""
    return "".join(char if char.isprintable() else "?" for char in name[:_MAX_NAME_CHARS])


def _context(value: object) -> int:
    return value if type(value) is int and 0 < value < _MAX_CONTEXT else 0
