"""A model that is kept up to date: a hub whose main branch moves, and a house that follows as far as it is told to."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2

from tests.e2e.conftest import House
from tests.unit.services.downloader.http_server import serving
from tests.unit.services.downloader.moving_hub import MovingHub
from tests.unit.services.inference.tiny_folder import save_tiny_model

FIRST, SECOND = "1" * 40, "2" * 40
VERSIONS = [f"models/repo/versions/{commit[:12]}" for commit in (FIRST, SECOND)]


def commit_of(folder: Path, seed: int) -> dict[str, bytes]:
    folder.mkdir()
    return {path.name: path.read_bytes() for path in save_tiny_model(folder, seed=seed).iterdir()}


class Operator:
    """Runs the command against a house, while the hub goes on answering in this thread."""

    def __init__(self, house: House) -> None:
        self.house = house

    async def lares(self, *arguments: str, check: bool = True) -> Any:
        return await asyncio.to_thread(self.house.lares, *arguments, check=check)

    async def json(self, *arguments: str) -> Any:
        return json.loads((await self.lares(*arguments, "--json")).stdout)

    async def answer(self) -> str:
        request = {"model": "repo", "prompt": "hello", "temperature": 0, "max_tokens": 24}
        async with httpx2.AsyncClient(trust_env=False, timeout=120) as client:
            answered = await client.post(f"{self.house.url}/completions", json=request)
        text: str = answered.raise_for_status().json()["choices"][0]["text"]
        return text


async def test_a_house_follows_a_branch_goes_back_and_stays_there(
    new_house: Callable[..., House], tmp_path: Path
) -> None:
    hub = MovingHub(commit_of(tmp_path / "1", 1), commit_of(tmp_path / "2", 2))
    async with serving(hub.answer) as server:
        house = new_house(SKIP_MODEL_DOWNLOADS="1", LARES_DOWNLOADER_HF_ENDPOINT=server.url)
        await asyncio.to_thread(house.start)
        operator = Operator(house)
        assert await operator.json("list") == []
        unpinned = await operator.lares("pull", "hf:org/repo", check=False)
        assert (unpinned.returncode, "UNPINNED" in unpinned.stderr) == (1, True)
        await operator.lares("pull", f"hf:org/repo@{FIRST}")
        first_answer = await operator.answer()
        [update] = await operator.json("updates", "--check")
        assert update["verdict"] == "UPDATE_VERDICT_UP_TO_DATE"
        none_before = await operator.lares("rollback", "repo", check=False)
        assert (none_before.returncode, "no version before" in none_before.stderr) == (1, True)

        hub.main = SECOND
        assert (await operator.json("updates")) == [update], "the last check's word, until there is a new one"
        [update] = await operator.json("updates", "--check")
        assert (update["verdict"], update["latest_source"]) == (
            "UPDATE_VERDICT_AVAILABLE",
            f"hf:org/repo@{SECOND}",
        )
        # Nothing but its weights is new: the rest has the first one's bytes, but small files tell no sha256 before.
        assert update["download_bytes"] >= len(hub.commits[SECOND]["model.safetensors"])
        assert await operator.answer() == first_answer
        [update] = await operator.json("updates", "--pull")
        assert (update["version"], update["latest_version"]) == tuple(VERSIONS)
        second_answer = await operator.answer()
        assert second_answer != first_answer

        told = await operator.json("rollback", "repo", "--dry-run")
        assert (told["from_version"], told["to_version"]) == (VERSIONS[1], VERSIONS[0])
        assert await operator.answer() == second_answer
        done = await operator.lares("rollback", "repo")
        assert f"{SECOND[:12]} -> {FIRST[:12]}" in done.stdout
        assert await operator.answer() == first_answer
        [update] = await operator.json("updates", "--pull")
        assert (update["verdict"], update["download"]) == ("UPDATE_VERDICT_HELD_BACK", "")
        assert await operator.answer() == first_answer

        await operator.lares("rollback", "repo", "--to", SECOND[:12])
        assert await operator.answer() == second_answer
        [update] = await operator.json("updates", "--check")
        assert update["verdict"] == "UPDATE_VERDICT_UP_TO_DATE"
        for wrong, why in (
            (("repo", "--to", "none"), "no version"),
            (("none",), "not here"),
            (("repo:x",), "--to"),
        ):
            refused = await operator.lares("rollback", *wrong, check=False)
            assert (refused.returncode, why in refused.stderr) == (1, True), refused.stderr


async def test_a_first_start_pulls_what_is_required_and_ensure_tells(
    new_house: Callable[..., House], tmp_path: Path
) -> None:
    hub = MovingHub(commit_of(tmp_path / "1", 1))
    async with serving(hub.answer) as server:
        required = f"hf:org/repo@{FIRST},hf:org/absent@{FIRST}"
        house = new_house(LARES_DOWNLOADER_REQUIRED=required, LARES_DOWNLOADER_HF_ENDPOINT=server.url)
        await asyncio.to_thread(house.start)
        operator = Operator(house)
        assert [model["name"] for model in await operator.json("list")] == ["models/repo"]
        assert await operator.answer()
        ensured = await operator.lares("ensure", "--json", check=False)
        # It comes first and is waited for; the other one is asked for behind it, and fails.
        assert [model["state"] for model in json.loads(ensured.stdout)["models"]] == [
            "REQUIRED_STATE_PRESENT",
            "REQUIRED_STATE_MISSING",
        ]
        assert (ensured.returncode, "the hub has no" in ensured.stderr) == (1, True)
        told = await operator.lares("ensure", "--dry-run", check=False)
        assert (told.returncode, "missing" in told.stdout) == (1, True)
