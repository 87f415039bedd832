"""What a folder of files is: told by names, then by headers. It runs in a worker, for nothing in it is trusted."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from services.downloader.core.config_check import (
    check_config,
    check_embedding,
    configuration_findings,
)
from services.downloader.core.gguf_header import GgufHeader, read_gguf_header
from services.downloader.core.json_files import JsonFiles
from services.downloader.core.licenses import MAX_TEXT_BYTES, canonical, is_license, license_of_text
from services.downloader.core.models import (
    Capability,
    Facts,
    Finding,
    FindingKind,
    FindingSeverity,
    Format,
    Inspection,
    ModelKind,
)
from services.downloader.core.safetensors_header import read_safetensors_header
from services.downloader.core.selection import quantization_of
from services.kit.errors import UnsupportedFormat

# The longest known have 30,000.
_MAX_TEMPLATE_CHARS: Final = 256 * 1024
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


TemplateFault = Callable[[str], str]
"""What is wrong with a chat template; empty if nothing is."""


def inspect(files: Mapping[str, Path], template_fault: TemplateFault) -> Inspection:
    """What the files are. files: path in the model -> where it lies. Raises UnsupportedFormat."""
    ggufs = sorted(path for path in files if path.lower().endswith(".gguf"))
    headers = {path: read_gguf_header(files[path]) for path in ggufs}
    json_files = JsonFiles(files)
    facts = _gguf(headers) if headers else _facts(files, json_files)
    if not facts.license:
        facts = replace(facts, license=_license(files))
    findings = configuration_findings(json_files) if facts.format is Format.SAFETENSORS else []
    for path, template in _templates(files, json_files, headers):
        too_long = len(template) > _MAX_TEMPLATE_CHARS
        if fault := "it is too long for one" if too_long else template_fault(template):
            message = f"the chat template cannot be used: {fault}"
            findings.append(Finding.of(FindingKind.CHAT_TEMPLATE, FindingSeverity.WARNING, path, message))
    return Inspection(facts, tuple(findings))


def _license(files: Mapping[str, Path]) -> str:
    for path in sorted(filter(is_license, files)):
        with files[path].open("rb") as file:
            return license_of_text(file.read(MAX_TEXT_BYTES))
    return ""


def _templates(
    files: Mapping[str, Path], json_files: JsonFiles, headers: Mapping[str, GgufHeader]
) -> Iterator[tuple[str, str]]:
    """(file, template), of those by which a chat is written without being asked for another."""
    for path, header in headers.items():
        if template := header.text("tokenizer.chat_template"):
            yield path, template
    if "chat_template.jinja" in files:
        with files["chat_template.jinja"].open("rb") as file:
            yield "chat_template.jinja", file.read(_MAX_TEMPLATE_CHARS + 1).decode("utf-8", "replace")
    elif isinstance(named := json_files.table("tokenizer_config.json").get("chat_template"), str):
        yield "tokenizer_config.json", named


def _facts(files: Mapping[str, Path], json_files: JsonFiles) -> Facts:
    tensors = sorted(path for path in files if path.endswith(".safetensors"))
    if "am/final.mdl" in files and any(path.startswith("graph/") for path in files):
        return _vosk()
    if "model.bin" in files and any(path.startswith("vocabulary.") for path in files):
        return _whisper(files, json_files)
    if "adapter_config.json" in files:
        raise UnsupportedFormat("this is a LoRA adapter, which needs its base model; pull the model itself")
    if tensors and "config.json" in files:
        return _safetensors(files, json_files, tensors)
    raise UnsupportedFormat(
        "these files are no model that Lares loads: a GGUF file, safetensors with config.json, a Whisper model of"
        " CTranslate2 (model.bin, config.json, vocabulary, tokenizer.json) or a Vosk folder (am, conf, graph)"
    )


def _gguf(headers: Mapping[str, GgufHeader]) -> Facts:
    """headers: by path, the first part of a model that is split first."""
    path, first = next(iter(headers.items()))
    short = _shown(first.text("general.architecture"))
    if not short:
        raise UnsupportedFormat(f"{path} does not say its architecture, so it is no model")
    architecture = _GGUF_CLASSES.get(short, short)
    facts = Facts(
        kind=ModelKind.TEXT_GENERATION,
        format=Format.GGUF,
        architecture=architecture,
        num_parameters=sum(header.num_parameters for header in headers.values()),
        context_length=_context(first.number(f"{short}.context_length")),
        quantization=_gguf_quantization(first, path),
        license=canonical(_gguf_license(first)),
    )
    if f"{short}.pooling_type" in first.values or "Bert" in architecture:
        return replace(facts, kind=ModelKind.EMBEDDING, capabilities=(Capability.EMBEDDING,))
    has_template = bool(first.text("tokenizer.chat_template"))
    return replace(facts, capabilities=_of_generator(architecture, has_template=has_template))


def _gguf_license(header: GgufHeader) -> str:
    stated = header.text("general.license")
    return header.text("general.license.name") or stated if stated == "other" else stated


def _gguf_quantization(header: GgufHeader, name: str) -> str:
    number = header.number("general.file_type")
    return _GGUF_FILE_TYPES.get(-1 if number is None else number) or quantization_of(name)


def _safetensors(files: Mapping[str, Path], json_files: JsonFiles, tensors: list[str]) -> Facts:
    config = json_files.table("config.json")
    check_config(config)
    headers = [read_safetensors_header(files[path]) for path in tensors]
    check_embedding(config, next((each.embedding for each in headers if each.embedding), None))
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
        own_length = _context(json_files.table("sentence_bert_config.json").get("max_seq_length"))
        return replace(
            facts,
            kind=ModelKind.EMBEDDING,
            capabilities=(Capability.EMBEDDING,),
            context_length=own_length or facts.context_length,
        )
    if architecture.endswith(_GENERATORS):
        has_template = "chat_template.jinja" in files or bool(
            json_files.table("tokenizer_config.json").get("chat_template")
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


def _whisper(files: Mapping[str, Path], json_files: JsonFiles) -> Facts:
    with files["model.bin"].open("rb") as file:
        begin = file.read(64)
    # CTranslate2's own header: a version, then the length and the name of the model's specification.
    if b"WhisperSpec" not in begin:
        raise UnsupportedFormat(
            "model.bin is not a Whisper model of CTranslate2; nothing else of that name is loaded"
        )
    if "tokenizer.json" not in files:
        raise UnsupportedFormat("the Whisper model has no tokenizer.json beside it")
    ends = json_files.table("config.json").get("suppress_ids_begin")
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


def _shown(name: str) -> str:
    """A name that can be recorded and logged, whatever the file has there."""
    return "".join(char if char.isprintable() else "?" for char in name[:_MAX_NAME_CHARS])


def _context(value: object) -> int:
    return value if type(value) is int and 0 < value < _MAX_CONTEXT else 0
