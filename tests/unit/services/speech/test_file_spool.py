import errno
import os
from pathlib import Path

import pytest

from services.kit.errors import DiskFull
from services.speech.adapters.file_spool import FileSpool


async def test_file_is_ours_alone_and_is_gone_after_its_request(tmp_path: Path) -> None:
    spool = FileSpool(tmp_path / "speech" / "tmp")
    spool.prepare()
    async with spool.file() as file:
        await file.write(b"ab")
        await file.write(b"cd")
        assert file.path.read_bytes() == b"abcd"
        assert file.path.stat().st_mode & 0o777 == 0o600
    assert not file.path.exists()


async def test_file_is_gone_after_an_error(tmp_path: Path) -> None:
    spool = FileSpool(tmp_path)
    with pytest.raises(RuntimeError):
        async with spool.file() as file:
            raise RuntimeError
    assert not file.path.exists()


def test_start_clears_what_a_killed_process_left(tmp_path: Path) -> None:
    (tmp_path / "x.audio").touch()
    FileSpool(tmp_path).prepare()
    assert list(tmp_path.iterdir()) == []


async def test_full_disk_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "full")

    async with FileSpool(tmp_path).file() as file:
        monkeypatch.setattr(os, "write", write)
        with pytest.raises(DiskFull, match="free some"):
            await file.write(b"a")
