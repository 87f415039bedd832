"""`file:`: a model that lies on this machine already."""

import asyncio
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from services.downloader.adapters.local_files import copy_file, path_of_url, plain_file
from services.downloader.adapters.takeover import LocalSide, local_root
from services.downloader.core.paths import check_path
from services.downloader.core.ports import LocalFile, OnBytes, PullRequest, RemoteFile, Resolved
from services.downloader.core.selection import model_files
from services.kit.errors import InvalidReference, PermissionDenied, SourceNotFound, UnsupportedFormat

_MAX_FILES: Final = 10_000


class FileSource:
    """See `Source`. The path is one of the service's machine, which need not be the caller's."""

    async def resolve(self, request: PullRequest) -> Resolved:
        """List the model's files. Its version is told by their bytes."""
        path = _path(request)
        files = tuple(
            RemoteFile(name, local.as_uri(), size_bytes=local.stat().st_size)
            for name, local in await asyncio.to_thread(_chosen, request, path)
        )
        return Resolved(source=f"file:{path}", revision="", version_id=None, files=files)

    async def fetch(self, file: RemoteFile, target: Path, on_bytes: OnBytes) -> str:
        """Copy a file: its owner may change it."""
        return await copy_file(path_of_url(file.url), target, on_bytes)

    async def unpack(
        self, request: PullRequest, fetched: Mapping[str, Path], folder: Path
    ) -> Sequence[LocalFile]:
        """They are what they are."""
        return [LocalFile(path, local) for path, local in fetched.items()]


class FileImport(LocalSide):
    """`file:` taken over: see `Source`. PullOptions.local_folder: the folder that the file or folder lies in, or is."""

    def _resolve(self, request: PullRequest) -> Resolved:
        root, path = local_root(request), _path(request)
        files = tuple(
            self._remote_file(request, name, plain_file(root, local))
            for name, local in _chosen(request, path)
        )
        return Resolved(source=f"file:{path}", revision="", version_id=None, files=files)


def _path(request: PullRequest) -> Path:
    path = Path(request.refs[0].name)
    if not path.is_absolute():
        raise InvalidReference(f"'{request.refs[0]}' must have an absolute path, such as file:/models/x.gguf")
    return path


def _chosen(request: PullRequest, path: Path) -> list[tuple[str, Path]]:
    """(path in the model, where it lies), in order."""
    found = _list(path)
    wanted = set(model_files(found))
    if not wanted:
        raise UnsupportedFormat(
            f"{path} holds no weights that Lares loads: GGUF, safetensors, CTranslate2 Whisper or Vosk"
        )
    return sorted((name, local) for name, local in found.items() if name in wanted)


def _list(path: Path) -> dict[str, Path]:
    """Path in the model -> file. Links that lead out of the folder, devices and pipes are refused."""
    try:
        root = path.resolve(strict=True)
        mode = root.stat().st_mode
    except (OSError, ValueError, RuntimeError) as error:
        raise SourceNotFound(f"there is no {path} on the machine of this service") from error
    if stat.S_ISREG(mode):
        return {check_path(path.name): root}
    if not stat.S_ISDIR(mode):
        raise UnsupportedFormat(f"{path} is neither a file nor a folder")
    found: dict[str, Path] = {}
    try:
        for entry in sorted(root.rglob("*")):
            if entry.is_dir() and not entry.is_symlink():
                continue
            found[check_path(entry.relative_to(root).as_posix())] = plain_file(root, entry)
            if len(found) > _MAX_FILES:
                raise UnsupportedFormat(f"{path} holds more than {_MAX_FILES} files, so it is no model")
    except PermissionError as error:
        raise PermissionDenied(f"{error.filename} may not be read by this service") from error
    return found
