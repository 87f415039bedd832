"""Checkpoints on disk, and the one rule of when a checkpoint counts.

    HOME/trainer/jobs/<job>/
      draft-<attempt>-<step>/     being written by a worker; never read
      checkpoint-<step>/          whole
        manifest.json             written last: the step, and the size and sha256 of every other file
        adapter_config.json, adapter_model.safetensors, optimizer.safetensors, state.json

A worker writes a draft and its manifest; only the service gives it its name, once the worker's attempt is
known to be current.
"""

import hashlib
import logging
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from services.kit.errors import DataLoss
from services.trainer.adapters.durable import DiskFullOnWrite, sync_file, sync_folder
from services.trainer.core.model import Checkpoint

_log = logging.getLogger(__name__)

MANIFEST: Final = "manifest.json"
ADAPTER_FILES: Final = ("adapter_config.json", "adapter_model.safetensors")

_KEEP: Final = 2
_NAME = re.compile(r"checkpoint-([0-9]{1,10})")
_DRAFT = re.compile(r"draft-[0-9]{1,10}-[0-9]{1,10}")


class FileEntry(msgspec.Struct, frozen=True):
    """One file of a checkpoint."""

    name: str
    size_bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """What a whole checkpoint is."""

    step: int
    loss: float
    is_last: bool
    create_time: datetime
    files: list[FileEntry]


def draft_name(attempt: int, step: int) -> str:
    """Where an attempt writes the checkpoint of a step."""
    return f"draft-{attempt}-{step}"


def seal(draft: Path, *, step: int, loss: float, is_last: bool) -> None:
    """Make a draft's files durable, then write the manifest that says it is whole. Raises DiskFull."""
    with DiskFullOnWrite(draft):
        files = []
        for path in sorted(draft.iterdir()):
            sync_file(path)
            files.append(FileEntry(path.name, path.stat().st_size, _sha256(path)))
        manifest = Manifest(step, loss, is_last, datetime.now(UTC), files)
        path = draft / MANIFEST
        path.write_bytes(msgspec.json.encode(manifest))
        sync_file(path)
        sync_folder(draft)


class CheckpointFiles:
    """The CheckpointStore port, below a folder that is the Trainer's own."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def folder(self, job_id: str) -> Path:
        """Where a worker puts its drafts; made if it is not there."""
        folder = self._root / job_id
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def clean(self, job_id: str) -> None:
        """Drop what is not whole."""
        for path in self._paths(job_id):
            if not _NAME.fullmatch(path.name):
                _drop(path)

    def commit(self, job_id: str, draft: str) -> Checkpoint:
        """Give a finished draft its name, and drop the oldest beyond two. Raises DataLoss if it is not
        whole.
        """
        source = self.folder(job_id) / draft
        manifest = _read_manifest(source) if _DRAFT.fullmatch(draft) else None
        if manifest is None or not _has_sizes(source, manifest):
            raise DataLoss(f"the worker of jobs/{job_id} handed in a checkpoint that is not whole")
        target = self.folder(job_id) / f"checkpoint-{manifest.step}"
        _drop(target)
        source.rename(target)
        sync_folder(target.parent)
        for _, path in self._named(job_id)[:-_KEEP]:
            _drop(path)
        return _checkpoint(manifest)

    def list_checkpoints(self, job_id: str) -> list[Checkpoint]:
        """Those that have their name, oldest first."""
        found = ((_read_manifest(path), path) for _, path in self._named(job_id))
        return [_checkpoint(manifest) for manifest, path in found if manifest and _has_sizes(path, manifest)]

    def latest(self, job_id: str) -> tuple[Checkpoint, Path] | None:
        """The newest that is whole, every byte of it checked."""
        for _, path in reversed(self._named(job_id)):
            manifest = _read_manifest(path)
            if manifest and _has_sizes(path, manifest) and _has_digests(path, manifest):
                return _checkpoint(manifest), path
            _log.warning("%s is not whole and is passed over", path)
        return None

    def _paths(self, job_id: str) -> Iterable[Path]:
        folder = self._root / job_id
        return sorted(folder.iterdir()) if folder.is_dir() else ()

    def _named(self, job_id: str) -> list[tuple[int, Path]]:
        matches = ((_NAME.fullmatch(path.name), path) for path in self._paths(job_id))
        return sorted((int(match[1]), path) for match, path in matches if match)


def _checkpoint(manifest: Manifest) -> Checkpoint:
    size_bytes = sum(file.size_bytes for file in manifest.files)
    return Checkpoint(manifest.step, manifest.loss, size_bytes, manifest.create_time, manifest.is_last)


def _read_manifest(folder: Path) -> Manifest | None:
    with suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    return None


def _has_sizes(folder: Path, manifest: Manifest) -> bool:
    paths = {file.name: folder / file.name for file in manifest.files}
    return all(
        paths[f.name].is_file() and paths[f.name].stat().st_size == f.size_bytes for f in manifest.files
    )


def _has_digests(folder: Path, manifest: Manifest) -> bool:
    return all(_sha256(folder / file.name) == file.sha256 for file in manifest.files)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _drop(path: Path) -> None:
    # The manifest first: what is half gone must not look whole.
    with suppress(FileNotFoundError, NotADirectoryError):
        (path / MANIFEST).unlink()
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
