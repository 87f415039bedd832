"""Archives into the files of a model: chosen by name, joined where they are split."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path

from services.downloader.adapters.disk_errors import translated_disk_errors
from services.downloader.adapters.zip_archive import ZipArchive
from services.downloader.core.selection import Piece, pieces_of


def unpack(
    paths: Sequence[Path], open_archive: Callable[[Path], ZipArchive], layout_folder: str, target: Path
) -> list[str]:
    """Write the model's files under `target`. Returns their paths. layout_folder: see `Layout.folder`.

    Raises UnsupportedFormat, DigestMismatch, DiskFull.
    """
    with ExitStack() as stack:
        archives = []
        for path in paths:
            archives.append(open_archive(path))
            stack.callback(archives[-1].close)
        pieces = pieces_of([archive.names for archive in archives], layout_folder)
        written = []
        for name, parts in groupby(pieces, key=lambda piece: piece.path):
            _write(target / name, archives, list(parts))
            written.append(name)
        return written


def _write(file: Path, archives: Sequence[ZipArchive], parts: Sequence[Piece]) -> None:
    with translated_disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as opened:
            for part in parts:
                for chunk in archives[part.archive].read(part.member):
                    opened.write(chunk)
