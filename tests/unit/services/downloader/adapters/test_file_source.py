import os
from pathlib import Path

import pytest

from services.downloader.adapters.file_source import FileSource
from services.downloader.core.catalog import Layout
from services.downloader.core.download import DEFAULT_OPTIONS, PullOptions
from services.downloader.core.sources import PullRequest, Resolved
from services.kit.errors import InvalidReference, LaresError, SourceNotFound, UnsupportedFormat
from services.kit.names import ModelRef


async def resolve(path: Path | str, options: PullOptions = DEFAULT_OPTIONS) -> Resolved:
    return await FileSource().resolve(PullRequest((ModelRef.parse(f"file:{path}"),), Layout(), options))


async def test_a_single_gguf_is_copied_and_left_where_it_is(tmp_path: Path) -> None:
    model = tmp_path / "mö del.gguf"
    model.write_bytes(b"GGUF" + bytes(10_000_000))
    (file,) = (await resolve(model)).files
    told: list[tuple[int, int | None]] = []
    await FileSource().fetch(file, tmp_path / "copy", lambda num, size: told.append((num, size)))
    assert (tmp_path / "copy").read_bytes() == model.read_bytes()
    assert (tmp_path / "copy").stat().st_ino != model.stat().st_ino
    assert told[-1] == (10_000_004, 10_000_004)


async def test_a_folder_gives_its_models_files_by_their_paths(tmp_path: Path) -> None:
    for name in (
        "config.json",
        "model.safetensors",
        "1_Pooling/config.json",
        "README.md",
        "pytorch_model.bin",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    resolved = await resolve(tmp_path)
    assert [file.path for file in resolved.files] == [
        "1_Pooling/config.json",
        "config.json",
        "model.safetensors",
    ]
    assert resolved.version_id is None


async def test_patterns_choose_among_the_files_of_a_folder(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "onnx/model.onnx", "run.py", "model.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    resolved = await resolve(tmp_path, PullOptions(("*",), ("onnx/",)))
    assert [file.path for file in resolved.files] == ["config.json", "model.safetensors"]
    with pytest.raises(UnsupportedFormat, match="never stored"):
        await resolve(tmp_path, PullOptions(("*.py", "*.bin")))


async def test_a_link_inside_the_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real.gguf").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.gguf").write_bytes(b"x")
    (tmp_path / "folder" / "b.gguf").symlink_to("a.gguf")
    assert len((await resolve(tmp_path / "folder")).files) == 2


async def test_links_that_lead_out_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "m.gguf").write_bytes(b"x")
    (tmp_path / "model" / "config.json").symlink_to("/etc/passwd")
    with pytest.raises(UnsupportedFormat, match="link out of its folder"):
        await resolve(tmp_path / "model")


async def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.gguf")
    with pytest.raises(UnsupportedFormat):
        await resolve(tmp_path)
    with pytest.raises(UnsupportedFormat):
        await resolve(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("models/x.gguf", InvalidReference),
        ("/nowhere/at/all.gguf", SourceNotFound),
        ("/dev/zero", UnsupportedFormat),
        ("/etc/passwd", UnsupportedFormat),
    ],
)
async def test_what_is_no_model_is_refused(path: str, error: type[LaresError]) -> None:
    with pytest.raises(error):
        await resolve(path)


async def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UnsupportedFormat, match="holds no weights"):
        await resolve(tmp_path)
