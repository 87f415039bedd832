"""One real house for all end-to-end tests: `lares up` as a person starts it, on free ports, with an empty home."""

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from grpc.aio import Channel, insecure_channel

LARES = shutil.which("lares", path=str(Path(sys.executable).parent)) or "lares"
FIRST_RUN_S = 600.0
STARTER = "smollm2-135m-instruct"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever lies in this folder is an end-to-end test."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@dataclass
class House:
    """A running `lares up`."""

    home: Path
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    http: str = ""
    grpc: str = ""
    ready_after_s: float = 0.0

    def start(self, timeout_s: float = FIRST_RUN_S) -> None:
        """Start it and wait for the line that says it is ready. The same addresses are used again at a restart."""
        began = time.monotonic()
        self.log = (self.home.parent / f"{self.home.name}.log").open("ab")
        self.process = subprocess.Popen(
            [
                LARES,
                "up",
                f"--home={self.home}",
                f"--http={self.http or '127.0.0.1:0'}",
                f"--grpc={self.grpc or '127.0.0.1:0'}",
                *self.arguments,
            ],
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=os.environ | self.environment,
        )
        line = self._line("lares ready", timeout_s)
        self.ready_after_s = time.monotonic() - began
        addresses = dict(word.split("=", 1) for word in line.split() if "=" in word)
        self.http, self.grpc = addresses["http"], addresses["grpc"]

    def _line(self, beginning: str, timeout_s: float) -> str:
        lines: queue.Queue[str | None] = queue.Queue()
        stdout = self.process.stdout
        assert stdout is not None

        def read() -> None:
            with stdout:
                for line in stdout:
                    lines.put(line)
            lines.put(None)

        self.reader = threading.Thread(target=read, daemon=True)
        self.reader.start()
        deadline = time.monotonic() + timeout_s
        while True:
            line = lines.get(timeout=max(0.1, deadline - time.monotonic()))
            if line is None:
                raise AssertionError(f"lares up ended before it was ready:\n{self.tail()}")
            if line.startswith(beginning):
                return line

    def tail(self, num_bytes: int = 4000) -> str:
        """The end of what it logged."""
        return (self.home.parent / f"{self.home.name}.log").read_text(errors="replace")[-num_bytes:]

    def stop(self, *, how: signal.Signals = signal.SIGINT, timeout_s: float = 60) -> int:
        """Stop it, as Ctrl-C does, and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            return self.process.wait(timeout_s)
        finally:
            self.process.kill()
            self.process.wait()
            self.reader.join()
            self.log.close()

    @property
    def url(self) -> str:
        """Where its OpenAI API is."""
        return f"http://{self.http}/v1"

    def lares(
        self, *arguments: str, stdin: str | None = None, check: bool = True, timeout_s: float = 300
    ) -> Any:
        """Run the command against it. Returns the completed process."""
        done = subprocess.run(
            [LARES, *arguments, f"--home={self.home}", f"--http={self.http}", f"--grpc={self.grpc}"],
            input=stdin if stdin is not None else "",
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(
                f"lares {' '.join(arguments)} -> {done.returncode}\n{done.stdout}\n{done.stderr}\n{self.tail()}"
            )
        return done

    def json(self, *arguments: str, timeout_s: float = 300) -> Any:
        """Run the command with --json and return what it printed."""
        return json.loads(self.lares(*arguments, "--json", timeout_s=timeout_s).stdout)

    def pull(self, name: str) -> str:
        """Have a model of the catalogue, and return the name it is served under."""
        self.lares("pull", name)
        return name

    def channel(self) -> Channel:
        """A gRPC channel to it, for `async with`."""
        return insecure_channel(self.grpc)


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A house that has pulled its starter model, shared by all tests of a run."""
    house = House(tmp_path_factory.mktemp("house") / "home")
    house.start()
    yield house
    assert house.stop() == 0, house.tail()


@pytest.fixture
def new_house(tmp_path: Path) -> Iterator[Callable[..., House]]:
    """Makes houses of a test's own, and clears them away."""
    houses: list[House] = []

    def make(*arguments: str, **environment: str) -> House:
        house = House(tmp_path / f"home-{len(houses)}", arguments, environment)
        houses.append(house)
        return house

    yield make
    for house in houses:
        if hasattr(house, "process") and house.process.poll() is None:
            house.stop(how=signal.SIGKILL)


@pytest.fixture(scope="session")
def lessons(package_files: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """English questions and answers as a chat dataset, a few words each."""
    corpus = package_files("chatterbot-corpus==1.3.3") / "chatterbot_corpus/data/english"
    examples = []
    for topic in ("science", "food", "sports", "ai", "history", "literature", "movies", "computers"):
        for turns in yaml.safe_load((corpus / f"{topic}.yml").read_text())["conversations"]:
            question, *answers = (str(turn) for turn in turns)
            examples += [
                {
                    "messages": [
                        {"role": "user", "content": question},
                        {"role": "assistant", "content": answer},
                    ]
                }
                for answer in answers
            ]
    file = tmp_path_factory.mktemp("lessons") / "lessons.jsonl"
    file.write_text("".join(json.dumps(example) + "\n" for example in examples[:120]))
    return file
