"""A model folder's tokenizer, straight over the Rust library: it loads without transformers, in a tenth of the time.

    tokenizer.json            the tokenizer itself: vocabulary, merges, what comes before and after
    tokenizer_config.json     the names of special tokens, added tokens, chat templates
    special_tokens_map.json   the names of special tokens, in folders that list no added tokens in the former
    chat_template.jinja, additional_chat_templates/NAME.jinja   chat templates, before those of the config

The same text gives the same ids as transformers' tokenizer of the folder would give.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tokenizers import AddedToken, Encoding
from tokenizers import Tokenizer as Backend

from services.inference.adapters.model_folder import read_json
from services.kit.errors import InvalidArgument, UnsupportedFormat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# In the order in which transformers adds those that the vocabulary lacks, which gives them their ids.
_NAMED: Final = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

# What these classes do is what tokenizer.json says. The others build a tokenizer of their own out of its
# vocabulary, and only a byte-level one is then sure to be the same.
_PLAIN_CLASSES: Final = frozenset(
    {
        "",
        "GPT2Tokenizer",
        "GPT2TokenizerFast",
        "GemmaTokenizer",
        "GemmaTokenizerFast",
        "PreTrainedTokenizerFast",
        "Qwen2Tokenizer",
        "Qwen2TokenizerFast",
        "TokenizersBackend",
    }
)


class Tokenizer:
    """Text to ids and back. One thread uses it.

    special_tokens: by name, `{"bos_token": "<s>"}`, as chat templates get them. chat_templates: by name;
    the usual one is `default`. special_ids: of tokens that have no text, beside those that the backend marks.
    cuts_left: cut the beginning of what is too long.
    """

    def __init__(
        self,
        backend: Backend,
        special_tokens: Mapping[str, str],
        chat_templates: Mapping[str, str],
        *,
        special_ids: Iterable[int] = (),
        cuts_left: bool = False,
    ) -> None:
        # Cutting and padding are the caller's, whatever the file asks for.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._direction = "left" if cuts_left else "right"
        self.chat_templates = chat_templates
        self.special_tokens = special_tokens
        added = backend.get_added_tokens_decoder()
        marked = {token_id for token_id, token in added.items() if token.special}
        self.special_ids: frozenset[int] = frozenset(marked.union(special_ids))
        self.bos_token_id = self._named_id("bos_token")
        self.eos_token_id = self._named_id("eos_token")
        self.pad_token_id = self._named_id("pad_token")

    def encode(
        self, text: str, *, add_special_tokens: bool = True, max_tokens: int | None = None
    ) -> tuple[int, ...]:
        """The ids of a text.

        max_tokens: cut to so many. The cut comes before special tokens are added, so that the last of these is kept.
        Raises InvalidArgument for half of a surrogate pair, which is no text.
        """
        return tuple(self._encoding(text, None, add_special_tokens, max_tokens).ids)

    def encode_pair(
        self, first: str, second: str, *, max_tokens: int | None = None
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ids of two texts for a model that compares them, and their types: 0 the first's, 1 the second's.

        max_tokens: of a pair that is longer, the longer text is cut first. Raises InvalidArgument as `encode` does.
        """
        encoding = self._encoding(first, second, True, max_tokens)
        return tuple(encoding.ids), tuple(encoding.type_ids)

    def _encoding(
        self, text: str, pair: str | None, add_special_tokens: bool, max_tokens: int | None
    ) -> Encoding:
        if max_tokens is not None:
            self._backend.enable_truncation(max_tokens, direction=self._direction)
        try:
            return self._backend.encode(text, pair, add_special_tokens=add_special_tokens)
        except (UnicodeEncodeError, TypeError) as error:
            raise InvalidArgument.at("text", "must be text: it holds half of a surrogate pair") from error
        finally:
            if max_tokens is not None:
                self._backend.no_truncation()

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of tokens in a row; U+FFFD stands for bytes that are no character."""
        return self._backend.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def convert_ids_to_tokens(self, token_id: int) -> str | None:
        """How the vocabulary spells a token; None for a row of the embedding that no token has."""
        return self._backend.id_to_token(token_id)

    @property
    def decoder(self) -> Mapping[str, Any]:
        """The step from tokens to text, as tokenizer.json describes it; empty where there is none."""
        decoder = self._backend.decoder
        return {} if decoder is None else json.loads(decoder.__getstate__())

    def _named_id(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        return None if token is None else self._backend.token_to_id(token)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder. Raises UnsupportedFormat."""
    config = read_json(folder / "tokenizer_config.json")
    file = folder / "tokenizer.json"
    if file.is_file() and not config.get("fix_mistral_regex"):
        try:
            backend = Backend.from_file(str(file))
        except Exception as error:  # The library raises no narrower class.
            raise UnsupportedFormat(f"the model's tokenizer.json cannot be read: {error}") from error
        if config.get("tokenizer_class", "") in _PLAIN_CLASSES or _is_byte_level(backend):
            return _configured(backend, folder, config)
    return _of_transformers(folder)


def _is_byte_level(backend: Backend) -> bool:
    return backend.decoder is not None and b"ByteLevel" in backend.decoder.__getstate__()


def _configured(backend: Backend, folder: Path, config: Mapping[str, Any]) -> Tokenizer:
    """Add to a tokenizer what its config says that tokenizer.json does not."""
    cuts_left = (config.get("truncation_side") or (backend.truncation or {}).get("direction")) == "left"
    try:
        named, extra = _special_tokens(folder, config)
        listed = _added_tokens(config)
        known = {token.content for token in backend.get_added_tokens_decoder().values()}
        for _, token in sorted(listed.items()):
            if token.content not in known:
                backend.add_tokens([token])
        by_content = {token.content: token for token in listed.values()}
        special = [by_content.get(token.content, token) for token in (*named.values(), *extra)]
        backend.add_special_tokens(special)
        backend.encode_special_tokens = bool(config.get("split_special_tokens"))
        templates = _chat_templates(folder, config.get("chat_template"))
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise UnsupportedFormat(f"the model's tokenizer_config.json cannot be used: {error}") from error
    return Tokenizer(
        backend,
        {name: token.content for name, token in named.items()},
        templates,
        special_ids=[found for token in special if (found := backend.token_to_id(token.content)) is not None],
        cuts_left=cuts_left,
    )


def _special_tokens(
    folder: Path, config: Mapping[str, Any]
) -> tuple[dict[str, AddedToken], list[AddedToken]]:
    """Special tokens with names, those that every tokenizer may have first, and those without."""
    found = dict(config)
    if "added_tokens_decoder" not in config:
        found.update(read_json(folder / "special_tokens_map.json"))
    extra = found.get("extra_special_tokens") or found.get("additional_special_tokens") or []
    models_own = {
        name: token for name, token in found.items() if name.endswith("_token") and name not in _NAMED
    }
    if isinstance(extra, dict):
        models_own, extra = {**models_own, **extra}, []
    named = {name: found[name] for name in _NAMED if found.get(name) is not None}
    named |= {name: token for name, token in models_own.items() if isinstance(token, str | dict)}
    return (
        {name: _special_token(token) for name, token in named.items()},
        [_special_token(token) for token in extra],
    )


def _special_token(token: str | Mapping[str, Any]) -> AddedToken:
    if isinstance(token, str):
        return AddedToken(token, special=True, normalized=False)
    return _added_token({**token, "special": True})


def _added_tokens(config: Mapping[str, Any]) -> dict[int, AddedToken]:
    listed = config.get("added_tokens_decoder") or {}
    return {int(token_id): _added_token(token) for token_id, token in listed.items()}


def _added_token(token: Mapping[str, Any]) -> AddedToken:
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return AddedToken(token["content"], **{flag: token[flag] for flag in flags if flag in token})


def _chat_templates(folder: Path, configured: Any) -> dict[str, str]:
    """Templates by name. Files of their own come before those of the config."""
    found = {
        file.stem: file.read_text("utf-8") for file in (folder / "additional_chat_templates").glob("*.jinja")
    }
    if (folder / "chat_template.jinja").is_file():
        found["default"] = (folder / "chat_template.jinja").read_text("utf-8")
    return found or _named_templates(configured)


def _named_templates(configured: Any) -> dict[str, str]:
    """`"..."`, `{"default": "..."}` or `[{"name": "default", "template": "..."}]`, as configs write them."""
    if isinstance(configured, list):
        configured = {one["name"]: one["template"] for one in configured}
    if isinstance(configured, str):
        configured = {"default": configured}
    return {str(name): str(template) for name, template in (configured or {}).items()}


def _of_transformers(folder: Path) -> Tokenizer:
    """What transformers makes of a folder without tokenizer.json, or of a class that does more than it says."""
    from transformers import AutoTokenizer

    try:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (ValueError, OSError, ImportError, KeyError) as error:
        raise UnsupportedFormat(f"the model's tokenizer cannot be read: {error}") from error
    backend = getattr(found, "backend_tokenizer", None)
    if not isinstance(backend, Backend):
        raise UnsupportedFormat(
            f"the model's tokenizer is a {type(found).__name__}, which has no fast form: a tokenizer.json would do"
        )
    return Tokenizer(
        backend,
        dict(found.special_tokens_map),
        _named_templates(found.chat_template),
        special_ids=found.all_special_ids,
        cuts_left=found.truncation_side == "left",
    )
