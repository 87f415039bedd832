from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import pytest

from services.downloader.core.catalog import Catalog
from services.downloader.core.local_models import Candidate, LocalModel, LocalModels, LocalPlace
from services.downloader.core.sources import PullRequest, RemoteFile, Resolved
from services.downloader.core.wholeness import missing_file
from services.kit.errors import InvalidArgument, SourceNotFound
from services.kit.names import ModelRef
from tests.unit.services.downloader.fakes import SlowSource
from tests.unit.services.downloader.house import House


class Shelf(SlowSource):
    """A source of two files, one of which can be shared; of what is called `absent` there is nothing."""

    async def resolve(self, request: PullRequest) -> Resolved:
        ref = request.refs[0]
        if ref.name == "absent":
            raise SourceNotFound("a\x1b[2Jb is not here")
        files = (RemoteFile("a", "file:///a", 3, is_shared=True), RemoteFile("b", "file:///b", 4))
        source = ref if ref.provider == "file" else ModelRef(ref.provider, ref.name, ref.tag, "c" * 40)
        return Resolved(str(source), "", None, files)


class Places:
    """Folders that hold these references."""

    def __init__(self, *references: str, problem: str = "") -> None:
        self._references = references
        self._problem = problem

    async def candidates(self, folders: Sequence[str]) -> AsyncGenerator[Candidate, None]:
        for reference in self._references:
            yield Candidate(reference, LocalPlace.FOLDER, "/models", self._problem)


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


async def find(house: House, places: Places, *folders: str) -> list[LocalModel]:
    sources = {"hf": Shelf(), "file": Shelf()}
    models = LocalModels(places, sources, Catalog([]), house.registry)
    return [model async for model in models.find(folders)]


async def test_a_model_is_told_with_what_an_import_would_be(house: House) -> None:
    (model,) = await find(house, Places("hf:org/repo"))
    assert model.candidate.reference == f"hf:org/repo@{'c' * 40}"
    assert (model.model_id, model.version, model.candidate.problem) == ("repo", "", "")
    assert (model.num_files, model.size_bytes, model.copy_bytes) == (2, 7, 4)


async def test_what_is_here_is_told_under_the_name_that_it_has(house: House) -> None:
    name = await house.record("mine", version_id="1", source=f"hf:org/repo@{'c' * 40}")
    (model,) = await find(house, Places("hf:org/repo"))
    assert (model.version, model.model_id) == (name, "mine")
    await house.registry.quarantine(name, "damaged")
    (model,) = await find(house, Places("hf:org/repo"))
    assert (model.version, model.model_id) == ("", "repo")


async def test_no_two_models_get_one_name(house: House) -> None:
    await house.record("x", source="pypi:x==1")
    models = await find(house, Places("file:/a/x.gguf", "file:/b/x.gguf", "hf:org/y", "hf:org/y"))
    assert [model.model_id for model in models] == ["x-2", "x-3", "y", "y"]


async def test_what_cannot_be_imported_says_why_and_nothing_that_a_terminal_obeys(house: House) -> None:
    models = await find(house, Places("hf:absent", "hf:org/\udcff", "nothing:\x1b]0;", "file:relative\x07"))
    for model in models:
        assert model.candidate.problem
        text = model.candidate.reference + model.candidate.problem + model.candidate.folder
        assert text.isprintable()
    (model,) = await find(house, Places("hf:org/repo", problem="broken"))
    assert (model.candidate.problem, model.num_files) == ("broken", 0)


@pytest.mark.parametrize("folders", [["models"], [""], ["/x\0y"], ["/x"] * 17])
async def test_folders_that_are_none_are_refused(house: House, folders: list[str]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await find(house, Places(), *folders)
    assert caught.value.violations[0].field == "folders"


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["m.gguf"], ""),
        (["m-00002-of-00002.gguf", "m-00001-of-00002.gguf"], ""),
        (["m-00001-of-99999.gguf"], "m-00002-of-99999.gguf"),
        (["model.safetensors", "config.json", "vocab.txt"], ""),
        (["model.safetensors", "adapter_config.json"], ""),
        (["model.safetensors", "vocab.txt"], "config.json"),
    ],
)
def test_what_is_missing_is_told_by_what_is_there(names: list[str], missing: str) -> None:
    assert missing_file(names, [None, [], {"weight_map": 3}]) == missing
