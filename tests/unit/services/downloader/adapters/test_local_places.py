from collections.abc import Sequence
from pathlib import Path

import pytest

from services.downloader.adapters import local_places
from services.downloader.adapters.local_places import DiskPlaces, usual_folders
from services.downloader.core.local_models import Candidate, LocalPlace
from tests.contract.local_caches import COMMIT, fill_hf_cache, fill_ollama, safetensors_bytes

LAYERS = {"model": b"GGUF weights"}


async def found(
    *folders: Path, usual: Sequence[Path] = (), others: Sequence[Path] = ()
) -> dict[str, Candidate]:
    places = DiskPlaces([str(folder) for folder in others], usual=lambda: usual)
    candidates = [candidate async for candidate in places.candidates([str(folder) for folder in folders])]
    assert len({candidate.reference for candidate in candidates}) == len(candidates)
    return {candidate.reference: candidate for candidate in candidates}


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


async def test_every_kind_of_place_is_known_by_how_it_is_laid_out(tmp_path: Path) -> None:
    hub, ollama, folder = tmp_path / "home" / "hub", tmp_path / "ollama" / "models", tmp_path / "ggufs"
    await fill_hf_cache(hub, {"config.json": b"{}", "model.safetensors": safetensors_bytes()})
    fill_ollama(ollama, "tiny", "1b", LAYERS)
    touch(folder, "a.gguf")
    expected = {
        f"hf:org/repo@{COMMIT}": (LocalPlace.HUGGING_FACE, str(hub)),
        "ollama:tiny:1b": (LocalPlace.OLLAMA, str(ollama)),
        f"file:{folder}/a.gguf": (LocalPlace.FOLDER, str(folder)),
    }
    for roots in ((hub, ollama, folder), (hub.parent, ollama.parent, folder)):
        told = await found(*roots)
        assert {ref: (one.place, one.folder) for ref, one in told.items()} == expected
    assert (await found(usual=(hub, ollama), others=(folder,))).keys() == expected.keys()
    assert (await found(folder, usual=(hub, ollama))).keys() == {f"file:{folder}/a.gguf"}


async def test_a_folder_is_searched_to_its_ground_but_not_through_links_nor_hidden(tmp_path: Path) -> None:
    touch(tmp_path / "root", "org/repo/x.gguf", "org/repo/mmproj-x.gguf", ".cache/y.gguf", "org/notes.txt")
    touch(tmp_path / "elsewhere", "z.gguf")
    (tmp_path / "root" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "link.gguf").symlink_to(tmp_path / "elsewhere" / "z.gguf")
    assert (await found(tmp_path / "root")).keys() == {f"file:{tmp_path}/root/org/repo/x.gguf"}


async def test_parts_of_a_model_are_one_and_what_they_lack_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "whole/m-00001-of-00002.gguf", "whole/m-00002-of-00002.gguf")
    touch(tmp_path, "half/m-00002-of-00002.gguf")
    touch(tmp_path, "mixed/m-00001-of-00002.gguf", "mixed/m-00002-of-00002.gguf", "mixed/n.gguf")
    told = {ref: one.problem for ref, one in (await found(tmp_path)).items()}
    assert told.keys() == {
        f"file:{tmp_path}/whole",
        f"file:{tmp_path}/half/m-00001-of-00002.gguf",
        f"file:{tmp_path}/mixed/m-00001-of-00002.gguf",
        f"file:{tmp_path}/mixed/n.gguf",
    }
    assert told[f"file:{tmp_path}/whole"] == told[f"file:{tmp_path}/mixed/n.gguf"] == ""
    assert told[f"file:{tmp_path}/half/m-00001-of-00002.gguf"].startswith("m-00001-of-00002.gguf is not")
    assert "of its own" in told[f"file:{tmp_path}/mixed/m-00001-of-00002.gguf"]


async def test_a_folder_with_safetensors_is_a_model_if_it_is_whole(tmp_path: Path) -> None:
    touch(tmp_path, "good/config.json", "good/tokenizer.json", "good/model.safetensors")
    touch(tmp_path, "bad/model.safetensors")
    told = {ref: one.problem for ref, one in (await found(tmp_path)).items()}
    assert told[f"file:{tmp_path}/good"] == ""
    assert "config.json" in told[f"file:{tmp_path}/bad"]


async def test_a_folder_that_is_not_there_is_told_unless_nobody_named_it(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    assert await found(usual=(absent,)) == {}
    (one,) = (await found(absent)).values()
    assert (one.reference, one.folder) == ("", str(absent))
    assert "cannot be looked into" in one.problem


async def test_a_folder_without_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_places, "_MAX_ENTRIES", 10)
    touch(tmp_path, *(f"{n}/m.gguf" for n in range(20)))
    assert "holds more than 10 files" in (await found(tmp_path))[""].problem


async def test_a_cache_that_spoils_its_own_listing_is_told_of(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--re po" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (one,) = (await found(tmp_path)).values()
    assert one.reference == f"hf:org/re po@{COMMIT}"
    assert one.problem


def test_usual_folders_are_those_of_the_programs_own_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    assert usual_folders()[:2] == [Path(constants.HF_HUB_CACHE), tmp_path]
    monkeypatch.delenv("OLLAMA_MODELS")
    assert usual_folders()[1] == Path.home() / ".ollama" / "models"
