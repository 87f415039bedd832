import json
import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import asyncio, json, sys
from pathlib import Path

import psutil

from services.kit.address import Address
from services.kit.server import GrpcServer, Host
from services.kit.settings import Settings
from services.registry.service import build

async def main():
    server = GrpcServer(Host(Settings(home=Path(sys.argv[1]), grpc=Address("127.0.0.1", 0))), [build])
    await server.start()
    found = {"rss": psutil.Process().memory_info().rss, "modules": list(sys.modules)}
    (Path(sys.argv[1]) / "found.json").write_text(json.dumps(found))
    await server.stop(0)

asyncio.run(main())
"""


def test_a_process_that_serves_the_registry_is_small_and_imports_nothing_heavy(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    found = json.loads((tmp_path / "found.json").read_text())
    assert not {"torch", "transformers", "huggingface_hub", "numpy", "vosk"} & set(found["modules"])
    assert found["rss"] < 150_000_000
