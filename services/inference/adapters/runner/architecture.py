"""What a config.json says of a decoder: one description for all families that the runner computes itself.

    architecture = Architecture.parse(config)     None for a family, or a variant of one, that it does not know

What is not known here is no error: transformers' own module computes it instead.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from services.kit.errors import UnsupportedFormat

Activation = Literal["silu", "gelu_tanh", "gelu"]

_FAMILIES: Final = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "phi3": "phi3",
}
_ACTIVATIONS: Final[Mapping[str, Activation]] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu": "gelu",
}
_ROPE_TYPES: Final = ("default", "linear", "llama3", "yarn", "longrope")


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary positions (arXiv 2104.09864) of some layers.

    inverse_frequencies: radians a token, one for each pair of rotated components. scale: of sine and cosine.
    """

    inverse_frequencies: tuple[float, ...]
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Layer:
    """What differs between layers. window: a token sees so many, itself counted; None for all before it."""

    rope: int
    window: int | None = None


@dataclass(frozen=True, slots=True)
class Architecture:
    """A decoder of the Llama family. Sizes are counts of components; ropes are numbered by `Layer.rope`.

    scales_embedding: by the square root of hidden_size. adds_one_to_norm: norms multiply by 1 + weight.
    normalizes_heads: queries and keys are normalized a head at a time. has_post_norms: after attention and MLP,
    beside before. Soft caps (arXiv 2408.00118): None for none. note: what the operator should know, or empty.
    """

    family: str
    vocab_size: int
    context_length: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    norm_epsilon: float
    attention_scale: float
    activation: Activation
    layers: tuple[Layer, ...]
    ropes: tuple[Rope, ...]
    ties_embeddings: bool
    scales_embedding: bool = False
    adds_one_to_norm: bool = False
    normalizes_heads: bool = False
    has_post_norms: bool = False
    attention_softcap: float | None = None
    final_softcap: float | None = None
    note: str = ""

    @property
    def qkv_size(self) -> int:
        """Rows of the fused projection to queries, keys and values."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_size

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token over all layers, for each byte of their number type."""
        return len(self.layers) * 2 * self.num_kv_heads * self.head_size

    @classmethod
    def parse(cls, config: Mapping[str, Any]) -> "Architecture | None":
        """Read a config.json. Raises UnsupportedFormat for a known family with impossible numbers."""
        family = _FAMILIES.get(str(config.get("model_type")))
        if family is None or _is_quantized(config):
            return None
        activation = _ACTIVATIONS.get(str(config.get("hidden_activation") or config.get("hidden_act")))
        try:
            ropes, context_length, note = _ropes(config)
            if activation is None or ropes is None:
                return None
            num_heads, hidden_size = _count(config, "num_attention_heads"), _count(config, "hidden_size")
            head_size = int(config.get("head_dim") or hidden_size // num_heads)
            scale = config.get("query_pre_attn_scalar") if family in ("gemma2", "gemma3") else None
            found = cls(
                family=family,
                vocab_size=_count(config, "vocab_size"),
                context_length=context_length,
                hidden_size=hidden_size,
                intermediate_size=_count(config, "intermediate_size"),
                num_heads=num_heads,
                num_kv_heads=int(config.get("num_key_value_heads") or num_heads),
                head_size=head_size,
                norm_epsilon=float(config.get("rms_norm_eps", 1e-6)),
                attention_scale=float(scale or head_size) ** -0.5,
                activation=activation,
                layers=_layers(config, family, tuple(ropes)),
                ropes=tuple(ropes.values()),
                ties_embeddings=bool(config.get("tie_word_embeddings", family.startswith("gemma"))),
                scales_embedding=family.startswith("gemma"),
                adds_one_to_norm=family.startswith("gemma"),
                normalizes_heads=family in ("qwen3", "gemma3"),
                has_post_norms=family.startswith("gemma"),
                attention_softcap=_optional(config, "attn_logit_softcapping"),
                final_softcap=_optional(config, "final_logit_softcapping"),
                note=note,
            )
        except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
            raise UnsupportedFormat(f"config.json is not one of a {family} model: {error!r}") from error
        if found.num_heads % found.num_kv_heads or found.head_size % 2:
            raise UnsupportedFormat("config.json: heads cannot be divided among keys, or have an odd size")
        return found


def _is_quantized(config: Mapping[str, Any]) -> bool:
    """By others than us: our own form is in the weights, see artifact.py."""
    how = config.get("quantization_config")
    return bool(how) and not (isinstance(how, Mapping) and how.get("quant_method") == "lares")


def _count(config: Mapping[str, Any], name: str) -> int:
    value = int(config[name])
    if not 0 < value < 2**31:
        raise ValueError(f"{name} is {value}")
    return value


def _optional(config: Mapping[str, Any], name: str) -> float | None:
    value = config.get(name)
    return float(value) if value else None


def _layers(config: Mapping[str, Any], family: str, rope_names: tuple[str, ...]) -> tuple[Layer, ...]:
    """Which layers see only a window. Without `layer_types`, old configs tell it by a pattern."""
    num_layers = _count(config, "num_hidden_layers")
    window = config.get("sliding_window")
    uses_window = bool(window) and config.get("use_sliding_window", family != "qwen2")
    types = config.get("layer_types")
    if types is None:
        match family:
            case "gemma2":
                types = [
                    "full_attention" if index % 2 else "sliding_attention" for index in range(num_layers)
                ]
            case "gemma3":
                every = int(config.get("sliding_window_pattern") or 6)
                types = [
                    "sliding_attention" if (index + 1) % every else "full_attention"
                    for index in range(num_layers)
                ]
            case "qwen2" | "qwen3":
                first = int(config.get("max_window_layers") or 0) if uses_window else num_layers
                types = [
                    "sliding_attention" if index >= first else "full_attention" for index in range(num_layers)
                ]
            case _:
                types = ["sliding_attention" if uses_window else "full_attention"] * num_layers
    if len(types) != num_layers or not set(types) <= {"full_attention", "sliding_attention"}:
        raise ValueError(f"layer_types {sorted(set(types))} for {num_layers} layers")
    return tuple(
        Layer(
            rope=rope_names.index(kind) if kind in rope_names else 0,
            window=int(window) if kind == "sliding_attention" and window else None,
        )
        for kind in types
    )


def _ropes(config: Mapping[str, Any]) -> tuple[dict[str, Rope] | None, int, str]:
    """Ropes by the kind of layer that uses them, how long a context they reach, and what to say of it."""
    context_length = _count(config, "max_position_embeddings")
    found: dict[str, Rope] = {}
    note = ""
    for kind, parameters in _rope_parameters(config).items():
        rope_type = str(parameters.get("rope_type") or parameters.get("type") or "default")
        if rope_type not in _ROPE_TYPES:
            return None, context_length, ""
        if rope_type == "longrope":
            # Its factors change with the length of the text, which keys already computed cannot follow.
            original = int(
                parameters.get("original_max_position_embeddings")
                or config.get("original_max_position_embeddings")
                or context_length
            )
            if original < context_length:
                context_length = original
                note = (
                    f"the context is cut to {original} tokens: beyond them this model changes its positions"
                )
        found[kind] = _rope(config, parameters, rope_type)
    return found, context_length, note


def _rope_parameters(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """By kind of layer. transformers 5 keeps all in `rope_parameters`, older ones in several places."""
    parameters = config.get("rope_parameters")
    if isinstance(parameters, Mapping):
        if any(isinstance(value, Mapping) for value in parameters.values()):
            return {kind: value for kind, value in parameters.items() if isinstance(value, Mapping)}
        return {"full_attention": parameters}
    full = {"rope_theta": config.get("rope_theta", 10_000.0), **(config.get("rope_scaling") or {})}
    if config.get("model_type") != "gemma3_text":
        return {"full_attention": full}
    full.setdefault("rope_theta", 1_000_000.0)
    local = {"rope_theta": config.get("rope_local_base_freq", 10_000.0)}
    return {"full_attention": full, "sliding_attention": local}


def _rope(config: Mapping[str, Any], parameters: Mapping[str, Any], rope_type: str) -> Rope:
    """The frequencies of one kind, as transformers' modeling_rope_utils computes them."""
    theta = float(parameters.get("rope_theta") or config.get("rope_theta") or 10_000.0)
    head_size = int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
    partial = float(parameters.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0)
    num_rotated = int(head_size * partial)
    plain = [theta ** (-index / num_rotated) for index in range(0, num_rotated, 2)]
    factor = float(parameters.get("factor") or 1.0)
    match rope_type:
        case "linear":
            return Rope(tuple(value / factor for value in plain))
        case "llama3":
            return Rope(tuple(_llama3(value, parameters, factor) for value in plain))
        case "yarn":
            return _yarn(plain, parameters, factor, theta, num_rotated, config)
        case "longrope":
            short = parameters["short_factor"]
            values = tuple(value / float(by) for value, by in zip(plain, short, strict=True))
            return Rope(values, _longrope_scale(parameters, config))
        case _:
            return Rope(tuple(plain))


def _llama3(value: float, parameters: Mapping[str, Any], factor: float) -> float:
    """Llama 3.1's scaling: long waves are stretched, short ones kept, those between interpolated."""
    low, high = float(parameters["low_freq_factor"]), float(parameters["high_freq_factor"])
    original = float(parameters["original_max_position_embeddings"])
    wavelength = 2 * math.pi / value
    if wavelength < original / high:
        return value
    if wavelength > original / low:
        return value / factor
    smooth = (original / wavelength - low) / (high - low)
    return (1 - smooth) * value / factor + smooth * value


def _yarn(
    plain: list[float],
    parameters: Mapping[str, Any],
    factor: float,
    theta: float,
    num_rotated: int,
    config: Mapping[str, Any],
) -> Rope:
    """YaRN (arXiv 2309.00071)."""
    original = float(parameters.get("original_max_position_embeddings") or config["max_position_embeddings"])
    fast, slow = float(parameters.get("beta_fast") or 32), float(parameters.get("beta_slow") or 1)

    def correction(num_rotations: float) -> float:
        return num_rotated * math.log(original / (num_rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = correction(fast), correction(slow)
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, num_rotated - 1)
    span = max(high - low, 0.001)
    values = []
    for index, value in enumerate(plain):
        keep = 1.0 - min(max((index - low) / span, 0.0), 1.0)
        values.append(value / factor * (1 - keep) + value * keep)
    return Rope(tuple(values), _yarn_scale(parameters, factor))


def _yarn_scale(parameters: Mapping[str, Any], factor: float) -> float:
    if (told := parameters.get("attention_factor")) is not None:
        return float(told)

    def scale(multiplier: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * multiplier * math.log(factor) + 1.0

    mscale, of_all = parameters.get("mscale"), parameters.get("mscale_all_dim")
    return scale(float(mscale)) / scale(float(of_all)) if mscale and of_all else scale(1.0)


def _longrope_scale(parameters: Mapping[str, Any], config: Mapping[str, Any]) -> float:
    """LongRoPE (arXiv 2402.13753)."""
    if (told := parameters.get("attention_factor")) is not None:
        return float(told)
    longest = float(config["max_position_embeddings"])
    original = float(
        parameters.get("original_max_position_embeddings")
        or config.get("original_max_position_embeddings")
        or longest
    )
    factor = float(parameters.get("factor") or longest / original)
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
