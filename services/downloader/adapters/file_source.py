"""`file:`: a model that lies on this machine already."""

import asyncio
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from services.downloader.adapters.local_files import copy_file, path_of_url, plain_file
from services.downloader.adapters.takeover import LocalSide, local_root
from services.downloader.core.licenses import MAX_TEXT_BYTES, is_license, license_of_text
from services.downloader.core.models import LeftOut
from services.downloader.core.options import chosen_files
from services.downloader.core.paths import check_path
from services.downloader.core.selection import left_out, model_files
from services.downloader.core.sources import LocalFile, OnBytes, PullRequest, RemoteFile, Resolved
from services.kit.errors import InvalidReference, PermissionDenied, SourceNotFound, UnsupportedFormat

_MAX_FILES: Final = 10_000


class FileSource:
    """See `Source`. The path is one of the service's machine, which need not be the caller's."""

    async def resolve(self, request: PullRequest) -> Resolved:
        """List the model's files. Its version is told by their bytes."""
        return await asyncio.to_thread(
            _offer,
            request,
            lambda name, local: RemoteFile(name, local.as_uri(), size_bytes=local.stat().st_size),
        )

    async def latest(self, request: PullRequest) -> None:
        """None: its owner puts another file there, and says so by a pull."""
        return None

    async def fetch(self, file: RemoteFile, target: Path, on_bytes: OnBytes) -> str:
        """Copy a file: its owner may change it."""
        return await copy_file(path_of_url(file.url), target, on_bytes)

    async def unpack(
        self, request: PullRequest, fetched: Mapping[str, Path], folder: Path
    ) -> Sequence[LocalFile]:
        """They are what they are."""
        return [LocalFile(path, local) for path, local in fetched.items()]


def _license(files: Mapping[str, Path]) -> str:
    """As the folder states it: beside a GGUF file the text of a licence is not kept."""
    for name in sorted(filter(is_license, files)):
        with files[name].open("rb") as file:
            return license_of_text(file.read(MAX_TEXT_BYTES))
    return ""


class FileImport(LocalSide):
    """`file:` taken over: see `Source`. PullOptions.local_folder: the folder that the file or folder lies in, or is."""

    def _resolve(self, request: PullRequest) -> Resolved:
        root = local_root(request)
        return _offer(request, lambda name, local: self._remote_file(request, name, plain_file(root, local)))


def _offer(request: PullRequest, remote_file: Callable[[str, Path], RemoteFile]) -> Resolved:
    """remote_file: of (path in the model, where it lies)."""
    path = _path(request)
    found = _list(path)
    wanted = set(chosen_files(list(found), request.options, model_files))
    if not wanted:
        raise UnsupportedFormat(
            f"{path} holds no weights that Lares loads: GGUF, safetensors, CTranslate2 Whisper or Vosk"
        )
    return Resolved(
        source=f"file:{path}",
        revision="",
        version_id=None,
        files=tuple(remote_file(name, local) for name, local in sorted(found.items()) if name in wanted),
        license=_license(found),
        left_out=tuple(LeftOut(name, found[name]) for name in left_out(list(found))),
    )


def _path(request: PullRequest) -> Path:
    path = Path(request.refs[0].name)
    if not path.is_absolute():
        raise InvalidReference(f"'{request.refs[0]}' must have an absolute path, such as file:/models/x.gguf")
    return path


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
