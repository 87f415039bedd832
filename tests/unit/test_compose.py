"""The compose file, read as data: no Docker engine runs where these tests do."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}


def test_every_service_the_gateway_and_postgresql_have_a_container() -> None:
    assert set(OURS) == {"registry", "downloader", "inference", "speech", "trainer", "gateway"}
    assert set(SERVICES) - set(OURS) == {"postgres"}


@pytest.mark.parametrize("name", OURS)
def test_an_image_is_built_from_the_extra_of_its_service(name: str) -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert OURS[name]["build"]["args"]["SERVICE"] == name
    assert name in pyproject["project"]["optional-dependencies"]


def test_only_the_gateway_is_published_and_only_on_loopback() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"gateway": ["127.0.0.1:7210:7210"]}


@pytest.mark.parametrize("name", OURS)
def test_a_service_waits_until_what_it_needs_is_healthy(name: str) -> None:
    needs = OURS[name]["depends_on"]
    assert needs
    assert {need["condition"] for need in needs.values()} == {"service_healthy"}
    assert set(needs) <= set(SERVICES)
    # Ours have theirs from the Dockerfile.
    assert all("healthcheck" in SERVICES[need] or need in OURS for need in needs)
    assert "\nHEALTHCHECK " in DOCKERFILE


@pytest.mark.parametrize("name", OURS)
def test_a_service_runs_without_root_or_a_way_to_it(name: str) -> None:
    assert re.findall(r"^USER (\d+)$", DOCKERFILE, re.MULTILINE) == ["10001"]
    assert "user" not in OURS[name]
    assert not OURS[name].get("privileged")
    assert OURS[name]["cap_drop"] == ["ALL"]


@pytest.mark.parametrize("name", OURS)
def test_a_service_is_told_where_all_the_others_are(name: str) -> None:
    environment = OURS[name]["environment"]
    for other in set(OURS) - {"gateway"}:
        assert environment[f"LARES_{other.upper()}_ENDPOINT"] == f"{other}:7211"


def test_no_two_services_share_a_database() -> None:
    urls = [
        value
        for service in OURS.values()
        for key, value in service["environment"].items()
        if key.endswith("_DATABASE")
    ]
    assert len(urls) == len(set(urls)) == 3
    made = {
        SERVICES["postgres"]["environment"]["POSTGRES_DB"],
        *re.findall(r"CREATE DATABASE (\w+);", COMPOSE["configs"]["databases"]["content"]),
    }
    assert {url.rpartition("/")[2] for url in urls} == made


def test_the_password_is_asked_for_and_not_written_down() -> None:
    assert SERVICES["postgres"]["environment"]["POSTGRES_PASSWORD"].startswith("${POSTGRES_PASSWORD:?")
