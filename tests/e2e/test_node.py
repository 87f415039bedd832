"""Clients in TypeScript: one generated from the same contract, over gRPC, and OpenAI's own, over HTTP."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import STARTER, House

NODE = Path(__file__).parent / "node"


@pytest.fixture(scope="module")
def built() -> Path:
    """The folder of the compiled clients."""
    done = subprocess.run(
        ["npm", "run", "build"], cwd=NODE, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, (
        f"{done.stdout}\n{done.stderr}\n`make test` installs the packages that this needs"
    )
    return NODE / "dist"


def run(script: Path, house: House) -> str:
    environment = os.environ | {"LARES_GRPC": house.grpc, "LARES_URL": house.url}
    done = subprocess.run(
        ["node", script], env=environment, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_generated_client_chats_over_grpc(house: House, built: Path) -> None:
    assert "Paris" in run(built / "chat.js", house)


def test_openai_client_works_unchanged(house: House, built: Path) -> None:
    got = json.loads(run(built / "openai.js", house))
    assert STARTER in got["models"]
    assert "Paris" in got["plain"]
    assert got["streamed"] == got["plain"]
    assert got["finishReason"] in ("stop", "length")
    assert got["refused"]["status"] == 404
    assert got["refused"]["code"] == "model_not_found"
