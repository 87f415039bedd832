import os
from pathlib import Path

import pytest

from services.downloader.adapters import ollama_models
from services.downloader.adapters.http_client import HttpLimits
from services.downloader.adapters.ollama_models import OllamaModels
from services.downloader.adapters.ollama_source import OllamaSource
from services.downloader.adapters.takeover import Takeover
from services.downloader.core.catalog import Layout
from services.downloader.core.download import PullOptions
from services.downloader.core.sources import PullRequest, Resolved
from services.kit.errors import DigestMismatch, LaresError, SourceNotFound, UnsupportedFormat
from services.kit.names import ModelRef
from tests.contract.local_caches import fill_ollama, sha256
from tests.docker_registry import docker_registry, ollama_layer

LAYERS = {"model": b"GGUF weights", "template": b"{{ .Prompt }}", "license": b"\n  MIT License\nCopyright"}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


async def resolve(models: Path, ref: str) -> Resolved:
    request = PullRequest((ModelRef.parse(ref),), Layout(), PullOptions(local_folder=str(models)))
    return await OllamaModels(Takeover(models)).resolve(request)


@pytest.mark.parametrize("is_new", [False, True])
async def test_a_folder_tells_what_the_registry_tells(tmp_path: Path, models: Path, is_new: bool) -> None:
    fill_ollama(models, "tiny", "1b", LAYERS, is_new=is_new)
    with docker_registry(tmp_path) as registry:
        registry.push(
            "library/tiny", "1b", [(ollama_layer(kind), content) for kind, content in LAYERS.items()]
        )
        source = OllamaSource(registry.url, HttpLimits())
        told = await source.resolve(PullRequest((ModelRef.parse("ollama:tiny:1b"),), Layout()))
        await source.close()
    found = await resolve(models, "ollama:tiny:1b")
    assert (found.source, found.revision, found.version_id, found.license) == (
        told.source,
        told.revision,
        told.version_id,
        told.license,
    )
    assert [(file.path, file.size_bytes, file.sha256) for file in found.files] == [
        (file.path, file.size_bytes, file.sha256) for file in told.files
    ]


async def test_a_tag_is_latest_and_a_namespace_its_own(models: Path) -> None:
    fill_ollama(models, "tiny", "latest", LAYERS)
    digest = fill_ollama(models, "me/mine", "7b", LAYERS)
    assert (await resolve(models, "ollama:tiny")).source.startswith("ollama:tiny@sha256:")
    assert (await resolve(models, "ollama:me/mine:7b")).revision == digest
    assert (await resolve(models, f"ollama:me/mine:7b@{digest}")).revision == digest


async def test_another_manifest_than_the_one_that_is_wanted_is_not_taken(models: Path) -> None:
    digest = fill_ollama(models, "tiny", "1b", LAYERS)
    with pytest.raises(SourceNotFound, match=digest):
        await resolve(models, f"ollama:tiny:1b@sha256:{'0' * 64}")


async def test_a_layer_that_is_cut_short_is_named(models: Path) -> None:
    fill_ollama(models, "tiny", "1b", LAYERS)
    os.truncate(models / "blobs" / f"sha256-{sha256(LAYERS['model'])}", 3)
    with pytest.raises(SourceNotFound, match=r"model\.gguf .* 3 of 12 bytes"):
        await resolve(models, "ollama:tiny:1b")


async def test_a_licence_that_was_changed_is_refused(models: Path) -> None:
    fill_ollama(models, "tiny", "1b", LAYERS)
    (models / "blobs" / f"sha256-{sha256(LAYERS['license'])}").write_bytes(b"\n  BSD License\nCopyright")
    with pytest.raises(DigestMismatch):
        await resolve(models, "ollama:tiny:1b")


async def test_a_manifest_is_not_read_without_end_nor_out_of_the_folder(models: Path, tmp_path: Path) -> None:
    fill_ollama(models, "tiny", "1b", LAYERS)
    (manifest,) = models.glob("manifests/*/library/tiny/1b")
    content = manifest.read_bytes()
    manifest.write_bytes(content + b" " * 5_000_000)
    with pytest.raises(UnsupportedFormat, match="too much"):
        await resolve(models, "ollama:tiny:1b")
    (tmp_path / "elsewhere").write_bytes(content)
    manifest.unlink()
    manifest.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsupportedFormat, match="link out of its folder"):
        await resolve(models, "ollama:tiny:1b")


@pytest.mark.parametrize("ref", ["ollama:a/b/c", "ollama:tiny:absent", "ollama:absent"])
async def test_what_is_not_there_is_said_so(models: Path, ref: str) -> None:
    fill_ollama(models, "tiny", "1b", LAYERS)
    with pytest.raises(LaresError, match="is not in"):
        await resolve(models, ref)


def test_a_folder_is_listed_by_its_manifests(models: Path) -> None:
    fill_ollama(models, "tiny", "1b", LAYERS)
    fill_ollama(models, "tiny", "2b", LAYERS, is_new=True)
    other = models / "manifests" / "hf.co" / "org" / "repo" / "Q4_K_M"
    other.parent.mkdir(parents=True)
    other.write_text("{}")
    listed = dict(ollama_models.references(models))
    assert listed.keys() == {"ollama:tiny:2b", "ollama:tiny:1b", "ollama:org/repo:Q4_K_M"}
    assert "hf.co" in listed["ollama:org/repo:Q4_K_M"]
    assert listed["ollama:tiny:1b"] == ""
