"""A version of a model as a repository of the Hub at one commit."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from lares.registry.v1 import registry_pb2 as pb
from services.kit import names
from services.kit.errors import EntryNotFound, LaresError, ModelNotFound
from services.kit.manifest import manifest_digest
from services.kit.names import ModelRef

MAIN: Final = "main"
"""The revision that stands for the version that answers."""

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_COMMIT_CHARS: Final = 40


def reference_of(repo_id: str) -> str:
    """What the registry calls it: `model-id` is a served name, `org/name` what was pulled from there.

    Raises ModelNotFound for what is neither.
    """
    try:
        if "/" not in repo_id:
            return names.parse_id(repo_id)
        ref = ModelRef.parse(f"hf:{repo_id}")
    except LaresError:
        raise ModelNotFound.named(repo_id[:200]) from None
    if ref.name != repo_id:  # A tag or a revision is no part of a repository's name.
        raise ModelNotFound.named(repo_id[:200])
    return str(ref)


def commit_of(version: pb.Version) -> str:
    """40 hex digits that stand for a version: the commit it was pulled at, else its manifest's digest, cut."""
    if _COMMIT.fullmatch(version.revision):
        return version.revision
    return manifest_digest(version.files)[:_COMMIT_CHARS]


def is_called(version: pb.Version, revision: str) -> bool:
    """Whether a revision means that version: by its id, or by its commit."""
    _, version_id = names.parse_version_name(version.name)
    return revision == version_id or (bool(_COMMIT.fullmatch(revision)) and revision == commit_of(version))


@dataclass(frozen=True)
class Repo:
    """What was asked for by a repository's name and a revision. repo_id: as the client spells it."""

    repo_id: str
    model: pb.Model
    version: pb.Version

    @cached_property
    def commit(self) -> str:
        """See `commit_of`."""
        return commit_of(self.version)

    @cached_property
    def _by_path(self) -> dict[str, pb.File]:
        return {file.path: file for file in self.version.files}

    def file(self, path: str) -> pb.File:
        """One of its files. Raises EntryNotFound, whose metadata has the commit."""
        if path not in self._by_path:
            raise self.lacks(path)
        return self._by_path[path]

    def files_in(self, folder: str) -> list[pb.File]:
        """The files below a folder; an empty name is the root. Raises EntryNotFound."""
        beginning = f"{folder}/" if folder else ""
        found = [file for file in self.version.files if file.path.startswith(beginning)]
        if folder and not found:
            raise self.lacks(folder)
        return sorted(found, key=lambda file: file.path)

    def lacks(self, path: str) -> EntryNotFound:
        """The error that says so."""
        return EntryNotFound(
            f"{self.version.name} has no file '{path[:200]}'",
            metadata={"path": path, "commit": self.commit},
        )


def etag_of(file: pb.File) -> str:
    """A file's ETag, quoted: its sha256, as the Hub says it of what lies in LFS."""
    return f'"{sha256_of(file)}"'


def sha256_of(file: pb.File) -> str:
    """In hex."""
    return file.digest.removeprefix("sha256:")


def lfs_pointer(file: pb.File) -> bytes:
    """What git holds in the place of a file that lies in LFS: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md."""
    lines = ("version https://git-lfs.github.com/spec/v1", f"oid {file.digest}", f"size {file.size_bytes}")
    return "".join(f"{line}\n" for line in lines).encode()


def git_id(content: bytes) -> str:
    """What git calls a file of that content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def folder_id(files: Iterable[pb.File]) -> str:
    """40 hex digits that stand for a folder's files."""
    return manifest_digest(files)[:_COMMIT_CHARS]
