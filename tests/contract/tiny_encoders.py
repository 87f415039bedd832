"""Encoders of two layers with random weights, as folders: real architectures, real tokenizers."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaModel,
)

SPECIALS = ["<s>", "<pad>", "</s>", "<unk>"]
WORDS = ["a", "cat", "dog", "sits", "on", "the", "mat", "stocks", "fell", "monday", "river", "stone", "sky"]
MAX_TOKENS = 32

_SIZES: dict[str, Any] = {
    "vocab_size": len(SPECIALS) + len(WORDS),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.5,
    "pad_token_id": 1,
}


def save_bert_embedder(folder: Path, pooling: str = "mean_tokens") -> Path:
    """A sentence-transformers folder over a BERT. pooling: the end of the key in its pooling module's config."""
    torch.manual_seed(0)
    _save(folder, BertModel(BertConfig(**_SIZES, max_position_embeddings=MAX_TOKENS)))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{pooling}": True}))
    return folder


def save_xlm_roberta(folder: Path) -> Path:
    """Its positions begin after the padding token's id, so that of 34 it can use 32."""
    torch.manual_seed(0)
    return _save(folder, XLMRobertaModel(XLMRobertaConfig(**_SIZES, max_position_embeddings=MAX_TOKENS + 2)))


def save_cross_encoder(folder: Path, num_labels: int = 1) -> Path:
    """A BERT that gives a pair of texts one logit."""
    torch.manual_seed(0)
    config = BertConfig(**_SIZES, max_position_embeddings=MAX_TOKENS)
    config.num_labels = num_labels
    return _save(folder, BertForSequenceClassification(config))


def _save(folder: Path, model: Any) -> Path:
    folder.mkdir(exist_ok=True)
    vocabulary = {word: index for index, word in enumerate([*SPECIALS, *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder
