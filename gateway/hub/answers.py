"""What the Hub answers, as far as huggingface_hub and transformers read it. Names are the Hub's own.

https://huggingface.co/docs/hub/api tells of the calls; what comes back is as the Hub itself sends it.
"""

from collections.abc import Iterator
from typing import Literal

from google.protobuf.timestamp_pb2 import Timestamp

from gateway.hub.repo import Repo, folder_id, git_id, lfs_pointer, sha256_of
from gateway.openai.common import RequestModel, ResponseModel
from gateway.openai.models import plain_name
from lares.registry.v1 import registry_pb2 as pb
from services.kit import names

_PIPELINES = {
    pb.MODEL_KIND_TEXT_GENERATION: "text-generation",
    pb.MODEL_KIND_EMBEDDING: "feature-extraction",
    pb.MODEL_KIND_SPEECH_TO_TEXT: "automatic-speech-recognition",
    pb.MODEL_KIND_TEXT_TO_SPEECH: "text-to-speech",
    pb.MODEL_KIND_RERANKING: "text-ranking",
}


class InfoQuery(RequestModel):
    """blobs: also size and digest of each file."""

    blobs: bool = False


class TreeQuery(RequestModel):
    """recursive: also what lies in folders."""

    recursive: bool = False


class HubError(ResponseModel):
    """Why it was refused. The header x-error-code says it for programs."""

    error: str


class Lfs(ResponseModel):
    """A file's digest. pointerSize: of the text that git holds in its place."""

    sha256: str
    size: int
    pointerSize: int


class Sibling(ResponseModel):
    """A file; without `blobs` only its name. blobId: what git calls its pointer."""

    rfilename: str
    size: int | None = None
    blobId: str | None = None
    lfs: Lfs | None = None


class CardData(ResponseModel):
    """What the model's card says."""

    license: str | None


class Record(ResponseModel):
    """What Lares knows beside that, for another Lares to take over."""

    model: str
    version: str
    revision: str
    provider: str
    source: str
    kind: str
    capabilities: list[str]
    description: str
    languages: list[str]


class RepoInfo(ResponseModel):
    """A repository at one commit, `sha`."""

    id: str
    modelId: str
    sha: str
    createdAt: str
    lastModified: str
    private: bool = False
    gated: bool = False
    disabled: bool = False
    tags: list[str]
    pipeline_tag: str | None
    library_name: str | None
    cardData: CardData
    siblings: list[Sibling]
    lares: Record


class TreeLfs(ResponseModel):
    """A file's digest, which a tree calls oid."""

    oid: str
    size: int
    pointerSize: int


class TreeEntry(ResponseModel):
    """A file or a folder."""

    type: Literal["file", "directory"]
    path: str
    size: int
    oid: str
    lfs: TreeLfs | None = None


def repo_info(repo: Repo, *, blobs: bool) -> RepoInfo:
    """All of it. blobs: see InfoQuery."""
    model, version = repo.model, repo.version
    is_of_transformers = version.format in (pb.FORMAT_SAFETENSORS, pb.FORMAT_GGUF)
    return RepoInfo(
        id=repo.repo_id,
        modelId=repo.repo_id,
        sha=repo.commit,
        createdAt=_time(model.create_time),
        lastModified=_time(version.create_time),
        tags=[f"license:{model.license}"] if model.license else [],
        pipeline_tag=_PIPELINES.get(model.kind),
        library_name="transformers" if is_of_transformers else None,
        cardData=CardData(license=model.license or None),
        siblings=[_sibling(file) if blobs else Sibling(rfilename=file.path) for file in repo.files_in("")],
        lares=_record(model, version),
    )


def tree(repo: Repo, folder: str, *, recursive: bool) -> list[TreeEntry]:
    """What lies in a folder; an empty name is the root. Raises EntryNotFound."""
    files = repo.files_in(folder)
    entries: list[TreeEntry] = []
    folders: dict[str, list[pb.File]] = {}
    for file in files:
        above = list(_folders_between(folder, file.path))
        for each in above:
            folders.setdefault(each, []).append(file)
        if recursive or not above:
            entries.append(_file_entry(file))
    for path, inside in folders.items():
        if recursive or path.count("/") == (folder.count("/") + 1 if folder else 0):
            entries.append(TreeEntry(type="directory", path=path, size=0, oid=folder_id(inside)))
    return sorted(entries, key=lambda entry: entry.path)


def _folders_between(folder: str, path: str) -> Iterator[str]:
    """The folders that lie on the way from one to a file below it: for `a` and `a/b/c/d`, `a/b` and `a/b/c`."""
    end = path.find("/", len(folder) + 1 if folder else 0)
    while end >= 0:
        yield path[:end]
        end = path.find("/", end + 1)


def _file_entry(file: pb.File) -> TreeEntry:
    pointer = lfs_pointer(file)
    return TreeEntry(
        type="file",
        path=file.path,
        size=file.size_bytes,
        oid=git_id(pointer),
        lfs=TreeLfs(oid=sha256_of(file), size=file.size_bytes, pointerSize=len(pointer)),
    )


def _sibling(file: pb.File) -> Sibling:
    pointer = lfs_pointer(file)
    return Sibling(
        rfilename=file.path,
        size=file.size_bytes,
        blobId=git_id(pointer),
        lfs=Lfs(sha256=sha256_of(file), size=file.size_bytes, pointerSize=len(pointer)),
    )


def _record(model: pb.Model, version: pb.Version) -> Record:
    model_id, version_id = names.parse_version_name(version.name)
    return Record(
        model=model_id,
        version=version_id,
        revision=version.revision,
        provider=model.provider,
        source=version.source,
        kind=plain_name(pb.ModelKind.Name(model.kind), "MODEL_KIND_"),
        capabilities=[plain_name(pb.Capability.Name(item), "CAPABILITY_") for item in model.capabilities],
        description=model.description,
        languages=list(model.languages),
    )


def _time(timestamp: Timestamp) -> str:
    return f"{timestamp.ToDatetime().isoformat(timespec='milliseconds')}Z"
