"""`hf:` out of a Hugging Face cache of this machine. The network is never asked.

    <cache>/models--org--repo/refs/<branch>                 the commit that it was, at the last download
    <cache>/models--org--repo/trees/<commit>.json           all files of the commit; only some downloads leave it
    <cache>/models--org--repo/snapshots/<commit>/<path>     a link to the blob; a file where there are no links
    <cache>/models--org--repo/blobs/<sha256 or git id>      the bytes, or a link into
    <cache>/blobs/<2>/<64 hex>                              what repositories share

As huggingface_hub 2.4 writes it (`file_download`, `_tree_cache`, `utils/_shared_blobs`), and those before it, which
have neither trees nor shared blobs. A cache is not trusted: no link is followed out of it.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from services.downloader.adapters.hf_source import COMMIT, version_id_of
from services.downloader.adapters.http_client import MAX_DOCUMENT_BYTES
from services.downloader.adapters.local_files import plain_file
from services.downloader.adapters.takeover import LocalSide, local_root
from services.downloader.core.models import LeftOut
from services.downloader.core.options import chosen_files
from services.downloader.core.paths import check_paths
from services.downloader.core.selection import hub_files, left_out, quantization_of
from services.downloader.core.sources import PullRequest, RemoteFile, Resolved
from services.downloader.core.wholeness import missing_file
from services.kit.errors import InvalidReference, LaresError, SourceNotFound, Unpinned, UnsupportedFormat
from services.kit.names import ModelRef

_TREE_VERSION: Final = 1
_MAX_FILES: Final = 10_000
_REPOSITORY: Final = re.compile(r"models--(?P<name>.+)")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_GIT_ID: Final = re.compile(r"[0-9a-f]{40}")
_LICENSE: Final = re.compile(r"^license:[ \t]*['\"]?([A-Za-z0-9.+_-]{1,120})", re.MULTILINE)


class HfCache(LocalSide):
    """See `Source`. PullOptions.local_folder: the cache, such as ~/.cache/huggingface/hub."""

    def _resolve(self, request: PullRequest) -> Resolved:
        """The files of one commit, as the hub would tell them.

        Raises Unpinned, with the commit that is here, for a branch; SourceNotFound, with the file, for what was not
        downloaded whole.
        """
        ref, root = request.refs[0], local_root(request)
        snapshot = _Snapshot(root, ref.name, _commit(root, ref))
        names = chosen_files(snapshot.names, request.options, lambda paths: hub_files(paths, ref.tag))
        check_paths(names)
        if snapshot.tree is None:
            _check_wholeness(ref, snapshot, names)
        return Resolved(
            source=str(ModelRef("hf", ref.name, tag=ref.tag, revision=snapshot.commit)),
            revision=snapshot.commit,
            version_id=version_id_of(ref, snapshot.commit),
            files=tuple(self._file(request, snapshot, name) for name in names),
            license=snapshot.license(),
            left_out=tuple(LeftOut(name) for name in left_out(snapshot.names)),
        )

    def _file(self, request: PullRequest, snapshot: "_Snapshot", name: str) -> RemoteFile:
        local = snapshot.file(name)
        size_bytes, sha256, git_id = snapshot.told(name)
        file = self._remote_file(request, name, local, sha256=sha256, git_id=git_id)
        if size_bytes not in (None, file.size_bytes):
            raise SourceNotFound(
                f"{name} of {request.refs[0]} has {file.size_bytes} of {size_bytes} bytes in {snapshot.folder}: it was"
                " not downloaded whole"
            )
        return file


def repositories(root: Path) -> Iterator[tuple[str, str]]:
    """(name, commit) of every snapshot in a cache, in order. Raises PermissionError."""
    for repository in sorted(root.iterdir()):
        match = _REPOSITORY.fullmatch(repository.name)
        snapshots = repository / "snapshots"
        if match is None or repository.is_symlink() or not snapshots.is_dir():
            continue
        for snapshot in sorted(snapshots.iterdir()):
            if COMMIT.fullmatch(snapshot.name) and snapshot.is_dir() and not snapshot.is_symlink():
                yield match["name"].replace("--", "/"), snapshot.name


def references(root: Path, name: str, commit: str) -> list[ModelRef]:
    """What can be asked for of a snapshot: the whole, or each quantization of GGUF files. Raises InvalidReference."""
    ref = ModelRef.parse(f"hf:{name}@{commit}")
    names = _Snapshot(root, name, commit).present()
    ggufs = [path for path in names if path.lower().endswith(".gguf") and "mmproj" not in path.lower()]
    tags = sorted({quantization_of(path) for path in ggufs})
    found = [ModelRef("hf", ref.name, tag=tag or None, revision=commit) for tag in tags]
    has_tensors = any("/" not in path and path.endswith(".safetensors") for path in names)
    return [ref, *(each for each in found if each != ref)] if has_tensors or not found else found


class _Snapshot:
    """One commit in a cache."""

    def __init__(self, root: Path, name: str, commit: str) -> None:
        self._root = root
        self._repository = root / f"models--{name.replace('/', '--')}"
        self.commit = commit
        self.folder = self._repository / "snapshots" / commit
        self.tree = self._tree()

    @property
    def names(self) -> list[str]:
        """Of the commit's files; of those that were downloaded, where no more is known."""
        return sorted(self.tree) if self.tree is not None else self.present()

    def present(self) -> list[str]:
        """Names of the files that are here. Raises SourceNotFound, UnsupportedFormat."""
        if not self.folder.is_dir() or self.folder.is_symlink():
            raise SourceNotFound(f"{self.folder} is not there; `lares import` lists what is")
        found = []
        for entry in self.folder.rglob("*"):
            if entry.is_symlink() or not entry.is_dir():
                found.append(entry.relative_to(self.folder).as_posix())
            if len(found) > _MAX_FILES:
                raise UnsupportedFormat(
                    f"{self.folder} holds more than {_MAX_FILES} files, so it is no model"
                )
        return sorted(found)

    def file(self, name: str) -> Path:
        """Where it lies. Raises SourceNotFound, UnsupportedFormat."""
        try:
            return plain_file(self._root, self.folder / name)
        except SourceNotFound as error:
            raise SourceNotFound(
                f"{name} is not in {self.folder}: the model was not downloaded whole"
            ) from error

    def told(self, name: str) -> tuple[int | None, str | None, str | None]:
        """(size, sha256, git id) of a file, as far as the tree or the name of its blob tells them."""
        match (self.tree or {}).get(name):
            case {"lfs_sha256": str(sha256), "size": int(size)}:
                return size, sha256, None
            case {"blob_id": str(git_id), "size": int(size)}:
                return size, None, git_id
        pointer = self.folder / name
        blob = pointer.readlink().name if pointer.is_symlink() else ""
        return (
            None,
            blob if _SHA256.fullmatch(blob) else None,
            blob if _GIT_ID.fullmatch(blob) else None,
        )

    def license(self) -> str:
        """As the model's card states it, if that is here."""
        head = self.read("README.md").decode("utf-8", "replace").removeprefix("---\n").partition("\n---")[0]
        match = _LICENSE.search(head)
        return match[1] if match else ""

    def read(self, name: str) -> bytes:
        """A small file; empty if it is not here or not small."""
        return _read(self._root, self.folder / name)

    def _tree(self) -> Mapping[str, Any] | None:
        body = _read(self._root, self._repository / "trees" / f"{self.commit}.json")
        match _json(body):
            case {"format_version": version, "files": dict(files)} if version == _TREE_VERSION:
                return files
        return None


def _commit(root: Path, ref: ModelRef) -> str:
    """Raises Unpinned, SourceNotFound."""
    if ref.revision is not None and COMMIT.fullmatch(ref.revision):
        return ref.revision
    branch = root / f"models--{ref.name.replace('/', '--')}" / "refs" / (ref.revision or "main")
    commit = _read(root, branch).decode("ascii", "replace").strip()
    if not COMMIT.fullmatch(commit):
        raise SourceNotFound(f"{ref} is not in {root}; `lares import` lists what is")
    pinned = ModelRef("hf", ref.name, tag=ref.tag, revision=commit)
    raise Unpinned(
        f"'{ref}' names no commit; import {pinned}, which it was when it was downloaded",
        metadata={"source": str(pinned)},
    )


def _check_wholeness(ref: ModelRef, snapshot: _Snapshot, names: list[str]) -> None:
    """That nothing is missing, as far as what is here can tell."""
    quantization = quantization_of(names[0]) if names[0].lower().endswith(".gguf") else ""
    if quantization and ref.tag is None:
        pinned = ModelRef("hf", ref.name, tag=quantization, revision=snapshot.commit)
        raise InvalidReference(f"'{ref}' may have other files than those that are here; import {pinned}")
    indexes = [_json(snapshot.read(name)) for name in names if name.endswith(".safetensors.index.json")]
    if missing := missing_file(names, indexes):
        raise SourceNotFound(f"{missing} is not in {snapshot.folder}: the model was not downloaded whole")


def _read(root: Path, path: Path) -> bytes:
    try:
        file = plain_file(root, path)
        with file.open("rb") as opened:
            body = opened.read(MAX_DOCUMENT_BYTES + 1)
    except (LaresError, OSError):
        return b""
    return body if len(body) <= MAX_DOCUMENT_BYTES else b""


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None
