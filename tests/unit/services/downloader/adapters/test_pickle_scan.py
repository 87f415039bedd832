"""Files that run code when they are loaded, each built here, none of them loaded."""

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.downloader.adapters import worker_inspector
from services.downloader.adapters.archive_report import read_member, report_archive
from services.downloader.adapters.pickle_scan import scan_pickle
from services.downloader.adapters.worker_inspector import WorkerInspector
from services.downloader.core.models import FindingKind, FindingSeverity, LeftOut
from tests.unit.services.downloader.wheels import gguf_bytes, make_wheel


class Harm:
    """Runs a command in whoever loads it."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch /tmp/harm",)


HARM = pickle.dumps(Harm())
# `s`, memoized and doubled, again and again: a pickle of 300 bytes that unpickles to gigabytes.
BOMB = (
    b"\x80\x04" + b"]" + b"(" + b"X\x01\x00\x00\x00s" + b"".join(b"\x94h\x00h\x00" for _ in range(50)) + b"e."
)


def torch_zip(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/data/0", bytes(64))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "severity", "told"),
    [
        ("m.pkl", HARM, FindingSeverity.DANGER, "posix.system: dangerous"),
        ("pytorch_model.bin", torch_zip(HARM), FindingSeverity.DANGER, "posix.system: dangerous"),
        ("m.pkl", HARM[:-3], FindingSeverity.DANGER, "posix.system"),
        (
            "m.pkl",
            pickle.dumps(OrderedDict(a=1)),
            FindingSeverity.INFO,
            "collections.OrderedDict: the usual ones",
        ),
        ("m.pkl", pickle.dumps(Path("x")), FindingSeverity.WARNING, "pathlib"),
        ("m.pkl", pickle.dumps([1, 2]), FindingSeverity.INFO, "no import was found"),
        ("m.bin", b"no pickle at all", FindingSeverity.INFO, "no import was found"),
        ("m.pt", b"PK\x03\x04 a broken zip", FindingSeverity.WARNING, "cannot be scanned"),
        ("m.pkl", b"", None, ""),
        ("m.pt", b"7z\xbc\xaf\x27\x1c" + bytes(40), FindingSeverity.WARNING, "cannot be scanned"),
    ],
)
def test_what_a_file_would_import_is_told_by_how_bad_it_is(
    name: str, content: bytes, severity: FindingSeverity | None, told: str
) -> None:
    found = scan_pickle(name, io.BytesIO(content))
    assert (found.kind, found.path) == (FindingKind.PICKLE, name)
    assert severity in (None, found.severity)
    assert told in found.message
    assert "left out" in found.message


@given(st.sampled_from([".pkl", ".bin", ".pt", ".npz", ".ckpt"]), st.binary(max_size=200), st.booleans())
def test_no_file_breaks_the_scan(suffix: str, content: bytes, is_zip: bool) -> None:
    found = scan_pickle(f"m{suffix}", io.BytesIO(torch_zip(content) if is_zip else content))
    assert found.message.isprintable()


async def test_a_file_is_scanned_where_it_lies_in_a_process_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "m.pkl").write_bytes(HARM)
    found = await WorkerInspector().scan(LeftOut("sub/m.pkl", tmp_path / "m.pkl"))
    assert (found.path, found.severity) == ("sub/m.pkl", FindingSeverity.DANGER)


async def test_a_file_that_its_scanner_cannot_take_is_told_and_breaks_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_inspector, "_MAX_SCAN_CPU_S", 1)
    # Opcodes for more time, or more memory, than that.
    (tmp_path / "bomb.pkl").write_bytes(b"\x80\x04" + b"N0" * 40_000_000 + b"N.")
    found = await WorkerInspector().scan(LeftOut("bomb.pkl", tmp_path / "bomb.pkl"))
    assert (found.kind, found.severity) == (FindingKind.PICKLE, FindingSeverity.WARNING)
    assert "cannot be scanned" in found.message
    assert scan_pickle("doubling.pkl", io.BytesIO(BOMB)).kind is FindingKind.PICKLE


async def test_the_pickles_in_an_archive_are_found_and_scanned_without_being_unpacked(tmp_path: Path) -> None:
    files = {"pkg/m.gguf": gguf_bytes(), "pkg/extra/m.pkl": HARM}
    wheel = make_wheel(tmp_path, "pkg", "1", files)
    (tmp_path / "m.gguf").write_bytes(gguf_bytes())
    told = await WorkerInspector().inspect({"m.gguf": tmp_path / "m.gguf"}, [wheel])
    assert told.left_out == (LeftOut("pkg/extra/m.pkl", wheel, "pkg/extra/m.pkl"),)
    found = await WorkerInspector().scan(told.left_out[0])
    assert (found.path, found.severity) == ("pkg/extra/m.pkl", FindingSeverity.DANGER)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gguf", "pkg-1-py3-none-any.whl"]


def test_a_member_that_is_too_large_for_memory_is_not_read(tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(tmp_path / "m.zip", "w", zipfile.ZIP_STORED) as archive,
        archive.open("m.pkl", "w") as member,
    ):
        for _ in range(65):
            member.write(bytes(1024 * 1024))
    assert report_archive(tmp_path / "m.zip") == ("", ["m.pkl"])
    assert read_member(tmp_path / "m.zip", "m.pkl") is None


def test_an_archive_states_its_licence_in_its_metadata_or_in_the_text_nearest_to_its_top(
    tmp_path: Path,
) -> None:
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr("m/deep/LICENSE", "Apache License\nVersion 2.0")
        archive.writestr("m/LICENSE.txt", "MIT License")
    assert report_archive(tmp_path / "m.zip")[0] == "MIT"
    with zipfile.ZipFile(tmp_path / "m.zip", "a") as archive:
        archive.writestr(
            "m-1.dist-info/METADATA", "Metadata-Version: 2.4\nLicense-Expression: BSD-3-Clause\n"
        )
    assert report_archive(tmp_path / "m.zip")[0] == "BSD-3-Clause"
