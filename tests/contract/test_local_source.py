"""What every source of local files must do: what all sources must, and leave what it takes from as it is."""

import asyncio
import os
from abc import abstractmethod
from dataclasses import replace
from pathlib import Path

import pytest

from services.downloader.adapters import takeover as takeover_module
from services.downloader.adapters.file_source import FileImport
from services.downloader.adapters.hf_cache import HfCache
from services.downloader.adapters.ollama_models import OllamaModels
from services.downloader.adapters.takeover import LocalSide, Takeover
from services.downloader.core.download import PullOptions
from services.downloader.core.sources import PullRequest, Resolved
from services.kit.errors import DigestMismatch, InvalidArgument, SourceNotFound
from tests.contract.local_caches import COMMIT, age, as_it_is, fill_hf_cache, fill_ollama, safetensors_bytes
from tests.contract.source_rigs import GGUF, Rig
from tests.contract.test_source import largest, requested
from tests.contract.test_source import (
    test_a_name_that_leads_out_of_its_folder_is_refused as test_a_name_that_leads_out_of_its_folder_is_refused,
)
from tests.contract.test_source import (
    test_resolving_pins_and_what_is_pinned_resolves_to_the_same as test_resolving_pins,
)
from tests.contract.test_source import test_what_comes_is_what_is_there as test_what_comes_is_what_is_there
from tests.contract.test_source import test_what_is_not_there_is_said_so as test_what_is_not_there_is_said_so

__all__ = ["test_resolving_pins"]


class At:
    """A source that is asked for what lies in one folder."""

    def __init__(self, source: LocalSide, folder: Path) -> None:
        self._source = source
        self.options = PullOptions(local_folder=str(folder))
        self.fetch = source.fetch
        self.latest = source.latest
        self.unpack = source.unpack

    async def resolve(self, request: PullRequest) -> Resolved:
        return await self._source.resolve(replace(request, options=self.options))


class LocalRig(Rig):
    source: At
    folder: Path

    @property
    @abstractmethod
    def lies_at(self) -> Path:
        """The largest file, where it really lies."""


class HfCacheRig(LocalRig):
    ref, absent = f"hf:org/repo@{COMMIT}", f"hf:org/absent@{COMMIT}"

    def __init__(self) -> None:
        super().__init__()
        self.model = {
            "config.json": b"{}",
            "tokenizer.json": b"{}",
            "1_Pooling/config.json": b"{ }",
            "model.safetensors": safetensors_bytes(3_000_000),
        }

    @property
    def lies_at(self) -> Path:
        return (self.folder / f"models--org--repo/snapshots/{COMMIT}/model.safetensors").resolve()

    def hostile(self) -> str:
        snapshot = self.folder / "models--org--evil" / "snapshots" / COMMIT
        snapshot.mkdir(parents=True)
        (snapshot / "..\\evil.gguf").write_bytes(GGUF)
        return f"hf:org/evil@{COMMIT}"


class OllamaModelsRig(LocalRig):
    ref, absent = "ollama:tiny:1b", "ollama:tiny:absent"

    def __init__(self) -> None:
        super().__init__()
        self.model = {"model.gguf": GGUF, "template": b"{{ .Prompt }}", "license": b"MIT"}

    @property
    def lies_at(self) -> Path:
        return max((self.folder / "blobs").iterdir(), key=lambda blob: blob.stat().st_size)

    def hostile(self) -> str:
        evil = self.folder / "manifests/registry.ollama.ai/library/evil/latest"
        evil.parent.mkdir()
        (manifest,) = self.folder.glob("manifests/*/library/tiny/1b")
        name = self.lies_at.name.removeprefix("sha256-")
        evil.write_text(manifest.read_text().replace(name, "../../../../evil"))
        return "ollama:evil"


class FolderRig(LocalRig):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.ref, self.absent = f"file:{folder / 'm.gguf'}", f"file:{folder / 'absent.gguf'}"

    @property
    def lies_at(self) -> Path:
        return self.folder / "m.gguf"

    def hostile(self) -> str:
        evil = self.folder / "evil"
        evil.mkdir()
        (evil / "..\\evil.gguf").write_bytes(GGUF)
        return f"file:{evil}"


async def local_rig(kind: str, folder: Path, takeover: Takeover) -> LocalRig:
    rig: LocalRig
    source: LocalSide
    if kind == "hf":
        rig, source = HfCacheRig(), HfCache(takeover)
        await fill_hf_cache(folder, {**rig.model, "README.md": b"# hi"})
    elif kind == "ollama":
        rig, source = OllamaModelsRig(), OllamaModels(takeover)
        layers = {"model": GGUF, "template": rig.model["template"], "license": rig.model["license"]}
        fill_ollama(folder, "tiny", "1b", layers)
    else:
        rig, source = FolderRig(folder), FileImport(takeover)
        (folder / "m.gguf").write_bytes(GGUF)
        age(folder / "m.gguf")
    rig.source, rig.folder = At(source, folder), folder
    return rig


@pytest.fixture(autouse=True)
def no_clones(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on most file systems: what is shared is one file with two names."""
    monkeypatch.setattr(takeover_module, "_clone", lambda source, target: False)


@pytest.fixture(params=["hf", "ollama", "file"])
async def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LocalRig:
    # Beside where the tests fetch to, and so on one file system with it.
    folder, store = tmp_path_factory.mktemp("rig"), tmp_path_factory.mktemp("store")
    return await local_rig(request.param, folder, Takeover(store))


async def test_the_file_is_the_same_and_left_as_it_is(rig: LocalRig, tmp_path: Path) -> None:
    before = as_it_is(rig.lies_at)
    file = await largest(rig)
    assert file.is_shared
    told: list[tuple[int, int | None]] = []
    await rig.source.fetch(file, tmp_path / "0.part", lambda num, size: told.append((num, size)))
    assert (tmp_path / "0.part").stat().st_ino == rig.lies_at.stat().st_ino
    assert told[-1] == (file.size_bytes, file.size_bytes)
    assert as_it_is(rig.lies_at) == before


async def test_a_copy_is_another_file(rig: LocalRig, tmp_path: Path) -> None:
    rig.source.options = replace(rig.source.options, copy_local_files=True)
    file = await largest(rig)
    assert not file.is_shared
    await rig.source.fetch(file, tmp_path / "0.part", lambda num, size: None)
    assert (tmp_path / "0.part").stat().st_nlink == 1
    assert (tmp_path / "0.part").read_bytes() == rig.lies_at.read_bytes()


async def test_a_damaged_file_is_refused_and_left_as_it_is(rig: LocalRig, tmp_path: Path) -> None:
    file = await largest(rig)
    content = bytearray(rig.lies_at.read_bytes())
    content[2_000_000] ^= 1
    if isinstance(rig, FolderRig):
        content.append(0)  # Nothing says what its bytes should be, only how many.
    rig.lies_at.write_bytes(content)
    before = as_it_is(rig.lies_at)
    with pytest.raises(DigestMismatch, match="nothing"):
        await rig.source.fetch(file, tmp_path / "0.part", lambda num, size: None)
    assert list(tmp_path.iterdir()) == []
    assert as_it_is(rig.lies_at) == before


async def test_a_fetch_that_is_cancelled_leaves_nothing(rig: LocalRig, tmp_path: Path) -> None:
    before = as_it_is(rig.lies_at)
    file = await largest(rig)

    def cancel(num_bytes: int, size_bytes: int | None) -> None:
        fetching.cancel()

    fetching = asyncio.ensure_future(rig.source.fetch(file, tmp_path / "0.part", cancel))
    with pytest.raises(asyncio.CancelledError):
        await fetching
    assert list(tmp_path.iterdir()) == []
    assert as_it_is(rig.lies_at) == before


async def test_what_is_missing_is_named(rig: LocalRig) -> None:
    name = rig.lies_at.name if isinstance(rig, FolderRig) else (await largest(rig)).path
    rig.lies_at.unlink()
    with pytest.raises(SourceNotFound, match=name):
        await rig.source.resolve(requested(rig.ref))


async def test_a_link_out_of_the_folder_is_refused(rig: LocalRig, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(rig.lies_at.read_bytes())
    weights = rig.lies_at
    weights.unlink()
    weights.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Exception, match="link out of its folder"):
        await rig.source.resolve(requested(rig.ref))


async def test_a_pipe_is_refused_and_not_waited_for(rig: LocalRig) -> None:
    weights = rig.lies_at
    weights.unlink()
    os.mkfifo(weights)
    with pytest.raises(Exception, match=r"no plain file|neither a file nor a folder"):
        await rig.source.resolve(requested(rig.ref))


@pytest.mark.parametrize("folder", ["models", "/nowhere/at/all", "/etc/passwd", "/dev/null", "/x\0y"])
async def test_a_folder_that_is_none_is_said_so(rig: LocalRig, folder: str) -> None:
    rig.source.options = replace(rig.source.options, local_folder=folder)
    with pytest.raises((InvalidArgument, SourceNotFound)):
        await rig.source.resolve(requested(rig.ref))
