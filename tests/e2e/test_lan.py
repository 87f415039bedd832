"""Models shared on a LAN: with the Hub's own client, with transformers, and with another Lares."""

import asyncio
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.contract.tiny_llama import tiny_llama
from tests.e2e.conftest import STARTER, House

QUESTION = "What is the capital of France?"
CUT_AFTER_BYTES = 20_000_000

SNAPSHOT = """
import hashlib, json, pathlib, sys
from huggingface_hub import snapshot_download
folder = pathlib.Path(snapshot_download(sys.argv[1]))
files = [path for path in folder.rglob("*") if path.is_file()]
digests = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
print(json.dumps(digests))
"""

TEXT = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
name, gguf, prompt = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(name, gguf_file=gguf)
model = AutoModelForCausalLM.from_pretrained(name, gguf_file=gguf, dtype=torch.float32)
tokens = tokenizer(prompt, return_tensors="pt")
out = model.generate(**tokens, max_new_tokens=8, do_sample=False)
print(tokenizer.decode(out[0], skip_special_tokens=True))
"""

WEIGHTS = """
import hashlib, sys
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
print(hashlib.sha256(model.lm_head.weight.detach().numpy().tobytes()).hexdigest())
"""

REFUSALS = """
import sys
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
name = sys.argv[1]
for refused, call in [
    (RepositoryNotFoundError, lambda: snapshot_download("no-such/model")),
    (RepositoryNotFoundError, lambda: hf_hub_download("no-such-model", "config.json")),
    (EntryNotFoundError, lambda: hf_hub_download(name, "no-such-file")),
    (RevisionNotFoundError, lambda: snapshot_download(name, revision="no-such-revision")),
]:
    try:
        call()
    except refused as error:
        print(type(error).__name__)
"""


def hub_environment(endpoint: str, hf_home: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return kept | {"HF_ENDPOINT": endpoint, "HF_HOME": str(hf_home)}


def as_a_client(code: str, *arguments: str, house: House, hf_home: Path) -> str:
    """Run it in a process of its own that knows of the house only its address. Returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=hub_environment(f"http://{house.http}/hf", hf_home),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def recorded(house: House, model: str) -> dict[str, Any]:
    shown: dict[str, Any] = house.json("show", model)
    return shown


def digests(house: House, model: str) -> dict[str, str]:
    files = recorded(house, model)["version"]["files"]
    return {file["path"]: file["digest"].removeprefix("sha256:") for file in files}


def test_a_snapshot_by_the_hubs_client_has_the_houses_bytes(house: House, tmp_path: Path) -> None:
    printed = as_a_client(SNAPSHOT, STARTER, house=house, hf_home=tmp_path)
    assert json.loads(printed) == digests(house, STARTER)


def test_the_hubs_client_raises_its_own_exceptions(house: House, tmp_path: Path) -> None:
    printed = as_a_client(REFUSALS, STARTER, house=house, hf_home=tmp_path)
    assert printed.split() == [
        "RepositoryNotFoundError",
        "RepositoryNotFoundError",
        "RemoteEntryNotFoundError",
        "RevisionNotFoundError",
    ]


def test_transformers_writes_with_the_starter(house: House, tmp_path: Path) -> None:
    (gguf,) = [path for path in digests(house, STARTER) if path.endswith(".gguf")]
    printed = as_a_client(TEXT, STARTER, gguf, "The capital of France is", house=house, hf_home=tmp_path)
    assert "Paris" in printed


def test_transformers_loads_safetensors_as_from_the_hub(house: House, tmp_path: Path) -> None:
    made = tiny_llama()
    made.save_pretrained(tmp_path / "lan-tiny-llama")
    house.lares("pull", f"file:{tmp_path / 'lan-tiny-llama'}")
    try:
        printed = as_a_client(WEIGHTS, "lan-tiny-llama", house=house, hf_home=tmp_path / "hf")
    finally:
        house.lares("rm", "lan-tiny-llama", "--yes")
    weights = made.lm_head.weight.detach().numpy().tobytes()
    assert printed.strip() == hashlib.sha256(weights).hexdigest()


@asynccontextmanager
async def a_line_that_breaks_once(address: str) -> AsyncIterator[str]:
    """A proxy in front of an address that cuts the first connection which has carried CUT_AFTER_BYTES."""
    host, _, port = address.rpartition(":")
    has_broken = False

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: int | None) -> None:
        nonlocal has_broken
        num_bytes = 0
        while chunk := await reader.read(65_536):
            num_bytes += len(chunk)
            if limit is not None and num_bytes > limit and not has_broken:
                has_broken = True
                return
            writer.write(chunk)
            await writer.drain()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, here = await asyncio.open_connection(host, int(port))
        both = [
            asyncio.create_task(copy(reader, here, None)),
            asyncio.create_task(copy(there, writer, CUT_AFTER_BYTES)),
        ]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        for task in both:
            task.cancel()
        await asyncio.gather(*both, return_exceptions=True)
        here.close()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield "127.0.0.1:{1}".format(*server.sockets[0].getsockname())
    finally:
        server.close()


def num_ranges(house: House) -> float:
    """How many ranges of files the gateway has answered with."""
    lines = httpx2.get(f"http://{house.http}/metrics", trust_env=False).text.splitlines()
    counts = [
        line for line in lines if line.startswith("lares_http_requests_total{") and 'status="206"' in line
    ]
    return sum(float(line.rpartition(" ")[2]) for line in counts if "/resolve/" in line)


async def test_a_broken_download_goes_on_with_a_range(house: House, tmp_path: Path) -> None:
    before = num_ranges(house)
    async with a_line_that_breaks_once(house.http) as address:
        client = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            SNAPSHOT,
            STARTER,
            env=hub_environment(f"http://{address}/hf", tmp_path),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        printed, complaint = await client.communicate()
    assert client.returncode == 0, complaint.decode()
    assert json.loads(printed) == digests(house, STARTER)
    assert num_ranges(house) == before + 1


@pytest.fixture
def second_house(new_house: Callable[..., House]) -> House:
    house = new_house(SKIP_MODEL_DOWNLOADS="1")
    house.start()
    return house


def test_a_second_house_pulls_from_the_first_and_says_the_same(house: House, second_house: House) -> None:
    second_house.lares("pull", f"lares:{house.http}/{STARTER}")
    first, second = recorded(house, STARTER), recorded(second_house, STARTER)
    assert second["version"]["name"] == first["version"]["name"]
    assert second["version"]["files"] == first["version"]["files"]
    for carried in ("provider", "license", "description", "kind", "capabilities", "languages"):
        assert second["model"].get(carried) == first["model"].get(carried), carried
    assert (
        second["version"]["source"]
        == f"lares:{house.http}/{first['version']['name'].replace('models/', '').replace('/versions/', ':')}"
    )
    asked = ("chat", QUESTION, "--temperature", "0", "--max-tokens", "24")
    assert second_house.lares(*asked).stdout == house.lares(*asked).stdout
    # As both mean the same commit by it, the Hub's client of one finds the other's.
    shas = [
        httpx2.get(f"http://{each.http}/hf/api/models/{STARTER}", trust_env=False).json()["sha"]
        for each in (house, second_house)
    ]
    assert shas[0] == shas[1]
    again = second_house.lares("pull", f"lares:{house.http}/{STARTER}")
    assert again.returncode == 0


def test_what_the_first_house_lacks_is_told_by_the_second(house: House, second_house: House) -> None:
    for missing in ("no-such-model", f"{STARTER}:no-such-version"):
        refused = second_house.lares("pull", f"lares:{house.http}/{missing}", check=False)
        assert refused.returncode == 1
        assert "nothing lies at" in refused.stderr
    assert second_house.json("list") == []
