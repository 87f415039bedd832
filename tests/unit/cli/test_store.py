"""`lares df`, `gc`, `cleanup` and `validate` against a registry and a downloader in a process of their own."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration

from cli.store import age_text, resource_of
from services.kit.errors import InvalidReference
from tests.unit.cli.house import MAIN, House, serving
from tests.unit.services.downloader.wheels import gguf_bytes

MODEL = gguf_bytes() + bytes(50_000)


class StoreHouse(House):
    def pull(self, content: bytes = MODEL) -> None:
        """The model `m`; other content becomes another version of it."""
        file = self.folder / "m.gguf"
        file.write_bytes(content)
        done = self.lares("pull", f"file:{file}")
        assert done.exit_code == 0, done.output

    def damage(self) -> Path:
        """Zero the one blob that is there."""
        (blob,) = [path for path in (self.folder / "store" / "blobs").rglob("*") if path.is_file()]
        blob.chmod(0o644)
        blob.write_bytes(bytes(blob.stat().st_size))
        return blob


@pytest.fixture
def house(tmp_path: Path) -> Iterator[StoreHouse]:
    with serving(tmp_path) as address:
        yield StoreHouse(tmp_path, address)


def test_df_tells_what_the_store_holds(house: StoreHouse) -> None:
    house.pull()
    usage = house.json("df")
    assert usage["referenced"] == {"count": 1, "size_bytes": len(MODEL)}
    assert usage["models"] == [
        {"model": "models/m", "num_versions": 1, "size_bytes": len(MODEL), "shared_bytes": 0}
    ]
    assert "max_store_bytes" not in usage
    printed = house.lares("df").stdout
    assert "blobs of models" in printed
    assert "without a limit" in printed


def test_gc_tells_why_before_anything_goes(house: StoreHouse) -> None:
    left_over = house.folder / "store" / "ingest" / "left-over"
    left_over.mkdir()
    (left_over / "0.part").write_bytes(bytes(5000))
    told = house.json("gc", "--dry-run")
    assert told["dry_run"] is True
    assert [item["reason"] for item in told["items"]] == ["GARBAGE_REASON_ORPHANED_INGEST"]
    printed = house.lares("gc", "--dry-run").stdout
    assert "orphaned ingest" in printed
    assert "5.0 kB would be freed" in printed
    assert left_over.exists()
    assert "5.0 kB freed" in house.lares("gc").stdout
    assert not left_over.exists()


def test_cleanup_asks_first_and_keeps_the_newest(house: StoreHouse) -> None:
    house.pull()
    house.pull(MODEL + b"2")
    told = house.json("cleanup", "--keep", "1", "--dry-run")
    assert (told["freed_bytes"], len(told["versions"])) == (len(MODEL), 1)
    refused = house.lares("cleanup", "--keep", "1", "m", answer="n\n")
    assert refused.exit_code == 1
    assert "goes" in refused.stdout
    assert house.json("df")["referenced"]["count"] == 2
    done = house.lares("cleanup", "--keep", "1", "m", answer="y\n")
    assert done.exit_code == 0
    assert "1 versions removed" in done.stdout
    assert house.json("df")["referenced"]["count"] == 1
    assert house.json("cleanup", "--keep", "1")["versions"] == []
    wrong = house.lares("cleanup", "--keep", "1", "nothing", "--yes")
    assert wrong.exit_code == 1
    assert "'nothing' is not here" in wrong.stderr


def test_validate_finds_and_repairs_what_is_damaged(house: StoreHouse) -> None:
    house.pull()
    assert house.json("validate")["summary"]["num_good"] == 1
    blob = house.damage()
    found = house.lares("validate", "m")
    assert found.exit_code == 1
    assert "damaged  m.gguf" in found.stdout
    assert "quarantined; m.gguf is damaged" in found.stdout
    assert not blob.exists()
    done = house.lares("validate", "--repair")
    assert done.exit_code == 0, done.output
    assert "repaired" in done.stdout
    assert blob.read_bytes() == MODEL
    wrong = house.lares("validate", "nothing")
    assert wrong.exit_code == 1
    assert "MODEL_NOT_FOUND" in wrong.stderr


def test_ctrl_c_ends_a_validation_here_and_there(house: StoreHouse) -> None:
    house.pull()
    with subprocess.Popen(
        [sys.executable, "-c", MAIN, "--grpc", house.grpc, "validate", "--max-bytes-per-second", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in the background of a shell, Ctrl-C is ignored, and a child would keep to it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stderr is not None
        assert "reading 50" in process.stderr.readline()
        refused = house.lares("validate")
        assert "another validation" in refused.stderr
        process.send_signal(signal.SIGINT)
        printed, told = process.communicate()
    assert (process.returncode, printed) == (130, "")
    assert "Traceback" not in told
    while house.lares("validate").exit_code:
        pass


def test_names_are_those_that_are_served() -> None:
    assert resource_of("m") == "models/m"
    assert resource_of("m:1.2") == "models/m/versions/1.2"
    for wrong in ("", "models/m", "../m", "m:../x"):
        with pytest.raises(InvalidReference):
            resource_of(wrong)


@pytest.mark.parametrize(
    ("age_s", "text"), [(0, "0 s"), (59, "59 s"), (60, "1 min"), (7199, "1 h"), (86_400 * 3, "3 d")]
)
def test_age_is_told_in_its_largest_unit(age_s: int, text: str) -> None:
    assert age_text(Duration(seconds=age_s)) == text
