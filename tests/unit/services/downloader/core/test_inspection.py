import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from services.downloader.core.inspection import TemplateFault, inspect
from services.downloader.core.models import (
    Capability,
    Facts,
    FindingKind,
    Format,
    Inspection,
    ModelKind,
)
from services.kit.errors import UnsupportedFormat
from tests.unit.services.downloader.core.test_headers import TENSOR, safetensors_bytes
from tests.unit.services.downloader.wheels import gguf_bytes

WEIGHTS = safetensors_bytes({"w": TENSOR})
WHISPER = b"\x06\x00\x00\x00\x0c\x00WhisperSpec\x00" + bytes(40)


def facts_of(folder: Path, files: Mapping[str, object]) -> Facts:
    return inspection_of(folder, files).facts


def inspection_of(
    folder: Path, files: Mapping[str, object], template_fault: TemplateFault = lambda template: ""
) -> Inspection:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return inspect({name: folder / name for name in files}, template_fault)


def test_a_gguf_with_a_chat_template_chats_and_takes_adapters(tmp_path: Path) -> None:
    assert facts_of(tmp_path, {"m.Q4_1.gguf": gguf_bytes()}) == Facts(
        kind=ModelKind.TEXT_GENERATION,
        format=Format.GGUF,
        capabilities=(Capability.CHAT, Capability.COMPLETION, Capability.ADAPTERS),
        architecture="LlamaForCausalLM",
        num_parameters=32,
        context_length=2048,
        quantization="Q4_1",
    )


def test_a_gguf_without_a_chat_template_only_completes(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, {"m.gguf": gguf_bytes(architecture="rwkv7", template="")})
    assert facts.capabilities == (Capability.COMPLETION,)
    assert facts.architecture == "rwkv7"


def test_a_causal_safetensors_folder_chats_if_its_tokenizer_has_a_template(tmp_path: Path) -> None:
    config = {"architectures": ["Qwen2ForCausalLM"], "max_position_embeddings": 4096}
    files = {"config.json": config, "model.safetensors": WEIGHTS}
    plain = facts_of(tmp_path, files)
    chatting = facts_of(tmp_path, files | {"tokenizer_config.json": {"chat_template": "{{ x }}"}})
    assert plain.capabilities == (Capability.COMPLETION, Capability.ADAPTERS)
    assert chatting.capabilities == (Capability.CHAT, Capability.COMPLETION, Capability.ADAPTERS)
    assert (chatting.context_length, chatting.quantization, chatting.num_parameters) == (4096, "bf16", 32)


def test_sentence_transformers_embed_and_tell_their_own_length(tmp_path: Path) -> None:
    files = {
        "config.json": {"architectures": ["BertModel"], "max_position_embeddings": 512},
        "model.safetensors": WEIGHTS,
        "modules.json": [],
        "sentence_bert_config.json": {"max_seq_length": 256},
    }
    facts = facts_of(tmp_path, files)
    assert (facts.kind, facts.capabilities) == (ModelKind.EMBEDDING, (Capability.EMBEDDING,))
    assert facts.context_length == 256


@pytest.mark.parametrize("labels", [{"id2label": {"0": "LABEL_0"}}, {"num_labels": 1}])
def test_a_classifier_with_one_label_reranks(tmp_path: Path, labels: dict[str, object]) -> None:
    config = {"architectures": ["XLMRobertaForSequenceClassification"], "max_position_embeddings": 514}
    facts = facts_of(tmp_path, {"config.json": config | labels, "model.safetensors": WEIGHTS})
    assert (facts.kind, facts.capabilities) == (ModelKind.RERANKING, (Capability.RERANKING,))


@pytest.mark.parametrize("labels", [{}, {"id2label": {"0": "good", "1": "bad"}}, {"num_labels": 3}])
def test_a_classifier_with_several_labels_is_refused(tmp_path: Path, labels: dict[str, object]) -> None:
    config = {"architectures": ["BertForSequenceClassification"]} | labels
    with pytest.raises(UnsupportedFormat, match="labels apart"):
        facts_of(tmp_path, {"config.json": config, "model.safetensors": WEIGHTS})


@pytest.mark.parametrize(
    ("end", "capabilities"),
    [
        (50256, (Capability.TRANSCRIPTION,)),
        (50257, (Capability.TRANSCRIPTION, Capability.SPEECH_TRANSLATION)),
    ],
)
def test_whisper_translates_if_it_is_multilingual(
    tmp_path: Path, end: int, capabilities: tuple[Capability, ...]
) -> None:
    files = {
        "model.bin": WHISPER,
        "config.json": {"suppress_ids_begin": [220, end]},
        "vocabulary.txt": b"a",
        "tokenizer.json": {},
    }
    facts = facts_of(tmp_path, files)
    assert (facts.format, facts.capabilities) == (Format.CTRANSLATE2, capabilities)


def test_a_vosk_folder_recognises_streams(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, {"am/final.mdl": b"x", "conf/mfcc.conf": b"x", "graph/HCLr.fst": b"x"})
    assert facts.format is Format.VOSK
    assert Capability.STREAMING_RECOGNITION in facts.capabilities


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"readme.txt": b"x"}, "no model that Lares loads"),
        (
            {"model.bin": b"\x80\x04pickle", "vocabulary.txt": b"a", "tokenizer.json": {}},
            "not a Whisper model",
        ),
        ({"model.bin": WHISPER, "vocabulary.txt": b"a"}, "no tokenizer.json"),
        ({"adapter_config.json": {}, "adapter_model.safetensors": WEIGHTS}, "LoRA adapter"),
        ({"config.json": b"{", "model.safetensors": WEIGHTS}, "no JSON"),
        ({"config.json": b"[1]", "model.safetensors": WEIGHTS}, "no table"),
        ({"config.json": b"[" * 100_000, "model.safetensors": WEIGHTS}, "no JSON"),
        ({"config.json": {"architectures": ["EvilModel"]}, "model.safetensors": WEIGHTS}, "EvilModel"),
        ({"config.json": {}, "model.safetensors": b"junk"}, "safetensors"),
    ],
)
def test_what_is_no_model_is_refused_with_a_reason(
    tmp_path: Path, files: dict[str, bytes | object], why: str
) -> None:
    with pytest.raises(UnsupportedFormat, match=why):
        facts_of(tmp_path, files)


QWEN = {"architectures": ["Qwen2ForCausalLM"], "max_position_embeddings": 4096}


def test_the_licence_is_that_of_the_header_or_of_the_text_beside(tmp_path: Path) -> None:
    assert facts_of(tmp_path, {"m.gguf": gguf_bytes(license="apache-2.0")}).license == "Apache-2.0"
    named = gguf_bytes(license="other", license_name="Gemma")
    assert facts_of(tmp_path, {"m.gguf": named}).license == "Gemma"
    files = {"config.json": QWEN, "model.safetensors": WEIGHTS, "LICENSE.txt": b"MIT License"}
    assert facts_of(tmp_path, files).license == "MIT"


def test_a_chat_template_with_a_fault_is_told_with_its_file(tmp_path: Path) -> None:
    plain = {"config.json": QWEN, "model.safetensors": WEIGHTS}
    in_config = plain | {"tokenizer_config.json": {"chat_template": "{{ x }}"}}
    beside = in_config | {"chat_template.jinja": b"{{ x }}"}
    too_long = plain | {"chat_template.jinja": b"x" * 300_000}
    for files, path, message in (
        ({"m.gguf": gguf_bytes()}, "m.gguf", "wrong"),
        (in_config, "tokenizer_config.json", "wrong"),
        (beside, "chat_template.jinja", "wrong"),
        (too_long, "chat_template.jinja", "too long"),
    ):
        (finding,) = inspection_of(tmp_path, files, lambda template: "it is wrong").findings
        assert (finding.kind, finding.path) == (FindingKind.CHAT_TEMPLATE, path)
        assert message in finding.message
    assert inspection_of(tmp_path, plain, lambda template: "it is wrong").findings == ()


def test_what_the_configuration_says_is_checked_and_told(tmp_path: Path) -> None:
    files: dict[str, object] = {
        "config.json": QWEN | {"auto_map": {"A": "m.A"}},
        "model.safetensors": WEIGHTS,
    }
    (finding,) = inspection_of(tmp_path, files).findings
    assert finding.kind is FindingKind.REMOTE_CODE
    with pytest.raises(UnsupportedFormat, match="hidden_size"):
        facts_of(tmp_path, files | {"config.json": QWEN | {"hidden_size": -1}})


def test_an_embedding_of_another_shape_than_the_configuration_says_is_refused(tmp_path: Path) -> None:
    embedding = safetensors_bytes({"model.embed_tokens.weight": TENSOR})
    sizes = {"vocab_size": 4, "hidden_size": 8}
    files = {"config.json": QWEN | sizes, "model.safetensors": embedding}
    assert facts_of(tmp_path, files).num_parameters == 32
    with pytest.raises(UnsupportedFormat, match=r"the embedding has \[4, 8\]"):
        facts_of(tmp_path, files | {"config.json": QWEN | sizes | {"hidden_size": 4}})
