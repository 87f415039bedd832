"""A registry and a downloader in a process of their own, and the command that asks them."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from cli.main import app

MAIN = "from cli.main import main; main()"


@dataclass
class House:
    """folder: of the test. grpc: where the services answer."""

    folder: Path
    grpc: str

    def lares(self, *arguments: str, answer: str = "") -> Result:
        return CliRunner().invoke(app, ["--grpc", self.grpc, *arguments], input=answer)

    def json(self, *arguments: str) -> Any:
        done = self.lares(*arguments, "--json")
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)


@contextmanager
def serving(home: Path, **environment: str) -> Iterator[str]:
    """The address of the services, while the block runs."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            MAIN,
            "serve",
            "registry",
            "downloader",
            f"--home={home}",
            "--grpc=127.0.0.1:0",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)} | environment,
    )
    assert process.stdout is not None
    try:
        ready = next(line.strip() for line in process.stdout if line.startswith("lares ready"))
        yield ready.rpartition("grpc=")[2]
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()
