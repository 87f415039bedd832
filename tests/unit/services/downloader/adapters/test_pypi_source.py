"""`pypi:` against a real index on a local port, in both forms of its pages."""

import asyncio
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.downloader.adapters.http_client import HttpLimits
from services.downloader.adapters.pip_config import PipConfig, read_pip_config
from services.downloader.adapters.pypi_source import PypiSource
from services.downloader.adapters.worker_inspector import WorkerInspector
from services.downloader.core.catalog import Layout
from services.downloader.core.sources import PullRequest, Resolved
from services.kit.errors import (
    DigestMismatch,
    InvalidReference,
    LaresError,
    SourceNotFound,
    SourceUnavailable,
    UnsupportedFormat,
)
from services.kit.names import ModelRef
from tests.unit.services.downloader.http_server import Request, Server, head, serving
from tests.unit.services.downloader.wheels import gguf_bytes, wheel_bytes

# `pip config get` knows the user's own file only, and `list` does not say which of two values counts.
ASK_PIP = """
import sys
from pip._internal.configuration import Configuration
configuration = Configuration(isolated=False)
configuration.load()
values = {key: value for _, file in configuration.items() for key, value in file.items()}
keys = [f"{section}.{sys.argv[1]}" for section in ("global", "download", ":env:")]
said = [values[key] for key in keys if key in values]
print(*said[-1:])
"""
LIMITS = HttpLimits(max_attempts=2, first_backoff_s=0.001, stall_timeout_s=5)
WHEEL = wheel_bytes("tiny-model", "1.2", {"tiny_model/m.gguf": gguf_bytes()})
SHA256 = hashlib.sha256(WHEEL).hexdigest()
NAME = "tiny_model-1.2-py3-none-any.whl"


class Index:
    """An index: pages by path, files by path. What is asked for and is not there is a 404."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[str, bytes]] = {}
        self.server: Server

    def page(self, project: str, *links: str, path: str = "/simple") -> None:
        body = "<!DOCTYPE html><html><body>" + "".join(links) + "</body></html>"
        self.answers[f"{path}/{project}/"] = ("text/html", body.encode())

    async def answer(self, request: Request, writer: asyncio.StreamWriter) -> None:
        found = self.answers.get(request.path)
        if found is None:
            writer.write(head("404 Not Found", content_length=0))
        else:
            writer.write(head("200 OK", content_type=found[0], content_length=len(found[1])) + found[1])


@pytest.fixture
async def index() -> AsyncIterator[Index]:
    index = Index()
    async with serving(index.answer) as server:
        index.server = server
        yield index


def source(*indexes: str, find_links: tuple[str, ...] = ()) -> PypiSource:
    def config() -> PipConfig:
        return PipConfig(tuple(indexes), find_links)

    return PypiSource(WorkerInspector(), LIMITS, read_config=config)


async def resolve(pypi: PypiSource, ref: str) -> Resolved:
    try:
        return await pypi.resolve(PullRequest((ModelRef.parse(ref),), Layout()))
    finally:
        await pypi.close()


def link(name: str, sha256: str | None = SHA256, **attributes: str) -> str:
    fragment = f"#sha256={sha256}" if sha256 else ""
    extra = "".join(f' {key.replace("_", "-")}="{value}"' for key, value in attributes.items())
    return f'<a href="../../files/{name}{fragment}"{extra}>{name}</a><br/>'


async def test_a_pinned_wheel_is_found_in_html_and_taken_apart(index: Index, tmp_path: Path) -> None:
    index.page("tiny-model", link(NAME), link("tiny_model-1.3-py3-none-any.whl", "f" * 64))
    index.answers[f"/files/{NAME}"] = ("application/octet-stream", WHEEL)
    pypi = source(f"{index.server.url}/simple")
    request = PullRequest((ModelRef.parse("pypi:Tiny_Model==1.2"),), Layout())
    resolved = await pypi.resolve(request)
    assert (resolved.source, resolved.version_id) == ("pypi:tiny-model==1.2", "1.2")
    (file,) = resolved.files
    assert (file.path, file.sha256) == (NAME, SHA256)
    await pypi.fetch(file, tmp_path / "0.part", lambda num, size: None)
    (tmp_path / "out").mkdir()
    (model,) = await pypi.unpack(request, {file.path: tmp_path / "0.part"}, tmp_path / "out")
    assert (model.path, model.local.read_bytes()) == ("m.gguf", gguf_bytes())
    await pypi.close()


async def test_json_pages_are_read_too(index: Index) -> None:
    page = {
        "meta": {"api-version": "1.1"},
        "name": "tiny-model",
        "files": [
            {"filename": NAME, "url": f"/files/{NAME}", "hashes": {"sha256": SHA256}, "size": len(WHEEL)},
            {"filename": "tiny_model-9-py3-none-any.whl", "url": "/x", "hashes": {}, "yanked": "broken"},
        ],
    }
    body = json.dumps(page).encode()
    index.answers["/simple/tiny-model/"] = ("application/vnd.pypi.simple.v1+json", body)
    resolved = await resolve(source(f"{index.server.url}/simple"), "pypi:tiny-model")
    assert (resolved.revision, resolved.files[0].size_bytes) == ("1.2", len(WHEEL))
    assert "vnd.pypi.simple.v1+json" in index.server.requests[0].headers["accept"]


async def test_the_newest_release_is_taken_and_neither_a_preview_nor_a_yanked_one(index: Index) -> None:
    index.page(
        "tiny-model",
        link("tiny_model-1.9-py3-none-any.whl"),
        link("tiny_model-1.10-py3-none-any.whl"),
        link("tiny_model-2.0rc1-py3-none-any.whl"),
        link("tiny_model-3.0-py3-none-any.whl", data_yanked="bad"),
        link("tiny_model-4.0.tar.gz"),
        link("other_model-5.0-py3-none-any.whl"),
        link("tiny_model-6.0-cp311-cp311-amiga_m68k.whl"),
    )
    assert (await resolve(source(f"{index.server.url}/simple"), "pypi:tiny-model")).revision == "1.10"


@pytest.mark.parametrize(
    ("pinned", "newest"), [("1.9", "1.10"), ("1.10", "1.10"), ("2.0rc1", "2.0rc1"), ("3.0", "3.0")]
)
async def test_what_is_newest_is_never_older_than_what_was_pinned(
    index: Index, pinned: str, newest: str
) -> None:
    index.page(
        "tiny-model",
        link("tiny_model-1.9-py3-none-any.whl"),
        link("tiny_model-1.10-py3-none-any.whl"),
        link("tiny_model-2.0rc1-py3-none-any.whl"),
        link("tiny_model-3.0-py3-none-any.whl", data_yanked="bad"),
    )
    pypi = source(f"{index.server.url}/simple")
    latest = await pypi.latest(PullRequest((ModelRef.parse(f"pypi:tiny-model=={pinned}"),), Layout()))
    assert (latest.revision, latest.source) == (newest, f"pypi:tiny-model=={newest}")
    await pypi.close()


async def test_indexes_are_searched_together_and_one_that_is_down_hides_nothing(index: Index) -> None:
    index.page("tiny-model", link(NAME))
    pypi = source("http://127.0.0.1:1/simple", f"{index.server.url}/simple/")
    assert (await resolve(pypi, "pypi:tiny-model")).revision == "1.2"


async def test_an_index_that_is_down_is_the_reason_if_nothing_is_found(index: Index) -> None:
    with pytest.raises(SourceUnavailable):
        await resolve(source("http://127.0.0.1:1/simple", f"{index.server.url}/simple"), "pypi:tiny-model")


async def test_a_wheel_without_a_digest_is_refused(index: Index) -> None:
    index.page("tiny-model", link(NAME, None))
    with pytest.raises(UnsupportedFormat, match="no sha256"):
        await resolve(source(f"{index.server.url}/simple"), "pypi:tiny-model")


@pytest.mark.parametrize(
    ("ref", "error", "why"),
    [
        ("pypi:absent", SourceNotFound, "no wheel of absent"),
        ("pypi:tiny-model==7", SourceNotFound, "no version 7; the newest wheels are of 1.2"),
        ("pypi:tiny-model==not.a.version", InvalidReference, "no version of a package"),
    ],
)
async def test_what_is_not_there_is_said_so(
    index: Index, ref: str, error: type[LaresError], why: str
) -> None:
    index.page("tiny-model", link(NAME))
    with pytest.raises(error, match=why):
        await resolve(source(f"{index.server.url}/simple"), ref)


async def test_a_page_of_the_network_cannot_name_a_file_of_this_machine(index: Index) -> None:
    index.page("tiny-model", f'<a href="file:///etc/{NAME}#sha256={SHA256}">x</a>')
    with pytest.raises(SourceNotFound):
        await resolve(source(f"{index.server.url}/simple"), "pypi:tiny-model")


async def test_an_index_in_a_folder_works_like_one_on_the_network(tmp_path: Path) -> None:
    (tmp_path / "simple" / "tiny-model").mkdir(parents=True)
    (tmp_path / NAME).write_bytes(WHEEL)
    page = f'<a href="../../{NAME}#sha256={SHA256}">x</a>'
    (tmp_path / "simple" / "tiny-model" / "index.html").write_text(page)
    pypi = source((tmp_path / "simple").as_uri())
    (file,) = (await resolve(pypi, "pypi:tiny-model")).files
    await pypi.fetch(file, tmp_path / "0.part", lambda num, size: None)
    assert (tmp_path / "0.part").read_bytes() == WHEEL
    (tmp_path / NAME).write_bytes(b"other" + WHEEL[5:])
    with pytest.raises(DigestMismatch):
        await pypi.fetch(file, tmp_path / "0.part", lambda num, size: None)


async def test_the_password_of_an_index_is_used_there_and_told_to_nobody(index: Index) -> None:
    host = index.server.url.removeprefix("http://")
    pypi = source(f"http://me:hunter2@{host}/simple")
    with pytest.raises(SourceNotFound) as caught:
        await resolve(pypi, "pypi:absent")
    assert index.server.requests[0].headers["authorization"].startswith("Basic ")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(SourceUnavailable) as unreachable:
        await resolve(source("http://me:hunter2@127.0.0.1:1/simple"), "pypi:absent")
    assert "hunter2" not in f"{unreachable.value!r} {unreachable.value.metadata}"


@pytest.mark.parametrize("body", [b"[]", b"{", b'{"files": 3}', b'{"files": [{"url": 1}]}'])
async def test_json_that_is_no_index_page_is_refused(index: Index, body: bytes) -> None:
    index.answers["/simple/tiny-model/"] = ("application/vnd.pypi.simple.v1+json", body)
    with pytest.raises(SourceUnavailable):
        await resolve(source(f"{index.server.url}/simple"), "pypi:tiny-model")


@pytest.fixture
def no_pip_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No PIP_ variable, and a home without a configuration: it is returned."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / ".config"))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(home / "xdg"))
    return home


def write(file: Path, content: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)
    return file


def test_pips_own_settings_say_where_to_look(monkeypatch: pytest.MonkeyPatch, no_pip_settings: Path) -> None:
    file = write(
        no_pip_settings / "pip.conf",
        "[global]\nindex-url = https://a.example/simple\ncert = /x.pem\n"
        "extra_index_url =\n  https://b.example/s\n  https://c.example/s\n",
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    monkeypatch.setenv("PIP_FIND_LINKS", "https://d.example/links /a/folder")
    config = read_pip_config()
    assert config.index_urls == ("https://a.example/simple", "https://b.example/s", "https://c.example/s")
    assert config.find_links == ("https://d.example/links", "/a/folder")
    assert config.cert == "/x.pem"
    monkeypatch.setenv("PIP_INDEX_URL", "https://e.example/simple")
    assert read_pip_config().index_urls[0] == "https://e.example/simple"


@pytest.mark.parametrize("asked_for", ["", "there.conf", "absent.conf"])
def test_files_override_each_other_as_for_pip(
    monkeypatch: pytest.MonkeyPatch, no_pip_settings: Path, asked_for: str
) -> None:
    write(
        no_pip_settings / "xdg/pip/pip.conf", "[global]\nindex-url = https://xdg.example\ncert = /xdg.pem\n"
    )
    write(no_pip_settings / ".pip/pip.conf", "[global]\nindex-url = https://old.example\nfind-links = /old\n")
    write(no_pip_settings / ".config/pip/pip.conf", "[global]\nindex_url = https://user.example\n")
    write(no_pip_settings / "there.conf", "[download]\nfind-links = /there\n[install]\ncert = /never.pem\n")
    if asked_for:
        monkeypatch.setenv("PIP_CONFIG_FILE", str(no_pip_settings / asked_for))
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://extra.example")
    config = read_pip_config()
    assert config.index_urls == (pip_says("index-url"), "https://extra.example")
    assert " ".join(config.find_links) == pip_says("find-links")
    assert config.cert == pip_says("cert")


def pip_says(option: str) -> str:
    """What pip itself would take, as the command that we stand in for."""
    return subprocess.run(
        [sys.executable, "-c", ASK_PIP, option], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_a_file_that_is_no_configuration_is_named(
    monkeypatch: pytest.MonkeyPatch, no_pip_settings: Path
) -> None:
    file = write(no_pip_settings / "pip.conf", "index-url = https://a.example/simple\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    with pytest.raises(SourceUnavailable, match=re.escape(str(file))):
        read_pip_config()


def test_without_any_settings_pips_own_index_is_asked(
    monkeypatch: pytest.MonkeyPatch, no_pip_settings: Path
) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    (index,) = read_pip_config().index_urls
    assert index.startswith("https://")
    assert index.endswith("/simple")
    monkeypatch.setitem(sys.modules, "pip._internal.models.index", None)
    with pytest.raises(SourceUnavailable, match="PIP_INDEX_URL"):
        read_pip_config()
