import json
from pathlib import Path

import pytest

from services.inference.adapters.model_folder import check_folder, end_token_ids, read_json, sampling_defaults
from services.inference.core.sampling import SamplingDefaults
from services.kit.errors import UnsupportedFormat


def test_the_ends_of_text_are_all_that_any_file_names(tmp_path: Path):
    assert end_token_ids(tmp_path) == frozenset()
    config = {"eos_token_id": None, "text_config": {"eos_token_id": 7}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 106]}))
    assert end_token_ids(tmp_path) == {1, 7, 106}


def test_sampling_defaults_that_are_no_numbers_count_as_not_there(tmp_path: Path):
    found = {"temperature": 0.6, "top_p": True, "top_k": 20.0, "repetition_penalty": "much"}
    (tmp_path / "generation_config.json").write_text(json.dumps(found))
    assert sampling_defaults(tmp_path) == SamplingDefaults(temperature=0.6, top_k=20)


def test_a_file_that_is_no_json_object_is_an_empty_one(tmp_path: Path):
    assert read_json(tmp_path / "missing.json") == {}
    (tmp_path / "list.json").write_text("[1]")
    assert read_json(tmp_path / "list.json") == {}


def test_a_folder_of_pickles_is_refused_by_name(tmp_path: Path):
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(UnsupportedFormat, match=r"model\.bin, pickles"):
        check_folder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UnsupportedFormat, match=r"no config\.json"):
        check_folder(tmp_path)
