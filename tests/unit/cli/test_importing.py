"""`lares import` against a registry and a downloader in a process of their own, with caches beside them."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from cli.console import size_text
from lares.downloader.v1 import downloader_pb2 as pb
from lares.downloader.v1 import downloader_pb2_grpc as rpc
from tests.contract.local_caches import age, as_it_is, fill_ollama, num_names
from tests.unit.cli.house import MAIN, House, serving
from tests.unit.services.downloader.wheels import gguf_bytes

MODEL = gguf_bytes() + bytes(50_000)


class ImportHouse(House):
    def gguf(self, name: str, content: bytes = MODEL) -> Path:
        file = self.folder / "ggufs" / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
        age(file)
        return file


@pytest.fixture
def house(tmp_path: Path) -> Iterator[ImportHouse]:
    """Its usual places are Ollama's folder `models` and one that is not there."""
    places = {"OLLAMA_MODELS": str(tmp_path / "models"), "HF_HUB_CACHE": str(tmp_path / "absent")}
    with serving(tmp_path / "home", **places) as address:
        yield ImportHouse(tmp_path, address)


def test_without_a_name_it_lists_what_there_is_and_imports_nothing(house: ImportHouse) -> None:
    empty = house.lares("import", "--from", str(house.folder / "nothing"))
    assert "cannot be looked into" in empty.stdout
    digest = fill_ollama(house.folder / "models", "tiny", "1b", {"model": MODEL})
    listed = house.lares("import")
    assert listed.exit_code == 0, listed.output
    (heading, line) = listed.stdout.splitlines()
    assert heading.split() == ["REFERENCE", "SIZE", "WHERE", "HERE"]
    assert line.split() == [
        f"ollama:tiny:1b@{digest}",
        *size_text(len(MODEL)).split(),
        "ollama",
        str(house.folder / "models"),
        "no",
    ]
    (one,) = house.json("import")
    assert (one["place"], one["problem"]) == ("LOCAL_PLACE_OLLAMA", "")
    assert house.json("list") == []


@pytest.mark.parametrize("name", ["ollama:tiny:1b", "tiny-1b"])
def test_a_name_without_its_revision_is_enough(house: ImportHouse, name: str) -> None:
    fill_ollama(house.folder / "models", "tiny", "1b", {"model": MODEL})
    done = house.lares("import", name)
    assert done.exit_code == 0, done.output
    assert "tiny-1b is here" in done.stdout
    assert "tiny-1b:1b-" in house.lares("import").stdout
    again = house.lares("import", "--all")
    assert (again.exit_code, again.stdout) == (0, "")
    assert "nothing is left to import" in again.stderr


def test_all_of_a_folder_comes_without_a_copy_and_a_dry_run_says_so_before(house: ImportHouse) -> None:
    one, other = house.gguf("one.gguf"), house.gguf("two.gguf", MODEL + b"2")
    folder = str(one.parent)
    plan = house.json("import", "--from", folder, "--dry-run")
    assert plan["dry_run"] is True
    assert [(each["model_id"], each["copy_bytes"]) for each in plan["models"]] == [("one", 0), ("two", 0)]
    told = house.lares("import", "two", "--from", folder, "--dry-run", "--copy").stdout
    assert told.split()[-4:] == ["0", "B", *size_text(len(MODEL) + 1).split()]
    assert house.json("list") == []
    before = as_it_is(one)
    downloads = house.json("import", "--from", folder, "--all")
    assert [download["state"] for download in downloads] == ["DOWNLOAD_STATE_SUCCEEDED"] * 2
    assert {file.stat().st_nlink for file in (one, other)} == {num_names(house.folder)}
    assert as_it_is(one) == before


def test_a_copy_shares_nothing(house: ImportHouse) -> None:
    file = house.gguf("one.gguf")
    assert house.lares("import", "one", "--from", str(file.parent), "--copy").exit_code == 0
    assert file.stat().st_nlink == 1


def test_one_that_fails_does_not_hold_up_the_others(house: ImportHouse) -> None:
    house.gguf("a.gguf", b"no GGUF file")
    folder = str(house.gguf("b.gguf").parent)
    done = house.lares("import", "--from", folder, "--all")
    assert done.exit_code == 1
    assert "error: file:" in done.stderr
    assert "b is here" in done.stdout
    alone = house.lares("import", "--from", folder, "a")
    assert alone.exit_code == 1
    assert "UNSUPPORTED_FORMAT" in alone.stderr


def test_a_name_that_fits_nothing_or_several_is_refused(house: ImportHouse) -> None:
    parts = house.gguf("m-00001-of-00002.gguf")
    nothing = house.lares("import", "nothing")
    assert (nothing.exit_code, "SOURCE_NOT_FOUND" in nothing.stderr) == (1, True)
    broken = house.lares("import", f"file:{parts}", "--from", str(parts.parent))
    assert broken.exit_code == 1
    assert "m-00002-of-00002.gguf is not there" in broken.stderr
    for commit in ("a" * 40, "b" * 40):
        snapshot = house.folder / "hub" / "models--org--repo" / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (snapshot / "m.gguf").write_bytes(MODEL)
    several = house.lares("import", "hf:org/repo", "--from", str(house.folder / "hub"))
    assert several.exit_code == 1
    assert "say which" in several.stderr


def test_a_file_may_be_called_what_a_console_would_read(house: ImportHouse) -> None:
    file = house.gguf("[bold]x.gguf")
    listed = house.lares("import", "--from", str(file.parent))
    assert f"file:{file}" in listed.stdout


def test_ctrl_c_pauses_and_the_same_command_goes_on(house: ImportHouse) -> None:
    file = house.gguf("one.gguf")
    os.truncate(file, 4 * 1024**3)  # Long to read, and nothing on the disk.
    arguments = ["--grpc", house.grpc, "import", "one", "--from", str(file.parent)]
    with (
        grpc.insecure_channel(house.grpc) as channel,
        subprocess.Popen(
            [sys.executable, "-c", MAIN, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Where the tests run in the background of a shell, Ctrl-C is ignored, and a child would keep to it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as process,
    ):
        downloader = rpc.DownloaderServiceStub(channel)
        running = pb.ListDownloadsRequest(states=[pb.DOWNLOAD_STATE_RUNNING])
        while not downloader.ListDownloads(running).downloads:
            pass
        process.send_signal(signal.SIGINT)
        _, told = process.communicate()
    assert process.returncode == 130
    assert "paused; the same command goes on from here" in told
    assert file.stat().st_nlink == 1
    os.truncate(file, len(MODEL))
    age(file)
    assert house.lares(*arguments[2:]).exit_code == 0
    assert file.stat().st_nlink == num_names(house.folder)
