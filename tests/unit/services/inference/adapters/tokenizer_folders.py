"""Tokenizer folders as models have them, small: byte-level BPE and BPE as sentencepiece does it."""

import json
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

TEXTS = (
    "",
    " ",
    "Hello, the quick brown fox.",
    "  two spaces,\ttab\n\nand   lines  ",
    "Xin chào, trời đẹp quá! 👩‍🚀🇻🇳",
    "<s>the user said</s> <s> the <tool> call </tool>",
    "the<extra>fox <late> in <0x41> \u2581 Ġ é",
    "\x00\x7f\ufffd\ufeff \u00a0",
)

_CORPUS = ["the quick brown fox jumps over the lazy dog", "hello there, the user said hello", "Xin chào"] * 4


def byte_level(*, ends: bool = False) -> Tokenizer:
    """As Llama 3's, Qwen's and SmolLM's. ends: write `<s>` before and `</s>` behind a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        _CORPUS, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    )
    return _with_added(tokenizer, ends=ends)


def sentencepiece(*, strips: bool = True, ends: bool = False) -> Tokenizer:
    """As Llama 2's (strips: the space that it writes before a text goes again), or Gemma's."""
    chars = ["\u2581", *"abcdefghijklmnopqrstuvwxyz,.!é", "\u2581\u2581"]
    words = [("t", "h"), ("th", "e"), ("\u2581", "the"), ("f", "o"), ("fo", "x"), ("\u2581", "fox")]
    pieces = [
        "<unk>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *chars,
        *("".join(word) for word in words),
    ]
    merges = [("\u2581", "\u2581"), *words]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    steps: list[Any] = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    if strips:
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        )
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(steps)
    return _with_added(tokenizer, ends=ends)


def metaspace() -> Tokenizer:
    """Words of sentencepiece's unigram kind."""
    scores = [("<unk>", 0.0), ("\u2581", -1.0), ("\u2581the", -2.0), ("fox", -2.0), ("\u2581\u2581", -3.0)]
    scores += [(char, -4.0) for char in "abcdefghijklmnopqrstuvwxyz,.é"]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _with_added(tokenizer, ends=False)


def word_piece() -> Tokenizer:
    """As BERT's: the text of tokens is more than the sum of theirs."""
    pieces = [
        "[UNK]",
        *"abcdefghijklmnopqrstuvwxyz,.",
        *(f"##{char}" for char in "abcdefghijklmnopqrstuvwxyz"),
        "the",
    ]
    tokenizer = Tokenizer(
        models.WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+|[,.]"), "isolated")
    tokenizer.decoder = decoders.WordPiece()
    return _with_added(tokenizer, ends=False)


def _with_added(tokenizer: Tokenizer, *, ends: bool) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("</tool>", lstrip=True)])
    if ends:
        special = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=special
        )
    return tokenizer


def write_folder(folder: Path, tokenizer: Tokenizer, **config: Any) -> Path:
    """Write tokenizer.json and a config with these entries."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named | config))
    return folder
