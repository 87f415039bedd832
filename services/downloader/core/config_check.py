"""What a model's configuration may say: the numbers that decide memory within bounds, code of its own never.

What is refused could not be loaded, or would harm whoever tries. What is only unknown is told. The keys are those of
https://huggingface.co/docs/transformers/main_classes/configuration and of the families that Lares runs.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from services.downloader.core.json_files import JsonFiles
from services.downloader.core.models import Finding, FindingKind, FindingSeverity
from services.kit.errors import UnsupportedFormat

_MAX_ROPE_NUMBERS: Final = 65_536
_MAX_NAMED: Final = 5

# Setting -> (least, most). The most is far beyond any model there is, and what a loader still survives.
_COUNTS: Final[Mapping[str, tuple[int, int]]] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model"), (1, 2**24)),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim"), (0, 2**24)),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers"), (1, 2**14)),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads"), (1, 2**16)),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), (1, 2**16)),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), (0, 2**16)),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), (1, 2**27)),
    "head_dim": (1, 2**16),
    "vocab_size": (1, 2**27),
}
_AMOUNTS: Final[Mapping[str, tuple[float, float]]] = {
    "rope_theta": (1e-6, 1e12),
    "rope_local_base_freq": (1e-6, 1e12),
    "partial_rotary_factor": (0.0, 1e3),
    "rms_norm_eps": (0.0, 1.0),
    "layer_norm_eps": (0.0, 1.0),
    "layer_norm_epsilon": (0.0, 1.0),
}
_ROPES: Final = ("rope_scaling", "rope_parameters")
_ABOVE_ZERO: Final = (
    "factor",
    "rope_theta",
    "short_factor",
    "long_factor",
    "low_freq_factor",
    "high_freq_factor",
)
_MAX_ROPE: Final = 1e12

_OF_CODE: Final = ("auto_map", "custom_pipelines", "custom_generate", "trust_remote_code")
_WITH_CODE: Final = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
)
_MODULES: Final = "modules.json"
_OWN_MODULES: Final = "sentence_transformers."

_KNOWN: Final = frozenset({
    "_name_or_path", "activation_function", "add_cross_attention", "architectures", "attention_bias",
    "attention_dropout", "attention_probs_dropout_prob", "attn_implementation", "attn_logit_softcapping",
    "attn_pdrop", "bos_token_id", "cache_implementation", "chunk_size_feed_forward", "classifier_dropout",
    "cross_attention_hidden_size", "decoder_start_token_id", "dtype", "embd_pdrop", "eos_token_id",
    "final_logit_softcapping", "finetuning_task", "gradient_checkpointing", "hidden_act", "hidden_activation",
    "hidden_dropout", "hidden_dropout_prob", "id2label", "initializer_range", "is_decoder", "is_encoder_decoder",
    "is_llama_config", "label2id", "layer_types", "max_window_layers", "mlp_bias", "model_type", "num_labels",
    "original_max_position_embeddings", "output_attentions", "output_hidden_states", "output_past",
    "pad_token_id", "position_embedding_type", "pretraining_tp", "problem_type", "pruned_heads",
    "quantization_config", "query_pre_attn_scalar", "reorder_and_upcast_attn", "resid_pdrop", "return_dict",
    "rope_interleaved", "scale_attn_by_inverse_layer_idx", "scale_attn_weights", "sep_token_id", "sliding_window",
    "sliding_window_pattern", "summary_activation", "summary_first_dropout", "summary_proj_to_labels",
    "summary_type", "summary_use_proj", "task_specific_params", "tie_encoder_decoder", "tie_word_embeddings",
    "tokenizer_class", "torch_dtype", "torchscript", "transformers.js_config", "transformers_version",
    "type_vocab_size", "unk_token_id", "use_bfloat16", "use_cache", "use_sliding_window",
})  # fmt: skip


def check_config(config: Mapping[str, Any]) -> None:
    """That the numbers of a config.json can be. Raises UnsupportedFormat, which names the setting."""
    _check_table(config, "")
    for name, part in config.items():
        # Of a model that also sees or hears, each part has its own.
        if name.endswith("_config") and isinstance(part, dict):
            _check_table(part, f"{name}.")


def check_embedding(config: Mapping[str, Any], shape: tuple[int, ...] | None) -> None:
    """That the embedding has as many rows and columns as config.json says, for it decides memory.

    shape: of the embedding, None where it is not known. Raises UnsupportedFormat.
    """
    said = (config.get("vocab_size"), config.get("hidden_size"))
    # Some encoders look up shorter vectors and stretch them.
    is_said = all(type(number) is int for number in said) and "embedding_size" not in config
    if shape is not None and is_said and shape != said:
        raise UnsupportedFormat(
            f"config.json: vocab_size and hidden_size are {said[0]} and {said[1]}, the embedding has {list(shape)}"
        )


def configuration_findings(files: JsonFiles) -> list[Finding]:
    """What is to be told of the configuration. Raises UnsupportedFormat for what cannot be read."""
    found = list(_code(files))
    unknown = sorted(name for name in files.table("config.json") if not _is_known(name))
    if unknown:
        message = f"settings that the check does not know: {_some(unknown)}"
        found.append(Finding.of(FindingKind.UNKNOWN_SETTING, FindingSeverity.INFO, "config.json", message))
    return found


def _code(files: JsonFiles) -> Iterator[Finding]:
    for path in _WITH_CODE:
        if named := [name for name in _OF_CODE if files.table(path).get(name)]:
            yield _remote_code(path, f"{', '.join(named)}: it brings code of its own")
    modules = files.value(_MODULES)
    types = (
        [str(each.get("type")) for each in modules if isinstance(each, dict)]
        if isinstance(modules, list)
        else []
    )
    if foreign := [name for name in types if not name.startswith(_OWN_MODULES)]:
        yield _remote_code(_MODULES, f"{_some(foreign)}: modules that are code of its own")


def _remote_code(path: str, what: str) -> Finding:
    message = f"{what}, which is never run"
    return Finding.of(FindingKind.REMOTE_CODE, FindingSeverity.WARNING, path, message)


def _is_known(name: str) -> bool:
    is_ours = name in _COUNTS or name in _AMOUNTS or name in _ROPES or name in _OF_CODE
    return is_ours or name in _KNOWN or name.endswith("_config")


def _check_table(table: Mapping[str, Any], prefix: str) -> None:
    for name, (least, most) in _COUNTS.items():
        for value in _listed(table.get(name)):
            if type(value) is not int or not least <= value <= most:
                raise _cannot_be(prefix + name, value)
    for name, (low, high) in _AMOUNTS.items():
        for value in _listed(table.get(name)):
            if not (_is_number(value) and low <= value <= high):
                raise _cannot_be(prefix + name, value)
    for name in _ROPES:
        value = table.get(name)
        if value and not isinstance(value, dict):
            raise _cannot_be(prefix + name, value)
        _check_rope(value or {}, prefix + name)


def _check_rope(table: Mapping[str, Any], name: str) -> None:
    """Numbers are finite; how often something turns, or is stretched, is above nothing."""
    num_numbers = 0
    for path, value in _leaves(table, name):
        num_numbers += 1
        if isinstance(value, bool | str) or value is None:
            continue
        least = 0 if path.rpartition(".")[2] in _ABOVE_ZERO else -_MAX_ROPE
        if not (_is_number(value) and least < value <= _MAX_ROPE):
            raise _cannot_be(path, value)
        if num_numbers > _MAX_ROPE_NUMBERS:
            raise _cannot_be(name, f"more than {_MAX_ROPE_NUMBERS} numbers")


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    match value:
        case dict():
            for name, inner in value.items():
                yield from _leaves(inner, f"{path}.{name}")
        case list():
            for inner in value:
                yield from _leaves(inner, path)
        case _:
            yield path, value


def _listed(value: Any) -> list[Any]:
    """Some models have another value for each layer."""
    return value if isinstance(value, list) else [] if value is None else [value]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _cannot_be(name: str, value: object) -> UnsupportedFormat:
    return UnsupportedFormat(f"config.json: {name[:80]!a} is {str(value)[:40]!a}, which cannot be")


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _MAX_NAMED} more" if len(listed) > _MAX_NAMED else ""
    return ", ".join(name[:40] for name in listed[:_MAX_NAMED]) + more
