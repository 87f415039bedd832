"""Lares beside other servers, interleaved in one run: one table of ratios, kept with its date in bench/results/.

    make bench-engine ARGS="--model starter --rounds 3"

A round starts each peer in turn, has it answer every scenario, and stops it; the next round begins with the next peer.
One server runs at a time: two would share the cores. Ctrl-C stops everything.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import zlib
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any, Final

import grpc
import psutil

from bench.first_token import added_ms
from bench.loadgen import LoadFailed
from bench.models import Model, model
from bench.peers import PEERS, Lares, Peer, PeerFailed, running
from bench.processes import busy_and_steal_s, tree_rss_mib
from bench.report import OURS, Results, markdown
from bench.scenarios import FIRST_TOKEN_PAIRS, QUICK, SCENARIOS, SOAK, Scenario

ROOT: Final = Path(__file__).parents[1]
RESULTS: Final = Path(__file__).parent / "results"
LOADGEN: Final = f"{shlex.quote(sys.executable)} -m bench.loadgen"
LOAD_TIMEOUT_S: Final = 3600.0
_INSTRUCTIONS: Final = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
FIRST: Final = Scenario("first", "ttft_p50_ms", "ms", "first answer", num_requests=1, max_tokens=4)


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """What was asked for on the command line."""

    models: tuple[str, ...]
    peers: tuple[str, ...]
    scenarios: tuple[Scenario, ...]
    num_rounds: int
    soak: int
    loadgen: tuple[str, ...]
    out: Path | None
    """Where the report goes; None: to stdout only."""


class Run:
    """All rounds over one model."""

    def __init__(self, options: Options, on: Model) -> None:
        self._options = options
        self._model = on
        self.results = Results(on.id, options.scenarios, facts())

    def rounds(self) -> Iterator[Results]:
        """The results, after each round."""
        with contextlib.ExitStack() as stack:
            peers = []
            for name in self._options.peers:
                peer = PEERS[name](self._model)
                stack.callback(peer.close)
                if self._install(peer):
                    peers.append(peer)
            _, steal_before_s = busy_and_steal_s()
            for number in range(self._options.num_rounds):
                first = number % len(peers) if peers else 0
                for peer in [*peers[first:], *peers[:first]]:
                    self._round_of(peer, number)
                stolen_s = busy_and_steal_s()[1] - steal_before_s
                done = {
                    "rounds": f"{number + 1} of {self._options.num_rounds}",
                    "steal": f"{stolen_s:.1f} s of CPU",
                }
                self.results.facts |= done
                yield self.results

    def _install(self, peer: Peer) -> bool:
        say(f"{self._model.id}: {peer.name}: installing")
        try:
            self.results.versions[peer.name] = peer.install()
        except PeerFailed as error:
            self._leave_out(peer.name, error)
            return False
        self.results.weights[peer.name] = peer.weights
        return True

    def _round_of(self, peer: Peer, round_: int) -> None:
        say(f"{self._model.id}: round {round_ + 1}: {peer.name}: starting")
        try:
            with running(peer):
                self._measure(peer, round_)
        except PeerFailed as error:
            self._leave_out(f"{peer.name}, round {round_ + 1}", error)

    def _measure(self, peer: Peer, round_: int) -> None:
        add = self.results.add
        first = self._load(peer, FIRST, round_)
        if first is None:
            raise PeerFailed("it gave no first answer")
        add(peer.name, "ready_s", round_, peer.ready_s)
        add(peer.name, "first_answer_s", round_, first["ttft_p50_ms"] / 1e3)
        add(peer.name, "rss_ready_mib", round_, tree_rss_mib(peer.pid))
        for scenario in self._options.scenarios:
            row = self._load(peer, scenario, round_)
            if row and row[scenario.metric] is not None:
                add(peer.name, scenario.name, round_, row[scenario.metric])
            # Of a foreign load generator's row this column is missing.
            if row and isinstance(peer, Lares) and scenario.name == "c16" and "root_cpu_s" in row:
                add(peer.name, "services_us_per_token", round_, row["root_cpu_s"] / row["out_tokens"] * 1e6)
        rss_mib = tree_rss_mib(peer.pid)
        add(peer.name, "rss_end_mib", round_, rss_mib)
        if isinstance(peer, Lares):
            add(peer.name, "memory_over_weights_mib", round_, rss_mib - self._model.weights_mib)
            self._measure_first_token(peer, round_)
            if self._options.soak and round_ == self._options.num_rounds - 1:
                self._soak(peer, round_)

    def _measure_first_token(self, lares: Lares, round_: int) -> None:
        try:
            value_ms = asyncio.run(
                added_ms(
                    lares.base_url,
                    lares.grpc,
                    lares.served_name,
                    lares.extra_body,
                    FIRST_TOKEN_PAIRS,
                    _seed("pairs", round_),
                )
            )
        except (LoadFailed, OSError, grpc.RpcError) as error:
            self._leave_out("the first token's share", error)
        else:
            self.results.add(lares.name, "services_first_token_ms", round_, value_ms)

    def _soak(self, lares: Lares, round_: int) -> None:
        """The first half fills whatever fills once; what grows in the second has no end."""
        half = dataclasses.replace(SOAK, num_requests=max(1, self._options.soak // 2))
        readings = []
        for part in range(2):
            if self._load(lares, half, round_, seed=_seed("soak", part)) is None:
                return
            readings.append(tree_rss_mib(lares.pid))
        self.results.add(lares.name, "soak_growth_mib", round_, readings[1] - readings[0])

    def _load(
        self, peer: Peer, scenario: Scenario, round_: int, *, seed: int | None = None
    ) -> dict[str, Any] | None:
        """The load generator's row. None, and a note, if it failed."""
        say(f"{self._model.id}: round {round_ + 1}: {peer.name}: {scenario.title}", end="")
        row = self._row(peer, scenario, _seed(scenario.name, round_) if seed is None else seed)
        self.results.rows.append({"peer": peer.name, "round": round_} | row)
        if "FAILED" in row:
            say("")
            self._leave_out(f"{peer.name}, {scenario.title}", row["FAILED"])
            if not peer.runs:
                raise PeerFailed(f"{peer.name} ended; its log ends:\n{peer.tail()}")
            return None
        say(f": {row[scenario.metric]} {scenario.unit}")
        if row["short"]:
            self._leave_out(f"{peer.name}, {scenario.title}", f"{row['short']} answers ended early")
            return None
        return row

    def _row(self, peer: Peer, scenario: Scenario, seed: int) -> dict[str, Any]:
        arguments = {
            "base-url": peer.base_url,
            "model": peer.served_name,
            "label": scenario.name,
            "concurrency": scenario.concurrency,
            "requests": scenario.num_requests,
            # The very first answer is what FIRST measures.
            "warmup": 0 if scenario is FIRST else 1,
            "prompt-tokens": scenario.prompt_tokens,
            "max-tokens": scenario.max_tokens,
            "shared-prefix": scenario.shared_prefix,
            "temperature": 0,
            "extra-body": json.dumps(dict(peer.extra_body)),
            "server-pid": peer.pid,
            "seed": seed,
        }
        command = [*self._options.loadgen, "--no-keepalive"]
        for name, value in arguments.items():
            command += [f"--{name}", str(value)]
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=LOAD_TIMEOUT_S,
                start_new_session=True,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {"label": scenario.name, "FAILED": f"no end after {LOAD_TIMEOUT_S:.0f} s"}
        return last_row(scenario.name, done.stdout, done.stderr)

    def _leave_out(self, what: str, why: object) -> None:
        say(f"left out: {what}: {why}")
        self.results.left_out[what] = str(why).partition("\n")[0][:200]


def last_row(label: str, stdout: str, stderr: str) -> dict[str, Any]:
    """What a load generator printed. One that crashed printed no row, and its last words stand in for it."""
    with contextlib.suppress(json.JSONDecodeError, IndexError):
        row: dict[str, Any] = json.loads(stdout.splitlines()[-1])
        return row
    words = stderr.strip().splitlines() or ["it printed nothing"]
    return {"label": label, "FAILED": words[-1]}


def _seed(name: str, round_: int) -> int:
    """The same prompts for every peer of a round, others in each scenario and round: no cache may have seen them."""
    return zlib.crc32(f"{name} {round_}".encode())


def facts() -> dict[str, str]:
    """What there is to know of this machine, without its name."""
    told = {
        key: value for key, value in os.environ.items() if key.startswith("LARES_") and "TOKEN" not in key
    }
    return {
        "date": date.today().isoformat(),
        "processor": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "instructions": " ".join(flag for flag in _INSTRUCTIONS if flag in _cpuinfo("flags").split()) or "-",
        "cores": f"{psutil.cpu_count(logical=False)} ({psutil.cpu_count()} threads)",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "load before": f"{os.getloadavg()[0]:.2f}",
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        **({"settings": " ".join(f"{key}={value}" for key, value in sorted(told.items()))} if told else {}),
    }


def _cpuinfo(key: str) -> str:
    """What Linux says of the first processor; empty where there is no Linux."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(key):
                return line.partition(":")[2].strip()
    return ""


def say(text: str, end: str = "\n") -> None:
    """Progress goes to stderr: stdout is the report's."""
    print(text, end=end, file=sys.stderr, flush=True)


def save(out: Path, all_results: Sequence[Results]) -> None:
    """Write the report beside its raw values."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".md").write_text(report(all_results), "utf-8")
    raw = [dataclasses.asdict(results) for results in all_results]
    out.with_suffix(".json").write_text(json.dumps(raw, indent=1) + "\n", "utf-8")


def report(all_results: Sequence[Results]) -> str:
    """Everything as Markdown."""
    head = "# Engine\n\nMedians over the rounds; in brackets Lares' value divided by the peer's. See bench/README.md.\n"
    return "\n".join([head, *(markdown(results) for results in all_results)])


def free_name(folder: Path, name: str) -> Path:
    """`folder/name`, or with -2, -3, ... behind it: what was measured before is kept."""
    path, count = folder / name, 1
    while path.with_suffix(".md").exists():
        count += 1
        path = folder / f"{name}-{count}"
    return path


def parse(arguments: Sequence[str]) -> Options:
    """Read the command line. Exits on what is wrong."""
    parser = argparse.ArgumentParser(
        prog="bench-engine",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    known = [scenario.name for scenario in SCENARIOS]
    parser.add_argument("--model", choices=("starter", "1b", "both"), default="both")
    parser.add_argument("--peers", type=_names(PEERS), default=tuple(PEERS), help=f"of {','.join(PEERS)}")
    parser.add_argument(
        "--scenarios", type=_names(known), default=(), help=f"of {','.join(known)}; default all"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--soak", type=int, default=0, metavar="N", help="and N requests more, for Lares' memory"
    )
    parser.add_argument("--quick", action="store_true", help="one short round, to see that everything runs")
    parser.add_argument(
        "--loadgen", type=shlex.split, default=LOADGEN, help="another one with the same flags"
    )
    parser.add_argument("--out", type=Path, help="default: bench/results/DATE-engine; with --quick: nowhere")
    given = parser.parse_args(arguments)
    if given.rounds < 1:
        parser.error("--rounds must be at least 1")
    of = QUICK if given.quick else SCENARIOS
    out = given.out
    if out is None and not given.quick:
        out = free_name(RESULTS, f"{date.today().isoformat()}-engine")
    return Options(
        models=("starter", "1b") if given.model == "both" else (given.model,),
        peers=given.peers,
        scenarios=tuple(one for one in of if not given.scenarios or one.name in given.scenarios),
        num_rounds=1 if given.quick else given.rounds,
        soak=given.soak,
        loadgen=tuple(given.loadgen),
        out=out,
    )


def _names(known: Sequence[str] | Any) -> Any:
    def names(text: str) -> tuple[str, ...]:
        asked = tuple(text.split(","))
        if unknown := [name for name in asked if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: must be of {', '.join(known)}")
        return asked

    return names


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line. Returns the exit code."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    all_results: list[Results] = []
    try:
        for id in options.models:
            say(f"{id}: preparing the model")
            run = Run(options, model("starter" if id == "starter" else "1b"))
            all_results.append(run.results)
            for _ in run.rounds():
                if options.out is not None:
                    save(options.out, all_results)
    except KeyboardInterrupt:
        say("stopped")
        return 130
    print(report(all_results))
    if options.out is not None:
        say(f"kept in {options.out.with_suffix('.md')}")
    # Without us there is nothing to compare.
    return int(any(OURS in options.peers and not results.values.get(OURS) for results in all_results))


if __name__ == "__main__":
    sys.exit(main())
