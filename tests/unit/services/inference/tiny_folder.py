"""A model folder on disk: the tiny Llama with a byte-level tokenizer and a chat template."""

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.contract.tiny_llama import tiny_llama

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('this role is refused') }}{% endif %}"
    "{{ m.role[0] }}:{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)


def save_tiny_model(folder: Path, *, template: str | None = TEMPLATE, seed: int = 0) -> Path:
    """Write it. seed: of its weights.

    Tokens 0 to 255 are bytes in the order of their spelling; 256 begins a text, 257 ends it.
    """
    alphabet = {char: index for index, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    if template is not None:
        fast.chat_template = template
    tiny_llama(seed).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
