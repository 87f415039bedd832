import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.downloader.core.config_check import check_config, check_embedding, configuration_findings
from services.downloader.core.json_files import JsonFiles
from services.downloader.core.models import FindingKind, FindingSeverity
from services.kit.errors import UnsupportedFormat

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": None,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rope_theta": 100000,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rms_norm_eps": 1e-05,
}


def written(folder: Path, files: Mapping[str, object]) -> JsonFiles:
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return JsonFiles({name: folder / name for name in files})


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"rope_scaling": None},
        {"rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.1], "long_factor": [1.0, 40]}},
        {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}},
        {"intermediate_size": [1, 2, 3]},
        {"num_local_experts": 0},
        {"text_config": {"hidden_size": 64}, "vision_config": {"hidden_size": 32}},
    ],
)
def test_what_real_models_say_passes(tmp_path: Path, more: dict[str, object]) -> None:
    check_config(written(tmp_path, {"config.json": LLAMA | more}).table("config.json"))


@pytest.mark.parametrize(
    ("more", "name"),
    [
        ({"hidden_size": 0}, "hidden_size' is '0'"),
        ({"hidden_size": "576"}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"hidden_size": 576.5}, "hidden_size"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_attention_heads": -9}, "num_attention_heads"),
        ({"vocab_size": 2**40}, "vocab_size"),
        ({"vocab_size": 10**400}, "vocab_size"),
        ({"max_position_embeddings": {}}, "max_position_embeddings"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"rope_theta": float("nan")}, "rope_theta"),
        ({"rope_theta": float("inf")}, "rope_theta"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps"),
        ({"rope_scaling": [1]}, "rope_scaling"),
        ({"rope_scaling": {"factor": 0}}, r"rope_scaling\.factor"),
        ({"rope_scaling": {"factor": float("-inf")}}, r"rope_scaling\.factor"),
        ({"rope_scaling": {"long_factor": [1.0, float("nan")]}}, r"rope_scaling\.long_factor"),
        ({"rope_scaling": {"long_factor": [1.0] * 70_000}}, "rope_scaling' is 'more than"),
        ({"rope_parameters": {"full_attention": {"rope_theta": -1}}}, "full_attention"),
        ({"text_config": {"num_hidden_layers": 10**9}}, r"text_config\.num_hidden_layers"),
        ({"intermediate_size": [1, -2]}, "intermediate_size"),
    ],
)
def test_a_number_that_cannot_be_is_refused_by_its_name(
    tmp_path: Path, more: dict[str, object], name: str
) -> None:
    with pytest.raises(UnsupportedFormat, match=rf"config\.json: '.*{name}.*cannot be"):
        check_config(written(tmp_path, {"config.json": LLAMA | more}).table("config.json"))


def test_an_embedding_has_the_shape_that_the_configuration_says() -> None:
    check_embedding(LLAMA, (49152, 576))
    check_embedding(LLAMA, None)
    with pytest.raises(UnsupportedFormat, match=r"vocab_size and hidden_size are 49152 and 576.*\[10, 576\]"):
        check_embedding(LLAMA, (10, 576))
    check_embedding(LLAMA | {"embedding_size": 128}, (49152, 128))
    check_embedding({}, (1, 1))


def test_code_of_a_models_own_is_told_wherever_it_is_named(tmp_path: Path) -> None:
    auto_map = {"AutoModel": "modeling.X"}
    found = configuration_findings(
        written(
            tmp_path,
            {
                "config.json": LLAMA | {"auto_map": auto_map, "custom_pipelines": {"x": 1}},
                "tokenizer_config.json": {"auto_map": auto_map},
                "generation_config.json": {"trust_remote_code": False},
                "modules.json": [
                    {"type": "sentence_transformers.models.Pooling"},
                    {"type": "evil.Module"},
                    "nonsense",
                ],
            },
        )
    )
    assert {(each.kind, each.severity) for each in found} == {
        (FindingKind.REMOTE_CODE, FindingSeverity.WARNING)
    }
    assert [each.path for each in found] == ["config.json", "tokenizer_config.json", "modules.json"]
    assert "auto_map, custom_pipelines" in found[0].message
    assert "evil.Module" in found[2].message


def test_unknown_settings_are_told_but_a_few_of_them(tmp_path: Path) -> None:
    strange = {f"strange_{number}": number for number in range(7)}
    (found,) = configuration_findings(written(tmp_path, {"config.json": LLAMA | strange}))
    assert (found.kind, found.path) == (FindingKind.UNKNOWN_SETTING, "config.json")
    assert found.message.endswith("strange_0, strange_1, strange_2, strange_3, strange_4 and 2 more")
    assert configuration_findings(written(tmp_path, {"config.json": LLAMA})) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from([*LLAMA, "auto_map", "text_config", "rope_parameters", "x\n\x1b"])


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(KEYS, JSON, max_size=6), JSON)
def test_whatever_a_configuration_holds_is_told_or_refused_in_one_line(
    tmp_path: Path, config: dict[str, object], modules: object
) -> None:
    files = written(tmp_path, {"config.json": config, "modules.json": modules})
    refusal = ""
    found = []
    try:
        found = configuration_findings(files)
        check_config(files.table("config.json"))
    except UnsupportedFormat as error:
        refusal = error.message
    assert refusal.isprintable()
    if refusal:
        return
    assert all(each.message.isprintable() and len(each.message) <= 256 for each in found)
    for name in ("hidden_size", "num_hidden_layers", "vocab_size"):
        value = config.get(name)
        assert value is None or isinstance(value, list) or (type(value) is int and value >= 1)
