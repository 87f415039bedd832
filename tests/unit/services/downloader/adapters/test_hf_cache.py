"""`hf:` out of caches that the real huggingface_hub has made, and out of some that it would never make."""

import json
import os
from pathlib import Path

import pytest

from services.downloader.adapters import hf_cache
from services.downloader.adapters.hf_cache import HfCache
from services.downloader.adapters.hf_source import HfSource
from services.downloader.adapters.http_client import HttpLimits
from services.downloader.adapters.takeover import Takeover
from services.downloader.core.catalog import Layout
from services.downloader.core.download import PullOptions
from services.downloader.core.sources import PullRequest, Resolved
from services.kit.errors import InvalidReference, LaresError, SourceNotFound, Unpinned, UnsupportedFormat
from services.kit.names import ModelRef
from tests.contract.local_caches import COMMIT, fill_hf_cache, git_id, hub_of, safetensors_bytes, sha256

FILES = {
    "config.json": b'{"architectures": []}',
    "tokenizer.json": b"{}",
    "model.safetensors": safetensors_bytes(),
    "README.md": b"---\nlanguage: en\nlicense: apache-2.0\n---\n# Model\nlicense: mit\n",
    "pytorch_model.bin": b"pickle",
}
GGUFS = {"m-Q4_K_M.gguf": b"four", "m-Q8_0.gguf": b"eight", "mmproj-F16.gguf": b"eyes"}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "hub"


async def resolve(cache: Path, ref: str = f"hf:org/repo@{COMMIT}") -> Resolved:
    request = PullRequest((ModelRef.parse(ref),), Layout(), PullOptions(local_folder=str(cache)))
    return await HfCache(Takeover(cache)).resolve(request)


async def test_a_cache_tells_what_the_hub_tells(cache: Path) -> None:
    await fill_hf_cache(cache, FILES)
    async with hub_of(FILES) as hub:
        source = HfSource(hub.server.url, "", HttpLimits())
        told = await source.resolve(PullRequest((ModelRef.parse(f"hf:org/repo@{COMMIT}"),), Layout()))
        await source.close()
    found = await resolve(cache)
    assert (found.source, found.revision, found.version_id) == (told.source, told.revision, told.version_id)
    assert {(file.path, file.size_bytes, file.sha256, file.git_id) for file in found.files} == {
        (file.path, file.size_bytes, file.sha256, file.git_id) for file in told.files
    }
    assert found.license == "apache-2.0"


async def test_what_was_fetched_file_by_file_is_told_by_the_names_of_the_blobs(cache: Path) -> None:
    await fill_hf_cache(cache, FILES, "config.json", "tokenizer.json", "model.safetensors")
    digests = {file.path: file.sha256 or file.git_id for file in (await resolve(cache)).files}
    assert digests == {
        "config.json": git_id(FILES["config.json"]),
        "tokenizer.json": git_id(FILES["tokenizer.json"]),
        "model.safetensors": sha256(FILES["model.safetensors"]),
    }


async def test_without_links_files_lie_in_the_snapshot(cache: Path) -> None:
    repository = await fill_hf_cache(cache, FILES)
    for file in (repository / "snapshots" / COMMIT).iterdir():
        blob = file.resolve()
        file.unlink()
        blob.rename(file)
    by_path = {file.path: file for file in (await resolve(cache)).files}
    assert by_path["model.safetensors"].sha256 == sha256(FILES["model.safetensors"])


async def test_a_blob_that_repositories_share_is_found(cache: Path) -> None:
    repository = await fill_hf_cache(cache, FILES)
    blob = (repository / "snapshots" / COMMIT / "model.safetensors").resolve()
    shared = cache / "blobs" / "ab" / ("ab" * 32)
    shared.parent.mkdir(parents=True)
    blob.rename(shared)
    blob.symlink_to(os.path.relpath(shared, blob.parent))
    by_path = {file.path: file for file in (await resolve(cache)).files}
    assert by_path["model.safetensors"].url == shared.resolve().as_uri()
    assert by_path["model.safetensors"].sha256 == sha256(FILES["model.safetensors"])


@pytest.mark.parametrize("asked", ["", "@main", f"@{COMMIT[:12]}"])
async def test_a_branch_is_not_imported_and_the_commit_that_is_here_is_told(cache: Path, asked: str) -> None:
    await fill_hf_cache(cache, FILES)
    with pytest.raises(LaresError) as caught:
        await resolve(cache, f"hf:org/repo{asked}")
    if asked in ("", "@main"):
        assert isinstance(caught.value, Unpinned)
        assert caught.value.metadata == {"source": f"hf:org/repo@{COMMIT}"}
    else:
        assert isinstance(caught.value, SourceNotFound)


@pytest.mark.parametrize(
    ("fetched", "missing"),
    [
        (("model.safetensors", "tokenizer.json"), "config.json"),
        (("model.safetensors", "config.json"), "tokenizer.json"),
        (("config.json", "tokenizer.json", "model-00002-of-00003.safetensors"), "model-00001-of-00003"),
        (
            ("config.json", "tokenizer.json", "model.safetensors.index.json", "a.safetensors"),
            "b.safetensors",
        ),
    ],
)
async def test_what_a_snapshot_lacks_is_named(cache: Path, fetched: tuple[str, ...], missing: str) -> None:
    index = json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}).encode()
    files = {name: FILES.get(name, safetensors_bytes()) for name in fetched}
    if "model.safetensors.index.json" in files:
        files["model.safetensors.index.json"] = index
    await fill_hf_cache(cache, files, *fetched)
    with pytest.raises(SourceNotFound, match=missing):
        await resolve(cache)


async def test_what_a_whole_download_lost_is_named_whatever_it_is(cache: Path) -> None:
    files = {**FILES, "generation_config.json": b"{}"}
    repository = await fill_hf_cache(cache, files)
    (repository / "snapshots" / COMMIT / "generation_config.json").unlink()
    with pytest.raises(SourceNotFound, match="generation_config"):
        await resolve(cache)


async def test_a_blob_that_is_cut_short_is_said_so(cache: Path) -> None:
    repository = await fill_hf_cache(cache, FILES)
    os.truncate(repository / "blobs" / sha256(FILES["model.safetensors"]), 10)
    with pytest.raises(SourceNotFound, match="10 of"):
        await resolve(cache)


async def test_of_gguf_files_the_quantization_has_to_be_said_unless_all_are_known(cache: Path) -> None:
    await fill_hf_cache(cache, GGUFS, "m-Q8_0.gguf")
    with pytest.raises(InvalidReference, match=f"import hf:org/repo:Q8_0@{COMMIT}"):
        await resolve(cache)
    found = await resolve(cache, f"hf:org/repo:Q8_0@{COMMIT}")
    assert [file.path for file in found.files] == ["m-Q8_0.gguf"]
    assert found.version_id == f"q8_0-{COMMIT[:12]}"
    await fill_hf_cache(cache, GGUFS)
    assert [file.path for file in (await resolve(cache)).files] == ["m-Q4_K_M.gguf"]


async def test_a_cache_is_listed_by_what_can_be_asked_for(cache: Path) -> None:
    await fill_hf_cache(cache, {**GGUFS, **FILES})
    (cache / "datasets--org--data" / "snapshots" / COMMIT).mkdir(parents=True)
    (cache / "models--org--empty").mkdir()
    (cache / "models--org--link").symlink_to(cache / "models--org--repo")
    assert list(hf_cache.repositories(cache)) == [("org/repo", COMMIT)]
    refs = hf_cache.references(cache, "org/repo", COMMIT)
    assert list(map(str, refs)) == [
        f"hf:org/repo@{COMMIT}",
        f"hf:org/repo:Q4_K_M@{COMMIT}",
        f"hf:org/repo:Q8_0@{COMMIT}",
    ]


@pytest.mark.parametrize(
    "tree",
    [
        b"",
        b"[]",
        b"[" * 100_000,
        b'{"format_version": 2, "files": {}}',
        b'{"format_version": 1, "files": []}',
        b'{"format_version": 1, "files": {"model.safetensors": 3}}',
    ],
)
async def test_a_tree_that_is_none_is_not_believed(cache: Path, tree: bytes) -> None:
    repository = await fill_hf_cache(cache, FILES)
    (repository / "trees" / f"{COMMIT}.json").write_bytes(tree)
    found = await resolve(cache)
    assert "model.safetensors" in {file.path for file in found.files}


async def test_a_tree_leads_nowhere_else(cache: Path) -> None:
    repository = await fill_hf_cache(cache, FILES)
    tree = {"format_version": 1, "files": {"../../../x.safetensors": {"size": 1, "blob_id": "0" * 40}}}
    (repository / "trees" / f"{COMMIT}.json").write_text(json.dumps(tree))
    with pytest.raises(UnsupportedFormat):
        await resolve(cache)


async def test_a_snapshot_that_is_a_link_is_refused(cache: Path, tmp_path: Path) -> None:
    repository = await fill_hf_cache(cache, FILES)
    (repository / "snapshots" / COMMIT).rename(tmp_path / "elsewhere")
    (repository / "snapshots" / COMMIT).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LaresError):
        await resolve(cache)
