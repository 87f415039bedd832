"""`lares ensure`, `updates` and `rollback`, and the options of `pull`, against a registry and a downloader in a process
of their own."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.pulling import pull_options
from cli.updates import rollback_target
from lares.registry.v1 import registry_pb2
from services.kit.errors import FailedPrecondition, InvalidArgument, VersionNotFound
from tests.unit.cli.house import House, serving
from tests.unit.services.downloader.wheels import gguf_bytes

FOLDER = {"m.gguf": gguf_bytes(), "notes.txt": b"x", "run.py": b"", "onnx/m.txt": b"y"}


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    for name, content in FOLDER.items():
        file = tmp_path / "repo" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    with serving(tmp_path, LARES_DOWNLOADER_REQUIRED=f"file:{tmp_path / 'repo'}") as address:
        yield House(tmp_path / "repo", address)


def test_pull_takes_patterns_a_priority_and_a_timeout(house: House) -> None:
    source = f"file:{house.folder}"
    told = house.json(
        "pull", source, "--include", "*", "--exclude", "onnx/", "--priority", "-5", "--timeout", "2h"
    )
    assert [file["path"] for file in told["files"]] == ["m.gguf", "notes.txt"]
    assert told["options"] == {
        "allow_patterns": ["*"],
        "ignore_patterns": ["onnx/"],
        "priority": -5,
        "timeout": "7200s",
        "local_folder": "",
        "copy_local_files": False,
    }
    for wrong, why in (
        (("--timeout", "soon"), "timeout: must be a number"),
        (("--timeout", "1ms"), "options.timeout: must be 1 s to 7 days"),
        (("--include", ""), "options.allow_patterns"),
    ):
        refused = house.lares("pull", source, *wrong)
        assert (refused.exit_code, why in refused.stderr) == (1, True), refused.stderr
    refused = house.lares("pull", "pypi:x", "--exclude", "*.txt")
    assert (refused.exit_code, "UNSUPPORTED_PARAMETER" in refused.stderr) == (1, True)
    assert house.lares("pull", source, "--priority", "101").exit_code == 2


def test_ensure_tells_first_and_then_pulls(house: House) -> None:
    told = house.lares("ensure", "--dry-run")
    assert (told.exit_code, "missing" in told.stdout) == (1, True)
    assert house.json("list") == []
    done = house.json("ensure")
    assert [(model["model"], model["state"]) for model in done["models"]] == [
        ("models/repo", "REQUIRED_STATE_PRESENT")
    ]
    assert done["models"][0]["version"].startswith("models/repo/versions/")
    again = house.lares("ensure", "--dry-run")
    assert (again.exit_code, "present" in again.stdout) == (0, True)


def test_ensure_tells_what_did_not_come(house: House) -> None:
    (house.folder / "m.gguf").write_bytes(b"no model")
    failed = house.lares("ensure")
    assert failed.exit_code == 1
    assert "missing" in failed.stdout
    assert f"file:{house.folder}: " in failed.stderr


def test_updates_tell_what_was_found_and_when(house: House) -> None:
    assert "nothing was checked yet" in house.lares("updates").stderr
    house.json("ensure")
    [update] = house.json("updates", "--check")
    assert (update["model"], update["verdict"]) == ("models/repo", "UPDATE_VERDICT_UNKNOWN")
    assert house.json("updates") == [update]
    assert house.json("updates", "repo") == [update]
    assert house.json("updates", "other") == []
    printed = house.lares("updates").stdout
    assert "file: does not tell what is newer" in printed
    assert update["check_time"][:10] in printed
    refused = house.lares("updates", "--check", "other")
    assert (refused.exit_code, "MODEL_NOT_FOUND" in refused.stderr) == (1, True)


def test_rollback_lets_the_version_before_answer(house: House) -> None:
    source = f"file:{house.folder}"
    first = house.json("pull", source)["version"]
    (house.folder / "m.gguf").write_bytes(gguf_bytes() + b"2")
    second = house.json("pull", source)["version"]
    told = house.json("rollback", "repo", "--dry-run")
    assert told == {"dry_run": True, "model": "models/repo", "from_version": second, "to_version": first}
    assert house.json("show", "repo")["version"]["name"] == second
    done = house.lares("rollback", "repo")
    assert f"{second.rpartition('/')[2]} -> {first.rpartition('/')[2]}; the next request" in done.stdout
    assert house.json("show", "repo")["version"]["name"] == first
    refused = house.lares("rollback", "repo")
    assert (refused.exit_code, "no version before" in refused.stderr) == (1, True)
    assert house.json("rollback", "repo", "--to", second.rpartition("/")[2])["to_version"] == second
    assert house.json("show", "repo")["version"]["name"] == second


def version(version_id: str, **fields: Any) -> registry_pb2.Version:
    fields = {
        "kind": registry_pb2.VERSION_KIND_WEIGHTS,
        "state": registry_pb2.VERSION_STATE_AVAILABLE,
        **fields,
    }
    return registry_pb2.Version(name=f"models/m/versions/{version_id}", **fields)


def test_neither_adapters_nor_what_is_quarantined_is_gone_back_to() -> None:
    adapter = version("tutor", kind=registry_pb2.VERSION_KIND_ADAPTER)
    damaged = version("b", state=registry_pb2.VERSION_STATE_QUARANTINED, state_reason="m.gguf is damaged")
    versions = [version("a"), damaged, adapter, version("c")]
    model = registry_pb2.Model(name="models/m", default_version="models/m/versions/c")
    assert rollback_target(model, versions, "").name == "models/m/versions/a"
    with pytest.raises(FailedPrecondition, match=r"m\.gguf is damaged"):
        rollback_target(model, versions, "b")
    with pytest.raises(InvalidArgument, match="m:tutor"):
        rollback_target(model, versions, "tutor")
    with pytest.raises(FailedPrecondition, match="already"):
        rollback_target(model, versions, "c")
    with pytest.raises(VersionNotFound):
        rollback_target(model, versions, "z")
    # One that answers and is damaged is what people go back from.
    broken = registry_pb2.Model(name="models/m", default_version=damaged.name)
    assert rollback_target(broken, versions, "").name == "models/m/versions/a"
    first = registry_pb2.Model(name="models/m", default_version="models/m/versions/a")
    with pytest.raises(FailedPrecondition, match="no version before a"):
        rollback_target(first, versions, "")
    with pytest.raises(FailedPrecondition, match="no version before"):
        rollback_target(registry_pb2.Model(name="models/m"), versions, "")


def test_without_options_none_are_sent() -> None:
    assert not pull_options((), (), 0, "").ByteSize()
