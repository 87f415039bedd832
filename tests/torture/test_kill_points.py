"""RELIABILITY.md, D2: the downloader is killed at each step that brings a file from the line into the registry.

Listed means verified, always: after each kill whatever the registry lists lies whole in the store.
"""

import asyncio
import hashlib
import json
import os
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import grpc
import pytest

from lares.downloader.v1 import downloader_pb2 as pb
from services.downloader.core.concurrency import each
from tests.contract.source_rigs import COMMIT, LaresRig
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

    def _put(self, model: str, name: str) -> None:
        super()._put(model, name)
        self.model |= {f"{number}.txt": b"%d" % number for number in range(40)}
        siblings = []
        for path, content in self.model.items():
            self.shelf.files[f"/hf/{model}/resolve/{COMMIT}/{path}"] = content
            lfs = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
            siblings.append({"rfilename": path, "size": len(content), "lfs": lfs})
        for revision in ("main", "1"):
            path = f"/hf/api/models/{model}/revision/{revision}"
            info = json.loads(self.shelf.files[path]) | {"siblings": siblings}
            self.shelf.files[path] = json.dumps(info).encode()
