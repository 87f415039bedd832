"""RELIABILITY.md, D2: the downloader is killed at each step that brings a file from the line into the registry.

Listed means verified, always: after each kill whatever the registry lists lies whole in the store.
"""

import hashlib
import json
import os
import random
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from lares.downloader.v1 import downloader_pb2 as pb
from services.downloader.core.concurrency import each
from tests.contract.source_rigs import COMMIT, HttpsRig, LaresRig, VoskRig
from tests.torture.downloader_process import STEPS, Death, house
from tests.torture.houses import (
    Place,
    Registry,
    assert_listed_is_whole,
    assert_one_whole_version,
    place,
    registry,
)
from tests.torture.numbers import num
from tests.unit.services.downloader.wheels import gguf_bytes

pytestmark = [pytest.mark.torture, pytest.mark.timeout(num(120, 1800))]

NUM_KILLS = num(5, 20)
AT_ONCE = 3
WEIGHTS = gguf_bytes() + os.urandom(1_000_000)


class ManyFiles(LaresRig):
    """So many small ones that they are synced with their whole file system at once."""

    def _put(self, model: str, name: str, version: str = "1", commit: str = COMMIT) -> None:
        super()._put(model, name, version, commit)
        self.model |= {f"{number}.txt": b"%d" % number for number in range(40)}
        siblings = []
        for path, content in self.model.items():
            self.shelf.files[f"/hf/{model}/resolve/{commit}/{path}"] = content
            lfs = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
            siblings.append({"rfilename": path, "size": len(content), "lfs": lfs})
        for revision in ("main", version):
            path = f"/hf/api/models/{model}/revision/{revision}"
            info = json.loads(self.shelf.files[path]) | {"siblings": siblings}
            self.shelf.files[path] = json.dumps(info).encode()


KINDS = {"one file": HttpsRig, "many small files": ManyFiles, "an archive": VoskRig}


@pytest.fixture
async def told(tmp_path: Path) -> AsyncIterator[Registry]:
    async with registry(tmp_path / "registry") as running:
        yield running


@pytest.mark.parametrize("kind", KINDS)
async def test_a_model_that_is_listed_is_whole_wherever_the_process_was_killed(
    kind: str, told: Registry, tmp_path: Path
) -> None:
    (tmp_path / "place").mkdir()
    async with place(KINDS[kind], tmp_path / "place", WEIGHTS) as there:
        there.line.pause_after(None)
        deaths = await chosen_deaths(there, told, tmp_path / "first", list(KINDS).index(kind))

        async def survive(numbered: tuple[int, Death]) -> None:
            number, death = numbered
            await survived(there, told, tmp_path / f"home-{number}", f"m{number}", death)

        await each(enumerate(deaths), survive, at_once=AT_ONCE)


async def chosen_deaths(there: Place, told: Registry, home: Path, number: int) -> list[Death]:
    """So many at each step, spread over the kinds. What a step is called for is counted in an undisturbed pull."""
    async with house(there.setup(home, told, Death())) as running:
        assert (await running.pull(there.rig.ref, "first")).state == pb.DOWNLOAD_STATE_SUCCEEDED
    choose = random.Random(number)
    deaths = []
    for step in STEPS.keys() - {"copy"}:
        assert running.calls[step], f"{step} is never come to"
        for _ in range(number, NUM_KILLS, len(KINDS)):
            # What a database does when it commits, it does within one call of the system.
            afterwards = step != "commit" and choose.random() < 0.5
            deaths.append(Death(step, choose.randint(1, running.calls[step]), afterwards))
    return deaths


async def survived(there: Place, told: Registry, home: Path, model_id: str, death: Death) -> None:
    """Kill one pull, then let it end. A step that it does not come to so often this time is tried earlier."""
    while not await has_died(there, told, home, model_id, death):
        assert death.number > 1, death
        home, model_id = home.with_name(f"{home.name}-again"), f"{model_id}-again"
        death = replace(death, number=death.number // 2)
    await assert_listed_is_whole(told, home, model_id)
    async with house(there.setup(home, told)) as running:
        done = await running.pull(there.rig.ref, model_id)
        assert done.state == pb.DOWNLOAD_STATE_SUCCEEDED, (death, done.failure)
        await assert_one_whole_version(running, told, home, model_id, there.rig.model)


async def has_died(there: Place, told: Registry, home: Path, model_id: str, death: Death) -> bool:
    async with house(there.setup(home, told, death)) as running:
        if running.address is not None:
            with suppress(grpc.aio.AioRpcError):
                await running.pull(there.rig.ref, model_id)
                return False
        await running.dead()
        return True
