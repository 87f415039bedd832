import sys
from pathlib import Path

import pytest

from bench.engine import Options, Run, facts, free_name, last_row, parse
from bench.models import Model
from bench.peers import PEERS, Peer, PeerFailed
from bench.scenarios import SCENARIOS


def test_a_plain_run_measures_everything_and_is_kept() -> None:
    options = parse([])
    assert options.models == ("starter", "1b")
    assert options.peers == tuple(PEERS)
    assert options.scenarios == SCENARIOS
    assert options.out is not None


def test_a_quick_run_is_one_round_and_kept_nowhere() -> None:
    options = parse(["--quick", "--rounds", "5"])
    assert options.num_rounds == 1
    assert options.out is None


def test_peers_and_scenarios_can_be_chosen() -> None:
    options = parse(["--peers", "lares,vllm", "--scenarios", "c16", "--model", "1b"])
    assert options.peers == ("lares", "vllm")
    assert [one.name for one in options.scenarios] == ["c16"]
    assert options.models == ("1b",)


@pytest.mark.parametrize("wrong", [["--peers", "ollama"], ["--scenarios", "c64"], ["--rounds", "0"]])
def test_what_is_not_known_is_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(wrong)
    assert "must be" in capsys.readouterr().err


def test_a_load_generator_that_crashed_is_a_failed_row() -> None:
    assert last_row("c4", 'noise\n{"req": 4}\n', "") == {"req": 4}
    assert last_row("c4", "", "Traceback\nOSError: no\n") == {"label": "c4", "FAILED": "OSError: no"}
    assert "FAILED" in last_row("c4", "", "")


def test_an_earlier_report_is_not_overwritten(tmp_path: Path) -> None:
    assert free_name(tmp_path, "day-engine") == tmp_path / "day-engine"
    (tmp_path / "day-engine.md").touch()
    (tmp_path / "day-engine-2.md").touch()
    assert free_name(tmp_path, "day-engine") == tmp_path / "day-engine-3"


def test_facts_tell_settings_and_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LARES_INFERENCE_DEVICE", "cpu")
    monkeypatch.setenv("LARES_DOWNLOADER_HF_TOKEN", "secret")
    assert "LARES_INFERENCE_DEVICE=cpu" in facts()["settings"]
    assert "secret" not in facts()["settings"]


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Peers a, b and c that only note when they start; b cannot be installed, c does not start."""
    seen: list[str] = []

    def peer(called: str) -> type[Peer]:
        class Fake(Peer):
            name = called

            def install(self) -> str:
                if called == "b":
                    raise PeerFailed("no wheel\nfor this machine")
                return "1.0"

            def start(self) -> None:
                seen.append(called)
                if called == "c":
                    raise PeerFailed("it ended")

            def stop(self) -> None:
                seen.append(f"-{called}")

            @property
            def pid(self) -> int:
                return 1

        return Fake

    monkeypatch.setattr("bench.engine.PEERS", {name: peer(name) for name in "abc"})
    return seen


def run_of(tmp_path: Path, num_rounds: int, row: str) -> Run:
    printing = (sys.executable, "-c", f"print('''{row}''')")
    options = Options(("starter",), tuple("abc"), SCENARIOS[:1], num_rounds, 0, printing, None)
    return Run(options, Model("starter", tmp_path, tmp_path, tmp_path))


ROW = '{"label": "x", "ttft_p50_ms": 50.0, "decode_tok_s_p50": 9.0, "out_tokens": 4, "short": 0}'


def test_each_round_begins_with_the_next_peer_and_no_two_run_at_once(
    starts: list[str], tmp_path: Path
) -> None:
    run = run_of(tmp_path, 2, ROW)
    assert len(list(run.rounds())) == 2
    assert starts[:8] == ["a", "-a", "c", "-c", "c", "-c", "a", "-a"]
    assert run.results.values["a"]["batch1"] == {0: 9.0, 1: 9.0}


def test_a_peer_that_cannot_be_had_is_told_and_the_others_run(starts: list[str], tmp_path: Path) -> None:
    run = run_of(tmp_path, 1, ROW)
    list(run.rounds())
    assert run.results.left_out == {"b": "no wheel", "c, round 1": "it ended"}
    assert run.results.versions.keys() == {"a", "c"}


def test_a_row_with_short_answers_does_not_count(starts: list[str], tmp_path: Path) -> None:
    run = run_of(tmp_path, 1, ROW.replace('"short": 0', '"short": 2'))
    list(run.rounds())
    assert "a" not in run.results.values
    assert run.results.left_out["a, first answer"] == "2 answers ended early"
