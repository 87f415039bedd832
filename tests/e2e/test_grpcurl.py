"""grpcurl, as an operator uses it: every service listed, described and called by reflection, with no .proto at hand."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import STARTER, House

GRPCURL = shutil.which("grpcurl", path=str(Path(sys.executable).parent)) or "grpcurl"

CALLS: dict[str, dict[str, Any]] = {
    "lares.registry.v1.RegistryService/GetModel": {"name": f"models/{STARTER}"},
    "lares.downloader.v1.DownloaderService/ListCatalogEntries": {},
    "lares.inference.v1.InferenceService/GetHardware": {},
    "lares.speech.v1.SpeechService/ListRecognizers": {},
    "lares.trainer.v1.TrainerService/ListJobs": {},
}


def grpcurl(house: House, *arguments: str, data: Any = None) -> subprocess.CompletedProcess[str]:
    options = ["-plaintext", *(["-d", json.dumps(data)] if data is not None else [])]
    return subprocess.run(
        [GRPCURL, *options, house.grpc, *arguments], capture_output=True, text=True, timeout=120, check=False
    )


def test_reflection_lists_every_service(house: House) -> None:
    listed = grpcurl(house, "list").stdout.split()
    services = {call.partition("/")[0] for call in CALLS}
    assert services | {"grpc.health.v1.Health"} <= set(listed)


@pytest.mark.parametrize("call", CALLS)
def test_reflection_is_enough_to_call_a_service(house: House, call: str) -> None:
    done = grpcurl(house, call, data=CALLS[call])
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout or "{}")


@pytest.mark.parametrize("service", [call.partition("/")[0] for call in CALLS])
def test_each_service_has_its_own_health(house: House, service: str) -> None:
    done = grpcurl(house, "grpc.health.v1.Health/Check", data={"service": service})
    assert json.loads(done.stdout) == {"status": "SERVING"}


def test_every_rpc_of_the_contract_is_served(house: House) -> None:
    for service in {call.partition("/")[0] for call in CALLS}:
        methods = grpcurl(house, "list", service).stdout.split()
        assert methods
        for method in methods:
            service_name, _, rpc = method.rpartition(".")
            done = grpcurl(house, f"{service_name}/{rpc}", data={}) if not rpc.startswith("Watch") else None
            assert done is None or "Unimplemented" not in done.stderr, method


def test_grpcurl_chats(house: House) -> None:
    request = {
        "model": STARTER,
        "chat": {
            "messages": [{"role": "ROLE_USER", "content": [{"text": "What is the capital of France?"}]}]
        },
        "sampling": {"temperature": 0},
        "stop": {"maxTokens": 24},
    }
    done = grpcurl(house, "lares.inference.v1.InferenceService/Generate", data=request)
    assert done.returncode == 0, done.stderr
    assert "finished" in done.stdout
    text = "".join(
        json.loads(line.partition(":")[2].strip())
        for line in done.stdout.splitlines()
        if line.strip().startswith('"text"')
    )
    assert "Paris" in text


def test_error_has_a_stable_reason_in_its_details(house: House) -> None:
    done = grpcurl(house, "lares.registry.v1.RegistryService/GetModel", data={"name": "models/nobody"})
    assert done.returncode != 0
    assert "NotFound" in done.stderr
    assert "MODEL_NOT_FOUND" in done.stderr
    assert "lares pull" in done.stderr
