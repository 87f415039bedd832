"""`lares pull` beside other downloaders, on loopback: one file of 2 GiB, and 5,000 small ones.

    make bench-store ARGS="--rounds 3"

nginx serves both, as a Hugging Face endpoint (static answers of its API) and as plain files. Every peer starts with an
empty folder and ends when its files are there. Lares has verified, synced and recorded them by then; of the others only
pip hashes what it fetches, and none syncs it. Needs Debian's nginx-light, aria2 and wget; a peer that is missing is
left out.
"""

import argparse
import contextlib
import getpass
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.models import CACHE
from bench.processes import MIB, Server, tree_cpu_s, tree_rss_mib

COMMIT: Final = "0123456789abcdef0123456789abcdef01234567"
PORT: Final = 8931
LARES_HTTP, LARES_GRPC = "127.0.0.1:8932", "127.0.0.1:8933"
BIN: Final = Path(sys.executable).parent
BIG_BYTES: Final = 2 * 2**30
NUM_SMALL: Final = 5_000
SMALL_BYTES: Final = 4096

NGINX: Final = """
daemon off; user {user}; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 512; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000; default_type application/octet-stream;
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  server {{ listen 127.0.0.1:{port}; root {folder}/site; add_header X-Repo-Commit {commit} always;
            location /api/ {{ default_type application/json; }} }}
}}
"""


@dataclass(frozen=True, slots=True)
class Reading:
    """What one download took. rss_mib: at most, of all its processes."""

    wall_s: float
    cpu_s: float
    rss_mib: float


def main() -> None:
    """Parse, make, measure, print."""
    parser = argparse.ArgumentParser(prog="bench-store", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, one round: to see that everything runs"
    )
    options = parser.parse_args()
    num_bytes, num_small = (64 * MIB, 200) if options.quick else (BIG_BYTES, NUM_SMALL)
    folder = CACHE / ("store-quick" if options.quick else "store")
    make_site(folder, num_bytes, num_small)
    (folder / "nginx.conf").write_text(
        NGINX.format(folder=folder, port=PORT, commit=COMMIT, user=getpass.getuser())
    )
    readings: dict[tuple[str, str], list[Reading]] = {}
    with contextlib.closing(
        _Stopping(Server(["nginx", "-c", str(folder / "nginx.conf")], {}, folder / "nginx.log"))
    ):
        time.sleep(0.5)
        for number in range(1 if options.quick else options.rounds):
            for what in ("big", "small"):
                peers = [peer for peer in PEERS if (what, peer) != ("small", "pip download")]
                shift = number % len(peers)
                for peer in [*peers[shift:], *peers[:shift]]:
                    say(f"round {number + 1}: {what}: {peer}")
                    with scratch(folder) as target:
                        reading = PEERS[peer](folder, what, target)
                    if reading is not None:
                        readings.setdefault((what, peer), []).append(reading)
                        say(
                            f"  {reading.wall_s:.2f} s, {reading.cpu_s:.2f} s of CPU, {reading.rss_mib:.0f} MiB"
                        )
    print(table(readings, num_bytes, num_small))


def make_site(folder: Path, num_bytes: int, num_small: int) -> None:
    """What nginx serves: made once."""
    if (folder / "whole").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    config = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 2048}
    for name in ("big", "small"):
        files = folder / f"site/bench/{name}/resolve/{COMMIT}"
        files.mkdir(parents=True)
        (files / "config.json").write_text(json.dumps(config))
        write_safetensors(files / "model.safetensors", num_bytes if name == "big" else SMALL_BYTES)
        for number in range(num_small if name == "small" else 0):
            content = json.dumps({"number": number, "text": os.urandom(SMALL_BYTES // 2).hex()})
            (files / f"{number:05}.json").write_text(content)
        siblings, tree, urls = [], [], []
        for path in sorted(files.iterdir()):
            with path.open("rb") as opened:
                lfs = {
                    "sha256": hashlib.file_digest(opened, "sha256").hexdigest(),
                    "size": path.stat().st_size,
                }
            siblings.append({"rfilename": path.name, "size": lfs["size"], "lfs": lfs | {"pointerSize": 130}})
            entry = {"type": "file", "path": path.name, "size": lfs["size"], "oid": "0" * 40}
            tree.append(entry | {"lfs": {"oid": lfs["sha256"], "size": lfs["size"], "pointerSize": 130}})
            urls.append(f"http://127.0.0.1:{PORT}/bench/{name}/resolve/{COMMIT}/{path.name}")
        api = folder / f"site/api/models/bench/{name}"
        for kind, answer in (
            ("revision", {"id": f"bench/{name}", "sha": COMMIT, "siblings": siblings, "private": False}),
            ("tree", tree),
        ):
            (api / kind).mkdir(parents=True)
            (api / kind / COMMIT).write_text(json.dumps(answer))
        (folder / f"{name}.urls").write_text("\n".join(urls) + "\n")
    make_wheel(folder / "site/wheels", folder / f"site/bench/big/resolve/{COMMIT}/model.safetensors")
    (folder / "whole").touch()


def write_safetensors(path: Path, num_bytes: int) -> None:
    """One tensor of random bytes. https://huggingface.co/docs/safetensors"""
    header = json.dumps({"w": {"dtype": "U8", "shape": [num_bytes], "data_offsets": [0, num_bytes]}}).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for start in range(0, num_bytes, MIB):
            file.write(os.urandom(min(MIB, num_bytes - start)))


def make_wheel(folder: Path, content: Path) -> None:
    """A package that carries the file, on a page of links with its hash."""
    folder.mkdir(parents=True)
    wheel = folder / "big_model-1.0-py3-none-any.whl"
    info = "big_model-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_STORED) as archive:
        archive.write(content, "big_model/model.safetensors")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: big-model\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    with wheel.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    (folder / "index.html").write_text(f'<a href="{wheel.name}#sha256={digest}">{wheel.name}</a>')


def wget(folder: Path, what: str, target: Path) -> Reading | None:
    """One connection, one file after another."""
    return run(["wget", "-q", "-P", str(target), "-i", str(folder / f"{what}.urls")])


def aria2c(folder: Path, what: str, target: Path) -> Reading | None:
    """Sixteen at once, four connections for a file."""
    options = ["-q", "-j16", "-x4", "-s4", "--file-allocation=none", "-d", str(target)]
    return run(["aria2c", *options, "-i", str(folder / f"{what}.urls")])


def hf_download(folder: Path, what: str, target: Path) -> Reading | None:
    """huggingface_hub's own command."""
    env = {"HF_ENDPOINT": f"http://127.0.0.1:{PORT}", "HF_HOME": str(target), "HF_HUB_DISABLE_XET": "1"}
    return run([str(BIN / "hf"), "download", f"bench/{what}", "--revision", COMMIT, "--quiet"], env)


def pip_download(folder: Path, what: str, target: Path) -> Reading | None:
    """The same bytes as a package."""
    where = ["--no-index", "--find-links", f"http://127.0.0.1:{PORT}/wheels/index.html", "--no-cache-dir"]
    return run([str(BIN / "pip"), "-q", "download", "--no-deps", *where, "-d", str(target), "big-model==1.0"])


def lares(folder: Path, what: str, target: Path) -> Reading | None:
    """`lares pull`, with the service that does the work."""
    env = {
        "LARES_HOME": str(target),
        "LARES_HTTP": LARES_HTTP,
        "LARES_GRPC": LARES_GRPC,
        "SKIP_MODEL_DOWNLOADS": "1",
        "LARES_DOWNLOADER_HF_ENDPOINT": f"http://127.0.0.1:{PORT}",
        "LARES_LOG_LEVEL": "warning",
    }
    server = Server([str(BIN / "lares"), "up"], env, folder / "lares.log")
    with contextlib.closing(_Stopping(server)):
        while "lares ready" not in server.tail():
            if server.ended:
                raise SystemExit(server.tail(40))
            time.sleep(0.05)
        return run([str(BIN / "lares"), "pull", f"hf:bench/{what}@{COMMIT}"], env, beside=server.pid)


PEERS: Final[dict[str, Callable[[Path, str, Path], Reading | None]]] = {
    "lares pull": lares,
    "wget": wget,
    "aria2c": aria2c,
    "hf download": hf_download,
    "pip download": pip_download,
}


def run(
    command: list[str], env: dict[str, str] | None = None, *, beside: int | None = None
) -> Reading | None:
    """Measure a command and, with `beside`, a process that works for it. None if it is not installed."""
    if shutil.which(command[0]) is None:
        say(f"  {command[0]} is not installed")
        return None
    before_s = tree_cpu_s(beside) if beside else 0.0
    began = time.monotonic()
    process = subprocess.Popen(command, env=os.environ | (env or {}), stdout=subprocess.DEVNULL)
    most, ended = 0.0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.02):
            most = max(most, tree_rss_mib(process.pid) + (tree_rss_mib(beside) if beside else 0.0))

    watching = threading.Thread(target=watch)
    watching.start()
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    ended.set()
    watching.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    beside_s = tree_cpu_s(beside) - before_s if beside else 0.0
    return Reading(wall_s, usage.ru_utime + usage.ru_stime + beside_s, most)


def table(readings: dict[tuple[str, str], list[Reading]], num_bytes: int, num_small: int) -> str:
    """Medians; in brackets Lares' value divided by the peer's."""
    titles = {
        "big": f"one file of {num_bytes // MIB} MiB",
        "small": f"{num_small} files of {SMALL_BYTES} bytes",
    }
    lines = []
    for what, title in titles.items():
        lines += [f"\n{title}\n", "| | wall, s | CPU, s | memory, MiB |", "|---|---|---|---|"]
        medians = {
            peer: [statistics.median(getattr(one, name) for one in found) for name in Reading.__slots__]
            for (kind, peer), found in readings.items()
            if kind == what
        }
        ours = medians.get("lares pull", [])
        for peer, values in medians.items():
            cells = [f"{value:.2f}" if index < 2 else f"{value:.0f}" for index, value in enumerate(values)]
            if peer != "lares pull":
                cells = [
                    f"{cell} ({own / value:.2f}x)"
                    for cell, own, value in zip(cells, ours, values, strict=False)
                ]
            lines.append(f"| {peer} | {' | '.join(cells)} |")
    return "\n".join(lines)


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """An empty folder, gone afterwards."""
    target = folder / "target"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    try:
        yield target
    finally:
        shutil.rmtree(target, ignore_errors=True)


class _Stopping:
    """A server that ends when it is closed."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def close(self) -> None:
        self._server.stop()


def say(line: str) -> None:
    """For whoever waits."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
