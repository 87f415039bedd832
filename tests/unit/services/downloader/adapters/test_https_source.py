import hashlib
import io
import zipfile
from pathlib import Path

import pytest

from services.downloader.adapters.http_client import HttpLimits
from services.downloader.adapters.https_source import HttpsSource
from services.downloader.adapters.worker_inspector import WorkerInspector
from services.downloader.core.catalog import Layout
from services.downloader.core.models import Format
from services.downloader.core.sources import PullRequest, Resolved
from services.kit.errors import DigestMismatch, UnsupportedFormat
from services.kit.names import ModelRef
from tests.unit.services.downloader.http_server import serving, whole

LIMITS = HttpLimits(max_attempts=2, first_backoff_s=0.001, stall_timeout_s=5)
SHA256 = "0a" * 32


async def resolve(ref: str) -> Resolved:
    return await HttpsSource(WorkerInspector(), LIMITS).resolve(PullRequest((ModelRef.parse(ref),), Layout()))


async def test_an_expected_digest_names_the_version_and_is_recorded() -> None:
    resolved = await resolve(f"https://example.com/a/My%20Model.GGUF#sha256={SHA256}")
    assert resolved.source == f"https://example.com/a/My%20Model.GGUF#sha256={SHA256}"
    assert (resolved.revision, resolved.version_id) == (SHA256, SHA256[:16])
    (file,) = resolved.files
    assert (file.path, file.url, file.sha256) == (
        "My Model.GGUF",
        "https://example.com/a/My%20Model.GGUF",
        SHA256,
    )


async def test_without_a_digest_the_bytes_tell_the_version() -> None:
    resolved = await resolve("https://example.com/m.gguf")
    assert (resolved.revision, resolved.version_id, resolved.files[0].sha256) == ("", None, None)


@pytest.mark.parametrize(
    "name",
    ["m.safetensors", "pytorch_model.bin", "m", "%2e%2e%2fm.gguf", "a%2Fm.gguf", "a%5Cm.gguf", "con.gguf"],
)
async def test_a_file_that_is_no_model_by_itself_is_refused_before_it_is_fetched(name: str) -> None:
    with pytest.raises(UnsupportedFormat):
        await resolve(f"https://example.com/{name}")


async def test_a_zip_with_a_vosk_model_is_unpacked(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in ("am/final.mdl", "conf/model.conf", "graph/Gr.fst"):
            archive.writestr(f"vosk-model/{path}", path)
    body = buffer.getvalue()
    inspector = WorkerInspector()
    source = HttpsSource(inspector, LIMITS)
    async with serving(whole(body)) as server:
        request = PullRequest((ModelRef.parse(f"{server.url}/v.zip"),), Layout())
        (file,) = (await source.resolve(request)).files
        await source.fetch(file, tmp_path / "0.part", lambda num_bytes, size_bytes: None)
        files = await source.unpack(request, {file.path: tmp_path / "0.part"}, tmp_path)
        await source.close()
    assert {file.path: file.local.read_text() for file in files} == {
        path: path for path in ("am/final.mdl", "conf/model.conf", "graph/Gr.fst")
    }
    assert (await inspector.inspect({file.path: file.local for file in files})).facts.format is Format.VOSK


async def test_bytes_that_are_not_those_that_were_expected_are_dropped(tmp_path: Path) -> None:
    source = HttpsSource(WorkerInspector(), LIMITS)
    async with serving(whole(b"GGUF")) as server:
        ref = f"{server.url}/m.gguf#sha256={hashlib.sha256(b'other').hexdigest()}"
        (file,) = (await source.resolve(PullRequest((ModelRef.parse(ref),), Layout()))).files
        with pytest.raises(DigestMismatch):
            await source.fetch(file, tmp_path / "0.part", lambda num_bytes, size_bytes: None)
        await source.close()
    assert not (tmp_path / "0.part").exists()
