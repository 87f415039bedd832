from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import Field, SecretStr, ValidationError

from cli.system import settings_classes
from services.kit.address import Address
from services.kit.errors import InvalidArgument
from services.kit.settings import ServiceSettings, Settings, Texts, describe, load_settings


class RegistrySettings(ServiceSettings):
    section = "registry"

    database_url: SecretStr = Field(default=SecretStr(""), description="Where the tables are.")
    page_size: int = Field(default=50, ge=1, description="Rows a page.")
    hubs: Texts = Field(default=(), description="Hubs to ask, in order.")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "settings.toml").write_text(
        'log_level = "debug"\ndrain_timeout_s = 5\n[registry]\npage_size = 10\n'
    )
    return tmp_path


def test_the_command_line_beats_the_environment_beats_the_file_beats_the_default(home: Path):
    environ = {"LARES_HOME": str(home), "LARES_DRAIN_TIMEOUT_S": "6", "LARES_HTTP": "127.0.0.1:1"}
    settings = load_settings(Settings, {"http": "127.0.0.1:2"}, environ=environ)
    assert settings.http == Address("127.0.0.1", 2)
    assert settings.drain_timeout_s == 6
    assert settings.log_level == "debug"
    assert settings.max_message_bytes == 16 * 1024 * 1024
    sources = {row.name: row.source for row in describe(Settings, settings)}
    assert sources["http"] == "command line"
    assert sources["drain_timeout_s"] == "environment"
    assert sources["log_level"] == "file"
    assert sources["max_message_bytes"] == "default"


def test_a_service_reads_its_own_table_prefix_and_overrides(home: Path):
    environ = {"LARES_HOME": str(home)}
    assert load_settings(RegistrySettings, environ=environ).page_size == 10
    assert (
        load_settings(RegistrySettings, environ=environ | {"LARES_REGISTRY_PAGE_SIZE": "20"}).page_size == 20
    )
    assert (
        load_settings(RegistrySettings, {"registry.page_size": 30, "http": "x"}, environ=environ).page_size
        == 30
    )


def test_constructing_settings_reads_nothing_from_outside(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LARES_LOG_LEVEL", "debug")
    assert Settings().log_level == "info"
    assert load_settings(Settings, {"home": "/nonexistent"}).log_level == "debug"


def test_an_empty_variable_counts_as_unset():
    environ = {"LARES_METRICS": "", "LARES_HOME": "/nonexistent"}
    assert load_settings(Settings, environ=environ).metrics is None


def test_an_unknown_key_of_the_file_is_named_with_the_file(home: Path):
    file = home / "settings.toml"
    file.write_text("[registry]\npage_sise = 1\n")
    with pytest.raises(InvalidArgument, match=r"registry\.page_sise.*no such setting") as caught:
        load_settings(RegistrySettings, {"home": home}, environ={})
    assert str(file) in caught.value.message


def test_an_unknown_table_of_the_file_is_refused(home: Path):
    (home / "settings.toml").write_text("[regsitry]\npage_size = 1\n")
    with pytest.raises(InvalidArgument, match="regsitry"):
        load_settings(Settings, {"home": home}, environ={})


def test_a_wrong_value_is_answered_with_the_variable_it_stands_in(tmp_path: Path):
    with pytest.raises(InvalidArgument, match="LARES_REGISTRY_PAGE_SIZE") as caught:
        load_settings(RegistrySettings, {"home": tmp_path}, environ={"LARES_REGISTRY_PAGE_SIZE": "many"})
    assert caught.value.violations[0].field == "registry.page_size"


def test_an_unknown_override_is_refused(tmp_path: Path):
    with pytest.raises(InvalidArgument, match="htp"):
        load_settings(Settings, {"home": tmp_path, "htp": "x"}, environ={})
    with pytest.raises(InvalidArgument, match="regsitry"):
        load_settings(Settings, {"home": tmp_path, "regsitry.x": "x"}, environ={})


def test_a_settings_file_that_was_named_must_be_there(tmp_path: Path):
    with pytest.raises(InvalidArgument, match="there is no file"):
        load_settings(Settings, environ={"LARES_SETTINGS_FILE": str(tmp_path / "none.toml")})


def test_a_damaged_settings_file_is_named(home: Path):
    (home / "settings.toml").write_text("log_level = ")
    with pytest.raises(InvalidArgument, match=r"settings\.toml cannot be read"):
        load_settings(Settings, {"home": home}, environ={})


@pytest.mark.parametrize("name", ["http", "grpc", "metrics"])
def test_listening_beyond_loopback_must_be_meant(tmp_path: Path, name: str):
    with pytest.raises(InvalidArgument, match="LARES_ALLOW_REMOTE"):
        load_settings(Settings, {"home": tmp_path, name: "0.0.0.0:80"}, environ={})
    load_settings(Settings, {"home": tmp_path, name: "0.0.0.0:80", "allow_remote": True}, environ={})


def test_a_list_is_separated_by_commas_in_the_environment(tmp_path: Path):
    settings = load_settings(
        RegistrySettings, {"home": tmp_path}, environ={"LARES_REGISTRY_HUBS": "hf, ollama"}
    )
    assert settings.hubs == ("hf", "ollama")


def test_settings_are_frozen():
    with pytest.raises(ValidationError):
        Settings().log_level = "debug"  # type: ignore[misc]


def test_a_service_is_reached_at_its_own_endpoint_or_at_this_process():
    settings = Settings(registry_endpoint="registry:7211", grpc=Address("0.0.0.0", 9), allow_remote=True)
    assert settings.endpoint("registry") == "registry:7211"
    assert settings.endpoint("speech") == "127.0.0.1:9"


def test_every_shared_setting_has_a_description_and_a_variable():
    for row in describe(Settings):
        assert row.description.endswith("."), row.name
        assert row.env == f"LARES_{row.name.upper()}"


class AliasedSettings(ServiceSettings):
    section: ClassVar[str] = "registry"
    aliases: ClassVar[Mapping[str, str]] = {"page_size": "PAGE_SIZE", "token": "HUB_TOKEN"}

    page_size: int = Field(default=10, description="How many.")
    token: SecretStr = Field(default=SecretStr(""), description="For the hub.")


def test_an_alias_beats_the_file_and_is_beaten_by_the_settings_own_name(home: Path):
    (home / "settings.toml").write_text("[registry]\npage_size = 20\n")
    environ = {"LARES_HOME": str(home), "PAGE_SIZE": "30"}
    settings = load_settings(AliasedSettings, environ=environ)
    assert settings.page_size == 30
    [row] = [row for row in describe(AliasedSettings, settings) if row.name == "page_size"]
    assert (row.source, row.alias, row.env) == ("alias", "PAGE_SIZE", "LARES_REGISTRY_PAGE_SIZE")
    settings = load_settings(AliasedSettings, environ=environ | {"LARES_REGISTRY_PAGE_SIZE": "40"})
    [row] = [row for row in describe(AliasedSettings, settings) if row.name == "page_size"]
    assert (settings.page_size, row.source) == (40, "environment")
    assert load_settings(AliasedSettings, environ=environ | {"PAGE_SIZE": ""}).page_size == 20


def test_a_wrong_value_is_told_with_the_alias_that_gave_it(home: Path):
    with pytest.raises(InvalidArgument, match=r"registry\.page_size: .*\(in PAGE_SIZE\)"):
        load_settings(AliasedSettings, environ={"LARES_HOME": str(home), "PAGE_SIZE": "many"})


def test_a_secret_by_its_alias_is_masked_too(home: Path):
    settings = load_settings(AliasedSettings, environ={"LARES_HOME": str(home), "HUB_TOKEN": "hunter2"})
    assert settings.token.get_secret_value() == "hunter2"
    assert "hunter2" not in repr(list(describe(AliasedSettings, settings)))


def test_every_alias_is_of_a_setting_that_there_is():
    aliases = [(cls, name) for cls in settings_classes() for name in cls.aliases]
    assert aliases
    assert [(cls, name) for cls, name in aliases if name not in cls.model_fields] == []


def test_secrets_are_masked(tmp_path: Path):
    settings = load_settings(
        RegistrySettings, {"home": tmp_path, "registry.database_url": "p://u:hunter2@h"}, environ={}
    )
    rows = list(describe(RegistrySettings, settings))
    assert "hunter2" not in repr(rows)
    assert "hunter2" not in repr(settings)
    assert rows[0].env == "LARES_REGISTRY_DATABASE_URL"
    assert rows[0].key == "registry.database_url"


def test_a_section_that_no_settings_file_knows_is_a_mistake_of_ours():
    with pytest.raises(TypeError):

        class Nameless(ServiceSettings):
            pass
